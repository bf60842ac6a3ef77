// The pager on the real kernel while mappings come, go, move and are cut.
#include <random>
#include <thread>
#include <vector>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

using Command = LivePager::Command;

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
  constexpr int kMostRounds = 25;
  LivePager& live = LivePager::start(with_ram(kBudget));
  bool counted_once = false;
  {
    ProgramMemory memory(20 * kMiB);  // enough to be watched
    for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
    for (int i = 0; i < 2000 && get(live.stats().watched_pages) == 0; ++i) usleep(1000);
    // A walk may find memory at its new place in the moment before the message about it: now and then, not in each round.
    for (int round = 0; round < kMostRounds && !counted_once; ++round) {
      char* const places =
          static_cast<char*>(mmap(nullptr, 4 * kAll, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
      EXPECT_NE(places, MAP_FAILED);
      if (places == MAP_FAILED) break;
      live.stats().peak_resident_pages.store(0);
      EXPECT_EQ(grow_by_moving(kAll, kStep, places), 0u);
      counted_once = get(live.stats().peak_resident_pages) * kPageSize <= kBudget + kBudget / 4;
      munmap(places, 4 * kAll);
    }
    EXPECT_EQ(wrong_in(memory, 1), 0u);
  }
  EXPECT_TRUE(counted_once);
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

}  // namespace
}  // namespace whimbrel::live
