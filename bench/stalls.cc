// The longest time that one access of a program waited, under each fault that can be injected.
//
//   bench_stalls [--seconds N] [--only FAULT] [--json]
//
// For each fault a process of its own: 48 MiB of data with 16 MiB of RAM, two threads that touch pages here and there, read
// and write, and look at what they find. The fault comes once the data is in place. A touch that gets SIGBUS (contents that
// could not be loaded) is counted and tried again. At the end the fault is over, everything comes home, and every word is
// compared. Exit status 0: no byte was wrong, in no case did an access wait for ever; 77: not possible here, with the reason.
#include <setjmp.h>
#include <time.h>

#include <algorithm>
#include <cstdint>
#include <random>
#include <string>
#include <string_view>
#include <thread>
#include <vector>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

constexpr std::size_t kData = 48 * kMiB, kRam = 16 * kMiB;
constexpr int kThreads = 2;
constexpr std::int64_t kMillisecond = 1'000'000, kSecond = 1'000'000'000;
constexpr unsigned kHangSeconds = 300;

std::int64_t now_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * kSecond + now.tv_nsec;
}

// In memory shared with the process that prints it.
struct Measured {
  std::atomic<std::uint64_t> accesses, waits, signals, wrong, faults_injected;
  std::atomic<std::int64_t> longest_ns;
  std::atomic<std::uint64_t> slower_than_10_ms, pages_out, pages_home;
  std::atomic<bool> finished;
};

struct Fault {
  const char* name;
  const char* what;
  std::uint64_t device_capacity;
  // Injects it until `end`; returns how many times.
  std::uint64_t (*inject)(LivePager& live, const ProgramMemory& memory, std::int64_t end);
};

void sleep_ns(std::int64_t ns) {
  const timespec pause{ns / kSecond, ns % kSecond};
  nanosleep(&pause, nullptr);
}

thread_local sigjmp_buf t_back;
thread_local volatile sig_atomic_t t_touching = 0;

void bus_error(int) {
  if (t_touching != 0) siglongjmp(t_back, 1);
  _exit(9);
}

// One access: reads a word of the page, and writes it again (the same) if told. False: it got a signal.
bool touch(const ProgramMemory& memory, std::size_t page, std::size_t word, bool write, std::uint64_t* seen) {
  volatile std::uint64_t* const at = memory.page(page) + word;
  if (sigsetjmp(t_back, 1) != 0) {
    t_touching = 0;
    return false;
  }
  t_touching = 1;
  *seen = *at;
  if (write) *at = ProgramMemory::expected(page, word, 1);
  t_touching = 0;
  return true;
}

void run_program(const ProgramMemory& memory, unsigned seed, const std::atomic<bool>& stop, Measured& out) {
  std::mt19937_64 random(seed);
  std::int64_t longest = 0;
  while (!stop) {
    const std::size_t page = random() % memory.pages(), word = random() % (kPageSize / 8);
    const bool write = random() % 4 == 0;
    std::uint64_t seen = 0;
    const std::int64_t start = now_ns();
    const bool served = touch(memory, page, word, write, &seen);
    const std::int64_t waited = now_ns() - start;
    ++out.accesses;
    if (waited > kMillisecond / 100) ++out.waits;
    if (waited > 10 * kMillisecond) ++out.slower_than_10_ms;
    if (!served) ++out.signals;
    if (served && seen != ProgramMemory::expected(page, word, 1)) ++out.wrong;
    longest = std::max(longest, waited);
  }
  for (std::int64_t most = out.longest_ns; most < longest && !out.longest_ns.compare_exchange_weak(most, longest);) {
  }
}

std::uint64_t inject_nothing(LivePager&, const ProgramMemory&, std::int64_t end) {
  sleep_ns(std::max<std::int64_t>(0, end - now_ns()));
  return 0;
}

// On for a fifth of a second, off for as long.
template <std::atomic<bool> FaultyDevice::*kSwitch>
std::uint64_t inject_now_and_then(LivePager& live, const ProgramMemory&, std::int64_t end) {
  std::uint64_t times = 0;
  for (; now_ns() < end; ++times) {
    live.device().*kSwitch = true;
    sleep_ns(200 * kMillisecond);
    live.device().*kSwitch = false;
    sleep_ns(200 * kMillisecond);
  }
  return times;
}

std::uint64_t inject_late(LivePager& live, const ProgramMemory&, std::int64_t end) {
  std::uint64_t times = 0;
  while (now_ns() < end || times == 0) {
    live.device().delay_one_ns = kSecond;
    ++times;
    while (live.device().delay_one_ns != 0 && now_ns() < end) sleep_ns(kMillisecond);  // taken by some operation
    sleep_ns(kSecond + 100 * kMillisecond);
  }
  live.device().delay_one_ns = 0;
  return times;
}

std::uint64_t inject_away(LivePager& live, const ProgramMemory&, std::int64_t end) {
  std::uint64_t times = 0;
  while (now_ns() < end || times == 0) {
    live.device().hold = true;
    sleep_ns(kSecond);
    live.device().hold = false;
    sleep_ns(200 * kMillisecond);
    ++times;
  }
  return times;
}

std::uint64_t inject_forks(LivePager& live, const ProgramMemory& memory, std::int64_t end) {
  std::uint64_t times = 0;
  for (; now_ns() < end || times == 0; ++times) {
    const pid_t child = live.fork();
    if (child == 0) {
      std::uint64_t wrong = 0;
      for (std::size_t i = 0; i < memory.pages(); i += 97) wrong += *memory.page(i) != ProgramMemory::expected(i, 0, 1);
      _exit(wrong == 0 ? 0 : 1);
    }
    int status = 0;
    if (child < 0 || waitpid(child, &status, 0) != child || status != 0) {
      std::fprintf(stderr, "a child saw wrong memory, or could not be made: status %d\n", status);
      _exit(8);
    }
  }
  return times;
}

