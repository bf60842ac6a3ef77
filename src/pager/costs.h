// What the host charges for the engine's primitives. Ratios between hosts differ by ten, so windows and thresholds are
// chosen from these instead of being constants. Filled by whoever calibrates; the defaults are a middling machine's.
#pragma once

#include <cstdint>

namespace whimbrel {

// Nanoseconds per page (moves, copies) or per call. Zero: not measured, the default behaviour is used.
struct Costs {
  std::uint32_t move_1 = 10'000;  // taking one page on its own
  std::uint32_t move_64 = 300;    // per page, in a run of 64
  std::uint32_t move_512 = 100;   // per page, in a run of 512
  std::uint32_t copy_1 = 2'000;   // bringing one page home on its own
  std::uint32_t copy_64 = 500;    // per page, in a window of 64
  std::uint32_t fault = 10'000;   // a touch of a missing page until it is read as a message, and back
};

}  // namespace whimbrel
