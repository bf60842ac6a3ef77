// What a forked child makes of the engine's tables as the parent's threads left them, and what check_invariants() finds.
#include "sim/steps/steps.h"

namespace whimbrel::sim {
namespace {

class Recovery : public Steps {
 protected:
  void put_in_place(std::uint64_t page, std::uint64_t count) {
    std::vector<std::byte> bytes(count * kPageSize);
    for (std::uint64_t i = 0; i < count; ++i) {
      const std::uint64_t value = 1000 + page + i;
      std::memcpy(bytes.data() + i * kPageSize + kWordAt, &value, sizeof value);
    }
    ASSERT_FALSE(mmu.copy(home + PageCount(page), bytes.data(), PageCount(count), Wake::kNo, false).failed);
  }
  // Device pages whose slots have been cleared in the meantime are nobody's in the child: no slot, no holder.
  void free_forgotten(Pfn pfn) { space.put_page(pfn); }
};

TEST_F(Recovery, WhatWasComingHomeIsThereOrOnItsDevice) {
  map_unit(false, 4);
  send_to_device(pages(0, 4), false);
  const Pfn first = entry(0).pfn();
  Migration m = collect(pages(0, 3), kSelectDevicePrivate);
  expect_states(0, 3, PageState::kMigratingHome);
  put_in_place(0, 1);  // COPY had been made, the entry not yet cleared
  EXPECT_EQ(space.recover_in_child(), 0u);
  EXPECT_EQ(state(0), PageState::kRam);
  expect_words(0, 1);
  expect_states(1, 3, PageState::kDevice);
  for (std::uint64_t i = 1; i < 4; ++i) {
    EXPECT_FALSE(space.page(first + PageCount(i))->is_locked()) << i;
    EXPECT_EQ(space.page(first + PageCount(i))->refs(), 1u) << i;
  }
  free_forgotten(first);
}

TEST_F(Recovery, AUnitThatWasComingHomeIsOnItsDevice) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn head = entry(0).pfn();
  Migration m = collect(unit(), kSelectDevicePrivate | kSelectCompound);
  EXPECT_EQ(space.recover_in_child(), 0u);
  EXPECT_TRUE(entry(0).is_huge());
  expect_states(0, kPagesPerHuge, PageState::kDevice);
  EXPECT_EQ(space.page(head)->order(), kHugeOrder);
  EXPECT_EQ(space.page(head)->refs(), 1u);
  EXPECT_FALSE(space.page(head)->is_locked());
}

TEST_F(Recovery, AUnitThatHadComeHomeIsThere) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn head = entry(0).pfn();
  Migration m = collect(unit(), kSelectDevicePrivate | kSelectCompound);
  put_in_place(0, kPagesPerHuge);
  EXPECT_EQ(space.recover_in_child(), 0u);
  expect_states(0, kPagesPerHuge, PageState::kRam);
  expect_words(0, kPagesPerHuge);
  free_forgotten(head);
}

TEST_F(Recovery, AFolioWhoseFirstSlotIsGoneIsUnlockedAndCounted) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn head = entry(0).pfn();
  space.note_dropped(pages(0, 2));
  ASSERT_TRUE(space.page(head)->try_lock());
  EXPECT_EQ(space.recover_in_child(), 0u);
  // The lock was a thread's of the parent: in the child nobody would ever release it.
  EXPECT_FALSE(space.page(head)->is_locked());
  EXPECT_EQ(space.page(head)->refs(), 510u);
  EXPECT_EQ(state(2), PageState::kDevice);
}

TEST_F(Recovery, TheSlotsOfOneFolioMayLieInSeveralMappings) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn head = entry(0).pfn();
  tell_of_remap(pages(0, 1), home + PageCount(300));  // the first page's slot comes after the others
  space.pump();
  ASSERT_EQ(entry(300).pfn(), head);
  ASSERT_TRUE(program.mprotect(pages(256, 256), Mapping::kReadable).has_value());
  EXPECT_EQ(space.recover_in_child(), 0u);
  EXPECT_EQ(space.page(head)->refs(), 511u);
  ASSERT_TRUE(program.mprotect(pages(256, 256), Mapping::kReadable | Mapping::kWritable).has_value());
}

TEST_F(Recovery, PagesThatWereTouchedTooEarlyAreCounted) {
  map_unit(false, 4);
  send_to_device(pages(0, 4), false);
  put_in_place(1, 2);
  EXPECT_EQ(space.recover_in_child(), 2u);
}

TEST_F(Recovery, CoherentPagesAreWhereTheyBelong) {
  PageMap* const coherent = space.add_page_map(MemoryType::kCoherent, PageCount(16), &ops, &ops).value();
  map_unit(false, 2);
  Migration m = collect(pages(0, 2), kSelectSystem);
  for (std::uint64_t i = 0; i < 2; ++i) {
    const Pfn to = allocate(coherent, 0);
    std::memcpy(space.bytes(to), space.bytes(m.src[i].pfn()), kPageSize);
    m.dst[i] = MigrateWord::of(to);
  }
  finish(m);
  EXPECT_EQ(space.recover_in_child(), 0u);  // there, and rightly
  expect_states(0, 2, PageState::kCoherent);
  expect_words(0, 2);
}

