// The proof of guarded arenas: a helper thread does what a program does.
#include <sys/mman.h>
#include <sys/syscall.h>

#include <atomic>
#include <cstring>

#include "linux/guard_signal.h"
#include "linux/guarded_mmu.h"
#include "linux/plain.h"
#include "linux/raw_clone.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr std::size_t kStackBytes = 64 * 1024;
constexpr std::int64_t kPatience = 1'000'000'000;  // for what takes some 100 us
constexpr unsigned char kMark = 0xa7;

struct Errand {
  volatile unsigned char* touch = nullptr;
  volatile int seen = -1;
};

[[maybe_unused]] WHIMBREL_PLAIN void run_errand(void* argument) {
  constexpr unsigned long kSegv = 1ul << 10;  // as a set of signals
  auto* errand = static_cast<Errand*>(argument);
  plain_call(SYS_rt_sigprocmask, 1, reinterpret_cast<long>(&kSegv), 0, sizeof kSegv, 0);  // unblock
  errand->seen = *errand->touch;
}

// What the helper touches, with contents; then out again.
[[maybe_unused]] Result<void> serve(GuardedMmu& mmu, PageIndex page, std::byte* buffer) noexcept {
  if (!mmu.wait_for_message(kPatience)) return fail(Errc::kNotSupported, 0, "SIGSEGV of an arena");
  Message message;
  if (mmu.read_messages({&message, 1}) != 1 || PageIndex::of(message.address) != page) {
    return fail(Errc::kNotSupported, 0, "SIGSEGV of an arena");
  }
  std::memset(buffer, kMark, kPageSize);
  const Progress in = mmu.copy(page, buffer, PageCount(1), Wake::kYes);
  if (in.failed) return std::unexpected(in.error);
  return {};
}

}  // namespace

Result<void> prove_guarded_arenas(MemorySource& memory) noexcept {
  const Result<GuardedMmu*> made = GuardedMmu::create(memory, {.window_bytes = 4 * kHugeSize});
  if (!made) return std::unexpected(made.error());
  GuardedMmu& mmu = **made;
  const Result<PageRange> arena = mmu.make_arena(kHugeSize);
  const Result<PageRange> window = mmu.open_window(PageCount(1), WindowKind::kSmall);
  const Result<void*> stack = sys::mmap(nullptr, kStackBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE);
  Result<void> proved = guard_signal::install();
  if (proved && !arena) proved = std::unexpected(arena.error());
  if (proved && (!window || !stack)) proved = fail(Errc::kNoMemory, 0, "scratch memory for the proof");
  if (proved) {
#if !defined(__SANITIZE_THREAD__)
    Errand errand{reinterpret_cast<volatile unsigned char*>(arena->first.address().raw() + 5)};
    std::atomic<std::uint32_t> thread{0};
    RawClone helper;
    helper.body = run_errand;
    helper.argument = &errand;
    helper.stack_end = static_cast<std::byte*>(*stack) + kStackBytes;
    helper.thread_id = &thread;
    proved = raw_clone(helper);
    if (proved) {
      proved = serve(mmu, arena->first, mmu.bytes(window->first));
      // Where nobody told us, it must not wait for ever on a stack that is about to go.
      if (!proved) (void)mmu.zero(arena->first, PageCount(1), Wake::kYes);
      (void)wait_raw_thread(thread);
      if (proved && errand.seen != kMark) proved = fail(Errc::kCorrupt, 0, "contents of an arena");
    }
#else
    // It keeps handlers off threads that it does not know.
    std::memset(mmu.bytes(window->first), kMark, kPageSize);
    if (mmu.copy(arena->first, mmu.bytes(window->first), PageCount(1), Wake::kYes).failed) proved = fail(Errc::kNotSupported);
#endif
    if (proved) {
      (void)mmu.discard(*window);
      const Progress out = mmu.move(window->first, arena->first, PageCount(1), Wake::kNo);
      const bool right = !out.failed && mmu.bytes(window->first)[5] == std::byte{kMark} && mmu.open_runs() == 0;
      if (!right) proved = fail(Errc::kNotSupported, 0, "moving out of an arena");
    }
  }
  if (stack) sys::munmap(*stack, kStackBytes);
  if (window) mmu.close_window(*window);
  mmu.destroy();
  return proved;
}

}  // namespace whimbrel
