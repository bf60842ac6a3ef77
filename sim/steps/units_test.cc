// Units of 2 MiB on their way, whole and in parts: what each step of the protocol leaves in the slots.
#include "sim/steps/steps.h"

namespace whimbrel::sim {
namespace {

using Units = Steps;
constexpr std::uint64_t kHugeOut = kSelectSystem | kSelectCompound;
constexpr std::uint64_t kHugeHome = kSelectDevicePrivate | kSelectCompound;

TEST_F(Units, EachStepSaysWhatItHasDone) {
  map_unit(true);
  Migration m = collect(unit(), kHugeOut);
  ASSERT_TRUE(m.src[0].compound());
  expect_states(0, kPagesPerHuge, PageState::kMigratingOut);
  give_device_pages(m);
  migrate_vma_pages(space, m.args);
  expect_states(0, kPagesPerHuge, PageState::kCommitted);
  migrate_vma_finalize(space, m.args);
  expect_states(0, kPagesPerHuge, PageState::kDevice);
  EXPECT_TRUE(entry(0).is_huge());
  Migration back = collect(unit(), kHugeHome);
  ASSERT_TRUE(back.src[0].compound());
  expect_states(0, kPagesPerHuge, PageState::kMigratingHome);
  give_frames(back);
  finish(back);
  expect_states(0, kPagesPerHuge, PageState::kRam);
  EXPECT_TRUE(sim.space().is_huge(home));
  expect_words(0, kPagesPerHuge);
}

TEST_F(Units, TheSlotsSaySoBeforeThePageIsTaken) {
  map_unit(true);
  int looked = 0;
  mmu.before_move([&](PageIndex, PageIndex from) {
    space.lock_is_held();
    EXPECT_EQ(space.table().get(from).state(), PageState::kMigratingOut);
    ++looked;
  });
  Migration whole = collect(unit(), kHugeOut);
  EXPECT_EQ(looked, 1);
  mmu.before_move(nullptr);
  finish(whole);
  mmu.before_move([&](PageIndex, PageIndex from) {
    space.lock_is_held();
    EXPECT_EQ(space.table().get(from + PageCount(7)).state(), PageState::kMigratingOut);
    ++looked;
  });
  Migration some = collect(pages(0, 8), kSelectSystem);
  EXPECT_EQ(looked, 2);
  mmu.before_move(nullptr);
  finish(some);
  expect_words(0, kPagesPerHuge);
}

TEST_F(Units, FrozenWithItsFirstPagesDroppedSettlesPageByPage) {
  map_unit(true);
  Migration m = collect(unit(), kHugeOut);
  space.note_dropped(pages(0, 3));
  expect_states(0, 3, PageState::kRam);
  expect_states(3, 509, PageState::kMigratingOut);
  give_device_pages(m);
  migrate_vma_pages(space, m.args);
  expect_states(0, 3, PageState::kRam);
  expect_states(3, 509, PageState::kCommitted);
  migrate_vma_finalize(space, m.args);
  expect_states(0, 3, PageState::kRam);
  expect_states(3, 509, PageState::kDevice);
  for (std::uint64_t i = 3; i < kPagesPerHuge; ++i) ASSERT_EQ(entry(i).pfn(), m.dst[0].pfn() + PageCount(i));
  EXPECT_EQ(space.page(m.dst[0].pfn())->refs(), 509u);
  EXPECT_EQ(device->pages_in_use(), kPagesPerHuge);
}

TEST_F(Units, FrozenWithAMiddlePageDroppedSettlesPageByPage) {
  map_unit(true);
  Migration m = collect(unit(), kHugeOut);
  space.note_dropped(pages(100, 1));
  give_device_pages(m);
  migrate_vma_pages(space, m.args);
  expect_states(0, 100, PageState::kCommitted);
  EXPECT_EQ(state(100), PageState::kRam);
  expect_states(101, 411, PageState::kCommitted);
  migrate_vma_finalize(space, m.args);
  EXPECT_EQ(entry(511).pfn(), m.dst[0].pfn() + PageCount(511));
  EXPECT_EQ(state(100), PageState::kRam);
}

TEST_F(Units, FrozenInPartsAndNotTakenComesBack) {
  map_unit(true);
  Migration m = collect(unit(), kHugeOut);
  space.note_dropped(pages(0, 2));
  migrate_vma_finalize(space, m.args);
  expect_states(0, kPagesPerHuge, PageState::kRam);
  EXPECT_TRUE(sim.space().slot(home).is_empty());
  expect_words(2, 510);
}

TEST_F(Units, DroppedAltogetherFreesBothEnds) {
  map_unit(true);
  Migration m = collect(unit(), kHugeOut);
  give_device_pages(m);
  space.note_dropped(unit());
  finish(m);
  expect_states(0, kPagesPerHuge, PageState::kRam);
  EXPECT_EQ(ops.freed, kPagesPerHuge);
}

TEST_F(Units, OnItsWayHomeInPartsReturnsToTheDevice) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn head = entry(0).pfn();
  Migration m = collect(unit(), kHugeHome);
  space.note_dropped(pages(0, 5));
  expect_states(5, 507, PageState::kMigratingHome);
  migrate_vma_finalize(space, m.args);
  expect_states(0, 5, PageState::kRam);
  expect_states(5, 507, PageState::kDevice);
  for (std::uint64_t i = 5; i < kPagesPerHuge; ++i) ASSERT_EQ(entry(i).pfn(), head + PageCount(i));
  EXPECT_EQ(space.page(head)->refs(), 507u);
}

TEST_F(Units, OnItsWayHomeAndNotLoadedReturnsWhole) {
  map_unit(true);
  send_to_device(unit(), true);
  Migration m = collect(unit(), kHugeHome);
  migrate_vma_finalize(space, m.args);
  EXPECT_TRUE(entry(0).is_huge());
  expect_states(0, kPagesPerHuge, PageState::kDevice);
  EXPECT_EQ(space.page(entry(0).pfn())->refs(), 1u);
  EXPECT_FALSE(space.page(entry(0).pfn())->is_locked());
}

TEST_F(Units, OnItsWayHomeInPartsIsInstalledPageByPage) {
  map_unit(true);
  send_to_device(unit(), true);
  Migration m = collect(unit(), kHugeHome);
  give_frames(m);
  space.note_dropped(pages(200, 1));
  finish(m);
  expect_states(0, kPagesPerHuge, PageState::kRam);
  EXPECT_TRUE(sim.space().slot(home + PageCount(200)).is_empty());
  expect_words(0, 200);
  expect_words(201, 311);
}

TEST_F(Units, HomeByAMoveThatStopsInTheMiddle) {
  map_unit(true);
  send_to_device(unit(), true);
  Migration m = collect(unit(), kHugeHome);
  give_frames(m);
  mmu.cut_next_move(PageCount(100), Errc::kBusy);
  finish(m);
  expect_states(0, kPagesPerHuge, PageState::kRam);
  expect_words(0, kPagesPerHuge);
}

TEST_F(Units, OnlyAPartOfAHugePageMoves) {
  map_unit(true);
  mmu.cut_next_move(PageCount(100), Errc::kBusy);
  Migration m = collect(unit(), kHugeOut);
  expect_states(0, 100, PageState::kMigratingOut);
  EXPECT_EQ(state(100), PageState::kRam);  // refused
  EXPECT_FALSE(m.src[100].valid());
  EXPECT_EQ(m.args.refused, 1u);
  EXPECT_EQ(m.args.cpages, 511u);
  expect_states(101, 411, PageState::kMigratingOut);
  for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) ASSERT_FALSE(m.src[i].compound());
  give_device_pages(m);
  finish(m);
  expect_states(0, 100, PageState::kDevice);
  EXPECT_EQ(state(100), PageState::kRam);
  expect_words(100, 1);
  Migration back = collect(unit(), kSelectDevicePrivate);
  give_frames(back);
  finish(back);
  expect_words(0, kPagesPerHuge);
}

