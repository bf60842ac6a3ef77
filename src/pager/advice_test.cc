#include "pager/advice.h"

#include <gtest/gtest.h>

namespace whimbrel {
namespace {

PageRange at(std::uint64_t first, std::uint64_t count) { return {PageIndex(first), PageCount(count)}; }

// What a touch of `page` brings, when the streams would have brought [page, page + 8) and 64 pages are allowed.
PageRange touch(Advice& advice, std::uint64_t page) {
  return advice.shape(PageIndex(page), at(page, 8), PageCount(64));
}

TEST(Advice, WithoutItWindowsStayAsTheyAre) {
  Advice advice;
  EXPECT_EQ(touch(advice, 100), at(100, 8));
  ASSERT_TRUE(advice.set(at(200, 100), AccessPattern::kRandom));
  EXPECT_EQ(touch(advice, 100), at(100, 8)) << "said of something else";
}

TEST(Advice, RandomBringsThePageAloneAndSequentialAFullWindow) {
  Advice advice;
  ASSERT_TRUE(advice.set(at(0, 100), AccessPattern::kRandom));
  ASSERT_TRUE(advice.set(at(100, 100), AccessPattern::kSequential));
  EXPECT_EQ(touch(advice, 99), at(99, 1));
  EXPECT_EQ(touch(advice, 100), at(100, 64));
  EXPECT_EQ(touch(advice, 180), at(180, 20)) << "no further than it was said of";
  EXPECT_EQ(advice.shape(PageIndex(150), at(150, 1), PageCount(0)), at(150, 1)) << "no room for a window";
}

TEST(Advice, TheLastWordCounts) {
  Advice advice;
  ASSERT_TRUE(advice.set(at(0, 100), AccessPattern::kSequential));
  ASSERT_TRUE(advice.set(at(40, 20), AccessPattern::kRandom));
  EXPECT_EQ(touch(advice, 10), at(10, 30));
  EXPECT_EQ(touch(advice, 50), at(50, 1));
  EXPECT_EQ(touch(advice, 60), at(60, 40));
  ASSERT_TRUE(advice.set(at(0, 100), AccessPattern::kNormal));
  EXPECT_EQ(advice.ranges(), 0u);
  EXPECT_EQ(touch(advice, 50), at(50, 8));
}

TEST(Advice, TooMuchOfItIsRefusedAndChangesNothing) {
  Advice advice;
  std::uint64_t said = 0;
  while (advice.set(at(said * 10, 5), AccessPattern::kRandom)) ++said;
  EXPECT_GE(said, 64u);
  EXPECT_EQ(advice.ranges(), said);
  EXPECT_EQ(touch(advice, 12), at(12, 1));
  EXPECT_EQ(touch(advice, said * 10), at(said * 10, 8));
  EXPECT_FALSE(advice.set(at(2, 1), AccessPattern::kSequential)) << "would cut one into three";
  EXPECT_EQ(touch(advice, 2), at(2, 1)) << "as it was";
  ASSERT_TRUE(advice.set(at(0, said * 10), AccessPattern::kNormal));
  EXPECT_EQ(advice.ranges(), 0u);
}

}  // namespace
}  // namespace whimbrel
