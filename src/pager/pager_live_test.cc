// The pager on the real kernel, managing this very process.
#include <pthread.h>
#include <setjmp.h>
#include <time.h>

#include <random>
#include <thread>
#include <vector>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

using Command = LivePager::Command;

#define NEEDS_RAW_THREADS() \
  if (!kRawThreadsUsable) GTEST_SKIP() << "engine threads unknown to libc cannot run under this sanitizer"

std::uint64_t get(const PagerStats::Number& number) { return number.load(); }

LiveOptions with_ram(std::size_t bytes, DeviceKind device = DeviceKind::kLz4) {
  LiveOptions options;
  options.pager.ram_bytes = bytes;
  options.device = device;
  return options;
}

// Presence as the kernel has it, of one page of this process.
bool is_present(const void* address) {
  static const int pagemap = open("/proc/self/pagemap", O_RDONLY);
  std::uint64_t word = 0;
  const auto page = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(address) / kPageSize);
  EXPECT_EQ(pread(pagemap, &word, 8, page * 8), 8);
  return (word >> 63) != 0;
}

std::size_t wrong_in(const ProgramMemory& memory, std::uint64_t salt) {
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < memory.pages(); ++i) wrong += memory.wrong_words(i, salt);
  return wrong;
}

class EveryDevice : public ::testing::TestWithParam<DeviceKind> {};

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
    const PageRange range = fresh.range(0, fresh.pages());
    live.pager().note_mapped({&range, 1}, true);
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

TEST(PagerLive, ARamDeviceThatIsFullLosesNothing) {
  NEEDS_RAW_THREADS();
  LiveOptions options = with_ram(16 * kMiB, DeviceKind::kRam);
  options.device_capacity = 12 * kMiB;
  LivePager& live = LivePager::start(options);
  ProgramMemory memory(64 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_GT(get(live.stats().device_full), 0u);
  EXPECT_GT(get(live.stats().pages_out), 0u);
  EXPECT_GT(get(live.stats().resident_pages) * kPageSize, 40 * kMiB) << "what has no place stays";
  const auto full = static_cast<std::uint32_t>(Pager::Notice::kDeviceFull);
  EXPECT_EQ(live.pager().take_notices() & full, full);
  EXPECT_EQ(live.pager().take_notices() & full, 0u) << "said once";
  live.stop();
}

TEST(PagerLive, ADeviceThatFailsToStoreLosesNothing) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB));
  live.device().fail_stores = true;
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  EXPECT_EQ(get(live.stats().pages_out), 0u);
  EXPECT_GT(get(live.stats().device_errors), 0u);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.device().fail_stores = false;
  for (int i = 0; i < 1000 && get(live.stats().resident_pages) * kPageSize > 17 * kMiB; ++i) usleep(10'000);
  EXPECT_LE(get(live.stats().resident_pages) * kPageSize, 17 * kMiB) << "it recovers by itself";
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

sigjmp_buf g_escape;
volatile sig_atomic_t g_touching = 0;
volatile sig_atomic_t g_bus_errors = 0;
void* volatile g_bus_address = nullptr;
void on_bus_error(int, siginfo_t* info, void*) {
  g_bus_errors = g_bus_errors + 1;
  g_bus_address = info->si_addr;
  if (g_touching == 0) return;
  g_touching = 0;
  siglongjmp(g_escape, 1);
}

TEST(PagerLive, ALoadThatFailsIsABusErrorForThatPageAndNothingElseIsHurt) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  live.command(Command::kEvictRange, memory.range(0, 256));
  ASSERT_FALSE(is_present(memory.page(10)));
  struct sigaction action {};
  struct sigaction before {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, &before);
  alarm(60);
  live.device().fail_loads = true;
  static int rounds = 0;  // not on the stack, which the jump leaves as it is
  for (rounds = 0; rounds < 3; ++rounds) {
    volatile std::uint64_t* const word = memory.page(10) + 77;
    const int before_this = g_bus_errors;
    volatile bool went_through = false;
    g_touching = 1;
    if (sigsetjmp(g_escape, 1) == 0) {
      (void)*word;
      went_through = true;
    }
    EXPECT_FALSE(went_through);
    EXPECT_EQ(g_bus_address, static_cast<const volatile void*>(word));
    EXPECT_EQ(g_bus_errors, before_this + 1) << "one signal for one access";
  }
  // A system call that needs the page fails; nobody waits for ever.
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(write(ends[1], memory.page(200), kPageSize), -1);
  EXPECT_EQ(errno, EFAULT);
  live.device().fail_loads = false;
  EXPECT_GT(get(live.stats().load_errors), 0u);
  const int so_far = g_bus_errors;
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < memory.pages(); ++i) wrong += i == 200 ? 0 : memory.wrong_words(i, 1);
  EXPECT_EQ(wrong, 0u) << "that page too, now that the device works";
  EXPECT_EQ(g_bus_errors, so_far);
  alarm(0);
  live.stop();
  sigaction(SIGBUS, &before, nullptr);
}

