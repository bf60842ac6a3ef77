#include "linux/raw_engine_threads.h"

#include <link.h>
#include <sys/mman.h>

#include "base/check.h"
#include "linux/raw_clone.h"
#include "linux/sys.h"
#include "mm/address.h"

namespace whimbrel {
namespace {

constexpr std::size_t kGuardBytes = 16 * 1024;
// Above the thread pointer lies libc's thread descriptor (2.3 KiB in use); code that looks there finds zeros.
constexpr std::size_t kControlBytes = 4096;
constexpr std::size_t kLeastTls = 64 * 1024;
constexpr std::size_t kTlsSurplus = 8 * 1024;  // for libraries loaded later that got static space

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

// The static thread-local storage of everything loaded, which lies just below the thread pointer. A zeroed area of at
// least that size is enough: what engine code uses of it (errno of libc, at most) starts at zero.
std::size_t static_tls_bytes() noexcept {
  std::size_t total = 0;
  dl_iterate_phdr(
      [](dl_phdr_info* info, std::size_t, void* sum) {
        for (int i = 0; i < info->dlpi_phnum; ++i) {
          const auto& header = info->dlpi_phdr[i];
          if (header.p_type == PT_TLS) *static_cast<std::size_t*>(sum) += header.p_memsz + header.p_align;
        }
        return 0;
      },
      &total);
  const std::size_t needed = round_up(total + kTlsSurplus, kPageSize);
  return needed < kLeastTls ? kLeastTls : needed;
}

// The words of the thread control block that compiled code relies on (x86-64 ABI).
struct ControlBlock {
  void* self;  // read by every access to a thread-local
  void* dtv;
  void* thread;  // itself once more
  std::uint64_t other[2];
  std::uint64_t stack_protector;
  std::uint64_t pointer_guard;
};
static_assert(offsetof(ControlBlock, thread) == 0x10 && offsetof(ControlBlock, stack_protector) == 0x28 &&
              offsetof(ControlBlock, pointer_guard) == 0x30);

void fill_control_block(std::byte* at) noexcept {
  auto* const block = ::new (static_cast<void*>(at)) ControlBlock{};
  block->self = at;
  block->thread = at;
  __asm__("movq %%fs:0x28, %0" : "=r"(block->stack_protector));
  __asm__("movq %%fs:0x30, %0" : "=r"(block->pointer_guard));
}

}  // namespace

RawEngineThreads::RawEngineThreads(MemorySource& memory, const EngineThreadOptions& options) noexcept
    : memory_(memory), options_(options), tls_bytes_(static_tls_bytes()) {}

RawEngineThreads::~RawEngineThreads() {
  for (const Slot& slot : slots_) CHECK(slot.block == nullptr, "an engine thread was not joined");
}

std::size_t RawEngineThreads::block_bytes() const noexcept {
  return kGuardBytes + round_up(options_.stack_bytes, kPageSize) + tls_bytes_ + kControlBytes;
}

std::byte* RawEngineThreads::make_block() noexcept {
  auto* const block = static_cast<std::byte*>(memory_.take(block_bytes()));
  if (block == nullptr) return nullptr;
  if (!sys::mprotect(block, kGuardBytes, PROT_NONE)) {
    memory_.give(block, block_bytes());
    return nullptr;
  }
  fill_control_block(block + block_bytes() - kControlBytes);
  return block;
}

void RawEngineThreads::free_block(std::byte* block) noexcept {
  CHECK(sys::mprotect(block, kGuardBytes, PROT_READ | PROT_WRITE), "a stack guard cannot be taken back");
  memory_.give(block, block_bytes());
}

void RawEngineThreads::keep_also(std::span<const int> numbers) noexcept {
  CHECK(numbers.size() <= kMostKept);
  kept_count_ = 0;
  for (const int number : numbers) {
    std::size_t at = kept_count_++;
    for (; at > 0 && kept_[at - 1] > number; --at) kept_[at] = kept_[at - 1];
    kept_[at] = number;
  }
}

void RawEngineThreads::close_all_but_kept() const noexcept {
  unsigned from = 0;  // everything below has been looked at
  const auto keep = [&from](int first, int end) {
    if (static_cast<unsigned>(first) > from) sys::close_range(from, static_cast<unsigned>(first) - 1);
    if (static_cast<unsigned>(end) > from) from = static_cast<unsigned>(end);
  };
  std::size_t next = 0;
  const Descriptors::Span span = options_.keep;
  if (span.end > span.first) {
    for (; next < kept_count_ && kept_[next] < span.first; ++next) keep(kept_[next], kept_[next] + 1);
    keep(span.first, span.end);
  }
  for (; next < kept_count_; ++next) keep(kept_[next], kept_[next] + 1);
  sys::close_range(from, ~0u);
}

void RawEngineThreads::run(void* slot_pointer) {
  const auto* const slot = static_cast<const Slot*>(slot_pointer);
  if (slot->first) slot->owner->close_all_but_kept();
  slot->body(slot->argument);
}

Result<int> RawEngineThreads::start(Body body, void* argument, bool first) noexcept {
  std::byte* const block = make_block();
  if (block == nullptr) return fail(Errc::kNoMemory, 0, "stack of an engine thread");
  int n = 0;
  {
    const MutexLock lock(mutex_);
    while (n < kMost && slots_[n].block != nullptr) ++n;
    if (n < kMost) slots_[n].block = block;
  }
  if (n == kMost) {
    free_block(block);
    return fail(Errc::kAgain, 0, "too many engine threads");
  }
  Slot& slot = slots_[n];
  slot.body = body;
  slot.argument = argument;
  slot.owner = this;
  slot.first = first;
  RawClone thread;
  thread.body = run;
  thread.argument = &slot;
  thread.tls = block + block_bytes() - kControlBytes;
  thread.stack_end = block + block_bytes() - kControlBytes - tls_bytes_;
  thread.own_descriptors = first;
  thread.thread_id = &slot.thread_id;
  const Result<void> started = raw_clone(thread);
  if (started) return n;
  free_block(block);
  const MutexLock lock(mutex_);
  slot.block = nullptr;
  return std::unexpected(started.error());
}

Result<int> RawEngineThreads::start_first(Body body, void* argument) noexcept { return start(body, argument, true); }

Result<int> RawEngineThreads::start_another(Body body, void* argument) noexcept { return start(body, argument, false); }

void RawEngineThreads::join(int n) noexcept {
  CHECK(n >= 0 && n < kMost && slots_[n].block != nullptr, "no such engine thread");
  wait_raw_thread(slots_[n].thread_id);
  free_block(slots_[n].block);
  const MutexLock lock(mutex_);
  slots_[n].block = nullptr;
}

std::uint32_t RawEngineThreads::thread_id(int n) const noexcept {
  return slots_[n].thread_id.load(std::memory_order_acquire);
}

void RawEngineThreads::forget_after_fork() noexcept {
  mutex_.reset_after_fork();
  for (Slot& slot : slots_) {
    slot.thread_id.store(0, std::memory_order_relaxed);
    if (slot.block != nullptr) free_block(slot.block);
    slot.block = nullptr;
  }
}

}  // namespace whimbrel
