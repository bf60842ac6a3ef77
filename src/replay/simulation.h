// Simulation: what a recorded run would have done with another budget or another policy.
//
// A recording tells which pages were touched as far as that could be seen: touches of pages that were away. So a larger
// budget than the recorded one is answered well: every touch that could miss is known. For a smaller one the touches of
// pages that were resident are missing, and the numbers are lower bounds. Record with little memory to learn about more.
//
// The simulation uses the engine's own fetch windows, reserve and (by default) policy. Pages that came with a touched one count
// as touched. Huge pages, borders of mappings, kept copies, refusals and sharing after a fork are left out.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "replay/policies.h"
#include "replay/recording.h"

namespace whimbrel::replay {

// What a fault costs, from the recording: nanoseconds, and for each page that comes with it.
struct CostModel {
  double fault_ns = 0, page_ns = 0;
  double zero_fault_ns = 0;
  std::uint64_t faults = 0;  // seen
};
[[nodiscard]] CostModel cost_of(const Recording& recording);

struct Outcome {
  std::uint64_t ram_bytes = 0;
  std::string policy;
  std::uint64_t faults = 0, pages_home = 0, pages_out = 0;
  double wait_seconds = 0;    // estimated, faults and first touches
  double seconds = 0;         // of the run, estimated: the recorded time, waiting exchanged
  double wait_share = 0;      // of those seconds
  bool lower_bound = false;   // less RAM than was recorded with
};

class Simulator {
 public:
  // `recording` outlives it.
  explicit Simulator(const Recording& recording);
  [[nodiscard]] Outcome run(std::uint64_t ram_bytes, const PolicyKind& policy) const;

  [[nodiscard]] const CostModel& cost() const noexcept { return cost_; }
  // Most RAM that would make a difference: all that was ever resident or away in one process at a time.
  [[nodiscard]] std::uint64_t footprint_bytes() const noexcept { return footprint_pages_ * 4096; }
  // The budget the run had, in resident bytes (with --total alone: the largest it came to).
  [[nodiscard]] std::uint64_t recorded_bytes() const noexcept { return recorded_bytes_; }
  // The smallest budget, in steps of 1/64 of the footprint, with which the waiting is at most that share of the run.
  // Nothing below the recorded one is looked at. False: there is none.
  [[nodiscard]] bool smallest_with(double wait_share, Outcome* out) const;

 private:
  const Recording& recording_;
  CostModel cost_;
  Future future_;
  std::uint64_t footprint_pages_ = 0, recorded_bytes_ = 0;
};

}  // namespace whimbrel::replay
