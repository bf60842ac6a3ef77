#include "devices/extents/block_map.h"

#include <gtest/gtest.h>

#include <map>
#include <vector>

#include "tests/device_kit/page_contents.h"
#include "tests/device_kit/test_memory.h"

namespace whimbrel::testing {
namespace {

TEST(BlockMap, RunsOfAStreamLieInOnePiece) {
  TestMemory memory;
  BlockMap map(memory, 1 << 20);
  for (std::uint64_t i = 0; i < 100; ++i) EXPECT_EQ(map.take(16).value(), i * 16);
}

TEST(BlockMap, FullIsAnErrorAndRoomComesBack) {
  TestMemory memory;
  BlockMap map(memory, 100);
  std::vector<std::uint64_t> runs;
  for (;;) {
    const Result<std::uint64_t> at = map.take(16);
    if (!at) {
      EXPECT_EQ(at.error().code, Errc::kDeviceFull);
      break;
    }
    runs.push_back(*at);
  }
  EXPECT_EQ(runs.size(), 6u);
  EXPECT_EQ(map.take(4).value(), 96u) << "the rest is good for something smaller";
  EXPECT_FALSE(map.take(1).has_value());
  map.give(runs[2], 16);
  EXPECT_EQ(map.take(16).value(), runs[2]);
}

TEST(BlockMap, NothingReachesBeyondAPiece) {
  TestMemory memory;
  constexpr std::uint64_t kPiece = 1 << 18;
  BlockMap map(memory, 2 * kPiece);
  for (std::uint64_t i = 0; i < 2 * kPiece / 48 - 2; ++i) {
    const std::uint64_t at = map.take(48).value();
    ASSERT_EQ(at / kPiece, (at + 47) / kPiece);
  }
}

TEST(BlockMap, DeadBlocksAreHandedOutForPunchingOnce) {
  TestMemory memory;
  BlockMap map(memory, 1 << 20);
  const std::uint64_t a = map.take(64).value(), b = map.take(64).value();
  map.give(a, 64);
  map.give(b, 32);
  EXPECT_EQ(map.stats().dead, 96u);
  const BlockMap::Run first = map.take_dead(80), second = map.take_dead(80);
  EXPECT_EQ(first.first, a);
  EXPECT_EQ(first.blocks, 80u);
  EXPECT_EQ(second.first, a + 80);
  EXPECT_EQ(second.blocks, 16u);
  EXPECT_EQ(map.take_dead(80).blocks, 0u);
  EXPECT_EQ(map.stats().dead, 0u);
  map.rewind();
  EXPECT_GE(map.take(16).value(), 128u) << "handed out while the disk forgets them";
  map.give(128, 16);
  map.give_clean(first);
  map.give_clean(second);
  map.rewind();
  EXPECT_EQ(map.take(64).value(), a);
  map.give(a, 64);
  const BlockMap::Run again = map.take_dead(200);
  EXPECT_EQ(again.blocks, 64u);
  map.give_clean(again);
  map.give_clean(map.take_dead(200));
  EXPECT_EQ(map.stats().used, 32u);
}

TEST(BlockMap, ReuseTakesABlockBackFromTheDead) {
  TestMemory memory;
  BlockMap map(memory, 16);
  const std::uint64_t at = map.take(16).value();
  map.give(at, 16);
  EXPECT_EQ(map.take(8).value(), 0u);
  EXPECT_EQ(map.stats().dead, 8u);
  EXPECT_EQ(map.take_dead(100).first, 8u);
}

TEST(BlockMap, GrowsOnlyWhileLittleIsFree) {
  TestMemory memory;
  BlockMap map(memory, 1 << 20);
  std::vector<std::uint64_t> runs;
  for (int i = 0; i < 64; ++i) runs.push_back(map.take(16).value());
  const std::uint64_t end = runs.back() + 16;
  for (int round = 0; round < 100; ++round) {
    for (int i = 0; i < 32; ++i) map.give(runs[static_cast<std::size_t>(i)], 16);
    for (int i = 0; i < 32; ++i) {
      runs[static_cast<std::size_t>(i)] = map.take(16).value();
      ASSERT_LT(runs[static_cast<std::size_t>(i)], end + end / 2);
    }
  }
  map.rewind();
  map.give(runs[5], 16);
  EXPECT_EQ(map.take(16).value(), runs[5]);
}

TEST(BlockMap, WhatAChildMayReadIsNotUsedAgain) {
  TestMemory memory;
  BlockMap map(memory, 64);
  const std::uint64_t old = map.take(32).value();
  map.share();
  EXPECT_TRUE(map.is_shared());
  const std::uint64_t fresh = map.take(32).value();
  map.give(old, 32);
  EXPECT_FALSE(map.take(1).has_value()) << "the child would read what the parent writes there";
  EXPECT_EQ(map.take_dead(100).blocks, 0u);
  map.give(fresh, 32);
  EXPECT_EQ(map.take(32).value(), fresh) << "what came after the fork is the parent's own";
  map.unshare();
  EXPECT_FALSE(map.is_shared());
  EXPECT_EQ(map.stats().dead, 32u);
  EXPECT_EQ(map.take(32).value(), old);
}

TEST(BlockMap, AgreesWithAModel) {
  TestMemory memory;
  constexpr std::uint64_t kBlocks = 5000;
  BlockMap map(memory, kBlocks);
  Random random(run_seed());
  std::vector<bool> used(kBlocks), dead(kBlocks), shared(kBlocks), kept(kBlocks);
  std::vector<std::pair<std::uint64_t, std::uint32_t>> runs;
  for (int step = 0; step < 20000; ++step) {
    const std::uint64_t what = random.below(100);
    if (what < 52) {
      const auto n = static_cast<std::uint32_t>(1 + random.below(64));
      const Result<std::uint64_t> at = map.take(n);
      if (!at) {
        for (std::uint64_t i = 0, run = 0; i < kBlocks; ++i) {
          run = used[i] ? 0 : run + 1;
          ASSERT_LT(run, n) << "there was room";
        }
        continue;
      }
      for (std::uint64_t i = *at; i < *at + n; ++i) {
        ASSERT_FALSE(used[i]) << "handed out twice";
        used[i] = true;
        dead[i] = false;
      }
      runs.emplace_back(*at, n);
    } else if (what < 95 && !runs.empty()) {
      std::swap(runs[random.below(runs.size())], runs.back());
      const auto [at, n] = runs.back();
      runs.pop_back();
      map.give(at, n);
      for (std::uint64_t i = at; i < at + n; ++i) {
        if (shared[i]) {
          kept[i] = true;
        } else {
          used[i] = false;
          dead[i] = true;
        }
      }
    } else if (what == 95) {
      map.share();
      for (std::uint64_t i = 0; i < kBlocks; ++i) shared[i] = shared[i] || used[i];
    } else if (what == 96) {
      map.unshare();
      for (std::uint64_t i = 0; i < kBlocks; ++i) {
        if (kept[i]) used[i] = false, dead[i] = true;
        kept[i] = shared[i] = false;
      }
    } else {
      const BlockMap::Run run = map.take_dead(1 + random.below(200));
      for (std::uint64_t i = run.first; i < run.first + run.blocks; ++i) {
        ASSERT_TRUE(dead[i] && !used[i]);
        dead[i] = false;
      }
      if (run.blocks != 0) map.give_clean(run);
    }
    const BlockMap::Stats stats = map.stats();
    ASSERT_EQ(stats.used, static_cast<std::uint64_t>(std::count(used.begin(), used.end(), true)));
    ASSERT_EQ(stats.dead, static_cast<std::uint64_t>(std::count(dead.begin(), dead.end(), true)));
  }
}

}  // namespace
}  // namespace whimbrel::testing
