#include "runtime/fault_watch.h"

#include <gtest/gtest.h>

namespace whimbrel {
namespace {

constexpr std::int64_t kSecond = FaultWatch::kPause;

TEST(FaultWatch, TouchesThatAreTakenUpAreNoReasonToWorry) {
  FaultWatch watch;
  for (std::int64_t i = 1; i < 60; ++i) EXPECT_EQ(watch.look(i * kSecond, true, static_cast<std::uint64_t>(i)), 0u);
  for (std::int64_t i = 60; i < 90; ++i) EXPECT_EQ(watch.look(i * kSecond, false, 60), 0u);
}

TEST(FaultWatch, CountsFromTheSecondLookAtTheSameRound) {
  FaultWatch watch;
  EXPECT_EQ(watch.look(100 * kSecond, true, 7), 0u);
  EXPECT_EQ(watch.look(101 * kSecond, true, 7), static_cast<std::uint64_t>(kSecond));
  EXPECT_EQ(watch.look(102 * kSecond, true, 7), static_cast<std::uint64_t>(2 * kSecond));
  EXPECT_EQ(watch.look(103 * kSecond, true, 8), 0u) << "a round has begun";
  EXPECT_EQ(watch.look(104 * kSecond, true, 8), static_cast<std::uint64_t>(kSecond));
  EXPECT_EQ(watch.look(105 * kSecond, false, 8), 0u) << "nobody waits";
  EXPECT_EQ(watch.look(106 * kSecond, true, 8), 0u) << "this one has come just now";
}

TEST(FaultWatch, TimeInWhichTheProcessWasStoppedDoesNotCount) {
  FaultWatch watch;
  EXPECT_EQ(watch.look(10 * kSecond, true, 1), 0u);
  EXPECT_EQ(watch.look(3600 * kSecond, true, 1), static_cast<std::uint64_t>(2 * kSecond));
}

TEST(FaultWatch, LooksOnceASecond) {
  FaultWatch watch;
  EXPECT_TRUE(watch.due(kSecond));
  (void)watch.look(5 * kSecond, false, 0);
  EXPECT_FALSE(watch.due(6 * kSecond - 1));
  EXPECT_TRUE(watch.due(6 * kSecond));
}

}  // namespace
}  // namespace whimbrel
