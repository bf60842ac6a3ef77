// The pager on the real kernel, managing this very process: what is watched, what stays, and the budget.
#include <pthread.h>
#include <time.h>

#include <random>
#include <thread>
#include <vector>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

using Command = LivePager::Command;

TEST_P(EveryDevice, FourTimesTheBudgetFilledAndReadBack) {
  NEEDS_RAW_THREADS();
  constexpr std::size_t kData = 200 * kMiB, kBudget = 50 * kMiB;
  OutsideSampler sampler;
  LivePager& live = LivePager::start(with_ram(kBudget, GetParam()));
  ProgramMemory memory(kData);
  sampler.watch(memory.range(0, memory.pages()));
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  EXPECT_EQ(wrong_in(memory, 1), 0u) << "first reading, in order";
  std::size_t wrong = 0;
  std::mt19937 random(5);
  for (int n = 0; n < 5000; ++n) wrong += memory.wrong_words(random() % memory.pages(), 1);
  EXPECT_EQ(wrong, 0u) << "random reading";
  for (std::size_t i = memory.pages(); i-- > 0;) wrong += memory.wrong_words(i, 1);
  EXPECT_EQ(wrong, 0u) << "backwards";
  EXPECT_GT(get(live.stats().pages_out), kData * 2 / kPageSize);
  EXPECT_GT(get(live.stats().pages_home), kData / kPageSize);
  EXPECT_GT(sampler.samples(), 5u);
  EXPECT_LE(sampler.most() * kPageSize, kBudget + kBudget / 20) << "residency seen from outside";
  std::printf("  most resident %zu MiB of %zu; out %zu, home %zu, faults %zu, holes %zu, back-pressure %zu, over %zu\n",
              sampler.most() * kPageSize / kMiB, kBudget / kMiB, get(live.stats().pages_out),
              get(live.stats().pages_home), get(live.stats().faults), get(live.stats().holes),
              get(live.stats().back_pressure), get(live.stats().over_limit));
  live.stop();
  EXPECT_EQ(wrong_in(memory, 1), 0u) << "after the engine has ended";
}

INSTANTIATE_TEST_SUITE_P(PagerLive, EveryDevice,
                         ::testing::Values(DeviceKind::kRam, DeviceKind::kLz4, DeviceKind::kZstd),
                         [](const auto& device) {
                           switch (device.param) {
                             case DeviceKind::kRam:
                               return "Ram";
                             case DeviceKind::kLz4:
                               return "Lz4";
                             case DeviceKind::kZstd:
                               return "Zstd";
                           }
                           return "";
                         });

TEST(PagerLive, HugePagesAreGivenTakenAndComeBackRight) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(48 * kMiB));
  ProgramMemory memory(96 * kMiB, ProgramMemory::Huge::kAdvised);
  for (std::size_t i = 0; i < memory.pages(); ++i) {
    memory.write(i, 3);
    if (i != memory.pages() / 3) continue;  // over half the budget: will be watched, however busy the machine is
    for (int tries = 0; tries < 10'000 && get(live.stats().watched_pages) < memory.pages(); ++tries) usleep(1000);
    ASSERT_GE(get(live.stats().watched_pages), memory.pages());
  }
  EXPECT_EQ(wrong_in(memory, 3), 0u);
  EXPECT_GT(get(live.stats().huge_filled), 0u) << "fresh memory advised for huge pages gets them";
  EXPECT_GT(get(live.stats().pages_out), 20 * kMiB / kPageSize);
  live.stop();
  EXPECT_EQ(wrong_in(memory, 3), 0u);
}

