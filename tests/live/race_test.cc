// The race test: several threads write counters and patterns all over a region while it is migrated out and home at
// random, one of them unmapping, remapping and discarding parts of it, with forks in between, and the kernel compacting all
// memory every other second (as root: a move that meets a page under migration is cut short). Every word is compared with
// what its writer knows it to be; one wrong word fails the test.
//
//   live_race_test [--seconds N] [--seed S]      passes when nothing was wrong
//   live_race_test_broken --expect-wrong         built with a line of the engine broken on purpose: passes when this very
//                                                test finds it
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>

#include "tests/live/live_space.h"
#include "tests/live/ram_driver.h"

namespace whimbrel::live {
namespace {

constexpr std::size_t kSharedPages = 4 * kPagesPerHuge;  // written by all writers
constexpr std::size_t kOwnPages = 512;                    // written and re-mapped by the shape-changer
constexpr int kWriters = 3;

struct Race {
  explicit Race(unsigned seed_) : seed(seed_) {
    shared = map_memory(kSharedPages * kPageSize);
    // Half of it may be huge: both kinds are moved and mixed.
    madvise(shared + kSharedPages / 2 * kPageSize, kSharedPages / 2 * kPageSize, MADV_HUGEPAGE);
    own = map_memory(kOwnPages * kPageSize);
    other = map_memory(kOwnPages * kPageSize);
    reserve(other, kOwnPages);
    known.resize(kWriters * kSharedPages);
    own_known.resize(kOwnPages);
    own_history.resize(kOwnPages);
  }

  LiveSpace live;
  RamDriver driver{live.space(), 24 * kPagesPerHuge};
  const unsigned seed;
  bool idle = false;  // nothing is migrated: what goes wrong then is not the engine's doing
  char* shared = nullptr;
  char* own = nullptr;    // where the shape-changer's pages are now
  char* other = nullptr;  // reserved: where they can go
  std::vector<std::uint64_t> known;      // [writer][page]: the last value written
  std::vector<std::uint64_t> own_known;  // [page]
  std::vector<std::string> own_history;  // [page]
  std::atomic<bool> stop{false}, parked{false};
  std::atomic<int> parked_count{0};
  std::atomic<std::uint64_t> wrong{0}, writes{0}, moved_out{0}, moved_home{0}, forks{0}, reshaped{0}, compactions{0};

  // One word per writer and page, at a place of its own, so that every write is exactly checkable.
  std::atomic<std::uint64_t>* word(int writer, std::size_t page) {
    return reinterpret_cast<std::atomic<std::uint64_t>*>(shared + page * kPageSize + 64 * (writer + 1) + page % 7 * 512);
  }
  std::atomic<std::uint64_t>* own_word(std::size_t page) {
    return reinterpret_cast<std::atomic<std::uint64_t>*>(own + page * kPageSize + page % 500 * 8);
  }
  void complain(const char* where, std::size_t page, std::uint64_t is, std::uint64_t should) {
    if (wrong.fetch_add(1) < 10) {
      std::fprintf(stderr, "wrong word: %s page %zu is %llx, should be %llx\n", where, page,
                   static_cast<unsigned long long>(is), static_cast<unsigned long long>(should));
    }
  }
  // Threads stand still here while somebody forks: the child must be able to compare with a picture that holds still.
  void pass_fork() {
    if (!parked) return;
    ++parked_count;
    while (parked && !stop) std::this_thread::yield();
    --parked_count;
  }

  void write(int writer) {
    std::mt19937_64 random(seed * 31 + static_cast<unsigned>(writer));
    while (!stop) {
      pass_fork();
      const std::size_t page = random() % kSharedPages;
      std::uint64_t& should = known[static_cast<std::size_t>(writer) * kSharedPages + page];
      std::atomic<std::uint64_t>* at = word(writer, page);
      const std::uint64_t is = at->load(std::memory_order_relaxed);
      if (is != should) complain("shared", page, is, should);
      should = random() | 1;
      at->store(should, std::memory_order_relaxed);
      const std::uint64_t after = at->fetch_add(1, std::memory_order_relaxed);
      if (after != should) complain("shared, at once", page, after, should);
      ++should;
      writes.fetch_add(1, std::memory_order_relaxed);
    }
  }

