#include "pager/kept_copies.h"

#include <gtest/gtest.h>

#include <cstring>
#include <random>
#include <set>
#include <vector>

#include "mm/heap_source.h"

namespace whimbrel {
namespace {

Pfn pfn(std::uint64_t n) { return Pfn((std::uint64_t{1} << 40) + n); }
PageDigest digest(std::uint64_t n) { return {{n, 0, 0, 0}}; }

struct AlignedPage {
  alignas(8) std::byte bytes[kPageSize];
};

TEST(PageDigest, EveryBitOfThePageCounts) {
  const PageDigester digester(7);
  AlignedPage page{};
  std::mt19937_64 random(1);
  for (std::byte& b : page.bytes) b = static_cast<std::byte>(random());
  const PageDigest before = digester(page.bytes);
  EXPECT_EQ(digester(page.bytes), before);
  for (std::size_t bit = 0; bit < kPageSize * 8; ++bit) {
    page.bytes[bit / 8] ^= std::byte(1 << bit % 8);
    ASSERT_NE(digester(page.bytes), before) << "bit " << bit;
    page.bytes[bit / 8] ^= std::byte(1 << bit % 8);
  }
  EXPECT_EQ(digester(page.bytes), before);
}

TEST(PageDigest, ExchangedWordsAndShiftedContentsDiffer) {
  const PageDigester digester(8);
  AlignedPage page{};
  const PageDigest zeros = digester(page.bytes);
  for (std::size_t word = 0; word < kPageSize / 8; ++word) {
    std::memset(page.bytes, 0, kPageSize);
    page.bytes[word * 8] = std::byte{1};
    const PageDigest here = digester(page.bytes);
    ASSERT_NE(here, zeros);
    page.bytes[word * 8] = std::byte{0};
    page.bytes[(word * 8 + 8) % kPageSize] = std::byte{1};
    ASSERT_NE(digester(page.bytes), here) << "word " << word;
  }
}

TEST(PageDigest, AnotherSeedIsAnotherKey) {
  AlignedPage page{};
  page.bytes[100] = std::byte{3};
  EXPECT_NE(PageDigester(1)(page.bytes), PageDigester(2)(page.bytes));
}

class KeptCopiesTest : public testing::Test {
 protected:
  HeapSource source_;
  KeptCopies copies_{source_, 1024};
  std::vector<Pfn> drain() {
    std::vector<Pfn> all;
    Pfn some[7];
    for (std::size_t n = copies_.take_dropped(some); n != 0; n = copies_.take_dropped(some)) all.insert(all.end(), some, some + n);
    return all;
  }
};

TEST_F(KeptCopiesTest, WhatIsKeptIsTakenOnce) {
  ASSERT_TRUE(copies_.usable());
  EXPECT_EQ(copies_.keep(PageIndex(5), pfn(1), digest(11)), Pfn());
  EXPECT_EQ(copies_.size(), 1u);
  const KeptCopy copy = copies_.take(PageIndex(5));
  EXPECT_EQ(copy.pfn, pfn(1));
  EXPECT_EQ(copy.digest, digest(11));
  EXPECT_FALSE(copies_.take(PageIndex(5)));
  EXPECT_EQ(copies_.size(), 0u);
}

TEST_F(KeptCopiesTest, ANewerCopyOfAPageDisplacesTheOlder) {
  (void)copies_.keep(PageIndex(5), pfn(1), digest(11));
  EXPECT_EQ(copies_.keep(PageIndex(5), pfn(2), digest(12)), pfn(1));
  EXPECT_EQ(copies_.take(PageIndex(5)).pfn, pfn(2));
}

TEST_F(KeptCopiesTest, EveryReferenceComesOutExactlyOnceWhateverHappens) {
  std::mt19937_64 random(3);
  std::set<std::uint64_t> inside;
  std::uint64_t next = 1;
  const auto out = [&](Pfn p) {
    if (p == Pfn()) return;
    ASSERT_EQ(inside.erase(p.raw()), 1u);
  };
  for (int i = 0; i < 200'000; ++i) {
    const PageIndex page(1 + random() % 6000);
    switch (random() % 16) {
      case 0: copies_.drop({page, PageCount(random() % 3000)}); break;
      case 1:
        for (const Pfn p : drain()) out(p);
        EXPECT_FALSE(copies_.has_dropped());
        break;
      case 2: copies_.set_most(random() % 1500); break;
      case 3:
        if (random() % 64 == 0) copies_.drop_all();
        break;
      case 4:
      case 5:
      case 6: out(copies_.take(page).pfn); break;
      default: {
        const Pfn fresh = pfn(next++);
        inside.insert(fresh.raw());
        out(copies_.keep(page, fresh, digest(fresh.raw())));
      }
    }
    ASSERT_EQ(copies_.size(), inside.size());
  }
  copies_.drop_all();
  for (const Pfn p : drain()) out(p);
  EXPECT_TRUE(inside.empty());
}

TEST_F(KeptCopiesTest, DroppedPagesAreNotTaken) {
  (void)copies_.keep(PageIndex(5), pfn(1), digest(11));
  (void)copies_.keep(PageIndex(6), pfn(2), digest(12));
  copies_.drop({PageIndex(0), PageCount(6)});
  EXPECT_FALSE(copies_.take(PageIndex(5)));
  EXPECT_EQ(copies_.take(PageIndex(6)).pfn, pfn(2));
  EXPECT_EQ(drain(), std::vector<Pfn>{pfn(1)});
}

TEST_F(KeptCopiesTest, FullSetsForgetSomethingAndSay) {
  std::set<std::uint64_t> gone;
  for (std::uint64_t i = 0; i < 5000; ++i) {
    const Pfn p = copies_.keep(PageIndex(i + 1), pfn(i), digest(i));
    if (p != Pfn()) gone.insert(p.raw());
  }
  EXPECT_EQ(copies_.size() + gone.size(), 5000u);
  EXPECT_GE(copies_.size(), 1024u);
}

TEST_F(KeptCopiesTest, ALimitKeepsTheNumberDown) {
  copies_.set_most(10);
  for (std::uint64_t i = 0; i < 100; ++i) (void)copies_.keep(PageIndex(i + 1), pfn(i), digest(i));
  EXPECT_EQ(copies_.size(), 10u);
}

TEST_F(KeptCopiesTest, CopiesThatNeverPayAreKeptForASampleOnly) {
  EXPECT_TRUE(copies_.pays());
  for (int i = 0; i < 2000; ++i) copies_.judge(true);
  int kept = 0;
  for (int i = 0; i < 1600; ++i) kept += copies_.pays() ? 1 : 0;
  EXPECT_EQ(kept, 100);
  for (int i = 0; i < 100; ++i) copies_.judge(false);  // the program reads again
  EXPECT_TRUE(copies_.pays());
}

TEST_F(KeptCopiesTest, AReviewForgetsWithoutGivingBack) {
  for (std::uint64_t i = 0; i < 20; ++i) (void)copies_.keep(PageIndex(i + 1), pfn(i), digest(i));
  copies_.drop({PageIndex(1), PageCount(4)});
  copies_.review([](PageIndex page, Pfn) { return page.raw() % 2 == 0; });
  EXPECT_EQ(copies_.size(), 10u);
  EXPECT_EQ(drain().size(), 2u);  // of the four dropped ones
}

}  // namespace
}  // namespace whimbrel
