// One fault served, by hand: who is woken, and what the slot says afterwards. And pages taken for a device alone.
#include "migrate/exclusive.h"
#include "sim/steps/steps.h"

namespace whimbrel::sim {
namespace {

class FaultSteps : public Steps {
 protected:
  [[nodiscard]] PendingFault fault_at(std::uint64_t page, bool write = false) const {
    PendingFault fault;
    fault.page = home + PageCount(page);
    fault.address = word(page);
    fault.write = write;
    fault.thread = 7;
    return fault;
  }
  void serve(const PendingFault& fault) { FaultService(space, nullptr, nullptr).serve(fault, true); }
  // As the fault thread does it.
  void touch_and_serve(std::uint64_t page) {
    Message message;
    message.address = word(page);
    message.thread = 7;
    (void)sim.userfault().park(message);
    EXPECT_EQ(FaultService(space, nullptr, nullptr).run_once(), 1u);
  }
  [[nodiscard]] bool was_woken(std::uint64_t page) const {
    for (const PageRange& range : mmu.woken()) {
      if (range.contains(home + PageCount(page))) return true;
    }
    return false;
  }
};

TEST_F(FaultSteps, AHoleIsFilledOnlyWhereThereIsOne) {
  map_unit(false, 1);
  send_to_device(pages(0, 1), false);
  MutexLock hold(space.mutex());
  EXPECT_FALSE(fill_hole_locked(space, fault_at(0)));
  EXPECT_TRUE(sim.space().slot(home).is_empty());
  EXPECT_TRUE(fill_hole_locked(space, fault_at(1)));
  EXPECT_EQ(sim.space().slot(home + PageCount(1)).kind, Slot::Kind::kZeroPage);
  EXPECT_TRUE(fill_hole_locked(space, fault_at(2, true)));
  EXPECT_EQ(sim.space().slot(home + PageCount(2)).kind, Slot::Kind::kFrame);
  mmu.forget_woken();
  EXPECT_TRUE(fill_hole_locked(space, fault_at(2)));  // filled already: the access sees what is there
  EXPECT_TRUE(was_woken(2));
}

TEST_F(FaultSteps, ADriverThatBringsNothingHomeStillGetsTheToucherWoken) {
  map_unit(false, 1);
  send_to_device(pages(0, 1), false);
  int served = 0;
  ops.serve = [&](FaultContext&) {
    ++served;
    return FaultResult::kDone;
  };
  serve(fault_at(0));
  EXPECT_EQ(served, 1);
  EXPECT_TRUE(was_woken(0));  // to touch again
  EXPECT_EQ(state(0), PageState::kDevice);
  EXPECT_FALSE(space.page(entry(0).pfn())->is_locked());
}

TEST_F(FaultSteps, APageThatCameHomeNeedsNoSecondWake) {
  map_unit(false, 1);
  send_to_device(pages(0, 1), false);
  ops.serve = [&](FaultContext& context) {
    Migration m(pages(0, 1));
    m.args.pgmap_owner = this;
    m.args.flags = kSelectDevicePrivate;
    m.args.fault_page = context.page;
    EXPECT_TRUE(migrate_vma_setup(space, m.args).has_value());
    give_frames(m);
    finish(m);
    return FaultResult::kDone;
  };
  serve(fault_at(0));
  EXPECT_EQ(state(0), PageState::kRam);
  expect_words(0, 1);
  EXPECT_FALSE(was_woken(0));  // the COPY told the toucher
}

TEST_F(FaultSteps, WhoeverWaitsForALockedPageIsMarkedUntilHeIsWoken) {
  map_unit(false, 2);
  send_to_device(pages(0, 1), false);
  Page* const page = space.page(entry(0).pfn());
  ASSERT_TRUE(page->try_lock());
  serve(fault_at(0));
  EXPECT_TRUE(entry(0).has(PageEntry::kWaited));
  EXPECT_FALSE(was_woken(0));
  page->unlock();
  {
    MutexLock hold(space.mutex());
    space.wake_waiters_locked(home);
  }
  EXPECT_TRUE(was_woken(0));
  EXPECT_FALSE(entry(0).has(PageEntry::kWaited));
  mmu.forget_woken();
  {
    MutexLock hold(space.mutex());
    space.wake_waiters_locked(home);
  }
  EXPECT_FALSE(was_woken(0));
}

TEST_F(FaultSteps, WhoeverWaitsForALockedUnitIsMarkedUntilHeIsWoken) {
  map_unit(true);
  send_to_device(unit(), true);
  const Pfn pfn = entry(0).pfn();
  Page* const head = space.page(pfn);
  ASSERT_TRUE(head->try_lock());
  serve(fault_at(300));
  EXPECT_TRUE(entry(0).has(PageEntry::kWaited));
  head->unlock();
  {
    MutexLock hold(space.mutex());
    space.wake_folio_waiters_locked(pfn);
  }
  EXPECT_TRUE(was_woken(300));
  EXPECT_FALSE(entry(0).has(PageEntry::kWaited));
}

TEST_F(FaultSteps, AToucherOfAUnitOnItsWayIsWokenAtItsEnd) {
  map_unit(true);
  Migration m = collect(unit(), kSelectSystem | kSelectCompound);
  serve(fault_at(17));
  EXPECT_TRUE(entry(17).has(PageEntry::kWaited));
  EXPECT_FALSE(was_woken(17));
  give_device_pages(m);
  finish(m);
  EXPECT_TRUE(was_woken(17));
  EXPECT_FALSE(entry(17).has(PageEntry::kWaited));
}

TEST_F(FaultSteps, AHoleThatBecomesADevicePageIsNotFilled) {
  map_unit(false, 1);
  send_to_device(pages(0, 1), false);
  tell_of_remap(pages(0, 1), home + PageCount(4));
  MutexLock hold(space.mutex());
  EXPECT_TRUE(fill_hole_locked(space, fault_at(4)));
  EXPECT_EQ(space.table().get(home + PageCount(4)).state(), PageState::kDevice);
  EXPECT_TRUE(sim.space().slot(home + PageCount(4)).is_empty());
  EXPECT_TRUE(was_woken(4));  // to touch again
}

TEST_F(FaultSteps, AHoleIsFilledOnceTheMessageIsRead) {
  map_unit(false, 1);
  ASSERT_TRUE(mmu.watch(unit()).has_value());
  tell_of_remap(pages(100, 1), home + PageCount(200));
  MutexLock hold(space.mutex());
  EXPECT_TRUE(fill_hole_locked(space, fault_at(4)));
  EXPECT_TRUE(sim.space().slot(home + PageCount(4)).is_present());
}

TEST_F(FaultSteps, APageThatSetsOutWhileItsFaultIsServedIsWaitedFor) {
  map_unit(false, 2);
  send_to_device(pages(0, 2), false);
  Migration m(pages(0, 1));
  ops.in_between = [&] {
    ops.in_between = nullptr;
    m.args.pgmap_owner = this;
    m.args.flags = kSelectDevicePrivate;
    EXPECT_TRUE(migrate_vma_setup(space, m.args).has_value());
  };
  touch_and_serve(0);
  EXPECT_EQ(state(0), PageState::kMigratingHome);
  EXPECT_TRUE(entry(0).has(PageEntry::kWaited));
  EXPECT_FALSE(was_woken(0));
  finish(m);
  EXPECT_TRUE(was_woken(0));
  ops.in_between = [&] {
    ops.in_between = nullptr;
    space.note_dropped(pages(1, 1));
    mmu.forget_woken();
  };
  touch_and_serve(1);  // dropped in between: touch again and see
  EXPECT_TRUE(was_woken(1));
  EXPECT_EQ(state(1), PageState::kRam);
}

TEST_F(FaultSteps, AUnitThatSetsOutWhileItsFaultIsServedIsTriedAgain) {
  map_unit(true);
  send_to_device(unit(), true);
  Migration m(unit());
  ops.in_between = [&] {
    ops.in_between = nullptr;
    m.args.pgmap_owner = this;
    m.args.flags = kSelectDevicePrivate | kSelectCompound;
    EXPECT_TRUE(migrate_vma_setup(space, m.args).has_value());
  };
  touch_and_serve(40);
  EXPECT_TRUE(was_woken(40));
  finish(m);
  EXPECT_TRUE(entry(0).is_huge());
}

// ---- pages for a device alone ------------------------------------------------------------------------------------------

TEST_F(FaultSteps, AnExclusivePageIsSaidToGoBeforeItGoes) {
  map_unit(false, 1);
  PageState said = PageState::kRam;
  mmu.before_move([&](PageIndex, PageIndex from) {
    space.lock_is_held();
    said = space.table().get(from).state();
  });
  const Result<Pfn> got = make_device_exclusive(space, word(0), this);
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(said, PageState::kMigratingOut);
  EXPECT_EQ(state(0), PageState::kExclusive);
  mmu.before_move(nullptr);
  space.check_invariants();
  serve(fault_at(0));  // the holder has it locked
  EXPECT_TRUE(entry(0).has(PageEntry::kWaited));
  release_exclusive(space, *got);
  EXPECT_TRUE(was_woken(0));
  revoke_all_exclusive(space);
  EXPECT_EQ(state(0), PageState::kRam);
  expect_words(0, 1);
}

TEST_F(FaultSteps, APageThatRefusesToBeExclusiveStays) {
  map_unit(false, 1);
  ASSERT_TRUE(sim.pin(home));
  const Result<Pfn> got = make_device_exclusive(space, word(0), this);
  ASSERT_FALSE(got.has_value());
  EXPECT_EQ(got.error().code, Errc::kBusy);
  EXPECT_EQ(state(0), PageState::kRam);
  sim.unpin(home);
  expect_words(0, 1);
}

}  // namespace
}  // namespace whimbrel::sim
