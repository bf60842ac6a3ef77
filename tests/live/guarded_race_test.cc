// The race test of guarded arenas: an engine without userfaultfd pages a table several times larger than its budget while
// threads write patterns all over it. Every thread owns some words of each page, so that pages are opened and closed under
// several threads at a time, and knows what it has written last: a word that is anything else is a word lost.
//
//   guarded_race_test [--seconds N] [--expect-wrong]
//
// With --expect-wrong it succeeds when it has found wrong words: for the twin that is built on an engine which opens pages before
// it has written their contents.
#include <sys/mman.h>

#include <atomic>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string_view>
#include <thread>
#include <vector>

#include "linux/guard_signal.h"
#include "runtime/engine.h"

namespace {

using namespace whimbrel;

constexpr std::size_t kPages = 12 * 1024;           // 48 MiB
constexpr std::uint64_t kBudget = std::uint64_t{8} << 20;
constexpr unsigned kThreads = 4;
constexpr std::size_t kWords = kPageSize / sizeof(std::uint64_t);

struct Totals {
  std::atomic<std::uint64_t> writes{0}, wrong{0};
  std::atomic<bool> stop{false};
};

// What a thread has written to its words of a page: a function of these.
std::uint64_t pattern(std::uint32_t round, std::size_t page, std::size_t word) {
  return round == 0 ? 0 : round * 0x9e3779b97f4a7c15u + page * 1'000'003 + word / 8;
}

class Worker {
 public:
  Worker(std::uint64_t* table, unsigned number, Totals& totals)
      : table_(table), number_(number), totals_(totals), rounds_(kPages), random_(number + 1) {}

  void run() {
    while (!totals_.stop.load(std::memory_order_relaxed)) {
      // Here and there, and now and then a stretch.
      const std::size_t first = random_() % kPages;
      const std::size_t count = random_() % 8 == 0 ? 64 : 1;
      for (std::size_t i = 0; i < count; ++i) write((first + i) % kPages);
    }
    for (std::size_t page = 0; page < kPages; ++page) check(page);
  }

 private:
  void check(std::size_t page) {
    for (std::size_t word = number_; word < kWords; word += kThreads) {
      if (at(page, word).load(std::memory_order_relaxed) != pattern(rounds_[page], page, word)) {
        totals_.wrong.fetch_add(1, std::memory_order_relaxed);
        return;
      }
    }
  }
  void write(std::size_t page) {
    check(page);
    const std::uint32_t round = ++rounds_[page];
    for (std::size_t word = number_; word < kWords; word += kThreads) {
      at(page, word).store(pattern(round, page, word), std::memory_order_relaxed);
    }
    totals_.writes.fetch_add(1, std::memory_order_relaxed);
  }
  std::atomic_ref<std::uint64_t> at(std::size_t page, std::size_t word) { return std::atomic_ref(table_[page * kWords + word]); }

  std::uint64_t* table_;
  const unsigned number_;
  Totals& totals_;
  std::vector<std::uint32_t> rounds_;
  std::minstd_rand random_;
};

int complain(const char* what, const Error& error) {
  std::printf("%s: %s, errno %d\n", what, error.where, error.sys);
  return 2;
}

int run(double seconds, bool expect_wrong) {
  // Pages of its own: engine threads use it.
  static Engine engine;
  Settings settings;
  settings.ram_bytes = kBudget;
  settings.whole_process = false;
  settings.rung = Settings::Rung::kGuarded;
  std::strcpy(settings.device, "lz4");
  if (const Result<void> started = engine.start_session(settings); !started) return complain("start", started.error());
  if (const Result<void> ready = guard_signal::install(); !ready) return complain("signals", ready.error());
  const Result<PageRange> arena = engine.guarded()->map_arena(kPages * kPageSize);
  if (!arena) return complain("arena", arena.error());
  const Result<HintQueue::Ticket> managed = engine.hints().submit(HintKind::kManage, *arena);
  if (!managed || !engine.hints().wait(*managed, -1)) return complain("manage", {});

  Totals totals;
  std::vector<Worker> workers;
  for (unsigned i = 0; i < kThreads; ++i) {
    workers.emplace_back(reinterpret_cast<std::uint64_t*>(arena->first.address().raw()), i, totals);
  }
  std::vector<std::thread> threads;
  for (Worker& worker : workers) threads.emplace_back([&worker] { worker.run(); });
  const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
  while (std::chrono::steady_clock::now() < end && !(expect_wrong && totals.wrong.load() != 0)) {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
  }
  totals.stop.store(true);
  for (std::thread& thread : threads) thread.join();

  const PagerStats& stats = engine.statistics().pager;
  const std::uint64_t out = stats.pages_out.load(), home = stats.pages_home.load();
  std::printf("%lu pages written, %lu left, %lu came home, %lu pages with wrong words\n", totals.writes.load(), out, home,
              totals.wrong.load());
  if (const Result<void> stopped = engine.stop(); !stopped) return complain("stop", stopped.error());
  if (expect_wrong) return totals.wrong.load() != 0 ? 0 : 1;
  // Without pages that came and went it would have tested nothing.
  return totals.wrong.load() == 0 && out > kPages && home > kPages ? 0 : 1;
}

}  // namespace

int main(int argc, char** argv) {
  double seconds = 10;
  bool expect_wrong = false;
  for (int i = 1; i < argc; ++i) {
    const std::string_view word = argv[i];
    if (word == "--seconds" && i + 1 < argc) seconds = std::atof(argv[++i]);
    if (word == "--expect-wrong") expect_wrong = true;
  }
  return run(seconds, expect_wrong);
}
