#include "base/mutex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/syscall.h"

namespace whimbrel {
namespace {

std::atomic<BlockingHook*> blocking_hook{nullptr};

void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t nanoseconds) noexcept {
  if (BlockingHook* hook = blocking_hook.load(std::memory_order_acquire); hook != nullptr) [[unlikely]] {
    if (hook->wait(word, expected, nanoseconds)) return;
  }
  const timespec limit{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  sys::call(SYS_futex, sys::arg(&word), FUTEX_WAIT_PRIVATE, expected, nanoseconds < 0 ? 0 : sys::arg(&limit));
}

void futex_wake(std::atomic<std::uint32_t>& word, int count) noexcept {
  if (BlockingHook* hook = blocking_hook.load(std::memory_order_acquire); hook != nullptr) [[unlikely]] {
    if (hook->wake(word, count)) return;
  }
  sys::call(SYS_futex, sys::arg(&word), FUTEX_WAKE_PRIVATE, count);
}

}  // namespace

void set_blocking_hook(BlockingHook* hook) noexcept { blocking_hook.store(hook, std::memory_order_release); }

void Mutex::lock() noexcept {
  std::uint32_t expected = 0;
  if (word_.compare_exchange_strong(expected, 1, std::memory_order_acquire)) return;
  // Critical sections are short: a few spins save most of the sleeps on a machine with more than one CPU.
  for (int spin = 0; spin < 64; ++spin) {
    expected = 0;
    if (word_.compare_exchange_weak(expected, 1, std::memory_order_acquire)) return;
    __builtin_ia32_pause();
  }
  while (word_.exchange(2, std::memory_order_acquire) != 0) futex_wait(word_, 2, -1);
}

bool Mutex::try_lock() noexcept {
  std::uint32_t expected = 0;
  return word_.compare_exchange_strong(expected, 1, std::memory_order_acquire);
}

void Mutex::unlock() noexcept {
  if (word_.exchange(0, std::memory_order_release) == 2) futex_wake(word_, 1);
}

void Event::advance() noexcept {
  count_.fetch_add(1, std::memory_order_release);
  futex_wake(count_, 1 << 30);
}

void Event::wait(std::uint32_t seen, std::int64_t nanoseconds) noexcept { futex_wait(count_, seen, nanoseconds); }

}  // namespace whimbrel
