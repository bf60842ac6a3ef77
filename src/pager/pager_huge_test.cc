// Streams through large memory on the real kernel: huge pages on the way out and on the way home.
#include <cstdio>
#include <fstream>
#include <random>
#include <string>
#include <vector>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

bool kernel_gives_huge_pages() {
  ProgramMemory memory(4 * kMiB, ProgramMemory::Huge::kAdvised);
  memory.write(0, 1);
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  std::uint64_t last = 0;  // of the unit: there without having been touched
  const auto at = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(memory.page(511)) / kPageSize * 8);
  const bool read = pread(pagemap, &last, sizeof last, at) == sizeof last;
  close(pagemap);
  return read && last >> 63 != 0;
}

std::size_t wrong_in(const ProgramMemory& memory, std::size_t first, std::size_t count, std::uint64_t salt) {
  std::size_t wrong = 0;
  for (std::size_t i = first; i < first + count; ++i) wrong += memory.wrong_words(i, salt);
  return wrong;
}

// As the kernel has it: the mapping that holds the memory has the flags "hg" and "um".
bool is_advised(const ProgramMemory& memory) {
  std::ifstream smaps("/proc/self/smaps");
  const auto at = reinterpret_cast<std::uintptr_t>(memory.page(0));
  bool inside = false;
  for (std::string line; std::getline(smaps, line);) {
    unsigned long from = 0, to = 0;
    if (std::sscanf(line.c_str(), "%lx-%lx ", &from, &to) == 2) inside = from <= at && at < to;
    if (inside && line.starts_with("VmFlags:")) return line.find(" hg") != std::string::npos && line.find(" um") != std::string::npos;
  }
  return false;
}

LiveOptions streaming(bool huge_pages = true) {
  LiveOptions options;
  options.pager.ram_bytes = 64 * kMiB;
  options.pager.huge_pages = huge_pages;
  return options;
}

TEST(PagerHuge, StreamsOfAProgramThatHasAskedForNothing) {
  NEEDS_RAW_THREADS();
  if (!kernel_gives_huge_pages()) GTEST_SKIP() << "this kernel gives no huge pages (see whimbrel doctor)";
  OutsideSampler sampler;
  LivePager& live = LivePager::start(streaming());
  ProgramMemory memory(240 * kMiB, ProgramMemory::Huge::kUnsaid);
  sampler.watch(memory.range(0, memory.pages()));
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  for (int round = 0; round < 3; ++round) EXPECT_EQ(wrong_in(memory, 0, memory.pages(), 1), 0u) << "round " << round;
  EXPECT_GT(get(live.stats().huge_filled), 20u) << "of 120 units";
  EXPECT_GT(get(live.stats().huge_home), 60u) << "of 360";
  // Written again: changed contents leave and come home as well.
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 2);
  EXPECT_EQ(wrong_in(memory, 0, memory.pages(), 2), 0u);
  EXPECT_LE(get(live.stats().peak_resident_pages) * kPageSize, 64 * kMiB + 64 * kMiB / 20) << "as counted";
  // Who looks reads page by page while units move: two may be seen where they were and where they are.
  EXPECT_LE(sampler.most() * kPageSize, 64 * kMiB + 64 * kMiB / 20 + 2 * kHugeSize) << "residency seen from outside";
  std::printf("  huge: %zu filled, %zu home; faults %zu, out %zu\n", get(live.stats().huge_filled),
              get(live.stats().huge_home), get(live.stats().faults), get(live.stats().pages_out));
  live.stop();
  EXPECT_EQ(wrong_in(memory, 0, memory.pages(), 2), 0u) << "after the engine has ended";
}

TEST(PagerHuge, TheBackgroundThreadLoadsAPartOfEachUnit) {
  NEEDS_RAW_THREADS();
  if (!kernel_gives_huge_pages()) GTEST_SKIP() << "this kernel gives no huge pages (see whimbrel doctor)";
  LiveOptions options = streaming();
  options.device = DeviceKind::kZstd;
  LivePager& live = LivePager::start(options);
  ProgramMemory memory(160 * kMiB, ProgramMemory::Huge::kUnsaid);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  // On a busy machine it comes late to some: then all is done already.
  for (int round = 0; round < 10 && live.device().loads_by_others.load() == 0; ++round) {
    EXPECT_EQ(wrong_in(memory, 0, memory.pages(), 1), 0u) << "round " << round;
  }
  EXPECT_GT(live.device().loads_by_others.load(), 0u);
  live.stop();
}

