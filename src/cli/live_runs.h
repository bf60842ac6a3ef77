// The runs of `whimbrel run` that are under way, as their statistics files tell. Reading costs the programs nothing:
// they store their numbers there anyway.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "runtime/stats_file.h"

namespace whimbrel::cli {

// One process with the engine in it. Numbers since its start, unless they say otherwise; see stats_file.h for the
// units.
struct ProcessSample {
  std::uint32_t pid = 0, parent = 0;
  std::uint32_t session = 0;  // of the process, from 1; 0: the process as a whole
  std::string device;         // of a session
  std::uint64_t ram_limit_bytes = 0, total_limit_bytes = 0;  // of a session
  std::string name;
  EngineMode mode = EngineMode::kWaiting;
  std::uint64_t resident_bytes = 0;  // now
  std::uint64_t limit_bytes = 0;     // what that may be now; 0: no limit
  std::uint64_t away_bytes = 0;      // on the device now,
  std::uint64_t held_bytes = 0;      // and what it takes there
  std::uint64_t total_bytes = 0;     // resident, store and engine, now
  std::uint64_t pages_out = 0, pages_home = 0, faults = 0, fresh_faults = 0, wait_ns = 0;
  std::uint64_t over_limit = 0, refused_pages = 0, device_errors = 0, load_errors = 0;
  std::uint32_t device_change = 0, device_refused = 0;  // the last of the run's changes followed, and not followed
  std::uint64_t leaving_bytes = 0;                      // still on the device before
  std::array<std::uint64_t, kWaitBuckets> waits{};  // bucket n: [2^n, 2^(n+1)) nanoseconds
};

struct RunSample {
  int pid = 0;  // of `whimbrel run` or `whimbrel watch`
  std::string path;  // of the statistics file
  std::uint64_t ram_limit_bytes = 0, total_limit_bytes = 0;
  std::string device;
  std::uint32_t device_changes = 0;
  std::vector<ProcessSample> processes;  // living ones, and open sessions

  // Of a program with sessions: budget and device are theirs.
  [[nodiscard]] bool is_watch() const { return ram_limit_bytes == 0 && total_limit_bytes == 0; }
  // Still on devices before this one.
  [[nodiscard]] std::uint64_t leaving_bytes() const {
    std::uint64_t sum = 0;
    for (const ProcessSample& p : processes) sum += p.leaving_bytes;
    return sum;
  }
};

inline constexpr std::string_view kSessionsOwn = "its sessions have budgets and devices of their own";
inline constexpr std::string_view kChangeSessions =
    "the program changes them: whimbrel_session_set_budget() and _set_device(), in Python set_budget() and set_device()";

struct Sample {
  std::int64_t time_ns = 0;  // monotonic
  std::vector<RunSample> runs;
  std::size_t of_other_versions = 0;  // runs whose numbers this whimbrel cannot read
};

// Runs whose files lie in one of `directories` and may be read, in the order of their process ids.
[[nodiscard]] Sample sample_runs(const std::vector<std::string>& directories);
// Where statistics files of this user lie; of every user, for root.
[[nodiscard]] std::vector<std::string> stats_directories();

// The run that `pid` is, or one of whose processes it is.
[[nodiscard]] std::optional<RunSample> find_run(unsigned pid);

// The wait that `share` (0..1) of all waits were shorter than, from a histogram; nanoseconds, 0 when there was none.
[[nodiscard]] std::uint64_t wait_quantile(const std::array<std::uint64_t, kWaitBuckets>& waits, double share);

}  // namespace whimbrel::cli