TEST(PagerLive, AMappingThatWasToldOfIsWatchedBeforeItIsFilled) {
  NEEDS_RAW_THREADS();
  constexpr std::size_t kBytes = 4 * kMiB;
  constexpr int kMappings = 20;
  LivePager& live = LivePager::start(with_ram(24 * kMiB));
  ProgramMemory memory(32 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  int wholly = 0;
  for (int i = 0; i < kMappings; ++i) {
    ProgramMemory fresh(kBytes);
    const std::size_t before = get(live.stats().zero_filled_pages);
    live.command(LivePager::Command::kNoteMapped, fresh.range(0, fresh.pages()));
    for (std::size_t k = 0; k < fresh.pages(); ++k) fresh.write(k, 2);
    wholly += get(live.stats().zero_filled_pages) - before >= fresh.pages();
    EXPECT_EQ(wrong_in(fresh, 2), 0u);
  }
  EXPECT_GT(wholly, kMappings / 2) << "a walk that is under way may be in the way now and then";
  live.stop();
}

TEST(PagerLive, BelowHalfTheBudgetNothingIsWatched) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(256 * kMiB));
  ProgramMemory memory(20 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  usleep(100'000);
  EXPECT_EQ(get(live.stats().watched_pages), 0u);
  EXPECT_EQ(get(live.stats().holes), 0u);
  EXPECT_GE(get(live.stats().resident_pages), memory.pages());
  live.stop();
}

double cpu_seconds() {
  timespec now{};
  clock_gettime(CLOCK_PROCESS_CPUTIME_ID, &now);
  return static_cast<double>(now.tv_sec) + static_cast<double>(now.tv_nsec) * 1e-9;
}

TEST(PagerLive, AnIdleProgramCostsLittle) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(24 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  sleep(1);
  const double before = cpu_seconds();
  sleep(3);
  const double share = (cpu_seconds() - before) / 3;
  std::printf("  %.2f %% of one processor while idle and over half the budget\n", share * 100);
  EXPECT_LT(share, 0.05);
  live.stop();
}

TEST(PagerLive, ThreadControlBlocksStayHome) {
  NEEDS_RAW_THREADS();
  constexpr int kThreads = 8;
  LivePager& live = LivePager::start(with_ram(24 * kMiB));
  struct Idle {
    std::atomic<bool> go{false};
    std::atomic<std::uintptr_t> block{0};
    std::atomic<char*> deep{nullptr};
  };
  static Idle idle[kThreads];
  std::vector<pthread_t> threads(kThreads);
  for (int i = 0; i < kThreads; ++i) {
    pthread_create(
        &threads[static_cast<std::size_t>(i)], nullptr,
        [](void* argument) -> void* {
          auto* self = static_cast<Idle*>(argument);
          char deep[256 * 1024];
          std::memset(deep, 7, sizeof deep);
          self->deep = deep;
          self->block = reinterpret_cast<std::uintptr_t>(__builtin_thread_pointer());
          while (!self->go) usleep(1000);
          for (char c : deep) {
            if (c != 7) return argument;
          }
          return nullptr;
        },
        &idle[i]);
  }
  ProgramMemory memory(64 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  std::size_t deep_away = 0;
  for (Idle& one : idle) {
    while (one.block == 0) usleep(100);
    char* deep = one.deep;
    const PageRange stack{PageIndex::of(VirtualAddress(deep)), PageCount(256)};
    // Upwards over the block, as the sweep does, then again: below it has left before the block was seen.
    live.command(Command::kEvictRange, stack);
    live.command(Command::kEvictRange, stack);
    const auto block = reinterpret_cast<char*>(one.block.load());
    EXPECT_TRUE(is_present(block));
    EXPECT_TRUE(is_present(block - 4096)) << "static thread-local storage lies below";
    deep_away += is_present(deep + 4096) ? 0 : 1;
  }
  EXPECT_GE(get(live.stats().control_blocks), static_cast<std::uint64_t>(kThreads));
  EXPECT_GE(deep_away, static_cast<std::size_t>(kThreads / 2)) << "the rest of a stack may leave";
  for (Idle& one : idle) one.go = true;
  for (pthread_t thread : threads) {
    void* bad = nullptr;
    pthread_join(thread, &bad);
    EXPECT_EQ(bad, nullptr);
  }
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

TEST(PagerLive, PinnedAndExcludedPagesStay) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(24 * kMiB));
  ProgramMemory memory(72 * kMiB);
  for (std::size_t i = 0; i < 256; ++i) memory.write(i, 1);
  ASSERT_TRUE(live.pager().exclude(memory.range(0, 64)));
  live.command(Command::kPin, memory.range(100, 50));
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 2);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_TRUE(is_present(memory.page(i))) << i;
  for (std::size_t i = 100; i < 150; ++i) EXPECT_TRUE(is_present(memory.page(i))) << i;
  live.command(Command::kUnpin, memory.range(100, 50));
  live.command(Command::kEvictRange, memory.range(100, 50));
  EXPECT_FALSE(is_present(memory.page(120)));
  EXPECT_EQ(wrong_in(memory, 2), 0u);
  live.stop();
}

