// Faults and address-space events: what is delivered when, and what refuses meanwhile, in every order of the threads.
#include <gtest/gtest.h>

#include <algorithm>
#include <array>
#include <set>

#include "sim/testing.h"

namespace whimbrel::sim {
namespace {

constexpr PageIndex kHome{0x10000};
constexpr PageCount kOne{1};
constexpr PageRange kRange{kHome, PageCount(16)};
constexpr PageIndex kElsewhere{0x20000};

VirtualAddress word_of(PageIndex page) { return VirtualAddress(page.address().raw() + 8); }

std::vector<Message> read_all(SimMmu& mmu) {
  std::array<Message, 16> messages;
  const std::size_t count = mmu.read_messages(messages);
  return {messages.begin(), messages.begin() + static_cast<std::ptrdiff_t>(count)};
}

// Waits until `count` messages have been read.
std::vector<Message> read_messages(SimMmu& mmu, std::size_t count) {
  std::vector<Message> all;
  while (all.size() < count) {
    if (!mmu.wait_for_message(-1)) continue;
    for (const Message& message : read_all(mmu)) all.push_back(message);
  }
  return all;
}

bool is_event(const Message& message, Message::Kind kind, PageRange range) {
  return message.kind == kind && message.range == range;
}

// Maps and watches kRange and stores 7 in its first page's word.
void set_up(TestWorld& world) {
  world.program.mmap(kRange);
  EXPECT_EQ(world.program.write(1, word_of(kHome), 7), Access::kDone);
  EXPECT_TRUE(world.mmu.watch(kRange).has_value());
}

struct OneCourse {
  Choices choices = Choices::replay({});
  bool started = choices.next();
  TestWorld world{choices};
};

TEST(Faults, ToucherWaitsUntilThePageIsThere) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  std::array<std::byte, kPageSize> page{};
  page[8] = std::byte{42};
  world.program.model().write(word_of(kHome + kOne), 42);
  world.thread("toucher", [&] {
    std::uint64_t word = 0;
    EXPECT_EQ(world.program.read(5, word_of(kHome + kOne), &word), Access::kDone);
    EXPECT_EQ(word, 42u);
  });
  world.thread("server", [&] {
    const Message fault = read_messages(world.mmu, 1)[0];
    EXPECT_EQ(fault.kind, Message::Kind::kFault);
    EXPECT_EQ(fault.address, word_of(kHome + kOne));  // the exact byte
    EXPECT_EQ(fault.thread, 5u);
    EXPECT_FALSE(fault.write);
    EXPECT_FALSE(world.mmu.copy(kHome + kOne, page.data(), kOne, Wake::kNo).failed);
    EXPECT_EQ(world.mmu.userfault().parked(), 1u);  // there, but nobody has been told
    world.mmu.wake({kHome + kOne, kOne});
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
  EXPECT_TRUE(world.program.violations().empty());
}

TEST(Faults, OneResolutionWakesBothAndWithdrawsTheSecondMessage) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  int done = 0;
  for (int i = 0; i < 2; ++i) {
    world.thread("toucher", [&] {
      std::uint64_t word = 0;
      EXPECT_EQ(world.program.read(1, word_of(kHome + kOne), &word), Access::kDone);
      ++done;
    });
  }
  world.thread("server", [&] {
    EXPECT_TRUE(world.mmu.wait_for_message(-1));
    std::array<Message, 1> first;
    while (world.mmu.userfault().parked() < 2) world.scheduler.yield();
    EXPECT_EQ(world.mmu.read_messages(first), 1u);
    EXPECT_FALSE(world.mmu.zero(kHome + kOne, kOne, Wake::kYes).failed);
    EXPECT_EQ(world.mmu.read_messages(first), 0u);
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
  EXPECT_EQ(done, 2);
}

TEST(Faults, WakeWithoutResolutionFaultsAgain) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.thread("toucher", [&] { EXPECT_EQ(world.program.write(1, word_of(kHome + kOne), 9), Access::kDone); });
  world.thread("server", [&] {
    EXPECT_TRUE(read_messages(world.mmu, 1)[0].write);
    world.mmu.wake(kRange);
    EXPECT_EQ(read_messages(world.mmu, 1)[0].kind, Message::Kind::kFault);
    EXPECT_FALSE(world.mmu.zero(kHome + kOne, kOne, Wake::kYes).failed);
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
}

TEST(Faults, SignalMakesADuplicate) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.thread("toucher", [&] { EXPECT_EQ(world.program.write(1, word_of(kHome + kOne), 9), Access::kDone); });
  world.thread("server", [&] {
    EXPECT_EQ(read_messages(world.mmu, 1).size(), 1u);
    world.mmu.userfault().interrupt_waiter(0);
    EXPECT_EQ(read_messages(world.mmu, 1)[0].address, word_of(kHome + kOne));
    EXPECT_FALSE(world.mmu.zero(kHome + kOne, kOne, Wake::kYes).failed);
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
}

TEST(Faults, WriteToAProtectedPageSaysSo) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  EXPECT_TRUE(world.mmu.write_protect({kHome, kOne}, true, Wake::kNo).has_value());
  world.thread("writer", [&] { EXPECT_EQ(world.program.write(1, word_of(kHome), 8), Access::kDone); });
  world.thread("server", [&] {
    const Message fault = read_messages(world.mmu, 1)[0];
    EXPECT_TRUE(fault.write && fault.write_protect);
    EXPECT_TRUE(world.mmu.write_protect({kHome, kOne}, false, Wake::kYes).has_value());
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
}

TEST(Faults, UnwatchWakesAndShowsZeros) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.thread("toucher", [&] {
    std::uint64_t word = 1;
    EXPECT_EQ(world.program.read(1, word_of(kHome + kOne), &word), Access::kDone);
    EXPECT_EQ(word, 0u);
  });
  world.thread("server", [&] {
    EXPECT_EQ(read_messages(world.mmu, 1).size(), 1u);
    EXPECT_TRUE(world.mmu.unwatch(kRange).has_value());
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
}

TEST(Faults, LostDescriptorShowsZerosInsteadOfContents) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  const PageRange window = *world.mmu.open_window(kOne, WindowKind::kSmall);
  EXPECT_FALSE(world.mmu.move(window.first, kHome, kOne, Wake::kNo).failed);
  world.thread("toucher", [&] {
    std::uint64_t word = 0;
    EXPECT_EQ(world.program.read(1, word_of(kHome), &word), Access::kDone);
  });
  world.thread("closer", [&] { world.mmu.lose_descriptor(); });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
  ASSERT_EQ(world.program.violations().size(), 1u);  // the model notices: silent zeros
  EXPECT_NE(world.program.violations()[0].find("got 0, expected 7"), std::string::npos);
}

// ---- events --------------------------------------------------------------------------------------------------------

TEST(Events, DiscardIsToldBeforeThePagesGo) {
  bool seen_present_after_read = false;
  bool seen_gone_after_read = false;
  const std::uint64_t worlds = every_schedule(
      3,
      [&](TestWorld& world) {
        set_up(world);
        world.thread("program", [&world] { EXPECT_TRUE(world.program.dontneed({kHome, PageCount(2)}).has_value()); });
        world.thread("reader", [&] {
          const Message event = read_messages(world.mmu, 1)[0];
          EXPECT_TRUE(is_event(event, Message::Kind::kRemove, {kHome, PageCount(2)}));
          (world.mmu.space().slot(kHome).is_empty() ? seen_gone_after_read : seen_present_after_read) = true;
        });
      },
      [&](TestWorld& world, Scheduler::Outcome outcome) {
        EXPECT_EQ(outcome, Scheduler::Outcome::kFinished);
        EXPECT_TRUE(world.mmu.space().slot(kHome).is_empty());
      });
  EXPECT_TRUE(seen_present_after_read && seen_gone_after_read);
  EXPECT_GT(worlds, 10u);
}

TEST(Events, PageOperationsRefuseWhileAnEventIsUnread) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  const PageRange window = *world.mmu.open_window(kOne, WindowKind::kSmall);
  world.thread("program", [&] { world.program.munmap({kHome + PageCount(8), PageCount(8)}); });
  world.thread("engine", [&] {
    while (!world.mmu.userfault().event_pending()) world.scheduler.yield();
    std::array<std::byte, kPageSize> page{};
    // The range in question has nothing to do with the event.
    EXPECT_EQ(world.mmu.move(window.first, kHome, kOne, Wake::kNo).error.code, Errc::kEventPending);
    EXPECT_EQ(world.mmu.copy(kHome + kOne, page.data(), kOne, Wake::kNo).error.code, Errc::kEventPending);
    EXPECT_EQ(world.mmu.zero(kHome + kOne, kOne, Wake::kNo).error.code, Errc::kEventPending);
    EXPECT_EQ(world.mmu.write_protect({kHome, kOne}, true, Wake::kNo).error().code, Errc::kEventPending);
    EXPECT_EQ(world.mmu.poison({kHome + kOne, kOne}).error().code, Errc::kEventPending);
    EXPECT_TRUE(is_event(read_messages(world.mmu, 1)[0], Message::Kind::kUnmap, {kHome + PageCount(8), PageCount(8)}));
    EXPECT_FALSE(world.mmu.move(window.first, kHome, kOne, Wake::kNo).failed);
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
}

TEST(Events, UnmapIsToldWhenTheAddressesMayBelongToOthers) {
  bool reused_when_read = false;
  every_schedule(
      3,
      [&](TestWorld& world) {
        set_up(world);
        const auto gone = std::make_shared<bool>(false);
        world.thread("unmapper", [&world] { world.program.munmap(kRange); });
        world.thread("mapper", [&world, gone] {
          while (!world.mmu.space().is_free(kRange)) world.scheduler.yield();
          world.program.mmap(kRange);
          EXPECT_EQ(world.program.write(2, word_of(kHome), 99), Access::kDone);
          *gone = true;
        });
        world.thread("reader", [&, gone] {
          EXPECT_TRUE(is_event(read_messages(world.mmu, 1)[0], Message::Kind::kUnmap, kRange));
          reused_when_read |= *gone;
        });
      },
      [](TestWorld& world, Scheduler::Outcome outcome) {
        EXPECT_TRUE(outcome != Scheduler::Outcome::kFinished || world.program.violations().empty());
      });
  EXPECT_TRUE(reused_when_read);
}

TEST(Events, FaultsOvertakeEvents) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.thread("discarder", [&] { EXPECT_TRUE(world.program.dontneed({kHome, kOne}).has_value()); });
  world.thread("toucher", [&] {
    std::uint64_t word = 0;
    EXPECT_EQ(world.program.read(1, word_of(kHome + kOne), &word), Access::kDone);
  });
  world.thread("reader", [&] {
    while (world.mmu.userfault().parked() == 0 || !world.mmu.userfault().event_pending()) world.scheduler.yield();
    const std::vector<Message> messages = read_messages(world.mmu, 2);
    EXPECT_EQ(messages[0].kind, Message::Kind::kFault);  // it came later
    EXPECT_EQ(messages[1].kind, Message::Kind::kRemove);
    EXPECT_FALSE(world.mmu.zero(kHome + kOne, kOne, Wake::kYes).failed);
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
}

TEST(Events, MovingMremapSendsRemapThenUnmapAndKeepsWatching) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.thread("program", [&] {
    EXPECT_TRUE(world.program.mremap(kRange, kElsewhere).has_value());
    EXPECT_TRUE(world.mmu.space().find(kElsewhere)->watched);
    std::uint64_t word = 0;
    EXPECT_EQ(world.program.read(1, word_of(kElsewhere), &word), Access::kDone);
    EXPECT_EQ(word, 7u);
    EXPECT_EQ(world.program.read(1, word_of(kHome), &word), Access::kSegv);
  });
  world.thread("reader", [&] {
    const std::vector<Message> messages = read_messages(world.mmu, 2);
    EXPECT_TRUE(is_event(messages[0], Message::Kind::kRemap, kRange));
    EXPECT_EQ(messages[0].to, kElsewhere);
    EXPECT_TRUE(is_event(messages[1], Message::Kind::kUnmap, kRange));
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
  EXPECT_TRUE(world.program.violations().empty());
}

TEST(Events, DontUnmapSendsRemapOnlyAndLeavesTheOldRangeWatched) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.thread("program", [&] { EXPECT_TRUE(world.program.mremap(kRange, kElsewhere, true).has_value()); });
  world.thread("reader", [&] { EXPECT_EQ(read_messages(world.mmu, 1)[0].kind, Message::Kind::kRemap); });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
  EXPECT_FALSE(world.mmu.userfault().readable());
  EXPECT_EQ(world.mmu.space().access(kHome, false), Access::kMissing);
}

TEST(Events, GrowingSendsNothingAndTheNewPartFaults) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  EXPECT_TRUE(world.program.grow(kHome, PageCount(20)).has_value());
  EXPECT_FALSE(world.mmu.userfault().readable());
  EXPECT_EQ(world.mmu.space().access(kHome + PageCount(18), true), Access::kMissing);
}

TEST(Events, ProtectionChangesAndReclaimSendNothing) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  EXPECT_TRUE(world.program.mprotect(kRange, Mapping::kReadable).has_value());
  EXPECT_TRUE(world.mmu.space().swap_out(kHome).has_value());
  EXPECT_FALSE(world.mmu.userfault().readable() || world.mmu.userfault().event_pending());
  EXPECT_EQ(world.program.write(1, word_of(kHome), 1), Access::kSegv);
  std::uint64_t word = 0;
  EXPECT_EQ(world.program.read(1, word_of(kHome), &word), Access::kDone);
  EXPECT_EQ(word, 7u);
}

TEST(Events, MapFixedReplacesWithUnwatchedMemory) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.thread("program", [&] { world.program.mmap({kHome, PageCount(4)}); });
  world.thread("reader", [&] {
    EXPECT_TRUE(is_event(read_messages(world.mmu, 1)[0], Message::Kind::kUnmap, {kHome, PageCount(4)}));
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
  EXPECT_FALSE(world.mmu.space().find(kHome)->watched);
  EXPECT_TRUE(world.mmu.space().find(kHome + PageCount(4))->watched);
}

TEST(Events, UnmapCoversWhatWasNeverOurs) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.program.mmap({kRange.end(), PageCount(4)});
  world.thread("program", [&] { world.program.munmap({kHome, PageCount(20)}); });
  world.thread("reader", [&] {
    EXPECT_TRUE(is_event(read_messages(world.mmu, 1)[0], Message::Kind::kUnmap, {kHome, PageCount(20)}));
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
}

TEST(Events, DiscardOverSeveralMappingsSendsOneMessageEach) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  EXPECT_TRUE(world.program.mprotect({kHome + PageCount(4), PageCount(4)}, Mapping::kReadable).has_value());
  world.thread("program", [&] { EXPECT_TRUE(world.program.dontneed(kRange).has_value()); });
  world.thread("reader", [&] { EXPECT_EQ(read_messages(world.mmu, 3).size(), 3u); });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
}

TEST(Events, NobodyReadsAndTheProgramHangs) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  world.thread("program", [&] { world.program.munmap(kRange); });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kDeadlock);
  EXPECT_NE(world.scheduler.describe().find("its event to be read"), std::string::npos);
}

TEST(Events, EnginesOwnDiscardOfWatchedMemoryWaitsForTheReader) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  const PageRange window = *world.mmu.open_window(kOne, WindowKind::kSmall);
  world.thread("engine", [&] {
    EXPECT_TRUE(world.mmu.discard(window).has_value());  // windows send nothing
    EXPECT_TRUE(world.mmu.discard({kHome, kOne}).has_value());
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kDeadlock);
}

// A fault is pending when its range goes away.
void waiter_and_range_change(const std::function<void(TestWorld&)>& change, Access after_wake) {
  OneCourse one;
  TestWorld& world = one.world;
  set_up(world);
  Access access{};
  world.thread("waiter", [&] {
    std::uint64_t word = 0;
    access = world.program.read(1, word_of(kHome + kOne), &word);
  });
  world.thread("changer", [&] {
    while (world.mmu.userfault().parked() == 0) world.scheduler.yield();
    change(world);
    EXPECT_EQ(world.mmu.userfault().parked(), 1u);  // still asleep
    world.mmu.wake(kRange);
  });
  world.service("reader", [&] {
    for (;;) {
      if (world.mmu.wait_for_message(-1)) (void)read_all(world.mmu);
    }
  });
  EXPECT_EQ(world.run(), Scheduler::Outcome::kFinished);
  EXPECT_EQ(access, after_wake);
  EXPECT_TRUE(world.program.violations().empty());
}

TEST(Events, WaiterOnUnmappedRangeGetsSigsegvOnceWoken) {
  waiter_and_range_change([](TestWorld& world) { world.program.munmap(kRange); }, Access::kSegv);
}

TEST(Events, WaiterOnReplacedRangeReadsTheNewMapping) {
  waiter_and_range_change([](TestWorld& world) { world.program.mmap(kRange); }, Access::kDone);
}

TEST(Events, WaiterOnForbiddenRangeGetsSigsegvOnceWoken) {
  waiter_and_range_change([](TestWorld& world) { EXPECT_TRUE(world.program.mprotect(kRange, 0).has_value()); },
                          Access::kSegv);
}

TEST(Events, FaultsMayComeBetweenTwoPagesOfOneMove) {
  bool between = false;
  every_schedule(
      2,
      [&](TestWorld& world) {
        world.program.mmap(kRange);
        for (std::uint64_t i = 0; i < 4; ++i)
          EXPECT_EQ(world.program.write(1, word_of(kHome + PageCount(i)), i), Access::kDone);
        EXPECT_TRUE(world.mmu.watch(kRange).has_value());
        world.thread("engine", [&] {
          const PageRange window = *world.mmu.open_window(PageCount(4), WindowKind::kSmall);
          EXPECT_FALSE(world.mmu.move(window.first, kHome, PageCount(4), Wake::kNo).failed);
          between |= world.mmu.userfault().parked() == 1;
          while (world.mmu.move(kHome, window.first, PageCount(4), Wake::kYes).failed) ADD_FAILURE();
        });
        world.thread("toucher", [&world] {
          std::uint64_t word = 0;
          EXPECT_EQ(world.program.read(1, word_of(kHome), &word), Access::kDone);
          EXPECT_EQ(world.program.read(1, word_of(kHome + PageCount(3)), &word), Access::kDone);
          EXPECT_EQ(word, 3u);
        });
      },
      [](TestWorld& world, Scheduler::Outcome outcome) {
        EXPECT_EQ(outcome, Scheduler::Outcome::kFinished);
        EXPECT_TRUE(world.program.violations().empty());
      });
  EXPECT_TRUE(between);
}

}  // namespace
}  // namespace whimbrel::sim