  void migrate() {
    std::mt19937_64 random(seed * 77);
    while (!stop) {
      pass_fork();
      if (idle) {
        std::this_thread::yield();
        continue;
      }
      char* const base = random() % 4 == 0 ? own : shared;
      const std::size_t pages = base == shared ? kSharedPages : kOwnPages;
      std::size_t first = random() % pages;
      std::size_t count = 1 + random() % 100;
      if (random() % 3 == 0) {
        first &= ~std::size_t{511};
        count = 512;
      }
      if (first + count > pages) count = pages - first;
      if (random() % 3 != 0) {
        moved_out += driver.to_device(base + first * kPageSize, count * kPageSize, random() % 4 != 0);
      } else {
        moved_home += driver.to_ram(VirtualAddress(base + first * kPageSize), count * kPageSize, Pfn(), random() % 4 != 0);
      }
    }
  }

  void check_own(std::size_t first, std::size_t count) {
    for (std::size_t page = first; page < first + count; ++page) {
      const std::uint64_t is = own_word(page)->load(std::memory_order_relaxed);
      if (is != own_known[page]) {
        complain("own", page, is, own_known[page]);
        if (wrong < 10) {
          std::fprintf(stderr, "  before: %s; the slot says state %d now\n", own_history[page].c_str(),
                       static_cast<int>(live.space().entry(PageIndex::of(VirtualAddress(own + page * kPageSize))).state()));
          if (wrong == 1) print_trace(page);
        }
      }
    }
  }

  // What the engine did to a page of the shape-changer, at both places where it can be.
  void print_trace(std::size_t page) {
    const PageIndex here = PageIndex::of(VirtualAddress(own + page * kPageSize));
    const PageIndex there = PageIndex::of(VirtualAddress(other + page * kPageSize));
    const PageIndex base = PageIndex::of(VirtualAddress(own));
    const PageIndex other_base = PageIndex::of(VirtualAddress(other));
    live.space().trace().for_each([&](const TraceEntry& entry) {
      const bool at_target = entry.step == TraceStep::kMessageRemap && entry.other <= here.raw() &&
                             here.raw() < entry.other + entry.range.count.raw();
      if (!entry.range.contains(here) && !entry.range.contains(there) && !at_target) return;
      const bool away = entry.range.first >= other_base && entry.range.first < other_base + PageCount(kOwnPages);
      const PageIndex from = away ? other_base : base;
      std::fprintf(stderr, "    %llu %s %s page %lld +%llu (%llx)\n", static_cast<unsigned long long>(entry.sequence),
                   trace_step_name(entry.step), away ? "other" : "own",
                   static_cast<long long>(entry.range.first.raw() - from.raw()),
                   static_cast<unsigned long long>(entry.range.count.raw()), static_cast<unsigned long long>(entry.other));
    });
  }

  // The last things done to each page, to be printed when it turns out wrong.
  void remember(std::size_t first, std::size_t count, char what) {
    for (std::size_t page = first; page < first + count; ++page) {
      std::string& history = own_history[page];
      history.push_back(what);
      if (history.size() > 24) history.erase(0, 12);
    }
  }

