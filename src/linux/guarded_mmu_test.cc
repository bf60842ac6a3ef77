// GuardedMmu on the real kernel: the port's promises, and what holds the kernel's mappings within bounds.
#include "linux/guarded_mmu.h"

#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

#include "linux/confine_test.h"
#include "linux/guard_signal.h"
#include "linux/reservation.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr PageCount kOne{1};

class GuardedMmuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(memory_.open({.bytes = 64u << 20}));
    ASSERT_TRUE(guard_signal::install());
    open({.window_bytes = 64u << 20});
  }
  void TearDown() override {
    if (mmu_ != nullptr) mmu_->destroy();
    EXPECT_EQ(memory_.bytes_in_use(), 0u);
  }
  void open(const GuardedMmu::Options& options) {
    if (mmu_ != nullptr) mmu_->destroy();
    mmu_ = *GuardedMmu::create(memory_, options);
    arena_ = *mmu_->make_arena(4 * kHugeSize);
    window_ = *mmu_->open_window(PageCount(64), WindowKind::kSmall);
  }
  [[nodiscard]] PageIndex page(std::uint64_t i) const { return arena_.first + PageCount(i); }
  [[nodiscard]] PageIndex frame(std::uint64_t i) const { return window_.first + PageCount(i); }
  [[nodiscard]] static volatile unsigned char* at(PageIndex page) {
    return reinterpret_cast<volatile unsigned char*>(page.address().raw());
  }
  // Pages of one byte's value each.
  void put(std::uint64_t first, std::uint64_t count, unsigned char value) {
    std::vector<std::byte> bytes(count * kPageSize, std::byte{value});
    ASSERT_FALSE(mmu_->copy(page(first), bytes.data(), PageCount(count), Wake::kYes).failed);
  }
  std::vector<PageRun> runs() {
    std::vector<PageRun> found(64);
    found.resize(*mmu_->scan(arena_, found, nullptr));
    return found;
  }
  // The next message, within a second.
  Message next() {
    Message message;
    for (int i = 0; i < 100; ++i) {
      (void)mmu_->wait_for_message(10'000'000);
      if (mmu_->read_messages({&message, 1}) == 1) return message;
    }
    ADD_FAILURE() << "no message";
    return {};
  }

  Reservation memory_;
  GuardedMmu* mmu_ = nullptr;
  PageRange arena_, window_;
};

TEST_F(GuardedMmuTest, ATouchWaitsUntilItsPageIsThere) {
  std::atomic<int> seen{-1};
  std::thread toucher([&] { seen = at(page(3))[17]; });
  const Message message = next();
  EXPECT_EQ(message.kind, Message::Kind::kFault);
  EXPECT_EQ(message.address.raw(), page(3).address().raw() + 17);
  EXPECT_FALSE(message.write);
  EXPECT_NE(message.thread, 0u);
  EXPECT_NE(message.thread, static_cast<std::uint32_t>(sys::gettid()));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(seen.load(), -1) << "it waits";
  put(3, 1, 9);
  toucher.join();
  EXPECT_EQ(seen.load(), 9);
  std::thread writer([&] { at(page(4))[0] = 5; });
  EXPECT_TRUE(next().write);
  ASSERT_FALSE(mmu_->zero(page(4), kOne, Wake::kYes).failed);
  writer.join();
  EXPECT_EQ(at(page(4))[0], 5);
}

TEST_F(GuardedMmuTest, MovesTakePagesOutOfReachAndBringThemBack) {
  put(10, 4, 1);
  at(page(11))[7] = 77;
  const Progress out = mmu_->move(frame(0), page(10), PageCount(4), Wake::kNo);
  EXPECT_FALSE(out.failed);
  EXPECT_EQ(out.done, PageCount(4));
  EXPECT_EQ(mmu_->bytes(frame(1))[7], std::byte{77});
  EXPECT_EQ(mmu_->bytes(frame(3))[4095], std::byte{1});
  EXPECT_TRUE(runs().empty());
  std::atomic<int> seen{-1};
  std::thread toucher([&] { seen = at(page(11))[7]; });
  EXPECT_EQ(PageIndex::of(next().address), page(11));
  EXPECT_FALSE(mmu_->move(page(10), frame(0), PageCount(4), Wake::kYes).failed);
  toucher.join();
  EXPECT_EQ(seen.load(), 77);
  EXPECT_EQ(mmu_->bytes(frame(1))[7], std::byte{0}) << "what was moved is not where it was";
}