TEST_F(Recovery, MappingsThatTheChildDoesNotHaveTakeTheirPagesAlong) {
  map_unit(false, 8);
  send_to_device(pages(0, 8), false);
  sim.space().unmap(pages(0, 3));  // DONTFORK
  ASSERT_TRUE(program.advise(pages(6, 2), Mapping::kWipeOnFork, 0).has_value());
  EXPECT_EQ(space.recover_in_child(), 0u);
  expect_states(0, 3, PageState::kRam);
  expect_states(3, 3, PageState::kDevice);
  expect_states(6, 2, PageState::kRam);
  EXPECT_EQ(device->pages_in_use(), 3u);
}

class RecoveryDetails : public Recovery {
 protected:
  void SetUp() override { GTEST_FLAG_SET(death_test_style, "fast"); }
};

TEST_F(RecoveryDetails, AForkInTheMiddleOfAnEvictionStopsTheChild) {
  map_unit(false, 2);
  Migration m = collect(pages(0, 2), kSelectSystem);
  EXPECT_DEATH((void)space.recover_in_child(), "on its way out at the moment of fork");
  finish(m);
}

TEST_F(RecoveryDetails, AForkWhileACoherentPageIsTakenStopsTheChild) {
  PageMap* const coherent = space.add_page_map(MemoryType::kCoherent, PageCount(16), &ops, &ops).value();
  map_unit(false, 1);
  Migration m = collect(pages(0, 1), kSelectSystem);
  m.dst[0] = MigrateWord::of(allocate(coherent, 0));
  std::memcpy(space.bytes(m.dst[0].pfn()), space.bytes(m.src[0].pfn()), kPageSize);
  finish(m);
  Migration home_again(pages(0, 1));
  home_again.args.pgmap_owner = &ops;
  home_again.args.flags = kSelectDeviceCoherent;
  ASSERT_TRUE(migrate_vma_setup(space, home_again.args).has_value());
  ASSERT_EQ(state(0), PageState::kMigratingHome);
  EXPECT_DEATH((void)space.recover_in_child(), "a coherent page was taken");
  migrate_vma_finalize(space, home_again.args);
  expect_words(0, 1);
}

// ---- check_invariants ------------------------------------------------------------------------------------------------

class Invariants : public RecoveryDetails {
 protected:
  void SetUp() override {
    RecoveryDetails::SetUp();
    map_unit(false, 8);
    send_to_device(pages(0, 4), false);
    out_ = collect(pages(4, 2), kSelectSystem);
    home_ = collect(pages(2, 2), kSelectDevicePrivate);
  }
  void TearDown() override {
    migrate_vma_finalize(space, out_.args);
    migrate_vma_finalize(space, home_.args);
    RecoveryDetails::TearDown();
  }
  // check_invariants() with another entry there, which then goes again.
  void expect_found(std::uint64_t page, PageEntry wrong, const char* message) {
    const PageEntry right = entry(page);
    set_entry(page, wrong);
    EXPECT_DEATH(space.check_invariants(), message);
    set_entry(page, right);
  }
  Migration out_{PageRange{PageIndex(1), PageCount(1)}};
  Migration home_{PageRange{PageIndex(1), PageCount(1)}};
};

TEST_F(Invariants, EveryStateOfARightSpacePasses) {
  space.check_invariants();  // device, migrating home, migrating out
  const PageEntry device_page = entry(0);
  for (const PageState legal : {PageState::kCoherent, PageState::kExclusive, PageState::kMigratingHome}) {
    set_entry(0, PageEntry(legal, device_page.pfn()));
    space.check_invariants();
  }
  const PageEntry frame = entry(4);
  for (const PageState legal : {PageState::kCommitted, PageState::kExclusive, PageState::kMigratingHome}) {
    set_entry(4, PageEntry(legal, frame.pfn()));
    space.check_invariants();
  }
  set_entry(4, frame);
  set_entry(0, PageEntry(PageState::kPoisoned, Pfn(1)));  // the page is lost: the slot stands for none
  space.check_invariants();
  set_entry(0, device_page);
}

TEST_F(Invariants, AStateThatDoesNotFitItsFrameIsFound) {
  const Pfn frame = entry(4).pfn(), page = entry(0).pfn();
  expect_found(4, PageEntry(PageState::kDevice, frame), "state and frame number disagree");
  expect_found(0, PageEntry(PageState::kMigratingOut, page), "state and frame number disagree");
  expect_found(0, PageEntry(PageState::kCommitted, page), "state and frame number disagree");
}

TEST_F(Invariants, ASlotThatStandsForNothingIsFound) {
  expect_found(0, PageEntry(PageState::kDevice, Pfn(kFirstDevicePfn.raw() + (1u << 30))), "stands for no page");
}

TEST_F(Invariants, AReverseMappingThatPointsElsewhereIsFound) {
  Page* const page = space.page(entry(0).pfn());
  page->set_mapping(home + PageCount(1));
  EXPECT_DEATH(space.check_invariants(), "reverse mapping and slot disagree");
  page->clear_mapping();
  EXPECT_DEATH(space.check_invariants(), "reverse mapping and slot disagree");
  page->set_mapping(home);
}

TEST_F(Invariants, ASlotOfAFreePageIsFound) {
  Page* const page = space.page(entry(0).pfn());
  ASSERT_TRUE(page->put());
  EXPECT_DEATH(space.check_invariants(), "stands for a free page");
  page->adopt_mapping();
}

}  // namespace
}  // namespace whimbrel::sim
