// What the primitives cost on this machine, now. Between hosts the costs of moves, copies and wake-ups differ by a
// factor of ten, so windows and thresholds are chosen from these figures and not from constants.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/error.h"
#include "linux/userfault_mmu.h"
#include "mm/address.h"

namespace whimbrel {

// Nanoseconds; medians of a handful of calls each (wake-ups: what they cost when the processor is free).
struct Costs {
  // One call over that many contiguous pages.
  struct Curve {
    std::int64_t one = 0;
    std::int64_t run = 0;   // 64 pages
    std::int64_t huge = 0;  // 512 pages
    // Straight lines between the measured points, and beyond them along the last one.
    [[nodiscard]] std::int64_t of(PageCount pages) const noexcept;
  };
  static constexpr std::uint64_t kRun = 64;

  Curve move;     // into a window, its registration included: what an eviction pays
  Curve copy;     // into a watched range
  Curve discard;  // of present pages of a window
  std::int64_t system_call = 0;
  std::int64_t deliver = 0;  // from a thread's touch of a missing page to the message in another thread's hands
  std::int64_t resume = 0;   // what it takes beyond copying until the touching thread runs again
  std::int64_t took = 0;     // the calibration itself

  // A demand fetch of `pages` pages, from touch to running again.
  [[nodiscard]] std::int64_t fault(PageCount pages) const noexcept { return deliver + copy.of(pages) + resume; }
};

// A few milliseconds. Call it on the thread that will read messages, before anything is watched: it reads messages
// itself and starts a short-lived helper thread. Errors: those of the Mmu, when it does not work.
[[nodiscard]] Result<Costs> calibrate(UserfaultMmu& mmu, const Clock& clock) noexcept;

}  // namespace whimbrel
