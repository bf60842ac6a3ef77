// What the policy is shown of real memory, and when the sweep may say that there is nothing more to be had.
#include "pager/resident_sweep.h"

#include <gtest/gtest.h>

#include "mm/heap_source.h"
#include "sim/sim_mmu.h"

namespace whimbrel {
namespace {

constexpr PageIndex kHome{0x10000};
constexpr PageCount kSize{64};

class ResidentSweepTest : public ::testing::Test {
 protected:
  void SetUp() override {
    sim::Vma vma;
    vma.range = {kHome, kSize};
    ASSERT_TRUE(mmu_.space().map(vma).has_value());
    for (std::uint64_t i = 0; i < kSize.raw(); ++i) {
      ASSERT_EQ(mmu_.space().access(kHome + PageCount(i), true), sim::Access::kDone);
    }
    region_.range = {kHome, kSize};
    region_.kind = Eligibility::kManaged;
    region_.watched = region_.verified = true;
  }
  // Whether anything can leave, with the one region as it is.
  bool finds() {
    regions_.clear();
    EXPECT_TRUE(regions_.append(region_));
    sweep_.begin(0);
    Clump clump;
    return sweep_.next(PageIndex(0), &clump);
  }

  HeapSource heap_;
  sim::SimMmu mmu_{sim::SimMmu::Options{}};
  RegionTable regions_{heap_};
  PinTable pins_{heap_, 16};
  RefusalTable refusals_{heap_, 64};
  ResidentSweep sweep_{mmu_, regions_, pins_, refusals_};
  Region region_;
};

TEST_F(ResidentSweepTest, ShowsWhatMayLeave) {
  EXPECT_TRUE(finds());
  EXPECT_FALSE(sweep_.saw_refused());
}

TEST_F(ResidentSweepTest, AMappingThatNobodyHasLookedAtYetIsNotTakenForOneThatCannotLeave) {
  region_.verified = false;
  EXPECT_FALSE(finds());
  EXPECT_TRUE(sweep_.saw_refused());
  region_.verified = true;
  region_.stale = true;
  EXPECT_FALSE(finds());
  EXPECT_TRUE(sweep_.saw_refused());
}

TEST_F(ResidentSweepTest, WhatTheKernelWillNotWatchOrMoveIsNothingToWaitFor) {
  region_.refused = true;
  EXPECT_FALSE(finds());
  EXPECT_FALSE(sweep_.saw_refused());
  region_.refused = false;
  region_.kind = Eligibility::kFixed;
  EXPECT_FALSE(finds());
  EXPECT_FALSE(sweep_.saw_refused());
}

TEST_F(ResidentSweepTest, ManySmallRegionsShowTheirOwnPagesAndNothingInBetween) {
  regions_.clear();
  for (std::uint64_t i = 0; i < kSize.raw(); i += 4) {  // two pages of four
    region_.range = {kHome + PageCount(i), PageCount(2)};
    region_.stale = i % 16 == 0;
    ASSERT_TRUE(regions_.append(region_));
  }
  sweep_.begin(0);
  PageIndex from;
  std::uint64_t shown = 0;
  for (Clump clump; sweep_.next(from, &clump); from = clump.range.end(), ++shown) {
    const std::uint64_t at = (clump.range.first - kHome).raw();
    EXPECT_EQ(clump.range.count, PageCount(2));
    EXPECT_EQ(clump.mapping, clump.range.first.raw());
    EXPECT_TRUE(at % 4 == 0 && at % 16 != 0) << at;
  }
  EXPECT_EQ(shown, 12u);
  EXPECT_TRUE(sweep_.saw_refused());
}

TEST_F(ResidentSweepTest, PinnedPagesAreNothingToWaitFor) {
  ASSERT_TRUE(pins_.pin({kHome, kSize}));
  EXPECT_FALSE(finds());
  EXPECT_FALSE(sweep_.saw_refused());
}

}  // namespace
}  // namespace whimbrel
