// The machine's monotonic clock. Works on every thread, also those libc does not know.
#pragma once

#include "base/clock.h"

namespace whimbrel {

class SystemClock final : public Clock {
 public:
  [[nodiscard]] std::int64_t now_ns() const noexcept override;
  // Sleeps at least that long; signals do not shorten it. Nothing for zero and negative values.
  void sleep_ns(std::int64_t nanoseconds) noexcept override;
};

}  // namespace whimbrel
