// whimbrel budget: what a run under way may use, and another budget for it.
#include <fmt/format.h>

#include <algorithm>
#include <charconv>
#include <chrono>
#include <cstdio>
#include <nlohmann/json.hpp>
#include <optional>
#include <thread>

#include "cli/limits.h"
#include "cli/live_runs.h"
#include "cli/options.h"
#include "cli/summary.h"

namespace whimbrel::cli {
namespace {

using Clock = std::chrono::steady_clock;
constexpr auto kLook = std::chrono::milliseconds(50);

// "none", or a size; not given: as it is.
int read_change(const char* option, const std::string& text, bool given, std::uint64_t* limit) {
  if (!given) return 0;
  if (text == "none") {
    *limit = 0;
    return 0;
  }
  return read_limit(option, text, limit);
}

bool is_within(const ProcessSample& process, const Limits& limits) {
  if (process.mode != EngineMode::kManaged) return true;  // has not grown so far, or whimbrel is not in it
  if (limits.ram != 0 && process.resident_bytes > limits.ram) return false;
  return limits.total == 0 || process.total_bytes <= limits.total;
}

// Looks at the run until every process is within its budget, or the time is over.
std::optional<RunSample> wait_until_within(RunSample run, const Limits& limits, double seconds) {
  const auto end = Clock::now() + std::chrono::duration<double>(seconds);
  for (;;) {
    const bool all = std::all_of(run.processes.begin(), run.processes.end(), [&](const ProcessSample& p) { return is_within(p, limits); });
    if (all || end <= Clock::now()) return run;
    std::this_thread::sleep_for(kLook);
    std::optional<RunSample> now = find_run(static_cast<unsigned>(run.pid));
    if (!now) return std::nullopt;
    run = std::move(*now);
  }
}

std::string limit_text(std::uint64_t bytes) { return bytes == 0 ? "none" : human_bytes(bytes); }

void print(const RunSample& run, const Limits& limits, bool json) {
  if (json) {
    nlohmann::ordered_json out{{"pid", run.pid}, {"ram_limit_bytes", limits.ram}, {"total_limit_bytes", limits.total}};
    auto& processes = out["processes"] = nlohmann::ordered_json::array();
    for (const ProcessSample& p : run.processes) {
      processes.push_back({{"pid", p.pid},
                           {"name", p.name},
                           {"resident_bytes", p.resident_bytes},
                           {"total_bytes", p.total_bytes},
                           {"within_budget", is_within(p, limits)}});
    }
    std::puts(out.dump().c_str());
    return;
  }
  fmt::print("run {}: --ram {} --total {}\n", run.pid, limit_text(limits.ram), limit_text(limits.total));
  for (const ProcessSample& p : run.processes) {
    fmt::print("  {:>7} {:<16} {} resident, {} in all{}\n", p.pid, p.name, human_bytes(p.resident_bytes), human_bytes(p.total_bytes),
               is_within(p, limits) ? "" : ", still over the budget");
  }
}

}  // namespace

int budget_command(const BudgetOptions& options) {
  std::optional<RunSample> run = find_run(options.pid);
  if (!run) {
    return complain(kExitUsage, fmt::format("process {} is no run of whimbrel, nor in one", options.pid), "whimbrel top --once shows those there are");
  }
  if (run->is_watch()) return complain(kExitUsage, fmt::format("process {}: {}", options.pid, kSessionsOwn), std::string(kChangeSessions));
  Limits limits{run->ram_limit_bytes, run->total_limit_bytes};
  if (const int bad = read_change("--ram", options.ram, options.ram_given, &limits.ram)) return bad;
  if (const int bad = read_change("--total", options.total, options.total_given, &limits.total)) return bad;
  if (const int bad = check_limits(limits)) return bad;
  if (limits.ram == 0 && limits.total == 0) {
    return complain(kExitUsage, "that leaves no budget at all", "a size larger than what the program needs: --ram 1T");
  }
  if (options.ram_given || options.total_given) {
    Result<StatsFile> file = StatsFile::open(run->path.c_str());
    if (!file) return complain(kExitCannotRun, run->path + ": " + errc_name(file.error().code), "it may have ended: whimbrel top --once");
    file->set_limits(limits.ram, limits.total);
    file->unmap();
    const int pid = run->pid;
    run = wait_until_within(std::move(*run), limits, options.wait);
    if (!run) return complain(1, fmt::format("run {} ended meanwhile", pid));
  }
  print(*run, limits, options.json);
  const bool all = std::all_of(run->processes.begin(), run->processes.end(), [&](const ProcessSample& p) { return is_within(p, limits); });
  if (all) return 0;
  return complain(1, "the budget is set, and not reached yet", "look again: whimbrel budget " + std::to_string(run->pid));
}

}  // namespace whimbrel::cli