  void reshape() {
    std::mt19937_64 random(seed * 123);
    while (!stop) {
      pass_fork();
      const std::size_t first = random() % kOwnPages;
      const std::size_t count = std::min<std::size_t>(1 + random() % 60, kOwnPages - first);
      char* const at = own + first * kPageSize;
      const auto what = static_cast<unsigned>(random() % 12);
      remember(first, count, "DUFmMpwwwwww"[what]);
      switch (what) {
        case 0:
          madvise(at, count * kPageSize, MADV_DONTNEED);
          std::fill_n(own_known.begin() + static_cast<std::ptrdiff_t>(first), count, 0);
          break;
        case 1:  // a hole, and something new in it
          munmap(at, count * kPageSize);
          mmap(at, count * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          std::fill_n(own_known.begin() + static_cast<std::ptrdiff_t>(first), count, 0);
          break;
        case 2:  // straight over it
          mmap(at, count * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          std::fill_n(own_known.begin() + static_cast<std::ptrdiff_t>(first), count, 0);
          break;
        case 3:  // a part moves within the area, over what is there
          if (first >= count && first + count <= kOwnPages) {
            const std::size_t to = first - count;
            // By now the area is many mappings, and mremap moves one at a time.
            for (std::size_t i = 0; i < count; ++i) move_page(at + i * kPageSize, own + (to + i) * kPageSize);
            mmap(at, count * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
            moved_words(first, to, count);
            remember(to, count, 'm');
          }
          break;
        case 4:
          move_all();
          break;
        case 5:
          mprotect(at, count * kPageSize, PROT_READ);
          check_own(first, count);
          mprotect(at, count * kPageSize, PROT_READ | PROT_WRITE);
          break;
        default:
          check_own(first, count);
          for (std::size_t page = first; page < first + count; ++page) {
            own_known[page] = random() | 1;
            own_word(page)->store(own_known[page], std::memory_order_relaxed);
          }
          continue;
      }
      reshaped.fetch_add(1, std::memory_order_relaxed);
    }
  }

  // A page's word lies at a place that depends on its number: moving pages to other numbers moves words too.
  void moved_words(std::size_t from, std::size_t to, std::size_t count) {
    for (std::size_t i = 0; i < count; ++i) {
      auto* old_place = reinterpret_cast<std::atomic<std::uint64_t>*>(own + (to + i) * kPageSize + (from + i) % 500 * 8);
      const std::uint64_t is = old_place->load(std::memory_order_relaxed);
      if (is != own_known[from + i]) {
        complain("remapped", from + i, is, own_known[from + i]);
        if (wrong == 1) {
          std::fprintf(stderr, "  before: %s\n", own_history[from + i].c_str());
          print_trace(from + i);
          print_trace(to + i);
        }
      }
      old_place->store(0, std::memory_order_relaxed);
      own_known[to + i] = is;
      own_word(to + i)->store(is, std::memory_order_relaxed);
      own_known[from + i] = 0;
    }
  }

  void move_all() {
    remember(0, kOwnPages, 'M');
    for (std::size_t page = 0; page < kOwnPages; ++page) move_page(own + page * kPageSize, other + page * kPageSize);
    std::swap(own, other);
  }

  // Addresses that nobody else may get: a thread's stack was once placed in a gap that pages were then moved into.
  static void reserve(char* at, std::size_t pages) {
    mmap(at, pages * kPageSize, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE | MAP_FIXED, -1, 0);
  }

  void move_page(char* from, char* to) {
    if (mremap(from, kPageSize, kPageSize, MREMAP_MAYMOVE | MREMAP_FIXED, to) == MAP_FAILED) {
      complain("mremap refused", 0, 0, 0);
    }
    reserve(from, 1);
  }

  // Stops everybody, forks, and lets the child compare every word.
  void fork_once() {
    parked = true;
    while (parked_count < kWriters + 2 && !stop) std::this_thread::yield();
    if (!stop) {
      const pid_t child = fork();
      if (child == 0) {
        std::uint64_t bad = live.revive_in_child() == 0 ? 0 : 1;
        for (int writer = 0; writer < kWriters; ++writer) {
          for (std::size_t page = 0; page < kSharedPages; ++page) {
            bad += word(writer, page)->load() != known[static_cast<std::size_t>(writer) * kSharedPages + page];
          }
        }
        for (std::size_t page = 0; page < kOwnPages; ++page) bad += own_word(page)->load() != own_known[page];
        _exit(bad == 0 ? 0 : 1);
      }
      int status = 0;
      waitpid(child, &status, 0);
      if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) complain("a forked child", 0, static_cast<std::uint64_t>(status), 0);
      ++forks;
    }
    parked = false;
    while (parked_count != 0) std::this_thread::yield();
  }

  // Pages of the program and frames of the engine are under migration by the kernel while they are moved.
  void compact() {
    const int file = open("/proc/sys/vm/compact_memory", O_WRONLY | O_CLOEXEC);
    if (file < 0) return;
    for (auto next = std::chrono::steady_clock::now(); !stop;) {
      const auto now = std::chrono::steady_clock::now();
      if (next + std::chrono::seconds(1) < now) next = now + std::chrono::seconds(1);
      if (now < next) {
        std::this_thread::sleep_for(std::chrono::milliseconds(20));
      } else if (::write(file, "1", 1) == 1) {
        ++compactions;
      }
    }
    close(file);
  }

  std::uint64_t run(double seconds) {
    std::vector<std::thread> threads;
    threads.emplace_back([this] { compact(); });
    for (int writer = 0; writer < kWriters; ++writer) threads.emplace_back([this, writer] { write(writer); });
    threads.emplace_back([this] { migrate(); });
    threads.emplace_back([this] { reshape(); });
    const auto end = std::chrono::steady_clock::now() + std::chrono::duration<double>(seconds);
    while (std::chrono::steady_clock::now() < end && wrong == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(400));
      fork_once();
    }
    stop = true;
    for (std::thread& thread : threads) thread.join();
    std::printf("%llu checked writes, %llu pages out, %llu home on request, %llu faults, %llu waits, %llu reshapings, "
                "%llu forks, %llu pages split, beside %llu compactions: %llu wrong words\n",
                static_cast<unsigned long long>(writes), static_cast<unsigned long long>(moved_out),
                static_cast<unsigned long long>(moved_home),
                static_cast<unsigned long long>(live.space().stats().faults.load()),
                static_cast<unsigned long long>(live.space().stats().waits.load()),
                static_cast<unsigned long long>(reshaped), static_cast<unsigned long long>(forks),
                static_cast<unsigned long long>(live.space().stats().split.load()),
                static_cast<unsigned long long>(compactions), static_cast<unsigned long long>(wrong));
    std::printf("%llu slots were replaced before their page came home, %llu refusals, %llu times a message was pending\n",
                static_cast<unsigned long long>(live.space().stats().replaced.load()),
                static_cast<unsigned long long>(live.space().stats().busy.load()),
                static_cast<unsigned long long>(live.space().stats().event_pending.load()));
    live.stop_fault_thread();
    if (wrong == 0) live.space().check_invariants();
    return wrong;
  }
};

}  // namespace
}  // namespace whimbrel::live

int main(int argc, char** argv) {
  double seconds = 60;
  unsigned seed = std::random_device{}();
  bool expect_wrong = false, idle = false;
  for (int i = 1; i < argc; ++i) {
    if (std::strcmp(argv[i], "--seconds") == 0 && i + 1 < argc) seconds = std::atof(argv[++i]);
    else if (std::strcmp(argv[i], "--seed") == 0 && i + 1 < argc) seed = static_cast<unsigned>(std::atoi(argv[++i]));
    else if (std::strcmp(argv[i], "--expect-wrong") == 0) expect_wrong = true;
    else if (std::strcmp(argv[i], "--idle") == 0) idle = true;
    else return std::fprintf(stderr, "usage: live_race_test [--seconds N] [--seed S] [--idle] [--expect-wrong]\n"), 2;
  }
  std::printf("seed %u, %g seconds\n", seed, seconds);
  std::fflush(stdout);
  if (!expect_wrong) {
    whimbrel::live::Race race(seed);
    race.idle = idle;
    return race.run(seconds) == 0 ? 0 : 1;
  }
  // The broken engine may also stop itself by a failed check, or never wake somebody: anything but success will do.
  const pid_t child = fork();
  if (child == 0) {
    alarm(static_cast<unsigned>(seconds) + 20);
    _exit(whimbrel::live::Race(seed).run(seconds) == 0 ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  const bool found = !WIFEXITED(status) || WEXITSTATUS(status) != 0;
  std::printf(found ? "the broken engine was found out\n" : "THE RACE TEST CANNOT SEE A BROKEN ENGINE\n");
  return found ? 0 : 1;
}
