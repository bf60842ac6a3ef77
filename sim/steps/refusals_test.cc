// What the engine does when a call is refused, or when the program's memory has changed under a page that is on its way.
#include "sim/steps/steps.h"

namespace whimbrel::sim {
namespace {

class Refusals : public Steps {
 protected:
  [[nodiscard]] PendingFault fault_at(std::uint64_t page, std::uint32_t thread = 7) const {
    PendingFault fault;
    fault.page = home + PageCount(page);
    fault.address = word(page);
    fault.thread = thread;
    return fault;
  }
  void serve(const PendingFault& fault) { FaultService(space, nullptr, nullptr).serve(fault, true); }
  [[nodiscard]] Result<void> setup(Migration& m, std::uint64_t flags = kSelectSystem) {
    m.args.pgmap_owner = this;
    m.args.flags = flags;
    return migrate_vma_setup(space, m.args);
  }
};

// ---- coming home -------------------------------------------------------------------------------------------------------

TEST_F(Refusals, ASlotThatWasFilledMeanwhileIsGivenUp) {
  map_unit(false, 2);
  Migration m = collect(pages(0, 2), kSelectSystem);
  sim.space().place(home, Slot{Slot::Kind::kZeroPage, false, nullptr});
  migrate_vma_finalize(space, m.args);
  EXPECT_EQ(space.stats().replaced, 1u);
  expect_states(0, 2, PageState::kRam);
  expect_words(1, 1);
}

TEST_F(Refusals, ASlotThatWasUnmappedMeanwhileIsGivenUp) {
  map_unit(false, 2);
  Migration m = collect(pages(0, 2), kSelectSystem);
  sim.space().unmap(pages(0, 1));  // the message about it is never read
  migrate_vma_finalize(space, m.args);
  EXPECT_EQ(space.stats().replaced, 1u);
  expect_words(1, 1);
}

TEST_F(Refusals, AHomeThatMayOnlyBeReadIsFilledByCopies) {
  map_unit(false, 4);
  Migration m = collect(pages(0, 4), kSelectSystem);
  ASSERT_TRUE(program.mprotect(pages(0, 4), Mapping::kReadable).has_value());
  migrate_vma_finalize(space, m.args);
  expect_states(0, 4, PageState::kRam);
  expect_words(0, 4);
}

TEST_F(Refusals, WithoutMemoryAPageStaysOnItsDevice) {
  map_unit(false, 3);
  send_to_device(pages(0, 2), false);
  const Pfn first = entry(0).pfn();
  Migration m = collect(pages(0, 2), kSelectDevicePrivate);
  give_frames(m);
  sim.set_ram_limit(sim.ram().used);
  finish(m);
  expect_states(0, 2, PageState::kDevice);
  EXPECT_EQ(entry(0).pfn(), first);
  EXPECT_EQ(space.page(first)->refs(), 1u);
  EXPECT_FALSE(space.page(first)->is_locked());
  sim.set_ram_limit(0);
  Migration again = collect(pages(0, 2), kSelectDevicePrivate);
  give_frames(again);
  finish(again);
  expect_words(0, 2);
}

TEST_F(Refusals, AnExitingProcessLosesItsSlots) {
  map_unit(false, 2);
  send_to_device(pages(0, 2), false);
  Migration m = collect(pages(0, 2), kSelectDevicePrivate);
  give_frames(m);
  sim.exit_space();
  finish(m);
  expect_states(0, 2, PageState::kRam);
}

// ---- leaving -----------------------------------------------------------------------------------------------------------

TEST_F(Refusals, TransientRefusalsAreTriedAgain) {
  map_unit(false, 4);
  for (const Errc why : {Errc::kAgain, Errc::kNotFound, Errc::kExists, Errc::kEventPending}) {
    mmu.cut_next_move(PageCount(1), why);
    Migration m = collect(pages(0, 4), kSelectSystem);
    EXPECT_EQ(m.args.cpages, 4u) << errc_name(why);
    EXPECT_EQ(m.args.refused, 0u);
    finish(m);
    expect_words(0, 4);
  }
}

TEST_F(Refusals, PinnedPagesStayAndAreCounted) {
  map_unit(false, 4);
  ASSERT_TRUE(sim.pin(home + PageCount(1)));
  Migration m = collect(pages(0, 4), kSelectSystem);
  EXPECT_EQ(m.args.cpages, 3u);
  EXPECT_EQ(m.args.refused, 1u);
  EXPECT_EQ(m.args.refusal, Errc::kBusy);
  EXPECT_EQ(state(1), PageState::kRam);
  finish(m);
  sim.unpin(home + PageCount(1));
  expect_words(0, 4);
}

TEST_F(Refusals, AfterSoManyBusyPagesTheRestIsLeft) {
  map_unit(false, 8);
  for (std::uint64_t i = 0; i < 8; ++i) ASSERT_TRUE(sim.pin(home + PageCount(i)));
  Migration m(pages(0, 8));
  m.args.busy_limit = 2;
  ASSERT_TRUE(setup(m).has_value());
  EXPECT_EQ(m.args.refused, 8u);
  EXPECT_EQ(space.stats().busy, 2u);
  migrate_vma_finalize(space, m.args);
  for (std::uint64_t i = 0; i < 8; ++i) sim.unpin(home + PageCount(i));
}

TEST_F(Refusals, ArgumentsThatMakeNoSense) {
  map_unit(false, 2);
  send_to_device(pages(0, 1), false);
  Migration none(pages(0, 1));
  none.args.end = none.args.start;
  EXPECT_EQ(setup(none).error().code, Errc::kInvalid);
  Migration no_array(pages(0, 1));
  no_array.args.dst = nullptr;
  EXPECT_EQ(setup(no_array).error().code, Errc::kInvalid);
  Migration strange(pages(0, 1));
  strange.args.fault_page = Pfn(5);
  EXPECT_EQ(setup(strange).error().code, Errc::kInvalid);
  Migration unlocked(pages(0, 1));
  unlocked.args.fault_page = entry(0).pfn();
  EXPECT_EQ(setup(unlocked).error().code, Errc::kInvalid);
  Migration outside({unit().end() + PageCount(1), PageCount(1)});
  EXPECT_EQ(setup(outside).error().code, Errc::kInvalid);
}

TEST_F(Refusals, ARangeOfAnotherDescriptorIsLeftAlone) {
  map_unit(false, 2);
  ASSERT_TRUE(sim.space().change(pages(0, 2), [](Vma& vma) { vma.watched_by_other = true; }).has_value());
  Migration m(pages(0, 2));
  EXPECT_EQ(setup(m).error().code, Errc::kInvalid);
  EXPECT_EQ(state(0), PageState::kRam);
}

TEST_F(Refusals, HolesAreReportedOrSkipped) {
  map_unit(false, 1);
  Migration m = collect(pages(0, 4), kSelectSystem);
  EXPECT_TRUE(m.src[3].migrating());
  EXPECT_FALSE(m.src[3].valid());
  migrate_vma_finalize(space, m.args);
  Migration skipping(pages(0, 4));
  skipping.args.skip_holes = true;
  ASSERT_TRUE(setup(skipping).has_value());
  EXPECT_FALSE(skipping.src[3].migrating());
  EXPECT_EQ(skipping.args.cpages, 1u);
  migrate_vma_finalize(space, skipping.args);
  expect_words(0, 1);
}

TEST_F(Refusals, OnlySlotsAreLookedAtWhereHolesAreSkippedOnTheWayHome) {
  map_unit(true);
  send_to_device(unit(), true);
  Migration m(unit());
  m.args.skip_holes = true;
  ASSERT_TRUE(setup(m, kSelectDevicePrivate).has_value());
  EXPECT_FALSE(entry(0).is_huge());  // small ones were asked for
  EXPECT_EQ(m.args.cpages, kPagesPerHuge);
  give_frames(m);
  finish(m);
  expect_words(0, kPagesPerHuge);
}

// ---- faults --------------------------------------------------------------------------------------------------------------

TEST_F(Refusals, WhatCannotBeLoadedIsASignalAndStays) {
  map_unit(false, 1);
  send_to_device(pages(0, 1), false);
  serve(fault_at(0));  // the device answers with an error
  EXPECT_EQ(state(0), PageState::kDevice);
  EXPECT_TRUE(sim.space().slot(home).is_empty());
  serve(fault_at(0, 0));  // nobody knows which thread: the slot itself must say so
  EXPECT_EQ(sim.space().slot(home).kind, Slot::Kind::kPoison);
}

TEST_F(Refusals, WithoutMemoryTheAccessIsTriedAgain) {
  map_unit(false, 1);
  send_to_device(pages(0, 1), false);
  ops.serve = [](FaultContext&) { return FaultResult::kOom; };
  serve(fault_at(0));
  EXPECT_FALSE(mmu.woken().empty());
  EXPECT_EQ(state(0), PageState::kDevice);
}

TEST_F(Refusals, AUnitWhoseMappingWasCutIsServedByThePage) {
  map_unit(true);
  send_to_device(unit(), true);
  ASSERT_TRUE(program.mprotect(pages(0, 100), Mapping::kReadable).has_value());
  bool huge = true;
  ops.serve = [&](FaultContext& context) {
    huge = context.huge;
    return FaultResult::kDone;
  };
  serve(fault_at(200));
  EXPECT_FALSE(huge);
  EXPECT_FALSE(entry(200).is_huge());
  EXPECT_EQ(state(200), PageState::kDevice);
}

TEST_F(Refusals, AFaultInAHoleIsFilledOrWoken) {
  map_unit(false, 1);
  ASSERT_TRUE(mmu.watch(unit()).has_value());
  serve(fault_at(3));
  EXPECT_TRUE(sim.space().slot(home + PageCount(3)).is_present());
  mmu.forget_woken();
  serve(fault_at(3));  // there already
  EXPECT_EQ(mmu.woken().size(), 1u);
  PendingFault outside = fault_at(0);
  outside.page = unit().end() + PageCount(5);
  serve(outside);  // unmapped meanwhile
  EXPECT_EQ(mmu.woken().size(), 2u);
}

TEST_F(Refusals, AThreadThatMayNotServeHandsOn) {
  class Slow final : public PageMapOps {
   public:
    FaultResult migrate_to_ram(FaultContext&) noexcept override { return FaultResult::kDone; }
    void folio_free(Pfn, unsigned) noexcept override {}
  } slow;
  class Queue final : public ServiceQueue {
   public:
    bool push(const PendingFault&) noexcept override { return ++pushed == 1; }
    int pushed = 0;
  } queue;
  PageMap* const other = space.add_page_map(MemoryType::kPrivate, PageCount(8), &slow, &slow).value();
  map_unit(false, 1);
  Migration m = collect(pages(0, 1), kSelectSystem);
  m.dst[0] = MigrateWord::of(allocate(other, 0));
  finish(m);
  {
    FaultService service(space, nullptr, &queue);
    Message message;
    message.kind = Message::Kind::kFault;
    message.address = word(0);
    message.thread = 7;
    for (int i = 0; i < 2; ++i) {
      (void)sim.userfault().park(message);
      EXPECT_EQ(service.run_once(), 1u);
      EXPECT_EQ(mmu.woken().size(), static_cast<std::size_t>(i));  // no room the second time: woken to come again
    }
  }
  EXPECT_EQ(queue.pushed, 2);
  space.note_dropped(unit());
  EXPECT_TRUE(space.remove_page_map(other).has_value());
}

}  // namespace
}  // namespace whimbrel::sim
