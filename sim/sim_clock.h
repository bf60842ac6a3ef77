// Simulated time: it moves when the scheduler says so, never by itself.
#pragma once

#include "base/clock.h"
#include "sim/scheduler.h"

namespace whimbrel::sim {

class SimClock final : public Clock {
 public:
  [[nodiscard]] std::int64_t now_ns() const noexcept override { return now_; }
  // A fiber sleeps while the others run; anybody else just moves time on.
  void sleep_ns(std::int64_t nanoseconds) noexcept override {
    Scheduler* scheduler = Scheduler::current();
    if (scheduler != nullptr && scheduler->in_fiber()) {
      scheduler->sleep(nanoseconds);
    } else {
      advance(nanoseconds);
    }
  }
  void advance(std::int64_t nanoseconds) noexcept {
    if (nanoseconds > 0) now_ += nanoseconds;
  }

 private:
  std::int64_t now_ = 1'000'000'000;
};

}  // namespace whimbrel::sim
