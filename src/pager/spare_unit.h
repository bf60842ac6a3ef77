// SpareUnit: one fresh huge page kept ready for the next unit that a stream brings home. The kernel clears it when it is
// first touched, a tenth of all samples in a profile of a sequential read; the background thread does that while the program reads
// what it got.
#pragma once

#include <atomic>
#include <cstdint>

#include "migrate/address_space.h"

namespace whimbrel {

class PagerCore;
struct Lane;

class SpareUnit {
 public:
  explicit SpareUnit(PagerCore& core) noexcept : core_(core) {}

  // 512 frames on one huge page that nobody has written to; the caller's. Pfn(): the kernel has none to give now. On the
  // fault thread.
  [[nodiscard]] Pfn take(Lane& lane) noexcept;
  // Gets one ready where one has just been taken, and gives it back when no stream has come for it in time. On the background
  // thread.
  void step() noexcept;
  // Gives it back. Any thread.
  void drop() noexcept;
  // In a forked child, whose pools are empty.
  void reset_in_child() noexcept { ready_.store(Pfn(), std::memory_order_relaxed); }

 private:
  [[nodiscard]] Pfn make(Lane& lane) noexcept;

  PagerCore& core_;
  std::atomic<Pfn> ready_{Pfn()};
  std::atomic<std::int64_t> taken_ns_{0};     // the last one
  std::atomic<std::int64_t> none_until_{0};   // the kernel had none to give: none is asked for until then
};

}  // namespace whimbrel
