// Random worlds: several program threads and engine threads do random things to larger memory, calls fail, pages are
// pinned, shared, merged, swapped; every read is checked. A failure is shrunk to a short list of operations and a seed.
//
//   sim_random [--seconds N] [--forever 1] [--seed N] [--worlds N] [--failures N] [--break-sharing 1]
//              [--keep 0,3,5]
//
// --seed with --keep repeats one world with only those operations, and shows each step.
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <new>
#include <numeric>
#include <string>
#include <vector>

#include "sim/worlds/random_world.h"

// Writes the counters of a build that has them (scripts/coverage): _exit() does not.
extern "C" void __gcov_dump() __attribute__((weak));

namespace whimbrel::sim {
namespace {

struct Shared {
  std::uint64_t seed;
  std::uint64_t worlds, operations, reads, steps, failures;
  char verdict[2048];
};

// Whether some worlds break copy-on-write sharing (AddressSpace::Config::break_sharing).
bool break_sharing = false;

// Runs one world in this process; the verdict is left in `shared`.
void run_one(std::uint64_t seed, const std::vector<std::size_t>* keep, std::uint32_t failures, Shared& shared) {
  Choices choices = Choices::random(seed);
  (void)choices.next();
  const std::vector<Operation> operations = random_operations(seed);
  World world(choices, random_options(seed, failures, break_sharing));
  start_random_world(world, seed, operations, keep);
  world.run();
  ++shared.worlds;
  shared.operations += keep != nullptr ? keep->size() : operations.size();
  shared.reads += world.memory().model().reads_checked();
  shared.steps += world.steps();
  for (int code = 0; code < 14; ++code) shared.failures += world.failures().injected(static_cast<Errc>(code));
  std::snprintf(shared.verdict, sizeof shared.verdict, "%s", world.verdict().c_str());
}

// True: it goes wrong (a CHECK or a crash counts).
bool goes_wrong(std::uint64_t seed, const std::vector<std::size_t>& keep, std::uint32_t failures, Shared& scratch) {
  scratch.verdict[0] = 0;
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) {
    (void)!freopen("/dev/null", "w", stderr);
    alarm(20);
    run_one(seed, &keep, failures, scratch);
    _exit(0);
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFSIGNALED(status) || scratch.verdict[0] != 0;
}

// Leaves out ever smaller pieces of the list as long as the world still goes wrong.
std::vector<std::size_t> shrink(std::uint64_t seed, std::uint32_t failures, Shared& scratch) {
  std::vector<std::size_t> keep(random_operations(seed).size());
  std::iota(keep.begin(), keep.end(), 0);
  for (std::size_t piece = keep.size() / 2; piece >= 1; piece /= 2) {
    for (std::size_t at = 0; at < keep.size();) {
      std::vector<std::size_t> fewer(keep.begin(), keep.begin() + static_cast<std::ptrdiff_t>(at));
      fewer.insert(fewer.end(), keep.begin() + static_cast<std::ptrdiff_t>(std::min(at + piece, keep.size())),
                   keep.end());
      if (goes_wrong(seed, fewer, failures, scratch)) {
        keep = fewer;
      } else {
        at += piece;
      }
    }
  }
  (void)goes_wrong(seed, keep, failures, scratch);
  return keep;
}

void report(std::uint64_t seed, std::uint32_t failures, const char* verdict, Shared& scratch) {
  std::printf("FAILED seed %llu: %s\n", static_cast<unsigned long long>(seed), verdict);
  std::fflush(stdout);
  const std::vector<std::size_t> keep = shrink(seed, failures, scratch);
  const std::vector<Operation> operations = random_operations(seed);
  std::printf("  shortest list found (%s):\n", scratch.verdict[0] != 0 ? scratch.verdict : "stops the process");
  std::string list;
  for (const std::size_t i : keep) {
    std::printf("    %zu: %s\n", i, describe(operations[i]).c_str());
    list += (list.empty() ? "" : ",") + std::to_string(i);
  }
  std::printf("  again: --seed %llu --failures %u --keep %s\n", static_cast<unsigned long long>(seed), failures,
              list.c_str());
  std::fflush(stdout);
}

int run(double seconds, std::uint64_t first_seed, std::uint64_t worlds, std::uint32_t failures) {
  const auto map_shared = [] {
    return new (mmap(nullptr, sizeof(Shared), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0)) Shared{};
  };
  Shared& shared = *map_shared();
  Shared& scratch = *map_shared();
  shared.seed = first_seed;
  std::uint64_t failed = 0;
  const auto start = std::chrono::steady_clock::now();
  const auto elapsed = [start] {
    return std::chrono::duration<double>(std::chrono::steady_clock::now() - start).count();
  };
  while (elapsed() < seconds && shared.worlds < worlds && failed < 5) {
    shared.verdict[0] = 0;
    std::fflush(stdout);
    const pid_t child = fork();
    if (child == 0) {
      // A few hundred worlds in one child: starting one costs more than a world.
      for (int i = 0; i < 300 && elapsed() < seconds && shared.worlds < worlds; ++i) {
        alarm(60);
        run_one(shared.seed, nullptr, failures, shared);
        if (shared.verdict[0] != 0) break;
        ++shared.seed;
      }
      if (__gcov_dump != nullptr) __gcov_dump();
      _exit(0);
    }
    int status = 0;
    waitpid(child, &status, 0);
    if (WIFSIGNALED(status)) std::snprintf(shared.verdict, sizeof shared.verdict, "%s", strsignal(WTERMSIG(status)));
    if (shared.verdict[0] == 0) continue;
    ++failed;
    report(shared.seed, failures, shared.verdict, scratch);
    ++shared.seed;
  }
  const auto number = [](std::uint64_t n) { return static_cast<unsigned long long>(n); };
  std::printf(
      "random worlds from seed %llu: %llu worlds, %llu operations, %llu reads checked, %llu calls failed, %llu "
      "steps, %.1f s\n",
      number(first_seed), number(shared.worlds), number(shared.operations), number(shared.reads),
      number(shared.failures), number(shared.steps), elapsed());
  std::printf("%llu passed, %llu failed\n", number(shared.worlds > failed ? shared.worlds - failed : 0),
              number(failed));
  return failed == 0 && shared.worlds > 0 ? 0 : 1;
}

int repeat(std::uint64_t seed, const std::vector<std::size_t>& keep, std::uint32_t failures) {
  Scheduler::trace(true);
  Shared shared{};
  run_one(seed, &keep, failures, shared);
  std::printf("%s\n", shared.verdict[0] == 0 ? "nothing went wrong" : shared.verdict);
  return shared.verdict[0] == 0 ? 0 : 1;
}

}  // namespace
}  // namespace whimbrel::sim

