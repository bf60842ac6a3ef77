// Time as an argument, so that a simulation can provide it.
#pragma once

#include <cstdint>

namespace whimbrel {

class Clock {
 public:
  virtual ~Clock() = default;
  // Nanoseconds since an arbitrary start; never goes back. Thread-safe.
  [[nodiscard]] virtual std::int64_t now_ns() const noexcept = 0;
  virtual void sleep_ns(std::int64_t nanoseconds) noexcept = 0;
};

}  // namespace whimbrel
