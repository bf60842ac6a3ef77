// whimbrel replay: simulates other budgets and policies on a recorded run.
#include <fmt/format.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>
#include <fstream>
#include <nlohmann/json.hpp>

#include "cli/options.h"
#include "cli/summary.h"
#include "devices/size_text.h"
#include "pager/budget.h"
#include "replay/simulation.h"

namespace whimbrel::cli {
namespace {

using replay::Outcome;
using replay::PolicyKind;
using replay::Recording;
using replay::Simulator;

constexpr std::uint64_t kSmallestBudget = std::uint64_t{2} << 20;

int read_budgets(const ReplayOptions& options, const Simulator& simulator, std::vector<std::uint64_t>* out) {
  for (const std::string& text : options.ram) {
    const std::optional<std::uint64_t> size = parse_size(text);
    if (!size || *size < kSmallestBudget) {
      return complain(kExitUsage, "--ram " + text + ": not a size of at least 2M", "whimbrel replay EVENTS --ram 64M,128M");
    }
    out->push_back(*size);
  }
  if (!out->empty()) return 0;
  for (const double factor : {0.5, 0.75, 1.0, 1.25, 1.5, 2.0, 3.0}) {
    const auto bytes = static_cast<std::uint64_t>(static_cast<double>(simulator.recorded_bytes()) * factor);
    out->push_back(std::max(bytes, kSmallestBudget) >> 12 << 12);
    if (bytes > simulator.footprint_bytes() + reserve_under(bytes >> 12) * 4096) break;  // everything fits: more is the same
  }
  return 0;
}

int read_policies(const ReplayOptions& options, std::vector<const PolicyKind*>* out) {
  for (const std::string& name : options.policies) {
    const PolicyKind* kind = replay::find_policy(name);
    if (kind == nullptr) {
      std::string choices = "one of";
      for (const PolicyKind& one : replay::policy_kinds()) choices += fmt::format("\n    {:<14} {}", one.name, one.summary);
      return complain(kExitUsage, "--policy " + name + ": no such policy", choices);
    }
    out->push_back(kind);
  }
  if (out->empty()) out->push_back(&replay::policy_kinds().front());
  return 0;
}

void print_table(const Recording& recording, const Simulator& simulator, const std::vector<Outcome>& outcomes) {
  std::string command;
  for (const std::string& word : recording.command) command += (command.empty() ? "" : " ") + word;
  if (command.size() > 80) command.replace(77, std::string::npos, "...");
  std::replace(command.begin(), command.end(), '\n', ' ');
  const double waited = static_cast<double>(recording.wait_ns) / 1e9;
  std::string out = fmt::format("recorded: {}\n  {} with {} on {}: {} faults, waited {} ({:.1f}%), {} at most\n", command,
                                human_duration(recording.seconds), human_bytes(simulator.recorded_bytes()), recording.device, recording.faults,
                                human_duration(waited), recording.seconds > 0 ? waited / recording.seconds * 100 : 0.0, human_bytes(simulator.footprint_bytes()));
  if (recording.lost != 0) out += fmt::format("  {} events were lost: the numbers are too low\n", recording.lost);
  if (!recording.complete) out += "  the recording has no end: the run was cut off\n";
  out += fmt::format("\n{:>10}  {:<14} {:>11} {:>11} {:>11} {:>10} {:>8} {:>10}\n", "RAM", "POLICY", "FAULTS", "HOME", "OUT", "WAITING", "OF RUN", "RUN");
  for (const Outcome& o : outcomes) {
    const char* const mark = o.lower_bound ? ">" : "";
    const auto marked = [mark](std::uint64_t n) { return mark + std::to_string(n); };
    out += fmt::format("{:>10}  {:<14} {:>11} {:>11} {:>11} {:>10} {:>8} {:>10}\n", human_bytes(o.ram_bytes), o.policy, marked(o.faults),
                       marked(o.pages_home), marked(o.pages_out), mark + human_duration(o.wait_seconds), fmt::format("{}{:.1f}%", mark, o.wait_share * 100),
                       mark + human_duration(o.seconds));
  }
  std::fputs(out.c_str(), stdout);
}

void print_json(const Recording& recording, const Simulator& simulator, const std::vector<Outcome>& outcomes) {
  nlohmann::ordered_json out;
  out["recorded"] = {{"command", recording.command},
                     {"device", recording.device},
                     {"ram_bytes", simulator.recorded_bytes()},
                     {"footprint_bytes", simulator.footprint_bytes()},
                     {"seconds", recording.seconds},
                     {"faults", recording.faults},
                     {"pages_home", recording.pages_home},
                     {"pages_out", recording.pages_out},
                     {"wait_seconds", static_cast<double>(recording.wait_ns) / 1e9},
                     {"lost", recording.lost},
                     {"complete", recording.complete}};
  out["cost"] = {{"fault_ns", simulator.cost().fault_ns}, {"page_ns", simulator.cost().page_ns}, {"zero_fault_ns", simulator.cost().zero_fault_ns}};
  out["outcomes"] = nlohmann::ordered_json::array();
  for (const Outcome& o : outcomes) {
    out["outcomes"].push_back({{"ram_bytes", o.ram_bytes},
                               {"policy", o.policy},
                               {"faults", o.faults},
                               {"pages_home", o.pages_home},
                               {"pages_out", o.pages_out},
                               {"wait_seconds", o.wait_seconds},
                               {"seconds", o.seconds},
                               {"wait_share", o.wait_share},
                               {"lower_bound", o.lower_bound}});
  }
  std::puts(out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace).c_str());
}

}  // namespace

int replay_command(const ReplayOptions& options) {
  std::ifstream file(options.events);
  if (!file) return complain(kExitUsage, options.events + ": " + std::strerror(errno), "whimbrel run --events FILE -- PROGRAM writes one");
  Recording recording;
  std::string problem;
  if (!replay::read_recording(file, &recording, &problem)) {
    return complain(kExitUsage, options.events + ": " + problem, "name a file that was written by whimbrel run --events");
  }
  std::vector<const PolicyKind*> policies;
  if (const int bad = read_policies(options, &policies)) return bad;
  const Simulator simulator(recording);
  if (simulator.recorded_bytes() == 0) return complain(1, options.events + ": nothing was managed in that run", "record it with a smaller budget");
  std::vector<std::uint64_t> budgets;
  if (const int bad = read_budgets(options, simulator, &budgets)) return bad;
  std::vector<Outcome> outcomes;
  for (const std::uint64_t budget : budgets) {
    for (const PolicyKind* policy : policies) outcomes.push_back(simulator.run(budget, *policy));
  }
  if (options.json) print_json(recording, simulator, outcomes);
  else print_table(recording, simulator, outcomes);
  return 0;
}

}  // namespace whimbrel::cli
