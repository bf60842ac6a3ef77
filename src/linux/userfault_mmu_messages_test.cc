// Faults and address-space events as they arrive from the real kernel.
#include <sys/syscall.h>

#include <atomic>

#include "linux/mmu_fixture_test.h"

namespace whimbrel {
namespace {

using test::Memory;
using test::Watched;
using Kind = Message::Kind;

class MmuMessages : public test::MmuTest {
 protected:
  std::vector<std::byte> source_ = std::vector<std::byte>(kPageSize, std::byte{7});
};

TEST_F(MmuMessages, TouchTellsAddressThreadAndDirection) {
  Memory home(4);
  const Watched watched(mmu(), home.range());
  std::atomic<std::uint32_t> thread{0};
  for (const bool write : {false, true}) {
    std::thread toucher([&] {
      thread = static_cast<std::uint32_t>(syscall(SYS_gettid));
      auto* at = const_cast<volatile std::byte*>(home.at(write ? 2 : 1) + 1234);
      if (write) {
        *at = std::byte{1};
      } else {
        (void)*at;
      }
    });
    const Message message = next_message();
    EXPECT_EQ(message.kind, Kind::kFault);
    EXPECT_EQ(message.write, write);
    EXPECT_FALSE(message.write_protect);
    EXPECT_EQ(message.address, VirtualAddress(home.at(write ? 2 : 1) + 1234));
    EXPECT_EQ(message.range, home.range(write ? 2 : 1, 1));
    ASSERT_TRUE(mmu().abilities().thread_id);
    EXPECT_EQ(message.thread, thread.load());
    EXPECT_COMPLETE(mmu().copy(message.range.first, source_.data(), PageCount(1), Wake::kYes), 1);
    toucher.join();
  }
}

TEST_F(MmuMessages, SystemCallOnAMissingPageIsServedToo) {
  Memory home(1);
  const Watched watched(mmu(), home.range());
  ASSERT_TRUE(mmu().abilities().kernel_faults) << "run as root, or with vm.unprivileged_userfaultfd=1";
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  long written = 0;
  std::thread writer([&] { written = write(ends[1], home.at(0), 100); });
  EXPECT_EQ(next_message().range, home.range());
  EXPECT_COMPLETE(mmu().copy(home.page(0), source_.data(), PageCount(1), Wake::kYes), 1);
  writer.join();
  EXPECT_EQ(written, 100);
  char got[100];
  EXPECT_EQ(read(ends[0], got, sizeof got), 100);
  EXPECT_EQ(got[99], 7);
  close(ends[0]);
  close(ends[1]);
}

TEST_F(MmuMessages, UnreadEventMakesEveryPageOperationAnswerEventPending) {
  Memory home(8);
  Memory other(8);
  home.fill(0, 8);
  other.fill(0, 4);
  const PageRange frames = window(8);
  const Watched watched(mmu(), home.range());
  const Watched watched_other(mmu(), other.range());
  std::thread dropper([&] { madvise(home.at(2), 3 * kPageSize, MADV_DONTNEED); });
  ASSERT_TRUE(mmu().wait_for_message(5'000'000'000));
  EXPECT_STOPPED(move(frames.first, other.page(0), 4), 0, kEventPending);
  EXPECT_STOPPED(mmu().copy(other.page(4), source_.data(), PageCount(1), Wake::kYes), 0, kEventPending);
  EXPECT_STOPPED(mmu().zero(other.page(4), PageCount(1), Wake::kYes), 0, kEventPending);
  if (mmu().abilities().poison) {
    EXPECT_REFUSED(mmu().poison(other.range(4, 1)), kEventPending);
  }
  EXPECT_REFUSED(mmu().write_protect(other.range(0, 2), true, Wake::kNo), kEventPending);
  const Message message = next_message();
  EXPECT_EQ(message.kind, Kind::kRemove);
  EXPECT_EQ(message.range, home.range(2, 3));
  dropper.join();
  EXPECT_COMPLETE(settled([&] { return move(frames.first, other.page(0), 4); }), 4);
  mmu().close_window(frames);
}

TEST_F(MmuMessages, RefusalThatIsNotAnEventIsNotTakenForOne) {
  // A fault that nobody has answered yet is no address-space event: operations go on.
  Memory home(4);
  home.fill(0, 2);
  const PageRange frames = window(1);
  const Watched watched(mmu(), home.range());
  std::thread toucher([&] { (void)*const_cast<volatile std::byte*>(home.at(3)); });
  ASSERT_TRUE(mmu().wait_for_message(5'000'000'000));
  EXPECT_COMPLETE(move(frames.first, home.page(0), 1), 1);
  EXPECT_STOPPED(mmu().copy(home.page(1), source_.data(), PageCount(1), Wake::kYes), 0, kExists);
  EXPECT_EQ(next_message().range, home.range(3, 1));
  EXPECT_COMPLETE(mmu().copy(home.page(3), source_.data(), PageCount(1), Wake::kYes), 1);
  toucher.join();
  mmu().close_window(frames);
}

TEST_F(MmuMessages, UnmapTellsTheWholeRange) {
  Memory home(16);
  home.fill(0, 16);
  const Watched watched(mmu(), home.range());
  std::thread unmapper([&] { munmap(home.at(4), 8 * kPageSize); });
  const Message message = next_message();
  unmapper.join();
  EXPECT_EQ(message.kind, Kind::kUnmap);
  EXPECT_EQ(message.range, home.range(4, 8));
  mmu().wake(message.range);  // harmless on what is gone
}

TEST_F(MmuMessages, SleeperOnAnUnmappedRangeIsReleasedByWake) {
  Memory home(1);
  const Watched watched(mmu(), home.range());
  std::atomic<int> seen{-1};
  std::thread toucher([&] { seen = std::to_integer<int>(*const_cast<volatile std::byte*>(home.at(0))); });
  EXPECT_EQ(next_message().kind, Kind::kFault);
  // Replaced by fresh memory that nobody watches: after the wake it reads as zero.
  std::thread replacer(
      [&] { mmap(home.at(0), kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0); });
  const Message message = next_message();
  EXPECT_EQ(message.kind, Kind::kUnmap);
  replacer.join();
  mmu().wake(message.range);
  toucher.join();
  EXPECT_EQ(seen.load(), 0);
}

TEST_F(MmuMessages, RemapTellsBothPlacesAndTheRegistrationGoesAlong) {
  Memory home(4);
  Memory target(4);
  home.fill(0, 4);
  const PageRange frames = window(1);
  ASSERT_TRUE(mmu().watch(home.range()));
  EXPECT_COMPLETE(move(frames.first, home.page(1), 1), 1);
  std::thread mover(
      [&] { mremap(home.at(0), home.bytes(), home.bytes(), MREMAP_MAYMOVE | MREMAP_FIXED, target.at(0)); });
  const Message message = next_message();
  EXPECT_EQ(message.kind, Kind::kRemap);
  EXPECT_EQ(message.range, home.range());
  EXPECT_EQ(message.to, target.page(0));
  const Message then = next_message();
  EXPECT_EQ(then.kind, Kind::kUnmap);
  EXPECT_EQ(then.range, home.range());
  mover.join();
  // The page that was away at the old place is missed at the new one.
  EXPECT_COMPLETE(settled([&] { return move(target.page(1), frames.first, 1); }), 1);
  for (std::size_t i = 0; i < 4; ++i) EXPECT_TRUE(Memory::holds(target.at(i), Memory::mark(i)));
  ASSERT_TRUE(mmu().unwatch(target.range()));
  mmu().close_window(frames);
}

TEST_F(MmuMessages, ReadsSeveralAtOnceAndNeverWaits) {
  Memory home(4);
  const Watched watched(mmu(), home.range());
  Message messages[8];
  EXPECT_EQ(mmu().read_messages(messages), 0u);
  std::vector<std::thread> touchers;
  for (std::size_t i = 0; i < 4; ++i) {
    touchers.emplace_back([&, i] { (void)*const_cast<volatile std::byte*>(home.at(i)); });
  }
  std::size_t total = 0;
  while (total < 4) {
    ASSERT_TRUE(mmu().wait_for_message(5'000'000'000));
    const std::size_t got = mmu().read_messages(messages);
    for (std::size_t i = 0; i < got; ++i) {
      EXPECT_COMPLETE(mmu().copy(messages[i].range.first, source_.data(), PageCount(1), Wake::kYes), 1);
    }
    total += got;
  }
  for (std::thread& toucher : touchers) toucher.join();
  EXPECT_EQ(mmu().read_messages(messages), 0u);
}

TEST_F(MmuMessages, WaitEndsInTimeAndWhenInterrupted) {
  const auto start = std::chrono::steady_clock::now();
  EXPECT_FALSE(mmu().wait_for_message(20'000'000));
  EXPECT_GE(std::chrono::steady_clock::now() - start, std::chrono::milliseconds(20));
  mmu().interrupt();
  mmu().interrupt();
  EXPECT_FALSE(mmu().wait_for_message(-1)) << "an interruption before the wait counts";
  EXPECT_FALSE(mmu().wait_for_message(0)) << "and only once";
  std::thread interrupter([&] {
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    mmu().interrupt();
  });
  EXPECT_FALSE(mmu().wait_for_message(-1));
  interrupter.join();
}

// Setting the flag and ringing the bell are two steps; who waits may come between them.
TEST_F(MmuMessages, AnInterruptionBetweenFlagAndBellEndsNoWaitForEver) {
  constexpr int kRounds = 20'000;
  std::atomic<int> round{0}, over{0};
  std::thread interrupter([&] {
    for (int i = 1; i <= kRounds; ++i) {
      while (round.load() < i) {
      }
      mmu().interrupt();
    }
  });
  // Frees a wait that would never end, so that the test can say so.
  std::atomic<int> stuck{0};
  std::thread rescuer([&] {
    for (int seen = -1, same = 0; over.load() < kRounds;) {
      same = over.load() == seen ? same + 1 : 0;
      seen = over.load();
      if (same != 0 && same % 300 == 0) {
        ++stuck;
        mmu().interrupt();
      }
      std::this_thread::sleep_for(std::chrono::milliseconds(10));
    }
  });
  for (int i = 1; i <= kRounds && stuck.load() == 0; ++i) {
    round.store(i);
    for (int look = 0; look < 8; ++look) EXPECT_FALSE(mmu().wait_for_message(0));
    over.store(i);
  }
  round.store(kRounds);
  over.store(kRounds);
  interrupter.join();
  rescuer.join();
  EXPECT_EQ(stuck.load(), 0);
}

TEST_F(MmuMessages, UnwatchLetsSleepersGo) {
  Memory home(1);
  ASSERT_TRUE(mmu().watch(home.range()));
  std::thread toucher([&] { (void)*const_cast<volatile std::byte*>(home.at(0)); });
  EXPECT_EQ(next_message().kind, Kind::kFault);
  ASSERT_TRUE(mmu().unwatch(home.range()));
  toucher.join();
}

}  // namespace
}  // namespace whimbrel
