// whimbrel device: where the pages of a run under way go, and another place for them.
#include <fmt/format.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "cli/device_option.h"
#include "cli/live_runs.h"
#include "cli/options.h"
#include "cli/summary.h"

namespace whimbrel::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kLook = std::chrono::milliseconds(50);

// A process without managed memory has nothing anywhere.
bool is_concerned(const ProcessSample& process) { return process.mode == EngineMode::kManaged; }

bool has_refused(const RunSample& run, std::uint32_t change) {
  return std::any_of(run.processes.begin(), run.processes.end(),
                     [&](const ProcessSample& p) { return is_concerned(p) && p.device_refused == change; });
}

bool has_moved(const RunSample& run, std::uint32_t change) {
  return std::all_of(run.processes.begin(), run.processes.end(), [&](const ProcessSample& p) {
    return !is_concerned(p) || (p.device_change == change && p.leaving_bytes == 0);
  });
}

// Looks at the run until everything has moved, somebody refuses, or the time is over. A terminal sees how far it is.
std::optional<RunSample> wait_until_moved(RunSample run, std::uint32_t change, double seconds) {
  const bool terminal = isatty(STDERR_FILENO) != 0;
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  std::optional<RunSample> now = std::move(run);
  while (now && !has_refused(*now, change) && !has_moved(*now, change) && Clock::now() < end) {
    if (terminal) fmt::print(stderr, "\r\033[K{} still to move", human_bytes(now->leaving_bytes()));
    std::this_thread::sleep_for(kLook);
    now = find_run(static_cast<unsigned>(now->pid));
  }
  if (terminal) fmt::print(stderr, "\r\033[K");
  return now;
}

void print(const RunSample& run, bool json) {
  if (json) {
    nlohmann::ordered_json out{{"pid", run.pid}, {"device", run.device}, {"changes", run.device_changes}};
    auto& processes = out["processes"] = nlohmann::ordered_json::array();
    for (const ProcessSample& p : run.processes) {
      processes.push_back({{"pid", p.pid},
                           {"name", p.name},
                           {"away_bytes", p.away_bytes},
                           {"held_bytes", p.held_bytes},
                           {"leaving_bytes", p.leaving_bytes},
                           {"change", p.device_change},
                           {"refused", p.device_refused}});
    }
    std::puts(out.dump().c_str());
    return;
  }
  fmt::print("run {}: --device {}\n", run.pid, run.device);
  for (const ProcessSample& p : run.processes) {
    fmt::print("  {:>7} {:<16} {} away, in {}{}{}\n", p.pid, p.name, human_bytes(p.away_bytes), human_bytes(p.held_bytes),
               p.leaving_bytes == 0 ? "" : ", " + human_bytes(p.leaving_bytes) + " still on the device before",
               p.device_refused > p.device_change ? ", not on this device" : "");
  }
}

}  // namespace

int device_command(const DeviceOptions& options) {
  std::optional<RunSample> run = find_run(options.pid);
  if (!run) {
    return complain(kExitUsage, fmt::format("process {} is no run of whimbrel, nor in one", options.pid), "whimbrel top --once shows those there are");
  }
  if (run->is_watch()) return complain(kExitUsage, fmt::format("process {}: {}", options.pid, kSessionsOwn), std::string(kChangeSessions));
  if (options.to.empty()) {
    print(*run, options.json);
    return 0;
  }
  std::string problem, advice;
  const std::uint32_t change = run->device_changes + 1;
  if (const int bad = order_device(*run, with_absolute_path(options.to), &problem, &advice)) return complain(bad, "--to " + problem, advice);
  const int pid = run->pid;
  run = find_run(static_cast<unsigned>(pid));
  if (run) run = wait_until_moved(std::move(*run), change, options.wait);
  if (!run) return complain(1, fmt::format("run {} ended meanwhile", pid));
  print(*run, options.json);
  if (has_refused(*run, change)) {
    return complain(1, "not every process can have that device; those stay with theirs, and nothing is lost", "the run's standard error says why");
  }
  if (has_moved(*run, change)) return 0;
  return complain(1, human_bytes(run->leaving_bytes()) + " still to move; that goes on", "look again: whimbrel device " + std::to_string(pid));
}

}  // namespace whimbrel::cli