TEST_F(Units, AHugePageThatRefusesIsTakenInSmallOnes) {
  map_unit(true);
  mmu.cut_next_move(PageCount(0), Errc::kBusy);
  Migration m = collect(unit(), kHugeOut);
  EXPECT_EQ(state(0), PageState::kRam);
  EXPECT_EQ(m.args.refusal, Errc::kBusy);
  finish(m);
  expect_words(0, kPagesPerHuge);
}

TEST_F(Units, ARunOfSmallPagesStopsInTheMiddle) {
  map_unit(false, 8);
  mmu.cut_next_move(PageCount(3), Errc::kBusy);
  Migration m = collect(pages(0, 8), kSelectSystem);
  expect_states(0, 3, PageState::kMigratingOut);
  EXPECT_EQ(state(3), PageState::kRam);
  expect_states(4, 4, PageState::kMigratingOut);
  give_device_pages(m);
  migrate_vma_pages(space, m.args);
  expect_states(0, 3, PageState::kCommitted);
  migrate_vma_finalize(space, m.args);
  expect_states(4, 4, PageState::kDevice);
  expect_words(3, 1);
}

TEST_F(Units, EvictionByFrameNumberFreezesTheSlots) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn head = entry(0).pfn();
  Migration m(unit());
  migrate_device_range(space, m.src.data(), head, kPagesPerHuge);
  ASSERT_TRUE(m.src[0].compound());
  EXPECT_TRUE(entry(0).is_huge());
  expect_states(0, kPagesPerHuge, PageState::kMigratingHome);
  EXPECT_EQ(space.page(head)->refs(), 1u);
  give_frames(m);
  migrate_device_pages(space, m.src.data(), m.dst.data(), kPagesPerHuge);
  migrate_device_finalize(space, m.src.data(), m.dst.data(), kPagesPerHuge);
  expect_states(0, kPagesPerHuge, PageState::kRam);
  expect_words(0, kPagesPerHuge);
}

