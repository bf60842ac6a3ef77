#include "linux/clock.h"

#include <sys/syscall.h>
#include <time.h>

#include <cerrno>

#include "base/syscall.h"

namespace whimbrel {

std::int64_t SystemClock::now_ns() const noexcept {
  // Through libc, which reads the clock without entering the kernel. It touches errno only when it fails, and for this
  // clock it cannot.
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000 + now.tv_nsec;
}

void SystemClock::sleep_ns(std::int64_t nanoseconds) noexcept {
  if (nanoseconds <= 0) return;
  // An absolute deadline: repeating after a signal does not stretch the sleep.
  const std::int64_t end = now_ns() + nanoseconds;
  const timespec until{end / 1'000'000'000, end % 1'000'000'000};
  while (sys::call(SYS_clock_nanosleep, CLOCK_MONOTONIC, TIMER_ABSTIME, sys::arg(&until), 0) == -EINTR) {
  }
}

}  // namespace whimbrel