int main(int argc, char** argv) {
  double seconds = 50;
  std::uint64_t seed = 1, worlds = ~std::uint64_t{0};
  std::uint32_t failures = 1000;
  bool repeats = false;
  std::vector<std::size_t> keep;
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string name = argv[i];
    const char* value = argv[i + 1];
    if (name == "--seconds")
      seconds = std::atof(value);
    else if (name == "--forever")
      seconds = 1e12;
    else if (name == "--seed")
      seed = std::strtoull(value, nullptr, 10);
    else if (name == "--worlds")
      worlds = std::strtoull(value, nullptr, 10);
    else if (name == "--break-sharing")
      whimbrel::sim::break_sharing = std::atoi(value) != 0;
    else if (name == "--failures")
      failures = static_cast<std::uint32_t>(std::atoi(value));
    else if (name == "--keep") {
      repeats = true;
      for (const char* at = value; *at != 0;) {
        char* end = nullptr;
        keep.push_back(std::strtoull(at, &end, 10));
        if (end == at) break;
        at = *end == ',' ? end + 1 : end;
      }
    } else {
      std::fprintf(stderr, "unknown option %s\n", argv[i]);
      return 2;
    }
  }
  return repeats ? whimbrel::sim::repeat(seed, keep, failures) : whimbrel::sim::run(seconds, seed, worlds, failures);
}
