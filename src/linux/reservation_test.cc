#include "linux/reservation.h"

#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <random>
#include <string>
#include <thread>
#include <vector>

namespace whimbrel {
namespace {

#if defined(__SANITIZE_ADDRESS__) || defined(__SANITIZE_THREAD__)
constexpr bool kSanitized = true;
#else
constexpr bool kSanitized = false;
#endif

bool all_zero(const void* memory, std::size_t bytes) {
  const auto* at = static_cast<const unsigned char*>(memory);
  for (std::size_t i = 0; i < bytes; ++i) {
    if (at[i] != 0) return false;
  }
  return true;
}

std::size_t status_kib(const char* key) {
  std::ifstream in("/proc/self/status");
  for (std::string line; std::getline(in, line);) {
    if (line.rfind(key, 0) == 0) return std::strtoull(line.c_str() + std::strlen(key) + 1, nullptr, 10);
  }
  return 0;
}

// Exit status of `body` run in a child; -signal when it was killed.
template <class F>
int in_child(F body) {
  const pid_t child = fork();
  if (child == 0) {
    alarm(20);
    _exit(body());
  }
  int status = 0;
  waitpid(child, &status, 0);
  return WIFEXITED(status) ? WEXITSTATUS(status) : -WTERMSIG(status);
}

TEST(Reservation, HandsOutZeroedAlignedPagesAndTakesThemBack) {
  Reservation memory;
  ASSERT_TRUE(memory.open({.bytes = 256u << 20}));
  void* small = memory.take(100);
  void* huge = memory.take(kHugeSize + 1);
  ASSERT_NE(small, nullptr);
  ASSERT_NE(huge, nullptr);
  EXPECT_TRUE(VirtualAddress(small).is_page_aligned());
  EXPECT_TRUE(VirtualAddress(huge).is_huge_aligned());
  EXPECT_EQ(memory.bytes_in_use(), kPageSize + kHugeSize + kPageSize);
  std::memset(small, 0x5a, 100);
  std::memset(huge, 0x5a, kHugeSize + 1);
  memory.give(small, 100);
  memory.give(huge, kHugeSize + 1);
  EXPECT_EQ(memory.bytes_in_use(), 0u);
  small = memory.take(kPageSize);
  huge = memory.take(2 * kHugeSize);
  EXPECT_TRUE(all_zero(small, kPageSize));
  EXPECT_TRUE(all_zero(huge, 2 * kHugeSize));
  EXPECT_TRUE(memory.range().contains(PageIndex::of(VirtualAddress(huge))));
  memory.give(small, kPageSize);
  memory.give(huge, 2 * kHugeSize);
}

TEST(Reservation, RandomTakesNeverOverlapAndAreAlwaysZeroed) {
  Reservation memory;
  ASSERT_TRUE(memory.open({.bytes = 64u << 20}));
  struct Piece {
    unsigned char* at;
    std::size_t bytes;
    unsigned char mark;
  };
  std::mt19937 random(7);
  std::vector<Piece> pieces;
  std::size_t in_use = 0;
  for (int step = 0; step < 20000; ++step) {
    if (random() % 2 == 0 || pieces.empty()) {
      const std::size_t pages = random() % 50 == 0 ? random() % 1500 + 1 : random() % 9 + 1;
      auto* at = static_cast<unsigned char*>(memory.take(pages * kPageSize));
      if (at == nullptr) {
        ASSERT_GT(in_use + pages * kPageSize, std::size_t{16} << 20) << "refused although plenty is free";
        continue;
      }
      const auto mark = static_cast<unsigned char>(random() % 255 + 1);
      for (std::size_t p = 0; p < pages; ++p) {  // the first, a middle and the last byte of each page
        for (const std::size_t offset : {std::size_t{0}, std::size_t{1234}, kPageSize - 1}) {
          ASSERT_EQ(at[p * kPageSize + offset], 0);
          at[p * kPageSize + offset] = mark;
        }
      }
      pieces.push_back({at, pages * kPageSize, mark});
      in_use += pages * kPageSize;
    } else {
      const std::size_t i = random() % pieces.size();
      const Piece piece = pieces[i];
      for (std::size_t b = 0; b < piece.bytes; b += kPageSize) ASSERT_EQ(piece.at[b], piece.mark);
      memory.give(piece.at, piece.bytes);
      in_use -= piece.bytes;
      pieces[i] = pieces.back();
      pieces.pop_back();
    }
    ASSERT_EQ(memory.bytes_in_use(), in_use);
  }
  for (const Piece& piece : pieces) memory.give(piece.at, piece.bytes);
  EXPECT_EQ(memory.bytes_in_use(), 0u);
  EXPECT_LE(memory.bytes_committed(), std::size_t{16} << 20) << "the free tail stayed accessible";
}

TEST(Reservation, IsUsedUpPolitely) {
  Reservation memory;
  ASSERT_TRUE(memory.open({.bytes = 4u << 20}));
  EXPECT_EQ(memory.take(memory.capacity() + 1), nullptr);
  void* all = memory.take(memory.capacity());
  EXPECT_NE(all, nullptr);
  EXPECT_EQ(memory.take(1), nullptr);
  memory.give(all, memory.capacity());
  EXPECT_NE(memory.take(1), nullptr);
}

TEST(Reservation, FramesGoBackToTheKernel) {
  Reservation memory;
  ASSERT_TRUE(memory.open({.bytes = 256u << 20}));
  constexpr std::size_t kBytes = 128u << 20;
  void* big = memory.take(kBytes);
  std::memset(big, 1, kBytes);
  // Asked of the mapping itself: a sanitizer's shadow of it counts as resident too.
  std::vector<unsigned char> resident(kBytes / kPageSize);
  const auto pages = [&] {
    EXPECT_EQ(mincore(big, kBytes, resident.data()), 0);
    return std::count_if(resident.begin(), resident.end(), [](unsigned char page) { return (page & 1) != 0; });
  };
  EXPECT_EQ(pages(), static_cast<std::ptrdiff_t>(resident.size()));
  memory.give(big, kBytes);
  EXPECT_EQ(pages(), 0);
}

TEST(Reservation, StoresLieOnHugePagesWhereAskedFor) {
  std::string setting;
  std::getline(std::ifstream("/sys/kernel/mm/transparent_hugepage/enabled"), setting);
  if (setting.find("[never]") != std::string::npos) GTEST_SKIP() << "transparent huge pages are off: " << setting;
  const auto huge_kib = [](bool huge_pages) {
    Reservation memory;
    EXPECT_TRUE(memory.open({.bytes = 64u << 20, .huge_pages = huge_pages}));
    void* big = memory.take(16u << 20);
    std::memset(big, 1, 16u << 20);
    std::size_t kib = 0;
    bool ours = false;
    std::ifstream in("/proc/self/smaps");
    for (std::string line; std::getline(in, line);) {
      unsigned long start = 0, end = 0;
      if (std::sscanf(line.c_str(), "%lx-%lx ", &start, &end) == 2) {
        ours = memory.range().contains(PageIndex::of(VirtualAddress(start)));
      } else if (ours && line.rfind("AnonHugePages:", 0) == 0) {
        kib += std::strtoull(line.c_str() + 14, nullptr, 10);
      }
    }
    memory.give(big, 16u << 20);
    return kib;
  };
  EXPECT_EQ(huge_kib(false), 0u);
  EXPECT_GE(huge_kib(true), 8u * 1024) << "at least half of 16 MiB, even where few huge pages are free";
}

TEST(Reservation, GuardsAndFreeTailAreInaccessible) {
  Reservation memory;
  ASSERT_TRUE(memory.open({.bytes = 64u << 20}));
  volatile char* edges[] = {reinterpret_cast<char*>(memory.range().first.address().raw()),
                            reinterpret_cast<char*>(memory.range().end().address().raw() - 1)};
  void* taken = memory.take(kPageSize);
  for (volatile char* edge : edges) {
    const int died = in_child([&] {
      ::signal(SIGSEGV, SIG_DFL);
      return static_cast<int>(*edge);
    });
    EXPECT_EQ(died, -SIGSEGV);
  }
  memory.give(taken, kPageSize);
}

TEST(Reservation, LeavesRoomUnderAnAddressSpaceLimit) {
  if (kSanitized) GTEST_SKIP() << "sanitizers reserve terabytes of address space themselves";
  const int result = in_child([] {
    const rlim_t limit = (status_kib("VmSize") << 10) + (rlim_t{256} << 20);
    const rlimit as{limit, limit};
    if (setrlimit(RLIMIT_AS, &as) != 0) return 1;
    Reservation memory;
    if (!memory.open({})) return 2;
    if (memory.capacity() < (16u << 20)) return 3;
    void* program = std::malloc(150u << 20);  // far more than half of what was left
    if (program == nullptr) return 4;
    return memory.take(8u << 20) != nullptr ? 0 : 5;
  });
  EXPECT_EQ(result, 0);
}

TEST(Reservation, SaysSoWhenNoAddressSpaceIsLeft) {
  if (kSanitized) GTEST_SKIP() << "sanitizers reserve terabytes of address space themselves";
  const int result = in_child([] {
    const rlim_t limit = (status_kib("VmSize") << 10) + (rlim_t{2} << 20);
    const rlimit as{limit, limit};
    if (setrlimit(RLIMIT_AS, &as) != 0) return 1;
    Reservation memory;
    const Result<void> opened = memory.open({});
    return !opened && opened.error().code == Errc::kNoMemory ? 0 : 2;
  });
  EXPECT_EQ(result, 0);
}

TEST(Reservation, LockingAllMemoryPopulatesNextToNothing) {
  if (kSanitized) GTEST_SKIP() << "would populate the sanitizer's shadow memory";
  const int result = in_child([] {
    Reservation memory;
    if (!memory.open({})) return 1;
    void* taken = memory.take(kPageSize);
    const std::size_t before = status_kib("VmRSS");
    if (mlockall(MCL_CURRENT) != 0) return 2;
    const std::size_t after = status_kib("VmRSS");
    if (after > before + 64 * 1024) return 3;
    // Locked pages cannot be dropped; they still come back zeroed.
    std::memset(taken, 0x77, kPageSize);
    memory.give(taken, kPageSize);
    auto* big = static_cast<unsigned char*>(memory.take(128 * kPageSize));
    std::memset(big, 0x77, 128 * kPageSize);
    memory.give(big, 128 * kPageSize);
    big = static_cast<unsigned char*>(memory.take(128 * kPageSize));
    return all_zero(big, 128 * kPageSize) ? 0 : 4;
  });
  if (result == 2) GTEST_SKIP() << "mlockall is not permitted here";
  EXPECT_EQ(result, 0);
}

TEST(Reservation, ManyThreadsShareIt) {
  Reservation memory;
  ASSERT_TRUE(memory.open({.bytes = 64u << 20}));
  std::vector<std::thread> threads;
  std::atomic<int> wrong{0};
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937 random(t);
      std::vector<std::pair<unsigned char*, std::size_t>> mine;
      for (int step = 0; step < 3000; ++step) {
        if (mine.size() < 20 && random() % 3 != 0) {
          const std::size_t bytes = (random() % 80 + 1) * kPageSize;
          auto* at = static_cast<unsigned char*>(memory.take(bytes));
          if (at == nullptr) continue;
          if (at[0] != 0 || at[bytes - 1] != 0) ++wrong;
          at[0] = at[bytes - 1] = static_cast<unsigned char>(t + 1);
          mine.emplace_back(at, bytes);
        } else if (!mine.empty()) {
          auto [at, bytes] = mine.back();
          mine.pop_back();
          if (at[0] != t + 1 || at[bytes - 1] != t + 1) ++wrong;
          memory.give(at, bytes);
        }
      }
      for (auto [at, bytes] : mine) memory.give(at, bytes);
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong.load(), 0);
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

TEST(ReservationDeathTest, RefusesMemoryGivenTwice) {
  Reservation memory;
  ASSERT_TRUE(memory.open({.bytes = 64u << 20}));
  void* keep = memory.take(kPageSize);
  void* taken = memory.take(kPageSize);
  memory.give(taken, kPageSize);
  EXPECT_DEATH(memory.give(taken, kPageSize), "given twice");
  memory.give(keep, kPageSize);
}

}  // namespace
}  // namespace whimbrel
