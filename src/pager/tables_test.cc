// The pager's tables against simple models: pins, regions, refusals.
#include <gtest/gtest.h>

#include <map>
#include <random>

#include "mm/heap_source.h"
#include "pager/arrivals.h"
#include "pager/huge_units.h"
#include "pager/pin_table.h"
#include "pager/refusals.h"
#include "pager/region_table.h"

namespace whimbrel {
namespace {

PageRange pages(std::uint64_t first, std::uint64_t count) { return {PageIndex(first), PageCount(count)}; }

// ---- pins ----

struct PinModel {
  std::map<std::uint64_t, std::uint32_t> counts;  // page -> pins
  std::map<std::uint64_t, bool> kept;
  bool is_pinned(std::uint64_t page) const {
    return (counts.contains(page) && counts.at(page) != 0) || kept.contains(page);
  }
};

TEST(Arrivals, OldestFirstAndNeighboursTogether) {
  HeapSource source;
  Arrivals arrivals(source, 3);
  ASSERT_TRUE(arrivals.usable());
  const PageCount most(64);
  arrivals.push(pages(1000, 8), most);
  arrivals.push(pages(1008, 8), most);
  arrivals.push(pages(1010, 2), most);  // known already
  arrivals.push(pages(3000, 1), most);
  EXPECT_EQ(arrivals.pop(), pages(1000, 16));
  EXPECT_EQ(arrivals.pop(), pages(3000, 1));
  EXPECT_TRUE(arrivals.empty());
}

TEST(Arrivals, KeepsTheNewestAndCutsAtUnits) {
  HeapSource source;
  Arrivals arrivals(source, 2);
  arrivals.push(pages(1, 4), PageCount(64));
  arrivals.push(pages(510, 2), PageCount(64));
  arrivals.push(pages(512, 2), PageCount(64));  // another 2 MiB: not one victim with its neighbour
  EXPECT_EQ(arrivals.pop(), pages(510, 2));
  arrivals.push(pages(514, 62), PageCount(64));
  arrivals.push(pages(576, 1), PageCount(64));  // full
  EXPECT_EQ(arrivals.pop(), pages(512, 64));
  EXPECT_EQ(arrivals.pop(), pages(576, 1));
  arrivals.push(pages(1, 1), PageCount(64));
  arrivals.clear();
  EXPECT_TRUE(arrivals.empty());
}

TEST(HugeUnits, RemembersHowAUnitLeftLast) {
  HeapSource source;
  HugeUnits units(source);
  ASSERT_TRUE(units.usable());
  const PageRange unit{PageIndex(512 * 1000), PageCount(kPagesPerHuge)};
  EXPECT_FALSE(units.left_whole(unit.first));
  units.left(unit, true);
  EXPECT_TRUE(units.left_whole(unit.first));
  EXPECT_TRUE(units.left_whole(unit.end() - PageCount(1)));
  EXPECT_FALSE(units.left_whole(unit.end()));
  // Another one that happens to have the same place, and leaves in pieces, changes nothing; nor does one that takes it.
  const PageRange other{PageIndex(unit.first.raw() + 512 * 16384), PageCount(kPagesPerHuge)};
  units.left({other.first, PageCount(3)}, false);
  EXPECT_TRUE(units.left_whole(unit.first));
  units.left(other, true);
  EXPECT_TRUE(units.left_whole(other.first));
  EXPECT_FALSE(units.left_whole(unit.first));
  // A single page that left by itself: there is a table of small pages now.
  units.left({other.first + PageCount(7), PageCount(1)}, false);
  EXPECT_FALSE(units.left_whole(other.first));
  units.left(unit, true);
  units.clear();
  EXPECT_FALSE(units.left_whole(unit.first));
}

TEST(PinTable, BehavesAsACountPerPage) {
  for (unsigned seed = 1; seed <= 40; ++seed) {
    SCOPED_TRACE(seed);
    HeapSource source;
    PinTable table(source, 4096);
    ASSERT_TRUE(table.usable());
    PinModel model;
    std::mt19937 random(seed);
    for (int step = 0; step < 400; ++step) {
      const std::uint64_t first = random() % 120, count = random() % 24;
      const PageRange range = pages(first, count);
      switch (random() % 5) {
        case 0:
        case 1:
          ASSERT_TRUE(table.pin(range));
          for (std::uint64_t p = first; p < first + count; ++p) ++model.counts[p];
          break;
        case 2:
          table.unpin(range);
          for (std::uint64_t p = first; p < first + count; ++p) {
            if (model.counts[p] != 0) --model.counts[p];
          }
          break;
        case 3:
          ASSERT_TRUE(table.keep(range));
          for (std::uint64_t p = first; p < first + count; ++p) model.kept[p] = true;
          break;
        case 4:
          table.forget(range);
          for (std::uint64_t p = first; p < first + count; ++p) {
            model.counts.erase(p);
            model.kept.erase(p);
          }
          break;
      }
      for (std::uint64_t p = 0; p < 150; ++p) {
        ASSERT_EQ(table.is_pinned(PageIndex(p)), model.is_pinned(p)) << "page " << p << " step " << step;
      }
      // first_in() finds the first pinned page of any range.
      const std::uint64_t from = random() % 150;
      std::uint64_t expected = from;
      while (expected < 150 && !model.is_pinned(expected)) ++expected;
      const PageRange found = table.first_in(pages(from, 150 - from));
      ASSERT_EQ(found.first.raw(), expected);
      ASSERT_EQ(found.empty(), expected == 150);
    }
  }
}

TEST(PinTable, KeepingTheSamePagesAgainAndAgainTakesNoRoom) {
  HeapSource source;
  PinTable table(source, 16);
  for (int i = 0; i < 1000; ++i) ASSERT_TRUE(table.keep(pages(100 + i % 3, 18)));
  EXPECT_LE(table.stretches(), 3u);
  table.unpin(pages(0, 1000));
  EXPECT_TRUE(table.is_pinned(PageIndex(110))) << "unpin() must not undo keep()";
}

TEST(PinTable, RefusesWhenFullAndChangesNothing) {
  HeapSource source;
  PinTable table(source, 8);
  std::uint64_t made = 0;
  while (table.pin(pages(made * 10, 2))) ++made;
  EXPECT_GE(made, 4u);
  EXPECT_FALSE(table.pin(pages(5000, 1)));
  for (std::uint64_t i = 0; i < made; ++i) EXPECT_TRUE(table.is_pinned(PageIndex(i * 10 + 1)));
  EXPECT_FALSE(table.is_pinned(PageIndex(5000)));
  table.forget(pages(0, 100'000));  // whole stretches go even without room to cut
  EXPECT_EQ(table.stretches(), 0u);
}

TEST(PinTable, FollowsAMove) {
  HeapSource source;
  PinTable table(source, 64);
  ASSERT_TRUE(table.pin(pages(10, 4)));
  ASSERT_TRUE(table.keep(pages(20, 2)));
  table.move(pages(8, 16), PageIndex(1000));
  for (std::uint64_t p = 0; p < 40; ++p) EXPECT_FALSE(table.is_pinned(PageIndex(p))) << p;
  EXPECT_TRUE(table.is_pinned(PageIndex(1002)));
  EXPECT_TRUE(table.is_pinned(PageIndex(1012)));
  EXPECT_FALSE(table.is_pinned(PageIndex(1006)));
}

// ---- regions ----

TEST(RegionTable, CutLeavesExactlyTheRest) {
  for (unsigned seed = 1; seed <= 60; ++seed) {
    SCOPED_TRACE(seed);
    HeapSource source;
    RegionTable table(source);
    std::map<std::uint64_t, std::uint64_t> model;  // page -> its region's `resident`, an identity here
    std::mt19937 random(seed);
    std::uint64_t at = 0;
    for (std::uint64_t id = 1; id <= 30; ++id) {
      at += random() % 5;
      const std::uint64_t count = 1 + random() % 12;
      Region region;
      region.range = pages(at, count);
      region.resident = id;
      ASSERT_TRUE(table.append(region));
      for (std::uint64_t p = at; p < at + count; ++p) model[p] = id;
      at += count;
    }
    for (int step = 0; step < 60; ++step) {
      const std::uint64_t first = random() % (at + 3), count = random() % 9;
      table.cut(pages(first, count));
      for (std::uint64_t p = first; p < first + count; ++p) model.erase(p);
      for (std::uint64_t p = 0; p < at + 4; ++p) {
        const Region* region = table.find(PageIndex(p));
        ASSERT_EQ(region != nullptr, model.contains(p)) << "page " << p << " step " << step;
        if (region != nullptr) {
          ASSERT_EQ(region->resident, model[p]);
        }
      }
      for (std::size_t i = 1; i < table.size(); ++i) {
        ASSERT_LE(table[i - 1].range.end(), table[i].range.first);
        ASSERT_FALSE(table[i].range.empty());
      }
    }
  }
}

TEST(RegionTable, GrowsAndSaysWhenItCannot) {
  HeapSource source(1 << 20);
  RegionTable table(source);
  Region region;
  std::uint64_t made = 0;
  for (region.range = pages(0, 1); table.append(region); region.range = pages(made * 2, 1)) ++made;
  EXPECT_GT(made, 5000u);
  EXPECT_LT(made, (1u << 20) / sizeof(Region));
  ASSERT_EQ(table.size(), made);
  EXPECT_EQ(table.find(PageIndex(9998)), &table[4999]);
  EXPECT_EQ(table.find(PageIndex(9997)), nullptr);
}

TEST(RegionTable, PutTakesThePlaceOfWhatWasThere) {
  HeapSource source;
  RegionTable table(source);
  Region region;
  region.range = pages(100, 100);
  ASSERT_TRUE(table.put(region));
  region.range = pages(150, 10);
  region.watched = true;
  ASSERT_TRUE(table.put(region));
  ASSERT_EQ(table.size(), 3u);
  EXPECT_EQ(table[0].range, pages(100, 50));
  EXPECT_TRUE(table[1].watched);
  EXPECT_EQ(table[2].range, pages(160, 40));
  region.range = pages(50, 120);
  region.watched = false;
  ASSERT_TRUE(table.put(region));
  ASSERT_EQ(table.size(), 2u);
  EXPECT_EQ(table[0].range, pages(50, 120));
  EXPECT_EQ(table[1].range, pages(170, 30));
}

TEST(RegionTable, DoubtMarksEveryRegionItTouches) {
  HeapSource source;
  RegionTable table(source);
  for (std::uint64_t i = 0; i < 4; ++i) {
    Region region;
    region.range = pages(i * 10, 10);
    region.kind = Eligibility::kManaged;
    region.watched = region.verified = true;
    ASSERT_TRUE(table.append(region));
  }
  table.doubt(pages(15, 10));
  EXPECT_TRUE(table[0].may_evict());
  EXPECT_FALSE(table[1].may_evict());
  EXPECT_FALSE(table[2].may_evict());
  EXPECT_TRUE(table[3].may_evict());
}

// ---- refusals ----

TEST(RefusalTable, EachRefusalDoublesThePauseUpToALimit) {
  HeapSource source;
  RefusalTable table(source, 1024);
  std::int64_t now = 1'000;
  std::int64_t expected = RefusalTable::kFirstPause;
  for (int i = 0; i < 12; ++i) {
    EXPECT_TRUE(table.may_try(PageIndex(640), now));
    table.refused(PageIndex(640), now);
    EXPECT_FALSE(table.may_try(PageIndex(640), now + expected - 1)) << i;
    EXPECT_FALSE(table.may_try(PageIndex(640 + kClumpPages - 1), now)) << "the whole clump is meant";
    EXPECT_TRUE(table.may_try(PageIndex(640 + kClumpPages), now)) << "and no other";
    now += expected;
    EXPECT_TRUE(table.may_try(PageIndex(640), now));
    expected = std::min(expected * 2, RefusalTable::kLongestPause);
  }
  table.moved(PageIndex(650));
  table.refused(PageIndex(640), now);
  EXPECT_TRUE(table.may_try(PageIndex(640), now + RefusalTable::kFirstPause)) << "a success starts it over";
}

TEST(RefusalTable, TwoClumpsOnOnePlaceNeverBlockEachOther) {
  HeapSource source;
  RefusalTable table(source, 16);
  table.refused(PageIndex(0), 0);
  table.refused(PageIndex(16 * kClumpPages), 0);
  EXPECT_TRUE(table.may_try(PageIndex(0), 1));
  EXPECT_FALSE(table.may_try(PageIndex(16 * kClumpPages), 1));
}

}  // namespace
}  // namespace whimbrel