TEST(PagerLive, ALoadThatFailsEndsAProgramThatBlocksTheSignal) {
  NEEDS_RAW_THREADS();
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    LivePager& live = LivePager::start(with_ram(16 * kMiB));
    ProgramMemory memory(40 * kMiB);
    for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
    live.command(Command::kEvictRange, memory.range(0, 256));
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    sigprocmask(SIG_BLOCK, &bus, nullptr);
    live.device().fail_loads = true;
    alarm(20);
    (void)*static_cast<volatile std::uint64_t*>(memory.page(10));
    _exit(1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGBUS) << "as with a fault of the machine";
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

TEST(PagerLive, MappingsThatComeGoAndMoveUnderPressure) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(24 * kMiB));
  ProgramMemory ballast(40 * kMiB);
  for (std::size_t i = 0; i < ballast.pages(); ++i) ballast.write(i, 9);
  std::atomic<std::size_t> wrong{0};
  const auto shuffle = [&wrong](unsigned seed) {
    std::mt19937 random(seed);
    struct Block {
      char* at = nullptr;
      std::size_t pages = 0;
      unsigned char mark = 0;
    };
    Block blocks[12];
    const auto check = [&](const Block& b) {
      for (std::size_t p = 0; p < b.pages; ++p) {
        if (b.at[p * kPageSize] != static_cast<char>(b.mark) ||
            b.at[p * kPageSize + 4095] != static_cast<char>(b.mark)) {
          ++wrong;
        }
      }
    };
    for (int step = 0; step < 300; ++step) {
      Block& b = blocks[random() % 12];
      if (b.at == nullptr) {
        b.pages = 32 + random() % 400;
        b.mark = static_cast<unsigned char>(1 + random() % 200);
        b.at = static_cast<char*>(
            mmap(nullptr, b.pages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
        std::memset(b.at, b.mark, b.pages * kPageSize);
        continue;
      }
      check(b);
      switch (random() % 5) {
        case 0:
          munmap(b.at, b.pages * kPageSize);
          b = Block();
          break;
        case 1: {
          const std::size_t more = b.pages + random() % 200;
          b.at = static_cast<char*>(mremap(b.at, b.pages * kPageSize, more * kPageSize, MREMAP_MAYMOVE));
          for (std::size_t p = b.pages; p < more; ++p) {
            if (b.at[p * kPageSize] != 0) ++wrong;
          }
          std::memset(b.at + b.pages * kPageSize, b.mark, (more - b.pages) * kPageSize);
          b.pages = more;
          break;
        }
        case 2:
          madvise(b.at, b.pages / 2 * kPageSize, MADV_DONTNEED);
          for (std::size_t p = 0; p < b.pages / 2; ++p) {
            if (b.at[p * kPageSize + 100] != 0) ++wrong;
          }
          std::memset(b.at, b.mark, b.pages / 2 * kPageSize);
          break;
        case 3:
          mmap(b.at, b.pages * kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
          for (std::size_t p = 0; p < b.pages; ++p) {
            if (b.at[p * kPageSize + 8] != 0) ++wrong;
          }
          std::memset(b.at, b.mark, b.pages * kPageSize);
          break;
        case 4:
          std::memset(b.at, b.mark = static_cast<unsigned char>(1 + random() % 200), b.pages * kPageSize);
          break;
      }
    }
    for (Block& b : blocks) {
      if (b.at == nullptr) continue;
      check(b);
      munmap(b.at, b.pages * kPageSize);
    }
  };
  std::thread first(shuffle, 1), second(shuffle, 2);
  std::size_t ballast_wrong = 0;
  std::mt19937 random(3);
  for (int i = 0; i < 3000; ++i) ballast_wrong += ballast.wrong_words(random() % ballast.pages(), 9);
  first.join();
  second.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_EQ(ballast_wrong + wrong_in(ballast, 9), 0u);
  // After all that the count is what the kernel says.
  live.command(Command::kRecount);
  const std::uint64_t exact = get(live.stats().resident_pages);
  EXPECT_LE(exact * kPageSize, 24 * kMiB + 2 * kMiB);
  live.stop();
}

TEST(PagerLive, TheLimitHoldsWhileAMappingIsCutToPieces) {
  NEEDS_RAW_THREADS();
  constexpr std::size_t kBudget = 24 * kMiB;
  OutsideSampler sampler;
  LivePager& live = LivePager::start(with_ram(kBudget));
  ProgramMemory memory(64 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  sampler.watch(memory.range(0, memory.pages()));
  std::mt19937 random(11);
  std::size_t wrong = 0;
  for (int round = 0; round < 400; ++round) {
    // Without a message, and in the middle of the clumps that the last scan saw.
    const std::size_t stripe = random() % (memory.pages() / 64) * 64 + 32;
    if (stripe + 16 > memory.pages()) continue;
    mprotect(memory.page(stripe), 16 * kPageSize, round % 2 == 0 ? PROT_READ : PROT_READ | PROT_WRITE);
    const std::size_t from = random() % (memory.pages() - 200);
    for (std::size_t i = from; i < from + 200; ++i) wrong += memory.wrong_words(i, 1);
  }
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(sampler.samples(), 3u);
  EXPECT_LE(sampler.most() * kPageSize, kBudget + kBudget / 20);
  mprotect(memory.page(0), memory.pages() * kPageSize, PROT_READ | PROT_WRITE);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

// Grows an array to `bytes` as realloc does, now in place, now at another one, and reads it back; how many pages are wrong.
std::size_t grow_by_moving(std::size_t most, std::size_t step_bytes, char* places) {
  char* at = static_cast<char*>(mmap(nullptr, step_bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  if (at == MAP_FAILED) return most;
  std::size_t bytes = step_bytes;
  std::memset(at, 1, step_bytes);
  for (int step = 1; bytes < most; ++step) {
    char* const to = at + bytes <= places || places + most <= at ? places : places + 2 * most;
    const int how = step % 3 == 0 ? MREMAP_MAYMOVE | MREMAP_FIXED : MREMAP_MAYMOVE;
    at = static_cast<char*>(mremap(at, bytes, bytes + step_bytes, how, to));
    if (at == MAP_FAILED) return most;
    std::memset(at + bytes, 1 + step, step_bytes);
    bytes += step_bytes;
  }
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < bytes; i += kPageSize) wrong += at[i] != static_cast<char>(1 + i / step_bytes);
  munmap(at, bytes);
  return wrong;
}

TEST(PagerLive, MemoryThatGrowsAndMovesIsCountedOnce) {
  NEEDS_RAW_THREADS();
  constexpr std::size_t kBudget = 24 * kMiB, kStep = 2 * kMiB, kAll = 96 * kMiB;
  constexpr int kRounds = 5;
  LivePager& live = LivePager::start(with_ram(kBudget));
  int counted_twice = 0;
  {
    ProgramMemory memory(20 * kMiB);  // enough to be watched
    for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
    for (int i = 0; i < 2000 && get(live.stats().watched_pages) == 0; ++i) usleep(1000);
    for (int round = 0; round < kRounds; ++round) {
      char* const places =
          static_cast<char*>(mmap(nullptr, 4 * kAll, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      EXPECT_NE(places, MAP_FAILED);
      if (places == MAP_FAILED) break;
      live.stats().peak_resident_pages.store(0);
      EXPECT_EQ(grow_by_moving(kAll, kStep, places), 0u);
      counted_twice += get(live.stats().peak_resident_pages) * kPageSize > kBudget + kBudget / 4;
      munmap(places, 4 * kAll);
    }
    EXPECT_EQ(wrong_in(memory, 1), 0u);
  }
  // A walk may find memory at its new place in the moment before the message about it: now and then, not in each round.
  EXPECT_LT(counted_twice, kRounds - 1);
  live.stop();
}

// A program that lets a mapping grow in the moment between the look at it and the registering finds it cut in two. It must be
// whole again at once, however small the rest: mremap() refuses more than one mapping.
TEST(PagerLive, AMappingThatGrewWhileItWasRegisteredIsMadeWholeAgain) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(24 * kMiB));
  {
    ProgramMemory memory(20 * kMiB);  // enough to be watched
    for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
    for (int i = 0; i < 2000 && get(live.stats().watched_pages) == 0; ++i) usleep(1000);
    ProgramMemory block(64 * kPageSize);
    const char* const before = reinterpret_cast<const char*>(block.page(0));
    EXPECT_TRUE(live.mmu().watch(block.range(0, 57)).has_value());  // as of before it grew
    const auto mapping_size = [&] {
      return live.mmu().mapping_at_or_above(block.range(0, 1).first).value().range.count.raw();
    };
    for (int i = 0; i < 5000 && mapping_size() != 64; ++i) usleep(1000);
    EXPECT_EQ(mapping_size(), 64u);
    void* const moved = mremap(block.page(0), 64 * kPageSize, 128 * kPageSize, MREMAP_MAYMOVE);
    EXPECT_NE(moved, MAP_FAILED) << std::strerror(errno);
    if (moved != MAP_FAILED && moved != before) munmap(moved, 128 * kPageSize);
    EXPECT_EQ(wrong_in(memory, 1), 0u);
  }
  live.stop();
}

// Victims are taken by the fault thread and stored by the background thread; a fork waits for what is under way.
TEST(PagerLive, TouchesHereAndThereBetweenForks) {
  NEEDS_RAW_THREADS();
  LiveOptions options = with_ram(16 * kMiB);
  options.beside = true;
  options.device = DeviceKind::kZstd;
  LivePager& live = LivePager::start(options);
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  std::uint64_t random = 1;
  const auto touch = [&](int times) {
    std::size_t wrong = 0;
    for (int i = 0; i < times; ++i) {
      random = random * 6364136223846793005ull + 1442695040888963407ull;
      wrong += memory.wrong_words((random >> 33) % memory.pages(), 1);
    }
    return wrong;
  };
  for (int round = 0; round < 6; ++round) {
    // A fork in the middle of it: nothing is under way in one round, much in the next.
    EXPECT_EQ(touch(2500), 0u);
    if (round % 2 == 0) continue;
    const pid_t child = live.fork();
    if (child == 0) _exit(touch(1500) == 0 ? 0 : 1);
    EXPECT_EQ(touch(500), 0u);
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "round " << round << ", status " << status;
  }
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_GT(get(live.stats().handed_over), 10u);
  live.stop();
}

TEST(PagerLive, ForkedChildrenReadEverythingAndPageOn) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  for (int round = 0; round < 3; ++round) {
    const pid_t child = live.fork();
    if (child == 0) {
      if (wrong_in(memory, 1) != 0) _exit(1);
      for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 77);
      if (wrong_in(memory, 77) != 0) _exit(2);
      _exit(0);
    }
    for (std::size_t i = 0; i < 2000; ++i) memory.write(i, 1);
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status)) << status;
    EXPECT_EQ(WEXITSTATUS(status), 0) << "round " << round;
  }
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

// What is shared is passed over, what a child leaves behind is claimed: faults after a fork cost what they always do.
TEST(PagerLive, SharedPagesAreNotTriedAgainAndAgain) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  int wait_for_end[2];
  ASSERT_EQ(pipe(wait_for_end), 0);
  const pid_t child = live.fork();
  if (child == 0) {
    close(wait_for_end[1]);
    char byte;
    (void)!read(wait_for_end[0], &byte, 1);
    _exit(0);
  }
  close(wait_for_end[0]);
  const std::uint64_t before = get(live.stats().refused_pages);
  for (int round = 0; round < 3; ++round) EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_LT(get(live.stats().refused_pages) - before, 1000u) << "while the child lives";
  EXPECT_LE(get(live.stats().peak_resident_pages) * kPageSize, 17 * kMiB);
  close(wait_for_end[1]);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  const std::uint64_t moved = get(live.stats().pages_out);
  for (int round = 0; round < 3; ++round) EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_LT(get(live.stats().refused_pages) - before, 10'000u) << "each once, until it is claimed";
  EXPECT_GT(get(live.stats().pages_out) - moved, 3 * 40 * kMiB / kPageSize / 2);
  live.stop();
}

TEST_P(EveryDevice, FaultsAreServedWhileAForkIsPrepared) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB, GetParam()));
  ProgramMemory memory(12 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  // In pieces of single pages: each fault brings few pages home, and the device takes each back.
  for (int i = 0; i < 1000 && is_present(memory.page(0)); ++i) {  // the memory has to be found first
    live.command(Command::kEvictRange, memory.range(0, 1));
  }
  for (std::size_t i = 2; i + 1 < memory.pages(); i += 2) live.command(Command::kEvictRange, memory.range(i, 1));
  ASSERT_FALSE(is_present(memory.page(0)));
  const std::uint64_t stored = live.device().stats().stored_pages;
  std::size_t wrong = 0;
  const std::size_t half = memory.pages() / 2;
  alarm(100);  // instead of waiting for ever
  const pid_t child = live.fork([&] {
    for (std::size_t i = 0; i < half; ++i) wrong += memory.wrong_words(i, 1);
  });
  if (child == 0) _exit(wrong_in(memory, 1) == 0 ? 0 : 1);
  alarm(0);
  EXPECT_EQ(wrong, 0u);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  // What came home meanwhile is given back to the device afterwards.
  for (int i = 0; i < 500 && live.device().stats().stored_pages > stored / 2; ++i) usleep(10'000);
  EXPECT_LE(live.device().stats().stored_pages, stored / 2);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

TEST(PagerLive, SharingAfterAForkIsBrokenWhenTheLimitAsksForIt) {
  NEEDS_RAW_THREADS();
  OutsideSampler sampler;
  LivePager& live = LivePager::start(with_ram(32 * kMiB));
  ProgramMemory memory(30 * kMiB), more(60 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  // Everything resident is shared with this child now, and refuses to move.
  int wait_for_end[2];
  ASSERT_EQ(pipe(wait_for_end), 0);
  const pid_t child = live.fork();
  if (child == 0) {
    close(wait_for_end[1]);
    char byte;
    (void)!read(wait_for_end[0], &byte, 1);
    _exit(wrong_in(memory, 1) != 0);
  }
  close(wait_for_end[0]);
  for (std::size_t i = 0; i < more.pages(); ++i) more.write(i, 2);
  for (int i = 0; i < 1000 && get(live.stats().resident_pages) * kPageSize > 33 * kMiB; ++i) usleep(10'000);
  EXPECT_LE(get(live.stats().resident_pages) * kPageSize, 33 * kMiB);
  // Less than what is shared: now there is no other way.
  live.pager().set_limits(12 * kMiB, 0);
  for (int i = 0; i < 1000 && get(live.stats().resident_pages) * kPageSize > 13 * kMiB; ++i) usleep(10'000);
  EXPECT_LE(get(live.stats().resident_pages) * kPageSize, 13 * kMiB);
  EXPECT_GT(get(live.stats().unshared_pages), 0u);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_EQ(wrong_in(more, 2), 0u);
  close(wait_for_end[1]);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  std::printf("  refused %zu, unshared %zu\n", get(live.stats().refused_pages), get(live.stats().unshared_pages));
  live.stop();
}

}  // namespace
}  // namespace whimbrel::live
