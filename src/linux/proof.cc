// The proof of a rung: a helper thread does to scratch memory what a program does, and every message it causes must
// arrive and be answerable.
#include <linux/userfaultfd.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <time.h>

#include <atomic>
#include <cstddef>
#include <cstring>

#include "linux/clock.h"
#include "linux/plain.h"
#include "linux/raw_clone.h"
#include "linux/sys.h"
#include "linux/uapi.h"
#include "linux/userfault.h"
#include "mm/address.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kPatience = 1'000'000'000;  // for the whole errand; it takes some 100 us
constexpr int kMark = 0xa7;

// Pages of the scratch mapping, by what happens to them.
enum Slot : std::size_t { kMoved, kTouched, kBySystemCall, kProtected, kDropped, kPoisoned, kRemapped, kSlots };

struct Scratch {
  static constexpr std::size_t kStackBytes = 32 * 1024;
  std::byte* home = nullptr;
  std::byte* window = nullptr;
  std::byte* elsewhere = nullptr;  // where kRemapped goes
  std::byte* source = nullptr;     // one page of kMark for COPY
  std::byte* stack = nullptr;      // of the helper

  Scratch() = default;
  Scratch(const Scratch&) = delete;
  Scratch& operator=(const Scratch&) = delete;
  ~Scratch() {
    unmap(home, kSlots * kPageSize);
    unmap(window, kPageSize);
    unmap(elsewhere, kPageSize);
    unmap(source, kPageSize);
    unmap(stack, kStackBytes);
  }
  bool open() noexcept {
    home = map(kSlots * kPageSize);
    window = map(kPageSize);
    elsewhere = map(kPageSize);
    source = map(kPageSize);
    stack = map(kStackBytes);
    if (home == nullptr || window == nullptr || elsewhere == nullptr || source == nullptr || stack == nullptr) {
      return false;
    }
    std::memset(source, kMark, kPageSize);
    *page(kMoved) = std::byte{kMark};
    *page(kProtected) = std::byte{1};
    return true;
  }
  [[nodiscard]] std::byte* page(Slot slot) const noexcept { return home + slot * kPageSize; }

 private:
  static std::byte* map(std::size_t bytes) noexcept {
    const Result<void*> memory = sys::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
    if (!memory) return nullptr;
    // A huge page would be moved, split and protected as a whole: keep every page for itself. It also keeps the
    // scratch mappings from merging with those of the program.
    (void)sys::madvise(*memory, bytes, MADV_NOHUGEPAGE);
    return static_cast<std::byte*>(*memory);
  }
  static void unmap(std::byte* at, std::size_t bytes) noexcept {
    if (at != nullptr) sys::munmap(at, bytes);
  }
};

// What the helper does, in this order, and what it saw.
struct Errand {
  volatile unsigned char* touch = nullptr;
  void* by_system_call = nullptr;
  volatile unsigned char* write = nullptr;
  std::byte* drop = nullptr;
  std::byte* remap = nullptr;
  std::byte* elsewhere = nullptr;
  std::byte* home = nullptr;
  volatile int seen = -1;
  volatile long system_call_result = -1;
  volatile long unmapped = -1;
};

WHIMBREL_PLAIN void run_errand(void* argument) {
  auto* errand = static_cast<Errand*>(argument);
  errand->seen = *errand->touch;
  errand->system_call_result =
      plain_call(SYS_clock_gettime, CLOCK_MONOTONIC, reinterpret_cast<long>(errand->by_system_call), 0, 0, 0);
  *errand->write = 2;
  plain_call(SYS_madvise, reinterpret_cast<long>(errand->drop), kPageSize, MADV_DONTNEED, 0, 0);
  plain_call(SYS_mremap, reinterpret_cast<long>(errand->remap), kPageSize, kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED,
             reinterpret_cast<long>(errand->elsewhere));
  errand->unmapped = plain_call(SYS_munmap, reinterpret_cast<long>(errand->home), kSlots * kPageSize, 0, 0, 0);
}

class Prover {
 public:
  Prover(Rung rung, const UserfaultRequest& request) noexcept : rung_(rung), request_(request) {}

