#include "mm/page_table.h"

#include <gtest/gtest.h>

#include <map>
#include <random>

#include "mm/heap_source.h"

namespace whimbrel {
namespace {

constexpr PageIndex kBase{0x7f1234400};  // huge-aligned
PageEntry device(std::uint64_t n) { return PageEntry(PageState::kDevice, kFirstDevicePfn + PageCount(n)); }

TEST(PageTable, UntouchedMemoryCostsNothing) {
  HeapSource heap;
  PageTable table(heap);
  EXPECT_TRUE(table.get(kBase).is_ram());
  EXPECT_EQ(table.metadata_bytes(), 0u);
  EXPECT_TRUE(table.set(kBase, PageEntry()).has_value());  // saying "RAM" about RAM allocates nothing
  EXPECT_EQ(heap.bytes_in_use(), 0u);
}

TEST(PageTable, HoldsWhatWasSetAndGivesBlocksBack) {
  HeapSource heap;
  PageTable table(heap);
  ASSERT_TRUE(table.set(kBase + PageCount(3), device(7)));
  EXPECT_EQ(table.get(kBase + PageCount(3)), device(7));
  EXPECT_TRUE(table.get(kBase + PageCount(4)).is_ram());
  EXPECT_EQ(table.used_pages(), 1u);
  const std::size_t with_block = table.metadata_bytes();
  ASSERT_TRUE(table.set(kBase + PageCount(3), PageEntry()));
  table.trim({kBase, PageCount(512)});
  EXPECT_EQ(table.metadata_bytes(), with_block - 4096);
}

TEST(PageTable, HugeUnitIsOneEntryAndSplitsIntoCountedUpFrames) {
  HeapSource heap;
  PageTable table(heap);
  ASSERT_TRUE(table.set_huge(kBase, device(512)));
  EXPECT_EQ(table.used_pages(), 512u);
  EXPECT_TRUE(table.get(kBase + PageCount(5)).is_huge());
  EXPECT_EQ(table.get(kBase + PageCount(5)).pfn(), kFirstDevicePfn + PageCount(517));
  int visits = 0;
  table.for_each({kBase + PageCount(10), PageCount(600)}, [&](PageRange where, PageEntry entry) {
    ++visits;
    EXPECT_EQ(where, (PageRange{kBase + PageCount(10), PageCount(502)}));
    EXPECT_EQ(entry.pfn(), kFirstDevicePfn + PageCount(522));
    return true;
  });
  EXPECT_EQ(visits, 1);
  ASSERT_TRUE(table.split_huge(kBase));
  EXPECT_FALSE(table.get(kBase + PageCount(5)).is_huge());
  EXPECT_EQ(table.get(kBase + PageCount(5)), device(517));
  EXPECT_EQ(table.used_pages(), 512u);
}

TEST(PageTable, OutOfMemoryIsAnErrorNotACrash) {
  HeapSource heap(4096);
  PageTable table(heap);
  const Result<void> set = table.set(kBase, device(1));
  ASSERT_FALSE(set.has_value());
  EXPECT_EQ(set.error().code, Errc::kNoMemory);
  EXPECT_EQ(table.used_pages(), 0u);
}

TEST(PageTableDeathTest, UpdateNeedsABlockUnlessItForgets) {
  HeapSource heap;
  PageTable table(heap);
  ASSERT_TRUE(table.set_huge(kBase, device(512)));
  ASSERT_TRUE(table.set_huge(kBase, PageEntry()));  // the unit is known, and has no block
  table.update(kBase + PageCount(3), PageEntry());
  EXPECT_TRUE(table.get(kBase + PageCount(3)).is_ram());
  EXPECT_DEATH(table.update(kBase + PageCount(3), device(1)), "page table block missing");
}

TEST(PageTable, AddressesBeyondTheUserSpaceAreRefused) {
  HeapSource heap;
  PageTable table(heap);
  const PageIndex beyond(std::uint64_t{1} << 40);
  EXPECT_FALSE(table.set(beyond, device(1)).has_value());
  EXPECT_TRUE(table.get(beyond).is_ram());
}

TEST(PageTable, RandomOperationsAgreeWithAMap) {
  const unsigned seed = std::random_device{}();
  SCOPED_TRACE(seed);
  std::mt19937_64 random(seed);
  HeapSource heap;
  PageTable table(heap);
  std::map<std::uint64_t, PageEntry> model;
  // Four far-apart places, each three units wide, so that neighbours, leaves and middle nodes all come into play.
  const PageIndex places[] = {PageIndex(0x400), kBase, kBase + PageCount(1 << 16), PageIndex(0x7ffffff00)};
  for (int step = 0; step < 20000; ++step) {
    const PageIndex at = PageIndex(places[random() % 4].huge_base().raw() - 512 + random() % 1024);
    switch (random() % 4) {
      case 0:
      case 1: {
        const PageEntry entry = random() % 3 == 0 ? PageEntry() : device(random() % 1000);
        if (table.get(at).is_huge()) {
          ASSERT_TRUE(table.split_huge(at.huge_base()));
        }
        ASSERT_TRUE(table.set(at, entry));
        if (entry.is_ram()) model.erase(at.raw()); else model[at.raw()] = entry;
        break;
      }
      case 2: {
        const PageIndex base = at.huge_base();
        const auto from = model.lower_bound(base.raw());
        const bool empty = from == model.end() || from->first >= base.raw() + 512;
        if (!empty) break;
        ASSERT_TRUE(table.set_huge(base, device(4096)));
        for (std::uint64_t i = 0; i < 512; ++i) model[base.raw() + i] = device(4096 + i);
        break;
      }
      case 3: {
        const auto expected = model.lower_bound(at.raw());
        const PageIndex end(at.raw() + 700);
        const PageIndex found = table.next_used(at, end);
        ASSERT_EQ(found.raw(), expected == model.end() || expected->first >= end.raw() ? end.raw() : expected->first);
        table.trim({at.huge_base(), PageCount(512)});
        break;
      }
    }
    ASSERT_EQ(table.used_pages(), model.size());
    const auto known = model.find(at.raw());
    const PageEntry got = table.get(at).without(PageEntry::kHuge);
    ASSERT_EQ(got, known == model.end() ? PageEntry() : known->second) << "step " << step;
  }
}

}  // namespace
}  // namespace whimbrel
