// Pages that may only be read: what a fork and mprotect make of slots and of pages in RAM, and how such pages come home.
#include "migrate/range_fault.h"
#include "sim/steps/steps.h"

namespace whimbrel::sim {
namespace {

class Protection : public Steps {
 protected:
  explicit Protection(bool track = true, bool details = false)
      : Steps({.staging = PageCount(1024), .landing = PageCount(1024), .huge = PageCount(2 * kPagesPerHuge),
               .track_protection = track, .details_in_child = details}) {}
  [[nodiscard]] bool is_protected(std::uint64_t page) {
    return sim.space().slot(home + PageCount(page)).write_protected;
  }
  [[nodiscard]] PendingFault protect_fault(std::uint64_t page) const {
    PendingFault fault;
    fault.page = home + PageCount(page);
    fault.address = word(page);
    fault.write = fault.write_protect = true;
    fault.thread = 7;
    return fault;
  }
  void serve(const PendingFault& fault) { FaultService(space, nullptr, nullptr).serve(fault, true); }
  void bring_home(PageRange range, bool huge) {
    Migration m = collect(range, kSelectDevicePrivate | (huge ? kSelectCompound : 0));
    ASSERT_EQ(m.src[0].compound(), huge);
    give_frames(m);
    finish(m);
  }
};

TEST_F(Protection, AForkTakesTheRightToWriteFromSlotsAndPages) {
  map_unit(false, 4);
  send_to_device(pages(0, 2), false);
  EXPECT_TRUE(entry(0).has(PageEntry::kWritable));
  EXPECT_FALSE(is_protected(2));
  space.note_shared_by_fork();
  EXPECT_FALSE(entry(0).has(PageEntry::kWritable));
  EXPECT_FALSE(entry(0).has(PageEntry::kExclusiveMarker));
  EXPECT_EQ(state(0), PageState::kDevice);
  EXPECT_TRUE(is_protected(2));
  EXPECT_TRUE(sim.space().slot(home + PageCount(4)).is_empty());  // a protected hole would refuse to be moved into
  bring_home(pages(0, 2), false);
  EXPECT_TRUE(is_protected(0));
  expect_words(0, 4);
}

TEST_F(Protection, AUnitIsLoweredWholeAndComesHomeProtected) {
  map_unit(true);
  send_to_device(unit(), true);
  space.note_shared_by_fork();
  EXPECT_TRUE(entry(0).is_huge());
  EXPECT_FALSE(entry(9).has(PageEntry::kWritable));
  bring_home(unit(), true);
  EXPECT_TRUE(is_protected(0));
  EXPECT_TRUE(is_protected(511));
  expect_words(0, kPagesPerHuge);
}

TEST_F(Protection, WhatAChildDoesNotGetIsSharedWithNobody) {
  map_unit(false, 4);
  send_to_device(pages(0, 4), false);
  ASSERT_TRUE(program.advise(pages(0, 2), Mapping::kDontFork, 0).has_value());
  space.note_shared_by_fork();
  // The fast reading of mappings does not tell: everything is taken for shared, which costs faults and nothing else.
  EXPECT_FALSE(entry(3).has(PageEntry::kWritable));
}

TEST_F(Protection, MprotectOnAPartSplitsTheSlot) {
  map_unit(true);
  send_to_device(unit(), true);
  space.note_protection_lowered(pages(0, 100));
  EXPECT_FALSE(entry(0).is_huge());
  EXPECT_FALSE(entry(99).has(PageEntry::kWritable));
  EXPECT_TRUE(entry(100).has(PageEntry::kWritable));
  expect_states(0, kPagesPerHuge, PageState::kDevice);
}

TEST_F(Protection, TheFirstWriteToAProtectedPageLiftsIt) {
  map_unit(false, 2);
  send_to_device(pages(0, 1), false);
  space.note_shared_by_fork();
  ASSERT_TRUE(is_protected(1));
  serve(protect_fault(1));
  EXPECT_FALSE(is_protected(1));
}

TEST_F(Protection, OneThatIsOursAloneComesHomeWritable) {
  map_unit(false, 2);
  send_to_device(pages(0, 2), false);
  // Only the mapping forbade writing when the pages left; now it allows it.
  set_entry(0, entry(0).without(PageEntry::kWritable).with(PageEntry::kExclusiveMarker));
  set_entry(1, entry(1).without(PageEntry::kWritable | PageEntry::kExclusiveMarker));
  bring_home(pages(0, 2), false);
  EXPECT_TRUE(is_protected(0));  // the mapping is writable, and the slot was not: its first write is seen
  EXPECT_TRUE(is_protected(1));
  expect_words(0, 2);
}

class ProtectionWithDetails : public Protection {
 protected:
  ProtectionWithDetails() : Protection(true, true) {}
};

TEST_F(ProtectionWithDetails, WhatAChildDoesNotGetKeepsItsRights) {
  map_unit(false, 6);
  send_to_device(pages(0, 4), false);
  ASSERT_TRUE(program.advise(pages(0, 2), Mapping::kDontFork, 0).has_value());
  space.note_shared_by_fork();
  EXPECT_TRUE(entry(0).has(PageEntry::kWritable));
  EXPECT_FALSE(entry(2).has(PageEntry::kWritable));
  EXPECT_TRUE(is_protected(4));
}

TEST_F(ProtectionWithDetails, WhatAForkWipesIsFoundInTheChild) {
  map_unit(false, 6);
  send_to_device(pages(0, 6), false);
  ASSERT_TRUE(program.advise(pages(0, 2), Mapping::kWipeOnFork, 0).has_value());
  EXPECT_EQ(space.recover_in_child(), 0u);
  expect_states(0, 2, PageState::kRam);
  expect_states(2, 4, PageState::kDevice);
  EXPECT_EQ(device->pages_in_use(), 4u);
}

class ProtectionUntracked : public Protection {
 protected:
  ProtectionUntracked() : Protection(false) {}
};

TEST_F(ProtectionUntracked, OnlySlotsAreLowered) {
  map_unit(false, 4);
  send_to_device(pages(0, 2), false);
  space.note_shared_by_fork();
  EXPECT_FALSE(entry(0).has(PageEntry::kWritable));
  EXPECT_FALSE(is_protected(2));
}

// ---- coherent pages ----------------------------------------------------------------------------------------------------

class ProtectionCoherent : public Protection {
 protected:
  void SetUp() override {
    coherent = space.add_page_map(MemoryType::kCoherent, PageCount(16), &ops, &ops).value();
    map_unit(false, 2);
    Migration m = collect(pages(0, 2), kSelectSystem);
    for (std::uint64_t i = 0; i < 2; ++i) {
      m.dst[i] = MigrateWord::of(allocate(coherent, 0));
      std::memcpy(space.bytes(m.dst[i].pfn()), space.bytes(m.src[i].pfn()), kPageSize);
    }
    finish(m);
    space.note_shared_by_fork();
    ASSERT_FALSE(entry(0).has(PageEntry::kExclusiveMarker));
    ASSERT_TRUE(is_protected(0));
  }
  PageMap* coherent = nullptr;
  NotifierRegistry registry;  // as long as the space
};

TEST_F(ProtectionCoherent, TheWriterOfASharedPageGetsACopyInRam) {
  mmu.set_shared(true);
  serve(protect_fault(0));
  EXPECT_EQ(state(0), PageState::kRam);
  EXPECT_EQ(state(1), PageState::kCoherent);
  EXPECT_FALSE(is_protected(0));
  EXPECT_EQ(coherent->pages_in_use(), 1u);
  expect_words(0, 2);
}

TEST_F(ProtectionCoherent, TheLastOwnerKeepsItWhereItIs) {
  mmu.set_shared(false);
  serve(protect_fault(0));
  EXPECT_EQ(state(0), PageState::kCoherent);
  EXPECT_TRUE(entry(0).has(PageEntry::kExclusiveMarker));
  EXPECT_TRUE(entry(0).has(PageEntry::kWritable));
  EXPECT_FALSE(is_protected(0));
}

TEST_F(ProtectionCoherent, AFaultThatWasOvertakenIsWoken) {
  PendingFault fault = protect_fault(0);
  fault.write_protect = false;
  serve(fault);
  EXPECT_FALSE(mmu.woken().empty());
  EXPECT_EQ(state(0), PageState::kCoherent);
}

TEST_F(ProtectionCoherent, AMirrorSeesTheDevicesFrameNumber) {
  class Quiet final : public IntervalNotifier {
   public:
    bool invalidate(const NotifierRange&, std::uint64_t seq) noexcept override {
      set_seq(seq);
      return true;
    }
  } quiet;
  ASSERT_TRUE(space.add_observer(&registry));
  ASSERT_TRUE(registry.insert(quiet, home.address(), kHugeSize));
  HmmPfn words[3];
  HmmRange range;
  range.registry = &registry;
  range.notifier = &quiet;
  range.notifier_seq = registry.read_begin(quiet);
  range.start = home.address();
  range.end = (home + PageCount(3)).address();
  range.pfns = words;
  ASSERT_TRUE(hmm_range_fault(space, range).has_value());
  for (std::uint64_t i = 0; i < 2; ++i) {
    EXPECT_TRUE(words[i].valid());
    EXPECT_EQ(words[i].pfn(), entry(i).pfn());
  }
  EXPECT_FALSE(words[2].valid());  // a hole
  registry.remove(quiet);
}

TEST_F(ProtectionCoherent, OneCoherentPageGoesToRam) {
  const Pfn pfn = entry(1).pfn();
  space.page(pfn)->get();
  ASSERT_TRUE(migrate_device_coherent_folio(space, pfn).has_value());
  EXPECT_EQ(state(1), PageState::kRam);
  expect_words(1, 1);
  const Pfn pinned = entry(0).pfn();
  ASSERT_TRUE(sim.pin(home));
  space.page(pinned)->get();
  EXPECT_FALSE(migrate_device_coherent_folio(space, pinned).has_value());
  EXPECT_EQ(state(0), PageState::kCoherent);
  EXPECT_EQ(space.page(pinned)->refs(), 1u);
  sim.unpin(home);
}

}  // namespace
}  // namespace whimbrel::sim