TEST_F(GuardedMmuTest, ProgressTellsWhereItStoppedAndWhy) {
  put(20, 2, 1);
  put(23, 1, 2);
  const Progress out = mmu_->move(frame(0), page(20), PageCount(4), Wake::kNo);
  EXPECT_EQ(out.done, PageCount(2));
  EXPECT_EQ(out.error.code, Errc::kNotFound);
  std::vector<std::byte> bytes(4 * kPageSize, std::byte{3});
  const Progress in = mmu_->copy(page(20), bytes.data(), PageCount(4), Wake::kNo);
  EXPECT_EQ(in.done, PageCount(3));
  EXPECT_EQ(in.error.code, Errc::kExists);
  EXPECT_EQ(at(page(23))[0], 2) << "what was there is untouched";
  EXPECT_EQ(mmu_->copy(arena_.end(), bytes.data(), kOne, Wake::kNo).error.code, Errc::kNotFound);
  EXPECT_EQ(mmu_->watch({arena_.end(), kOne}).error().code, Errc::kInvalid);
  const std::vector<PageRun> found = runs();
  ASSERT_EQ(found.size(), 1u);
  EXPECT_EQ(found[0].range, (PageRange{page(20), PageCount(4)}));
}

TEST_F(GuardedMmuTest, ADiscardIsAMessageAndUntilItIsReadNothingMoves) {
  put(0, 8, 4);
  std::atomic<bool> back{false};
  std::thread program([&] {
    EXPECT_TRUE(mmu_->discard({page(2), PageCount(4)}));
    back = true;
  });
  while (!mmu_->has_unread()) std::this_thread::yield();
  std::vector<std::byte> bytes(kPageSize, std::byte{3});
  EXPECT_EQ(mmu_->move(frame(0), page(0), kOne, Wake::kNo).error.code, Errc::kEventPending);
  EXPECT_EQ(mmu_->copy(page(2), bytes.data(), kOne, Wake::kNo).error.code, Errc::kEventPending);
  EXPECT_FALSE(back.load());
  const Message message = next();
  EXPECT_EQ(message.kind, Message::Kind::kRemove);
  EXPECT_EQ(message.range, (PageRange{page(2), PageCount(4)}));
  program.join();
  EXPECT_EQ(runs().size(), 2u);
  EXPECT_EQ(mmu_->move(frame(0), page(2), kOne, Wake::kNo).error.code, Errc::kNotFound);
  ASSERT_FALSE(mmu_->zero(page(2), kOne, Wake::kNo).failed);
  EXPECT_EQ(at(page(2))[0], 0) << "gone";
}

TEST_F(GuardedMmuTest, OpenRunsAreLimitedAndWhatIsClosedOpensAtATouch) {
  open({.window_bytes = 64u << 20, .most_open_runs = 400});
  for (std::uint64_t i = 0; i < 4 * kPagesPerHuge; i += 2) put(i, 1, static_cast<unsigned char>(i / 2));
  EXPECT_LE(mmu_->open_runs(), 400u) << "of 1024";
  std::vector<PageRun> found(2 * kPagesPerHuge);
  EXPECT_EQ(*mmu_->scan(arena_, found, nullptr), 2 * kPagesPerHuge) << "all of them are there";
  std::atomic<std::size_t> bad{0};
  std::atomic<bool> done{false};
  std::thread program([&] {
    for (std::uint64_t i = 0; i < 4 * kPagesPerHuge; i += 2) bad += at(page(i))[99] != static_cast<unsigned char>(i / 2) ? 1 : 0;
    done = true;
    mmu_->interrupt();
  });
  Message message;
  while (!done) {
    if (!mmu_->wait_for_message(-1)) continue;
    EXPECT_EQ(mmu_->read_messages({&message, 1}), 0u) << "the engine never hears of it";
  }
  program.join();
  EXPECT_EQ(bad.load(), 0u);
  // Closed or not, they move.
  for (std::uint64_t i = 0; i < 4 * kPagesPerHuge; i += 2) {
    ASSERT_FALSE(mmu_->move(frame(0), page(i), kOne, Wake::kNo).failed);
    ASSERT_EQ(mmu_->bytes(frame(0))[0], std::byte(static_cast<unsigned char>(i / 2)));
  }
  EXPECT_EQ(mmu_->open_runs(), 0u);
}