// Whether a range is registered for missing faults, by the flags of the mapping that holds it.
bool is_watched(const void* address) {
  FILE* smaps = std::fopen("/proc/self/smaps", "r");
  char line[512];
  bool here = false, watched = false;
  while (std::fgets(line, sizeof line, smaps) != nullptr) {
    unsigned long from = 0, to = 0;
    if (std::sscanf(line, "%lx-%lx ", &from, &to) == 2) {
      here = from <= reinterpret_cast<std::uintptr_t>(address) && reinterpret_cast<std::uintptr_t>(address) < to;
    } else if (here && std::strncmp(line, "VmFlags:", 8) == 0) {
      watched = std::strstr(line, " um") != nullptr;
    }
  }
  std::fclose(smaps);
  return watched;
}

TEST(PagerLive, AnExcludedPartOfAMappingIsNeverWatched) {
  NEEDS_RAW_THREADS();
  LiveOptions options = with_ram(24 * kMiB);
  LivePager& live = LivePager::start(options);
  ProgramMemory memory(64 * kMiB);
  ASSERT_TRUE(live.pager().exclude(memory.range(4096, 512)));
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  live.command(Command::kEvictRange, memory.range(3072, 1024));
  live.command(Command::kEvictRange, memory.range(4608, 1024));
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_TRUE(is_watched(memory.page(4000)));
  EXPECT_FALSE(is_watched(memory.page(4096)));
  EXPECT_FALSE(is_watched(memory.page(4607)));
  EXPECT_TRUE(is_watched(memory.page(4608)));
  live.stop();
}

TEST(PagerLive, MemoryThatGetsLockedOrWipedOnForkComesHome) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(32 * kMiB));
  ProgramMemory memory(80 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  live.command(Command::kEvictRange, memory.range(0, 1024));
  ASSERT_FALSE(is_present(memory.page(512)));
  // No message tells of this: the flags are looked at again about once a second.
  ASSERT_EQ(madvise(memory.page(0), 1024 * kPageSize, MADV_WIPEONFORK), 0);
  for (int i = 0; i < 2000 && !is_present(memory.page(512)); ++i) usleep(10'000);
  EXPECT_TRUE(is_present(memory.page(512))) << "what a child must find wiped may not be on the device";
  EXPECT_EQ(live.command(Command::kEvictRange, memory.range(0, 1024)).raw(), 0u);
  ASSERT_EQ(mlock(memory.page(2048), 256 * kPageSize), 0);
  EXPECT_EQ(live.command(Command::kEvictRange, memory.range(2048, 256)).raw(), 0u) << "locked";
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  munlock(memory.page(2048), 256 * kPageSize);
  live.stop();
}

TEST(PagerLive, TheTotalIsSplitBetweenResidentsAndStore) {
  NEEDS_RAW_THREADS();
  constexpr std::size_t kTotal = 100 * kMiB;
  OutsideSampler sampler;
  LiveOptions options;
  options.pager.total_bytes = kTotal;
  options.device = DeviceKind::kZstd;
  LivePager& live = LivePager::start(options);
  sampler.watch_process();
  ProgramMemory memory(140 * kMiB);  // half of it compresses away
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_LE(get(live.stats().peak_total_bytes), kTotal + kTotal / 20);
  EXPECT_LE(sampler.most_anonymous(), kTotal + kTotal / 20) << "RSS of the process, seen from outside";
  EXPECT_GT(sampler.most_anonymous(), kTotal / 2) << "the sampler saw something";
  EXPECT_LT(get(live.stats().resident_limit_pages) * kPageSize, kTotal - 20 * kMiB);
  std::printf("  most %zu MiB seen, %zu MiB counted of %zu; limit of residents at the end %zu MiB\n",
              sampler.most_anonymous() / kMiB, get(live.stats().peak_total_bytes) / kMiB, kTotal / kMiB,
              get(live.stats().resident_limit_pages) * kPageSize / kMiB);
  live.stop();
}

TEST(PagerLive, ATotalThatCannotBeKeptIsSaidOnceWithOneThatCould) {
  NEEDS_RAW_THREADS();
  LiveOptions options;
  options.pager.total_bytes = 40 * kMiB;
  LivePager& live = LivePager::start(options);
  ProgramMemory memory(140 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  const auto cannot = static_cast<std::uint32_t>(Pager::Notice::kCannotFit);
  EXPECT_EQ(live.pager().take_notices() & cannot, cannot);
  const std::uint64_t would_do = live.pager().bytes_that_would_do();
  EXPECT_GT(would_do, 70 * kMiB);  // the incompressible half
  EXPECT_LT(would_do, 140 * kMiB);
  live.stop();
}

}  // namespace
}  // namespace whimbrel::live
