#include "sim/model.h"

#include <gtest/gtest.h>

namespace whimbrel::sim {
namespace {

constexpr PageRange kRange{PageIndex(16), PageCount(4)};
constexpr VirtualAddress kA{16 * kPageSize};
constexpr VirtualAddress kB{16 * kPageSize + 64};

class ModelTest : public ::testing::Test {
 protected:
  void SetUp() override {
    model_.map(kRange, true, true);
    model_.write(kA, 1);
    model_.write(kB, 2);
  }
  bool right(VirtualAddress address, std::uint64_t word) { return model_.check_read(address, word).empty(); }
  Model model_;
};

TEST_F(ModelTest, RemembersAndStartsWithZeros) {
  EXPECT_TRUE(right(kA, 1));
  EXPECT_FALSE(right(kA, 0));
  EXPECT_FALSE(right(kA, 2));
  EXPECT_TRUE(right(VirtualAddress(kA.raw() + 8), 0));
  EXPECT_EQ(model_.check_read(kA, 5), "expected 1");
}

TEST_F(ModelTest, DiscardMayBeSeenEarlyButNotHalfAfterwards) {
  model_.discard_begins(kRange);
  EXPECT_TRUE(right(kA, 0));
  EXPECT_TRUE(right(kA, 1));
  model_.write(kB, 3);
  EXPECT_TRUE(right(kB, 3));
  EXPECT_FALSE(right(kB, 2));
  model_.discard_ends(kRange);
  EXPECT_TRUE(right(kB, 0));
  EXPECT_FALSE(right(kA, 1));
}

TEST_F(ModelTest, LazilyFreedPageVanishesAsAWhole) {
  model_.free_lazily(kRange);
  EXPECT_TRUE(right(kA, 1));
  EXPECT_TRUE(right(kB, 0));  // it vanished just now
  EXPECT_FALSE(right(kA, 1));
  EXPECT_TRUE(right(kA, 0));
}

TEST_F(ModelTest, WritingALazilyFreedPageSettlesItsFate) {
  model_.free_lazily(kRange);
  model_.write(kB, 9);
  EXPECT_TRUE(right(kB, 9));
  EXPECT_FALSE(right(kB, 0));
  EXPECT_TRUE(right(kA, 1));  // so it had not vanished
  EXPECT_FALSE(right(kA, 0));
}

TEST_F(ModelTest, EachDiscardLeavesItsOwnQuestionOpen) {
  model_.free_lazily(kRange);
  model_.write(kB, 9);
  model_.free_lazily(kRange);
  EXPECT_TRUE(right(kA, 0));  // the first one took it: that says nothing about what was written later
  EXPECT_TRUE(right(kB, 9));
  EXPECT_TRUE(right(kB, 0));
  model_.write(kA, 5);
  EXPECT_FALSE(right(kA, 0));
}

TEST_F(ModelTest, MoveTakesContentsAlong) {
  model_.move(kRange, PageIndex(64), false);
  EXPECT_FALSE(model_.allows(kA, false));
  EXPECT_TRUE(right(VirtualAddress(64 * kPageSize), 1));
  model_.move({PageIndex(64), PageCount(4)}, PageIndex(16), true);
  EXPECT_TRUE(right(kA, 1));
  EXPECT_TRUE(right(VirtualAddress(64 * kPageSize), 0));
}

TEST_F(ModelTest, MovedDuringADiscardMayHaveLostItsContents) {
  model_.discard_begins(kRange);
  model_.move(kRange, PageIndex(64), false);
  model_.discard_cancelled(kRange);
  EXPECT_TRUE(right(VirtualAddress(64 * kPageSize), 0));
  EXPECT_FALSE(right(VirtualAddress(64 * kPageSize), 1));  // seen lost: it stays lost
}

TEST_F(ModelTest, ProtectionAndUnmap) {
  model_.protect({PageIndex(16), PageCount(1)}, true, false);
  EXPECT_TRUE(model_.allows(kA, false));
  EXPECT_FALSE(model_.allows(kA, true));
  model_.unmap({PageIndex(16), PageCount(1)});
  EXPECT_FALSE(model_.allows(kA, false));
  EXPECT_EQ(model_.mapped_pages(), 3u);
}

}  // namespace
}  // namespace whimbrel::sim
