// Explores the scenarios: every schedule within a bound, every call failing in turn. Prints how many worlds were seen.
//
//   sim_scenarios [--only PART-OF-NAME] [--delays N] [--failures N] [--seconds N] [--replay 0,0,1,...]
//
// A world that stops the process (a failed CHECK, a crash) is reported like any other: exploration runs in a child.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <string>
#include <vector>

#include "sim/worlds/scenarios.h"

// Writes the counters of a build that has them (scripts/coverage): _exit() does not.
extern "C" void __gcov_dump() __attribute__((weak));

namespace whimbrel::sim {
namespace {

struct Arguments {
  std::string only;
  std::uint32_t delays = 1;
  std::uint32_t failures = 0;
  double seconds = 1e9;
  bool replays = false;
  std::vector<std::uint32_t> replay;
};

// What the child tells, also when it dies: totals, and the scenario and choices it is at.
struct Shared {
  std::size_t scenario;
  std::uint64_t worlds, steps, longest, complete, failed;
  std::uint64_t worlds_of_scenario;
  std::uint32_t trace_length;
  std::uint32_t trace[4096];
};

World::Options options_of(const Arguments& arguments) {
  World::Options options;
  options.schedule.max_delays = arguments.delays;
  options.failures = arguments.failures;
  return options;
}

// Empty when every world was right.
std::string explore(const Scenario& scenario, const Arguments& arguments, double seconds, Shared& shared) {
  const auto start = std::chrono::steady_clock::now();
  Choices choices = arguments.replays ? Choices::replay(arguments.replay) : Choices::exhaustive();
  choices.set_trace_observer([&shared](std::size_t at, std::uint32_t answer) {
    if (at >= std::size(shared.trace)) return;
    shared.trace[at] = answer;
    shared.trace_length = static_cast<std::uint32_t>(at + 1);
  });
  shared.worlds_of_scenario = 0;
  while (choices.next()) {
    shared.trace_length = 0;
    World world(choices, options_of(arguments));
    scenario.build(world);
    world.run();
    ++shared.worlds;
    ++shared.worlds_of_scenario;
    shared.steps += world.steps();
    shared.longest = std::max(shared.longest, world.steps());
    if (!world.verdict().empty()) return world.verdict();
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (elapsed.count() > seconds) return "";
  }
  ++shared.complete;
  return "";
}

// Trailing ordinary answers say nothing.
std::string text(const Shared& shared) {
  std::uint32_t length = shared.trace_length;
  while (length > 0 && shared.trace[length - 1] == 0) --length;
  std::string out;
  for (std::uint32_t i = 0; i < length; ++i) out += (i == 0 ? "" : ",") + std::to_string(shared.trace[i]);
  return out;
}

void report(const Scenario& scenario, const Arguments& arguments, Shared& shared, const std::string& verdict) {
  ++shared.failed;
  std::printf("FAILED %s after %llu worlds: %s\n  again: --only %s --delays %u --failures %u --replay %s\n",
              scenario.name.c_str(), static_cast<unsigned long long>(shared.worlds_of_scenario), verdict.c_str(),
              scenario.name.c_str(), arguments.delays, arguments.failures, text(shared).c_str());
  std::fflush(stdout);
}

int run(const Arguments& arguments) {
  void* memory = mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  Shared& shared = *new (memory) Shared{};
  std::vector<Scenario> chosen;
  for (Scenario& scenario : all_scenarios()) {
    if (scenario.name.find(arguments.only) != std::string::npos) chosen.push_back(std::move(scenario));
  }
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  // A child goes through the scenarios; when a world kills it, the next child goes on behind that scenario.
  while (shared.scenario < chosen.size()) {
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      for (; shared.scenario < chosen.size(); ++shared.scenario) {
        const Scenario& scenario = chosen[shared.scenario];
        const double share = (arguments.seconds - elapsed()) / static_cast<double>(chosen.size() - shared.scenario);
        const std::string verdict = explore(scenario, arguments, share, shared);
        if (!verdict.empty()) report(scenario, arguments, shared, verdict);
      }
      if (__gcov_dump != nullptr) __gcov_dump();
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (!WIFSIGNALED(status)) continue;
    report(chosen[shared.scenario], arguments, shared, std::string("stopped by ") + strsignal(WTERMSIG(status)));
    ++shared.scenario;
  }
  const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
  std::printf(
      "%zu scenarios (%llu complete), at most %u departures and %u failing calls: %llu worlds, %llu steps "
      "(%llu at most in one), %.1f s\n",
      chosen.size(), number(shared.complete), arguments.delays, arguments.failures, number(shared.worlds),
      number(shared.steps), number(shared.longest), elapsed());
  std::printf("%llu passed, %llu failed\n", number(chosen.size() - shared.failed), number(shared.failed));
  return shared.failed == 0 && !chosen.empty() ? 0 : 1;
}

std::vector<std::uint32_t> numbers(const char* text) {
  std::vector<std::uint32_t> out;
  for (const char* at = text; *at != 0;) {
    char* end = nullptr;
    out.push_back(static_cast<std::uint32_t>(std::strtoul(at, &end, 10)));
    if (end == at) break;
    at = *end == ',' ? end + 1 : end;
  }
  return out;
}

}  // namespace
}  // namespace whimbrel::sim

int main(int argc, char** argv) {
  whimbrel::sim::Arguments arguments;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    if (name == "--only")
      arguments.only = argv[i + 1];
    else if (name == "--delays")
      arguments.delays = static_cast<std::uint32_t>(std::atoi(argv[i + 1]));
    else if (name == "--failures")
      arguments.failures = static_cast<std::uint32_t>(std::atoi(argv[i + 1]));
    else if (name == "--seconds")
      arguments.seconds = std::atof(argv[i + 1]);
    else if (name == "--replay") {
      arguments.replays = true;
      whimbrel::sim::Scheduler::trace(true);
      arguments.replay = whimbrel::sim::numbers(argv[i + 1]);
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return 2;
    }
  }
  return whimbrel::sim::run(arguments);
}
