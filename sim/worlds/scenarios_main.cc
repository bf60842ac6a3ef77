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
#include <string>
#include <vector>

#include "sim/worlds/scenarios.h"

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

// What the child tells, also when it dies.
struct Shared {
  std::uint64_t worlds;
  std::uint64_t steps;
  std::uint64_t longest;
  std::uint32_t trace_length;
  std::uint32_t trace[4096];
  char verdict[4096];
  bool complete;
};

World::Options options_of(const Arguments& arguments) {
  World::Options options;
  options.schedule.max_delays = arguments.delays;
  options.failures = arguments.failures;
  return options;
}

void explore(const Scenario& scenario, const Arguments& arguments, double seconds, Shared& shared) {
  const auto start = std::chrono::steady_clock::now();
  Choices choices = arguments.replays ? Choices::replay(arguments.replay) : Choices::exhaustive();
  while (choices.next()) {
    World world(choices, options_of(arguments));
    choices.set_trace_observer([&shared](std::size_t at, std::uint32_t answer) {
      if (at >= std::size(shared.trace)) return;
      shared.trace[at] = answer;
      shared.trace_length = static_cast<std::uint32_t>(at + 1);
    });
    shared.trace_length = 0;
    scenario.build(world);
    world.run();
    ++shared.worlds;
    shared.steps += world.steps();
    if (world.steps() > shared.longest) shared.longest = world.steps();
    if (!world.verdict().empty()) {
      std::snprintf(shared.verdict, sizeof shared.verdict, "%s", world.verdict().c_str());
      return;
    }
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    if (elapsed.count() > seconds) return;
  }
  shared.complete = true;
}

// Trailing ordinary answers say nothing.
std::string text(const Shared& shared) {
  std::uint32_t length = shared.trace_length;
  while (length > 0 && shared.trace[length - 1] == 0) --length;
  std::string out;
  for (std::uint32_t i = 0; i < length; ++i) out += (i == 0 ? "" : ",") + std::to_string(shared.trace[i]);
  return out;
}

int run(const Arguments& arguments) {
  auto* shared =
      static_cast<Shared*>(mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::vector<Scenario> chosen;
  for (Scenario& scenario : all_scenarios()) {
    if (scenario.name.find(arguments.only) != std::string::npos) chosen.push_back(std::move(scenario));
  }
  const auto start = std::chrono::steady_clock::now();
  std::uint64_t worlds = 0, steps = 0, longest = 0, failed = 0, complete = 0;
  for (std::size_t i = 0; i < chosen.size(); ++i) {
    const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
    const double share = (arguments.seconds - elapsed.count()) / static_cast<double>(chosen.size() - i);
    std::memset(shared, 0, sizeof *shared);
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      explore(chosen[i], arguments, share, *shared);
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    worlds += shared->worlds;
    steps += shared->steps;
    longest = std::max(longest, shared->longest);
    complete += shared->complete;
    if (WIFSIGNALED(status) && shared->verdict[0] == 0) {
      std::snprintf(shared->verdict, sizeof shared->verdict, "stopped by signal %d (%s)", WTERMSIG(status),
                    strsignal(WTERMSIG(status)));
    }
    if (shared->verdict[0] == 0) continue;
    ++failed;
    std::printf("FAILED %s after %llu worlds: %s\n  again: --only %s --delays %u --failures %u --replay %s\n",
                chosen[i].name.c_str(), static_cast<unsigned long long>(shared->worlds), shared->verdict,
                chosen[i].name.c_str(), arguments.delays, arguments.failures, text(*shared).c_str());
  }
  const std::chrono::duration<double> elapsed = std::chrono::steady_clock::now() - start;
  std::printf(
      "%zu scenarios (%llu complete), at most %u departures and %u failing calls: %llu worlds, %llu steps (%llu at most in one), %.1f s\n",
      chosen.size(), static_cast<unsigned long long>(complete), arguments.delays, arguments.failures,
      static_cast<unsigned long long>(worlds), static_cast<unsigned long long>(steps), static_cast<unsigned long long>(longest), elapsed.count());
  std::printf("%zu passed, %llu failed\n", chosen.size() - failed, static_cast<unsigned long long>(failed));
  return failed == 0 && !chosen.empty() ? 0 : 1;
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
      arguments.replay = whimbrel::sim::numbers(argv[i + 1]);
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return 2;
    }
  }
  return whimbrel::sim::run(arguments);
}