  Proof run() noexcept {
    const Result<Userfault> opened = open_userfault(rung_, request_);
    if (!opened) {
      note(opened.error());
      return proof_;
    }
    proof_.opened = true;
    fd_ = opened->fd;
    proof_.features = opened->features;
    if (!scratch_.open()) {
      note({Errc::kNoMemory, 0, "scratch memory for the proof"});
    } else if (watch()) {
      move_and_copy();
      poison();
      protect();
      serve();
    }
    if (fd_ >= 0) sys::close(fd_);
    return proof_;
  }

 private:
  void note(const Error& error) noexcept {
    if (proof_.failure.where[0] == 0) proof_.failure = error;
  }
  bool ask(unsigned long request, void* argument, const char* where) noexcept {
    const Result<long> answer = sys::ioctl(fd_, request, argument, where);
    if (!answer) note(answer.error());
    return answer.has_value();
  }
  static std::uint64_t at(const void* p) noexcept { return VirtualAddress(p).raw(); }

  bool watch() noexcept {
    const bool protect = (proof_.features & uapi::kFeaturePagefaultWp) != 0;
    uffdio_register home{};
    home.range = {at(scratch_.home), kSlots * kPageSize};
    home.mode = UFFDIO_REGISTER_MODE_MISSING | (protect ? UFFDIO_REGISTER_MODE_WP : 0);
    uffdio_register window{};
    window.range = {at(scratch_.window), kPageSize};
    window.mode = UFFDIO_REGISTER_MODE_MISSING;
    return ask(UFFDIO_REGISTER, &home, "UFFDIO_REGISTER") && ask(UFFDIO_REGISTER, &window, "UFFDIO_REGISTER");
  }

  bool copy_to(std::uint64_t address) noexcept {
    uffdio_copy copy{};
    copy.dst = address;
    copy.src = at(scratch_.source);
    copy.len = kPageSize;
    return ask(UFFDIO_COPY, &copy, "UFFDIO_COPY");
  }

  void move_and_copy() noexcept {
    uapi::UffdioMove move{at(scratch_.window), at(scratch_.page(kMoved)), kPageSize, 0, 0};
    if ((proof_.features & uapi::kFeatureMove) == 0) {
      note({Errc::kNotSupported, 0, "UFFDIO_MOVE"});
    } else if (ask(uapi::kUffdioMove, &move, "UFFDIO_MOVE")) {
      proof_.move = *scratch_.window == std::byte{kMark};
    }
    // Without MOVE the page is still there: any empty one does.
    proof_.copy = copy_to(at(scratch_.page(proof_.move ? kMoved : kDropped)));
  }

  void poison() noexcept {
    if ((proof_.features & uapi::kFeaturePoison) == 0) return;
    uapi::UffdioPoison poison{{at(scratch_.page(kPoisoned)), kPageSize}, 0, 0};
    proof_.poison = ask(uapi::kUffdioPoison, &poison, "UFFDIO_POISON");
  }

  bool write_protect(bool on) noexcept {
    uffdio_writeprotect protect{};
    protect.range = {at(scratch_.page(kProtected)), kPageSize};
    protect.mode = on ? UFFDIO_WRITEPROTECT_MODE_WP : 0;
    return ask(UFFDIO_WRITEPROTECT, &protect, "UFFDIO_WRITEPROTECT");
  }
  void protect() noexcept {
    if ((proof_.features & uapi::kFeaturePagefaultWp) == 0) return;
    // In asynchronous mode no message comes: that the call works is all there is to see here.
    const bool works = write_protect(true);
    proof_.write_protect = works && (proof_.features & uapi::kFeatureWpAsync) != 0;
  }

