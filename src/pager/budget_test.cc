#include "pager/budget.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "pager/park_gate.h"

namespace whimbrel {
namespace {

constexpr std::uint64_t kMiB = 1 << 20;

TEST(Budget, WithoutATotalTheRamLimitStands) {
  const BudgetSplit split = split_budget({.ram_bytes = 64 * kMiB, .store_bytes = 500 * kMiB, .own_bytes = 500 * kMiB});
  EXPECT_EQ(split.limit_pages, 64 * kMiB / kPageSize);
  EXPECT_TRUE(split.fits);
}

TEST(Budget, WithoutAnyLimitThereIsNone) { EXPECT_EQ(split_budget({}).limit_pages, kNoLimit); }

TEST(Budget, WhatTheStoreTakesIsTakenFromTheResidents) {
  BudgetInputs in{.total_bytes = 200 * kMiB, .own_bytes = 10 * kMiB};
  EXPECT_EQ(split_budget(in).limit_pages, 190 * kMiB / kPageSize);
  in.store_bytes = 90 * kMiB;
  in.staging_bytes = 2 * kMiB;
  EXPECT_EQ(split_budget(in).limit_pages, 98 * kMiB / kPageSize);
  in.ram_bytes = 50 * kMiB;
  EXPECT_EQ(split_budget(in).limit_pages, 50 * kMiB / kPageSize);
  in.ram_bytes = 150 * kMiB;
  EXPECT_EQ(split_budget(in).limit_pages, 98 * kMiB / kPageSize);
}

TEST(Budget, ATotalThatCannotBeKeptSaysWhatWouldDo) {
  // 400 MiB stored as 200, 100 MiB resident, and a total of 150 MiB.
  BudgetInputs in{.total_bytes = 150 * kMiB,
                  .store_bytes = 200 * kMiB,
                  .stored_pages = 400 * kMiB / kPageSize,
                  .own_bytes = 10 * kMiB,
                  .resident_pages = 100 * kMiB / kPageSize};
  const BudgetSplit split = split_budget(in);
  EXPECT_FALSE(split.fits);
  EXPECT_EQ(split.limit_pages, in.total_bytes / kPageSize / 8) << "room to work in, since it is exceeded anyway";
  EXPECT_EQ(split.would_do_bytes % kMiB, 0u);
  // That total, once reached, is really enough: everything but the residents stored at the same ratio.
  in.total_bytes = split.would_do_bytes;
  in.store_bytes += (100 * kMiB - kLeastResidentPages * kPageSize) / 2;
  in.stored_pages += in.resident_pages - kLeastResidentPages;
  in.resident_pages = kLeastResidentPages;
  EXPECT_TRUE(split_budget(in).fits);
  EXPECT_GT(split_budget(in).limit_pages, kLeastResidentPages);
}

TEST(Budget, WhatBarelyFitsIsHeldToTheLeast) {
  // 100 MiB at 2:1 in 57 MiB: possible with hardly any residents, so that is what it comes to.
  BudgetInputs in{.total_bytes = 57 * kMiB, .store_bytes = 48 * kMiB, .stored_pages = 96 * kMiB / kPageSize, .own_bytes = 4 * kMiB,
                  .resident_pages = 4 * kMiB / kPageSize};
  const BudgetSplit split = split_budget(in);
  EXPECT_TRUE(split.fits);
  EXPECT_EQ(split.limit_pages, 5 * kMiB / kPageSize);
  in.total_bytes = 50 * kMiB;
  EXPECT_FALSE(split_budget(in).fits);
}

TEST(Budget, TheReserveIsASmallShareWithinBounds) {
  EXPECT_EQ(reserve_under(kNoLimit), 0u);
  EXPECT_EQ(reserve_under(1024), 64u);
  EXPECT_EQ(reserve_under(65536), 1024u);
  EXPECT_EQ(reserve_under(std::uint64_t{1} << 40), 4096u);
}

TEST(ResidentCount, CountsWhatComesAndGoes) {
  ResidentCount count;
  count.add(10);
  count.remove(3);
  EXPECT_EQ(count.value(), 7u);
  count.remove(100);
  EXPECT_EQ(count.value(), 0u) << "never negative";
}

TEST(ResidentCount, AWalkErrsOnTheSideOfTooMany) {
  ResidentCount count;
  count.add(1000);
  count.remove(100);
  ResidentCount::Walk walk(count);
  count.add(50);  // during the walk: seen by it or not
  count.remove(20);
  walk.finish(500);
  EXPECT_EQ(count.value(), 550u);
  count.add(1);
  count.remove(2);
  EXPECT_EQ(count.value(), 549u) << "and goes on exactly from there";
}

TEST(ParkGate, ClosedKeepsSectionsOut) {
  ParkGate gate;
  {
    GateSection open(gate);
    EXPECT_TRUE(open);
  }
  gate.close();
  gate.close();
  {
    GateSection closed(gate);
    EXPECT_FALSE(closed);
  }
  gate.open();
  EXPECT_FALSE(GateSection(gate)) << "closings nest";
  gate.open();
  EXPECT_TRUE(GateSection(gate));
}

TEST(ParkGate, CloseWaitsUntilNobodyIsInside) {
  ParkGate gate;
  std::atomic<int> inside{0};
  std::atomic<bool> stop{false}, wrong{false};
  std::vector<std::thread> workers;
  for (int i = 0; i < 3; ++i) {
    workers.emplace_back([&] {
      while (!stop) {
        GateSection section(gate);
        if (!section) continue;
        ++inside;
        std::this_thread::yield();
        --inside;
      }
    });
  }
  for (int i = 0; i < 200; ++i) {
    gate.close();
    if (inside != 0) wrong = true;
    std::this_thread::yield();
    if (inside != 0) wrong = true;
    gate.open();
  }
  stop = true;
  for (std::thread& worker : workers) worker.join();
  EXPECT_FALSE(wrong);
}

TEST(ParkGate, TheChildOfAForkFindsItOpen) {
  ParkGate gate;
  ASSERT_TRUE(gate.enter());  // by a thread that the child does not have
  gate.reset_in_child();
  EXPECT_TRUE(GateSection(gate));
  gate.close();  // would wait for ever for the lost thread otherwise
  gate.open();
}

}  // namespace
}  // namespace whimbrel