TEST_F(Units, EvictionByFrameNumberLeavesWhatIsOnItsWay) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn head = entry(0).pfn();
  Migration first = collect(unit(), kHugeHome);
  space.page(head)->unlock();  // as if the lock had been given up while the slot is still frozen
  Migration m(unit());
  migrate_device_range(space, m.src.data(), head, kPagesPerHuge);
  EXPECT_FALSE(m.src[0].valid());
  EXPECT_EQ(space.page(head)->refs(), 1u);
  ASSERT_TRUE(space.page(head)->try_lock());
  migrate_vma_finalize(space, first.args);
  expect_states(0, kPagesPerHuge, PageState::kDevice);
}

TEST_F(Units, EvictionByFrameNumberOfSmallPages) {
  map_unit(false, 4);
  send_to_device(pages(0, 4), false);
  const Pfn first = entry(0).pfn();
  Migration m(pages(0, 4));
  for (std::uint64_t i = 0; i < 4; ++i) m.src[i] = MigrateWord((first + PageCount(i)).raw());
  migrate_device_pfns(space, m.src.data(), 4);
  expect_states(0, 4, PageState::kMigratingHome);
  migrate_device_finalize(space, m.src.data(), m.dst.data(), 4);
  expect_states(0, 4, PageState::kDevice);
}

TEST_F(Units, AFolioThatDoesNotFitEndsTheRange) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn head = entry(0).pfn();
  Migration m(pages(0, 100));
  migrate_device_range(space, m.src.data(), head, 100);
  EXPECT_FALSE(m.src[0].valid());
  m.src[0] = MigrateWord(head.raw());
  migrate_device_pfns(space, m.src.data(), 100);
  EXPECT_FALSE(m.src[0].valid());
  expect_states(0, kPagesPerHuge, PageState::kDevice);
  EXPECT_FALSE(space.page(head)->is_locked());
  EXPECT_EQ(space.page(head)->refs(), 1u);
}

}  // namespace
}  // namespace whimbrel::sim