constexpr Fault kFaults[] = {
    {"none", "nothing: what the load itself makes an access wait", 0, inject_nothing},
    {"store-error", "every store fails, 200 ms on, 200 ms off", 0, inject_now_and_then<&FaultyDevice::fail_stores>},
    {"load-error", "every load fails, 200 ms on, 200 ms off", 0, inject_now_and_then<&FaultyDevice::fail_loads>},
    {"late", "one operation takes 1 s longer, again and again", 0, inject_late},
    {"full", "a device with room for a sixth of what should go there", 4 * kMiB, inject_nothing},
    {"gone-and-back", "the device answers nothing for 1 s, then all", 0, inject_away},
    {"forks", "one fork after the other, children that read", 0, inject_forks},
};

// In a process of its own.
void run_fault(const Fault& fault, double seconds, Measured& out) {
  alarm(kHangSeconds);  // an access that waits for ever
  LiveOptions options;
  options.pager.ram_bytes = kRam;
  options.device_capacity = fault.device_capacity;
  LivePager& live = LivePager::start(options);
  struct sigaction action {};
  action.sa_handler = bus_error;
  action.sa_flags = SA_NODEFER;
  sigaction(SIGBUS, &action, nullptr);
  ProgramMemory memory(kData);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < kThreads; ++t) threads.emplace_back([&, t] { run_program(memory, t + 1, stop, out); });
  out.faults_injected = fault.inject(live, memory, now_ns() + static_cast<std::int64_t>(seconds * 1e9));
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (std::size_t i = 0; i < memory.pages(); ++i) out.wrong += memory.wrong_words(i, 1);
  out.pages_out = live.stats().pages_out.load();
  out.pages_home = live.stats().pages_home.load();
  live.stop();
  for (std::size_t i = 0; i < memory.pages(); ++i) out.wrong += memory.wrong_words(i, 1);
  out.finished = true;
  _exit(0);
}

void print_row(const Fault& fault, const Measured& m, bool json, bool first) {
  if (json) {
    std::printf("%s\n  {\"fault\": \"%s\", \"what\": \"%s\", \"injected\": %lu, \"accesses\": %lu, \"longest_ms\": %.3f, "
                "\"over_10_ms\": %lu, \"signals\": %lu, \"pages_out\": %lu, \"pages_home\": %lu, \"wrong_words\": %lu}",
                first ? "" : ",", fault.name, fault.what, m.faults_injected.load(), m.accesses.load(),
                static_cast<double>(m.longest_ns) / 1e6, m.slower_than_10_ms.load(), m.signals.load(), m.pages_out.load(),
                m.pages_home.load(), m.wrong.load());
    return;
  }
  std::printf("%-14s %8lu %10lu %11.1f ms %10lu %8lu %6lu   %s\n", fault.name, m.faults_injected.load(), m.accesses.load(),
              static_cast<double>(m.longest_ns) / 1e6, m.slower_than_10_ms.load(), m.signals.load(), m.wrong.load(), fault.what);
}

// Whether it went well.
bool measure(const Fault& fault, double seconds, bool json, bool first) {
  auto* const measured = static_cast<Measured*>(
      mmap(nullptr, sizeof(Measured), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  std::fflush(stdout);
  const pid_t child = fork();
  if (child == 0) run_fault(fault, seconds, *measured);
  int status = 0;
  const bool ended = child > 0 && waitpid(child, &status, 0) == child && status == 0 && measured->finished;
  print_row(fault, *measured, json, first);
  std::fflush(stdout);
  if (!ended) std::fprintf(stderr, "%s: the program ended with status %#x\n", fault.name, static_cast<unsigned>(status));
  const bool good = ended && measured->wrong == 0 && measured->pages_out != 0;
  munmap(measured, sizeof(Measured));
  return good;
}

int run(int argc, char** argv) {
  double seconds = 5;
  std::string only;
  bool json = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--json") {
      json = true;
    } else if (word == "--seconds" && i + 1 < argc) {
      seconds = std::strtod(argv[++i], nullptr);
    } else if (word == "--only" && i + 1 < argc) {
      only = argv[++i];
    } else {
      std::fprintf(stderr, "usage: bench_stalls [--seconds N] [--only FAULT] [--json]; faults:\n");
      for (const Fault& fault : kFaults) std::fprintf(stderr, "  %-14s %s\n", fault.name, fault.what);
      return 2;
    }
  }
  if (!kRawThreadsUsable) {
    std::printf("skipped: engine threads unknown to libc cannot run under this sanitizer\n");
    return 77;
  }
  if (json) {
    std::printf("[");
  } else {
    std::printf("%-14s %8s %10s %14s %10s %8s %6s\n", "fault", "injected", "accesses", "longest", "over 10 ms", "signals", "wrong");
  }
  bool good = true, first = true;
  int measured = 0;
  for (const Fault& fault : kFaults) {
    if (!only.empty() && only != fault.name) continue;
    good = measure(fault, seconds, json, first) && good;
    first = false;
    ++measured;
  }
  if (json) std::printf("\n]\n");
  return good && measured != 0 ? 0 : 1;
}

}  // namespace
}  // namespace whimbrel::live

int main(int argc, char** argv) { return whimbrel::live::run(argc, argv); }