TEST(PagerHuge, PartsOfUnitsAreDiscardedWrittenAndReadInBetween) {
  NEEDS_RAW_THREADS();
  if (!kernel_gives_huge_pages()) GTEST_SKIP() << "this kernel gives no huge pages (see whimbrel doctor)";
  LivePager& live = LivePager::start(streaming());
  ProgramMemory memory(240 * kMiB, ProgramMemory::Huge::kUnsaid);
  std::vector<std::uint64_t> salt(memory.pages(), 1);
  const auto write = [&](std::size_t i, std::uint64_t with) {
    memory.write(i, with);
    salt[i] = with;
  };
  const auto wrong = [&](std::size_t i) {
    if (salt[i] != 0) return memory.wrong_words(i, salt[i]);
    return static_cast<std::size_t>(memory.page(i)[0] != 0 || memory.page(i)[511] != 0);
  };
  for (std::size_t i = 0; i < memory.pages(); ++i) write(i, 1);
  std::mt19937 random(3);
  for (int round = 2; round < 6; ++round) {
    std::size_t bad = 0;
    for (int n = 0; n < 40; ++n) {
      const std::size_t at = random() % memory.pages();
      if (n % 3 == 0) {
        const std::size_t count = std::min<std::size_t>(1 + random() % 700, memory.pages() - at);
        madvise(memory.page(at), count * kPageSize, MADV_DONTNEED);
        std::fill_n(salt.begin() + static_cast<std::ptrdiff_t>(at), count, 0);
      } else if (n % 3 == 1) {
        write(at, static_cast<std::uint64_t>(round));
      } else {
        bad += wrong(at);
      }
    }
    for (std::size_t i = 0; i < memory.pages(); ++i) bad += wrong(i);
    EXPECT_EQ(bad, 0u) << "round " << round;
  }
  EXPECT_GT(get(live.stats().huge_home), 20u);
  live.stop();
}

TEST(PagerHuge, SparseTouchesTakeNoHugePages) {
  NEEDS_RAW_THREADS();
  if (!kernel_gives_huge_pages()) GTEST_SKIP() << "this kernel gives no huge pages (see whimbrel doctor)";
  LivePager& live = LivePager::start(streaming());
  ProgramMemory first(48 * kMiB, ProgramMemory::Huge::kUnsaid);  // over half the budget: watching begins
  for (std::size_t i = 0; i < first.pages(); ++i) first.write(i, 1);
  ProgramMemory sparse(512 * kMiB, ProgramMemory::Huge::kUnsaid);
  // Watched and advised, or its touches would show nothing.
  for (int i = 0; i < 500 && !is_advised(sparse); ++i) usleep(10'000);
  ASSERT_TRUE(is_advised(sparse));
  const std::uint64_t before = get(live.stats().huge_filled);
  for (std::size_t i = 0; i < sparse.pages(); i += kPagesPerHuge) sparse.write(i, 1);
  EXPECT_EQ(get(live.stats().huge_filled), before) << "one page of each unit was touched";
  live.stop();
}

// A mapping that is advised while it grows must not be cut in two: mremap() fails across two mappings.
TEST(PagerHuge, AMappingThatGrowsWhileItIsAdvisedStaysOne) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(streaming());
  ProgramMemory first(48 * kMiB, ProgramMemory::Huge::kUnsaid);  // over half the budget: watching begins
  for (std::size_t i = 0; i < first.pages(); ++i) first.write(i, 1);
  int failed = 0;
  for (int round = 0; round < 12; ++round) {
    std::size_t bytes = 12 * kMiB;
    auto* at = static_cast<char*>(mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
    for (; bytes < 40 * kMiB; bytes += kMiB / 4) {
      void* const now = mremap(at, bytes, bytes + kMiB / 4, MREMAP_MAYMOVE);
      if (now == MAP_FAILED) {
        ++failed;
        break;
      }
      at = static_cast<char*>(now);
      for (std::size_t i = 0; i < kMiB / 4; i += kPageSize) at[bytes + i] = 1;
    }
    munmap(at, bytes);
  }
  EXPECT_EQ(failed, 0) << "of 12 times";
  live.stop();
}

TEST(PagerHuge, NoneWhereTheyAreNotWanted) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(streaming(false));
  ProgramMemory memory(160 * kMiB, ProgramMemory::Huge::kUnsaid);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  EXPECT_EQ(wrong_in(memory, 0, memory.pages(), 1), 0u);
  EXPECT_EQ(get(live.stats().huge_filled) + get(live.stats().huge_home), 0u);
  live.stop();
}

TEST(PagerHuge, AForkedChildReadsItAllAndPagesOn) {
  NEEDS_RAW_THREADS();
  if (!kernel_gives_huge_pages()) GTEST_SKIP() << "this kernel gives no huge pages (see whimbrel doctor)";
  LivePager& live = LivePager::start(streaming());
  ProgramMemory memory(160 * kMiB, ProgramMemory::Huge::kUnsaid);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  const pid_t child = live.fork();
  if (child == 0) {
    if (wrong_in(memory, 0, memory.pages(), 1) != 0) _exit(1);
    for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 7);
    _exit(wrong_in(memory, 0, memory.pages(), 7) == 0 ? 0 : 2);
  }
  for (std::size_t i = 0; i < memory.pages() / 2; ++i) memory.write(i, 2);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(wrong_in(memory, 0, memory.pages() / 2, 2), 0u);
  EXPECT_EQ(wrong_in(memory, memory.pages() / 2, memory.pages() / 2, 1), 0u);
  live.stop();
}

}  // namespace
}  // namespace whimbrel::live