  void serve() noexcept {
    Errand errand;
    errand.touch = reinterpret_cast<unsigned char*>(scratch_.page(kTouched));
    errand.by_system_call = scratch_.page(kBySystemCall);
    errand.write = reinterpret_cast<unsigned char*>(scratch_.page(kProtected));
    errand.drop = scratch_.page(kDropped);
    errand.remap = scratch_.page(kRemapped);
    errand.elsewhere = scratch_.elsewhere;
    errand.home = scratch_.home;
    std::atomic<std::uint32_t> helper{0};
    RawClone thread;
    thread.body = run_errand;
    thread.argument = &errand;
    thread.stack_end = scratch_.stack + Scratch::kStackBytes;
    thread.thread_id = &helper;
    const Result<void> started = raw_clone(thread);
    if (!started) {
      note(started.error());
      return;
    }
    SystemClock clock;
    const std::int64_t deadline = clock.now_ns() + kPatience;
    while (helper.load(std::memory_order_acquire) != 0 && clock.now_ns() < deadline) {
      // Unmapping is the last thing it does: nothing more will come.
      unmapped_ ? static_cast<void>(wait_raw_thread(helper, kPatience)) : answer_one();
    }
    if (helper.load(std::memory_order_acquire) != 0) {
      note({Errc::kGone, 0, "a userfaultfd message did not arrive"});
      // Closing the last descriptor lets everybody go who waits for it.
      sys::close(fd_);
      fd_ = -1;
      wait_raw_thread(helper);
    }
    if (errand.unmapped == 0) scratch_.home = nullptr;
    proof_.faults = touched_ && errand.seen == kMark;
    proof_.kernel_faults = by_system_call_ && errand.system_call_result == 0;
    proof_.events = removed_ && remapped_ && unmapped_;
  }

  // Waits a little for one message and answers it.
  void answer_one() noexcept {
    pollfd ready{fd_, POLLIN, 0};
    const Result<int> count = sys::poll(&ready, 1, 2'000'000);
    if (!count || *count == 0) return;
    uffd_msg message{};
    const Result<std::size_t> got = sys::read(fd_, &message, sizeof message);
    if (!got || *got != sizeof message) return;
    switch (message.event) {
      case UFFD_EVENT_PAGEFAULT:
        answer_fault(message);
        break;
      case UFFD_EVENT_REMOVE:
        removed_ = true;
        break;
      case UFFD_EVENT_REMAP:
        remapped_ = true;
        break;
      case UFFD_EVENT_UNMAP:  // moving a mapping unmaps its old place as well
        unmapped_ = message.arg.remove.end - message.arg.remove.start == kSlots * kPageSize;
        break;
      default:
        break;
    }
  }
  void answer_fault(const uffd_msg& message) noexcept {
    const std::uint64_t page = message.arg.pagefault.address & ~std::uint64_t{kPageSize - 1};
    if ((message.arg.pagefault.flags & UFFD_PAGEFAULT_FLAG_WP) != 0) {
      proof_.write_protect = write_protect(false);
      return;
    }
    if (page == at(scratch_.page(kTouched))) touched_ = true;
    if (page == at(scratch_.page(kBySystemCall))) by_system_call_ = true;
    copy_to(page);
  }

  Rung rung_;
  const UserfaultRequest& request_;
  Scratch scratch_;
  Proof proof_;
  int fd_ = -1;
  bool touched_ = false;
  bool by_system_call_ = false;
  bool removed_ = false;
  bool remapped_ = false;
  bool unmapped_ = false;
};

}  // namespace

Proof prove(Rung rung, const UserfaultRequest& request) noexcept { return Prover(rung, request).run(); }

Ladder climb(const UserfaultRequest& request, const LadderRules& rules) noexcept {
  Ladder ladder;
  for (int i = 0; i < 3; ++i) {
    if (ladder.chosen >= 0 && !rules.prove_all) break;
    const bool allowed = kRungs[i] != Rung::kUserModeOnly || rules.allow_user_mode_only;
    if (!allowed && !rules.prove_all) continue;
    const Proof& proof = ladder.proofs[i] = prove(kRungs[i], request);
    if (i == 0) ladder.first_failure = proof.failure;
    const bool works = proof.serves() && (proof.move || !rules.require_move);
    if (works && allowed && ladder.chosen < 0) ladder.chosen = i;
  }
  return ladder;
}

}  // namespace whimbrel
