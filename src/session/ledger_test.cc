#include "session/ledger.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

namespace whimbrel::session {
namespace {

constexpr PageIndex kBase{0x7f0000000};

PageRange at(std::uint64_t first, std::uint64_t count) { return {kBase + PageCount(first), PageCount(count)}; }

TEST(Ledger, CutsPiecesAndJoinsThemAgain) {
  Ledger ledger;
  EXPECT_TRUE(ledger.take(PageCount(1), 1).empty()) << "no arena yet";
  ASSERT_TRUE(ledger.add_arena(at(0, 1024)));
  EXPECT_EQ(ledger.take(PageCount(3), 1), at(0, 3));
  EXPECT_EQ(ledger.take(PageCount(512), 512), at(512, 512)) << "aligned; what lies below stays free";
  EXPECT_EQ(ledger.take(PageCount(509), 1), at(3, 509));
  EXPECT_TRUE(ledger.take(PageCount(1), 1).empty()) << "full";
  EXPECT_EQ(ledger.allocated().raw(), 1024u);
  ledger.give(kBase + PageCount(512));
  ledger.give(kBase);
  ledger.give(kBase + PageCount(3));
  EXPECT_EQ(ledger.pieces(), 0u);
  EXPECT_EQ(ledger.take(PageCount(1024), 512), at(0, 1024)) << "joined to one";
}

TEST(Ledger, ArenasSideBySideStayApart) {
  Ledger ledger;
  ASSERT_TRUE(ledger.add_arena(at(512, 512)));
  ASSERT_TRUE(ledger.add_arena(at(0, 512)));
  EXPECT_TRUE(ledger.take(PageCount(600), 1).empty()) << "a piece never reaches over a border";
  EXPECT_EQ(ledger.take(PageCount(512), 1), at(0, 512));
  EXPECT_EQ(ledger.take(PageCount(512), 1), at(512, 512));
  ledger.give(kBase);
  ledger.give(kBase + PageCount(512));
  EXPECT_TRUE(ledger.take(PageCount(600), 1).empty());
}

TEST(Ledger, OwnsWhatIsTakenOrAdoptedAndNothingElse) {
  Ledger ledger;
  ASSERT_TRUE(ledger.add_arena(at(0, 512)));
  const PageRange a = ledger.take(PageCount(10), 1);
  const PageRange b = ledger.take(PageCount(10), 1);
  ASSERT_TRUE(ledger.add_adopted(at(1000, 20)));
  EXPECT_TRUE(ledger.owns(a));
  EXPECT_TRUE(ledger.owns(at(2, 5)));
  EXPECT_FALSE(ledger.owns(at(5, 10))) << "two pieces are not one";
  EXPECT_FALSE(ledger.owns(at(20, 1))) << "free";
  EXPECT_TRUE(ledger.owns(at(1005, 15)));
  EXPECT_FALSE(ledger.owns(at(1005, 16)));
  EXPECT_TRUE(ledger.overlaps_known(at(1019, 5)));
  EXPECT_TRUE(ledger.overlaps_known(at(511, 5)));
  EXPECT_FALSE(ledger.overlaps_known(at(512, 488)));
  EXPECT_FALSE(ledger.remove_adopted(at(1000, 19)));
  EXPECT_TRUE(ledger.remove_adopted(at(1000, 20)));
  EXPECT_FALSE(ledger.owns(at(1005, 1)));
  ledger.give(b.first);
  EXPECT_FALSE(ledger.owns(b));
}

TEST(Ledger, PinsAreCountedOneByOne) {
  Ledger ledger;
  ASSERT_TRUE(ledger.add_pin(at(0, 4)));
  ASSERT_TRUE(ledger.add_pin(at(0, 4)));
  ASSERT_TRUE(ledger.add_pin(at(8, 4)));
  EXPECT_TRUE(ledger.remove_pin(at(0, 4)));
  EXPECT_FALSE(ledger.remove_pin(at(0, 3)));
  int gone = 0;
  ledger.remove_pins_in(at(0, 10), [&](PageRange) { ++gone; });
  EXPECT_EQ(gone, 1) << "the one that reaches out of the range stays";
  EXPECT_FALSE(ledger.remove_pin(at(0, 4)));
  EXPECT_TRUE(ledger.remove_pin(at(8, 4)));
}

TEST(Ledger, RandomPiecesNeverOverlapAndNothingIsLost) {
  std::mt19937_64 random(7);
  Ledger ledger;
  ASSERT_TRUE(ledger.add_arena(at(0, 4096)));
  ASSERT_TRUE(ledger.add_arena(at(8192, 2048)));
  std::map<std::uint64_t, std::uint64_t> model;  // first page → pages
  for (int step = 0; step < 20'000; ++step) {
    if (random() % 2 == 0 || model.empty()) {
      const std::uint64_t pages = 1 + random() % 300, align = pages > 200 ? 64 : 1;
      const PageRange got = ledger.take(PageCount(pages), align);
      if (got.empty()) continue;
      const std::uint64_t first = (got.first - kBase).raw();
      ASSERT_EQ(got.count.raw(), pages);
      ASSERT_EQ(got.first.raw() % align, 0u);
      ASSERT_TRUE(first + pages <= 4096 || (first >= 8192 && first + pages <= 10240));
      const auto next = model.lower_bound(first);
      ASSERT_TRUE(next == model.end() || first + pages <= next->first);
      ASSERT_TRUE(next == model.begin() || std::prev(next)->first + std::prev(next)->second <= first);
      model[first] = pages;
    } else {
      auto victim = std::next(model.begin(), static_cast<std::ptrdiff_t>(random() % model.size()));
      ASSERT_EQ(ledger.piece_at(kBase + PageCount(victim->first)).count.raw(), victim->second);
      ledger.give(kBase + PageCount(victim->first));
      model.erase(victim);
    }
    ASSERT_EQ(ledger.pieces(), model.size());
  }
  for (const auto& [first, pages] : model) ledger.give(kBase + PageCount(first));
  EXPECT_EQ(ledger.allocated().raw(), 0u);
  EXPECT_EQ(ledger.take(PageCount(4096), 512), at(0, 4096));
  EXPECT_EQ(ledger.take(PageCount(2048), 512), at(8192, 2048));
}

}  // namespace
}  // namespace whimbrel::session
