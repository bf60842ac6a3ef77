#include "base/mutex.h"

#include <linux/futex.h>
#include <sys/syscall.h>
#include <time.h>

#include "base/syscall.h"

namespace whimbrel {
namespace {

void futex_wait(std::atomic<std::uint32_t>& word, std::uint32_t expected, const timespec* limit) noexcept {
  sys::call(SYS_futex, sys::arg(&word), FUTEX_WAIT_PRIVATE, expected, sys::arg(limit));
}

void futex_wake(std::atomic<std::uint32_t>& word, int count) noexcept {
  sys::call(SYS_futex, sys::arg(&word), FUTEX_WAKE_PRIVATE, count);
}

}  // namespace

void Mutex::lock() noexcept {
  std::uint32_t expected = 0;
  if (word_.compare_exchange_strong(expected, 1, std::memory_order_acquire)) return;
  // Critical sections are short: a few spins save most of the sleeps on a machine with more than one CPU.
  for (int spin = 0; spin < 64; ++spin) {
    expected = 0;
    if (word_.compare_exchange_weak(expected, 1, std::memory_order_acquire)) return;
    __builtin_ia32_pause();
  }
  while (word_.exchange(2, std::memory_order_acquire) != 0) futex_wait(word_, 2, nullptr);
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

void Event::wait(std::uint32_t seen, std::int64_t nanoseconds) noexcept {
  if (nanoseconds < 0) {
    futex_wait(count_, seen, nullptr);
    return;
  }
  const timespec limit{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  futex_wait(count_, seen, &limit);
}

}  // namespace whimbrel
