#include "sim/choices.h"

#include <gtest/gtest.h>

#include <set>

namespace whimbrel::sim {
namespace {

TEST(Choices, ExhaustiveVisitsEveryCombinationOnce) {
  std::set<std::vector<std::uint32_t>> seen;
  Choices choices = Choices::exhaustive();
  while (choices.next()) {
    std::vector<std::uint32_t> world{choices.pick(2), choices.pick(3)};
    if (world[0] == 1) world.push_back(choices.pick(4));  // a question that not every world asks
    EXPECT_TRUE(seen.insert(world).second);
    EXPECT_EQ(choices.trace(), world);
  }
  EXPECT_EQ(seen.size(), 3u + 3u * 4u);
  EXPECT_EQ(choices.worlds(), seen.size());
}

TEST(Choices, OneWorldWithoutQuestions) {
  Choices choices = Choices::exhaustive();
  EXPECT_TRUE(choices.next());
  EXPECT_EQ(choices.pick(1), 0u);
  EXPECT_FALSE(choices.next());
}

TEST(Choices, RandomWorldsRepeatFromTheirOwnSeed) {
  Choices choices = Choices::random(7);
  for (int i = 0; i < 5; ++i) ASSERT_TRUE(choices.next());
  std::vector<std::uint32_t> fifth;
  for (int i = 0; i < 20; ++i) fifth.push_back(choices.pick(1000));
  Choices again = Choices::random(choices.world_seed());
  ASSERT_TRUE(again.next());
  for (int i = 0; i < 20; ++i) EXPECT_EQ(again.pick(1000), fifth[i]);
  EXPECT_EQ(again.trace(), fifth);
}

TEST(Choices, RareOnesAreRareInRandomWorlds) {
  Choices choices = Choices::random(1);
  ASSERT_TRUE(choices.next());
  int rare = 0;
  for (int i = 0; i < 10'000; ++i) rare += choices.pick_rarely(5, 100) != 0;
  EXPECT_GT(rare, 50);
  EXPECT_LT(rare, 200);
}

TEST(Choices, ReplayGivesTheAnswersThenTheOrdinaryCourse) {
  Choices choices = Choices::replay({1, 2});
  ASSERT_TRUE(choices.next());
  EXPECT_EQ(choices.pick(3), 1u);
  EXPECT_EQ(choices.pick(3), 2u);
  EXPECT_EQ(choices.pick(3), 0u);
  EXPECT_FALSE(choices.next());
}

}  // namespace
}  // namespace whimbrel::sim