TEST_F(GuardedMmuTest, ManyThreadsMayWaitAtATime) {
  constexpr std::size_t kThreads = 700;  // more than there are seats
  std::atomic<std::size_t> seen{0};
  std::vector<std::thread> threads;
  for (std::size_t i = 0; i < kThreads; ++i) {
    threads.emplace_back([&, i] { seen += at(page(i))[0] == static_cast<unsigned char>(i) ? 1 : 0; });
  }
  for (std::size_t served = 0; served < kThreads; ++served) {
    const Message message = next();
    if (HasFailure()) break;
    const std::uint64_t i = (PageIndex::of(message.address) - arena_.first).raw();
    put(i, 1, static_cast<unsigned char>(i));
    // An empty page of zeros needs a wake-up like any other.
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(seen.load(), kThreads);
}

// ThreadSanitizer blocks all signals while a handler runs.
#if !defined(__SANITIZE_THREAD__)
TEST_F(GuardedMmuTest, WhatCannotBeHadIsASignalForTheThreadThatWaits) {
  static std::atomic<std::uint64_t> told;
  struct sigaction mine {}, before {};
  mine.sa_sigaction = [](int, siginfo_t* info, void*) { told = reinterpret_cast<std::uint64_t>(info->si_addr); };
  mine.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &mine, &before);
  std::atomic<int> seen{-1};
  std::thread toucher([&] { seen = at(page(5))[1]; });
  Message message = next();
  EXPECT_TRUE(mmu_->raise_bus_error(message.thread, message.address));
  while (told.load() == 0) std::this_thread::yield();
  EXPECT_EQ(told.load(), page(5).address().raw() + 1);
  mmu_->wake({page(5), kOne});
  message = next();  // it asks again
  put(5, 1, 6);
  toucher.join();
  EXPECT_EQ(seen.load(), 6);
  EXPECT_TRUE(mmu_->raise_bus_error(message.thread, message.address)) << "nobody waits any more";
  sigaction(SIGBUS, &before, nullptr);
}

TEST_F(GuardedMmuTest, AProgramThatBlocksTheSignalEndsByIt) {
  mmu_->destroy();
  mmu_ = nullptr;
  EXPECT_EQ(test::in_child([&] {
              open({.window_bytes = 16u << 20});
              sigset_t bus;
              sigemptyset(&bus);
              sigaddset(&bus, SIGBUS);
              sigprocmask(SIG_BLOCK, &bus, nullptr);
              std::thread toucher([&] { (void)at(page(5))[1]; });
              const Message message = next();
              if (mmu_->raise_bus_error(message.thread, message.address)) return 1;
              (void)mmu_->poison({page(5), kOne});
              toucher.join();
              return 2;
            }),
            -SIGBUS);
}
#endif

TEST_F(GuardedMmuTest, NothingOfAnArenaIsInheritedByAFork) {
  put(0, 1, 8);
  const std::uint64_t first = page(0).address().raw();
  EXPECT_EQ(test::in_child([&] {
              unsigned char in_core = 0;
              return mincore(reinterpret_cast<void*>(first), kPageSize, &in_core) == -1 && errno == ENOMEM ? 0 : 1;
            }),
            0);
}

TEST_F(GuardedMmuTest, WorksWithoutNamedSharedMemoryOrWithoutWritingToIt) {
  mmu_->destroy();
  mmu_ = nullptr;
  for (const long denied : {SYS_memfd_create, SYS_pwrite64, SYS_pread64}) {
    EXPECT_EQ(test::in_child([&] {
                test::deny_call(denied, EPERM);
                open({.window_bytes = 16u << 20});
                put(1, 2, 5);
                if (at(page(2))[0] != 5) return 1;
                at(page(2))[0] = 6;
                if (mmu_->move(frame(0), page(1), PageCount(2), Wake::kNo).failed) return 2;
                return mmu_->bytes(frame(0))[0] == std::byte{5} && mmu_->bytes(frame(1))[0] == std::byte{6} ? 0 : 3;
              }),
              0)
        << denied;
  }
}

TEST_F(GuardedMmuTest, TheProofHoldsHereAndFailsWhereSharedMemoryCannotBeGivenBack) {
  EXPECT_TRUE(prove_guarded_arenas(memory_));
  EXPECT_EQ(test::in_child([&] {
              // Only that of the kernel's many advices.
              test::deny_advice(MADV_REMOVE, EPERM);
              return prove_guarded_arenas(memory_) ? 1 : 0;
            }),
            0);
}

}  // namespace
}  // namespace whimbrel
