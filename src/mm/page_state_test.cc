#include "mm/page_state.h"

#include <gtest/gtest.h>

#include <set>
#include <utility>

#include "mm/page_entry.h"
#include "mm/page_map.h"
#include "mm/heap_source.h"
#include "mm/migrate_word.h"

namespace whimbrel {
namespace {

using S = PageState;
using E = PageEvent;
constexpr S kStates[] = {S::kRam, S::kMigratingOut, S::kCommitted, S::kDevice, S::kMigratingHome, S::kExclusive, S::kPoisoned,
                         S::kCoherent};
constexpr E kEvents[] = {E::kCollect, E::kCommit, E::kFinish, E::kPopulate, E::kCollectHome, E::kRestore,
                         E::kReturnToDevice, E::kMakeExclusive, E::kMapCoherent, E::kPopulateCoherent, E::kLose, E::kDrop};

// The whole relation, written down a second time on purpose: an edge added or lost in next() fails here.
TEST(PageState, MigratingAreTheThreeStatesInBetween) {
  for (const PageState s : {PageState::kMigratingOut, PageState::kCommitted, PageState::kMigratingHome}) EXPECT_TRUE(is_migrating(s));
  for (const PageState s : {PageState::kRam, PageState::kDevice, PageState::kExclusive, PageState::kPoisoned, PageState::kCoherent}) {
    EXPECT_FALSE(is_migrating(s));
  }
}

TEST(PageState, ExactlyTheseTransitionsExist) {
  const std::set<std::pair<std::pair<S, E>, S>> edges = {
      {{S::kRam, E::kCollect}, S::kMigratingOut},        {{S::kRam, E::kPopulate}, S::kDevice},
      {{S::kMigratingOut, E::kCommit}, S::kCommitted},   {{S::kMigratingOut, E::kRestore}, S::kRam},
      {{S::kMigratingOut, E::kMakeExclusive}, S::kExclusive}, {{S::kMigratingHome, E::kMakeExclusive}, S::kExclusive},
      {{S::kExclusive, E::kMapCoherent}, S::kCoherent},
      {{S::kCommitted, E::kFinish}, S::kDevice},         {{S::kCommitted, E::kRestore}, S::kRam},
      {{S::kDevice, E::kCollectHome}, S::kMigratingHome}, {{S::kDevice, E::kLose}, S::kPoisoned},
      {{S::kMigratingHome, E::kRestore}, S::kRam},       {{S::kMigratingHome, E::kReturnToDevice}, S::kDevice},
      {{S::kMigratingHome, E::kFinish}, S::kDevice},     {{S::kMigratingHome, E::kLose}, S::kPoisoned},
      {{S::kExclusive, E::kRestore}, S::kRam},           {{S::kCoherent, E::kCollectHome}, S::kMigratingHome},
      {{S::kCommitted, E::kMapCoherent}, S::kCoherent},  {{S::kMigratingHome, E::kMapCoherent}, S::kCoherent},
      {{S::kRam, E::kPopulateCoherent}, S::kCoherent},
  };
  for (const S state : kStates) {
    for (const E event : kEvents) {
      const Result<S> after = next(state, event);
      if (event == E::kDrop) {
        ASSERT_TRUE(after.has_value());
        EXPECT_EQ(*after, S::kRam);
        continue;
      }
      bool expected = false;
      for (const auto& [from, to] : edges) {
        if (from != std::pair{state, event}) continue;
        expected = true;
        ASSERT_TRUE(after.has_value()) << int(state) << " by " << int(event);
        EXPECT_EQ(*after, to);
      }
      if (!expected) {
        EXPECT_FALSE(after.has_value()) << int(state) << " by " << int(event);
      }
    }
  }
}

TEST(PageEntry, GoingBackToRamForgetsEverything) {
  const PageEntry frozen(S::kMigratingOut, Pfn(123), PageEntry::kWritable | PageEntry::kWaited);
  EXPECT_EQ(frozen.after(E::kRestore), PageEntry());
  EXPECT_EQ(frozen.after(E::kCommit).pfn(), Pfn(123));
  EXPECT_TRUE(frozen.after(E::kCommit).has(PageEntry::kWritable));
}

TEST(PageEntryDeathTest, AnIllegalStepStopsTheProcess) {
  EXPECT_DEATH((void)PageEntry().after(E::kCommit), "illegal page state transition");
}

TEST(MigrateWord, BitsAreAsDriversKnowThem) {
  const MigrateWord word = MigrateWord::of(Pfn(0x123)).with(MigrateWord::kMigrate | MigrateWord::kWrite);
  EXPECT_EQ(word.raw(), (0x123u << 6) | 1 | 2 | 8);
  EXPECT_EQ(word.pfn(), Pfn(0x123));
  EXPECT_EQ(word.pages().raw(), 1u);
  EXPECT_EQ(word.with(MigrateWord::kCompound).pages().raw(), 512u);
  EXPECT_FALSE(MigrateWord(MigrateWord::kMigrate).valid());
}

class NoOps final : public PageMapOps {
 public:
  FaultResult migrate_to_ram(FaultContext&) noexcept override { return FaultResult::kSigbus; }
  void folio_free(Pfn, unsigned) noexcept override {}
};

TEST(PageMap, RefusesWhatHasNoOwnerOrNoPages) {
  HeapSource heap;
  NoOps ops;
  int owner = 0;
  EXPECT_FALSE(PageMap::create(heap, kFirstDevicePfn, PageCount(0), MemoryType::kPrivate, &owner, &ops));
  EXPECT_FALSE(PageMap::create(heap, kFirstDevicePfn, PageCount(8), MemoryType::kPrivate, nullptr, &ops));
  EXPECT_FALSE(PageMap::create(heap, kFirstDevicePfn, PageCount(8), MemoryType::kPrivate, &owner, nullptr));
  EXPECT_EQ(heap.bytes_in_use(), 0u);
}

TEST(PageMap, PagesAreBornLockedWithOneReferenceAndCostSixteenBytes) {
  HeapSource heap;
  NoOps ops;
  int owner = 0;
  const Result<PageMap*> map = PageMap::create(heap, kFirstDevicePfn, PageCount(1 << 20), MemoryType::kPrivate, &owner, &ops);
  ASSERT_TRUE(map.has_value());
  EXPECT_EQ((*map)->find(kFirstDevicePfn), nullptr);
  const std::size_t before = (*map)->metadata_bytes();
  const Result<Page*> head = (*map)->init_folio(kFirstDevicePfn + PageCount(512), kHugeOrder);
  ASSERT_TRUE(head.has_value());
  EXPECT_TRUE((*head)->is_locked());
  EXPECT_EQ((*head)->refs(), 1u);
  EXPECT_EQ((*head)->order(), kHugeOrder);
  EXPECT_TRUE((*map)->find(kFirstDevicePfn + PageCount(513))->is_tail());
  EXPECT_EQ((*map)->pages_in_use(), 512u);
  EXPECT_EQ((*map)->metadata_bytes() - before, 4096u * 16);
  EXPECT_FALSE((*head)->try_lock());
  (*head)->get();
  EXPECT_FALSE((*head)->put());
  EXPECT_TRUE((*head)->put());
  EXPECT_FALSE((*head)->try_get());
  PageMap::destroy(*map);
  EXPECT_EQ(heap.bytes_in_use(), 0u);
}

}  // namespace
}  // namespace whimbrel
