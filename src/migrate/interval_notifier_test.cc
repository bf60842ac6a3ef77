// The sequence protocol of interval notifiers (MN-01..MN-11), without a kernel.
#include "migrate/interval_notifier.h"

#include <gtest/gtest.h>

#include <functional>
#include <string>
#include <thread>

namespace whimbrel {
namespace {

constexpr VirtualAddress kStart(0x10000);

class Watcher final : public IntervalNotifier {
 public:
  bool invalidate(const NotifierRange& range, std::uint64_t cur_seq) noexcept override {
    ++calls;
    last_seq = cur_seq;
    last = range;
    if (!ignores) set_seq(cur_seq);
    if (on_call) on_call();
    return true;
  }
  int calls = 0;
  bool ignores = false;
  std::uint64_t last_seq = 0;
  NotifierRange last;
  std::function<void()> on_call;
};

PageRange pages(std::uint64_t first, std::uint64_t count) { return {PageIndex(16 + first), PageCount(count)}; }

class Notifiers : public ::testing::Test {
 protected:
  void open(PageRange range, NotifyEvent event = NotifyEvent::kClear) { registry.invalidate_start(event, range, this); }
  void close(PageRange range, NotifyEvent event = NotifyEvent::kClear) { registry.invalidate_end(event, range, this); }
  NotifierRegistry registry;
  Watcher here;  // pages 0..3
  void SetUp() override { ASSERT_TRUE(registry.insert(here, kStart, 4 * kPageSize)); }
};

TEST_F(Notifiers, RangesThatCannotBeAreRefused) {  // MN-01
  Watcher other;
  EXPECT_FALSE(registry.insert(other, kStart, 0));
  EXPECT_FALSE(registry.insert(other, VirtualAddress(~std::uint64_t{0} - 4095), 8192));
  EXPECT_TRUE(registry.insert(other, VirtualAddress(~std::uint64_t{0} - 4095), 4096));  // up to the last byte
  EXPECT_FALSE(registry.insert(other, kStart, 4096));                                   // subscribed already
  registry.remove(other);
}

TEST_F(Notifiers, OnlyWhatIntersectsIsCalledWithRangeEventAndOwner) {  // MN-02, MN-04, MN-11
  Watcher overlapping, beside;
  ASSERT_TRUE(registry.insert(overlapping, VirtualAddress(kStart.raw() + 3 * kPageSize), 4 * kPageSize));
  ASSERT_TRUE(registry.insert(beside, VirtualAddress(kStart.raw() + 100 * kPageSize), kPageSize));
  open(pages(3, 1), NotifyEvent::kMigrate);
  EXPECT_EQ(here.calls, 1);
  EXPECT_EQ(overlapping.calls, 1);
  EXPECT_EQ(beside.calls, 0);
  EXPECT_EQ(here.last.event, NotifyEvent::kMigrate);
  EXPECT_EQ(here.last.owner, this);
  EXPECT_EQ(here.last.start.raw(), kStart.raw() + 3 * kPageSize);
  EXPECT_EQ(here.last.end.raw(), kStart.raw() + 4 * kPageSize);  // end exclusive
  EXPECT_EQ(here.last_seq & 1, 1u);                              // odd while it is open
  close(pages(3, 1), NotifyEvent::kMigrate);
  open(pages(7, 1));
  EXPECT_EQ(here.calls, 1);
  close(pages(7, 1));
  registry.remove(overlapping);
  registry.remove(beside);
}

TEST_F(Notifiers, AReaderSeesWhetherAnythingHappenedSince) {  // MN-06
  const std::uint64_t seq = registry.read_begin(here);
  EXPECT_FALSE(registry.read_retry(here, seq));
  open(pages(50, 1));
  close(pages(50, 1));
  EXPECT_FALSE(registry.read_retry(here, seq));  // elsewhere
  open(pages(0, 1));
  EXPECT_TRUE(registry.read_retry(here, seq));
  EXPECT_TRUE(registry.check_retry(here, seq));
  close(pages(0, 1));
  EXPECT_TRUE(registry.read_retry(here, seq));
  const std::uint64_t again = registry.read_begin(here);
  EXPECT_FALSE(registry.read_retry(here, again));
}

TEST_F(Notifiers, AnIgnoredEventLeavesTheSequenceAlone) {  // MN-05
  here.ignores = true;
  const std::uint64_t seq = registry.read_begin(here);
  open(pages(0, 1), NotifyEvent::kMigrate);
  EXPECT_EQ(here.calls, 1);
  EXPECT_FALSE(registry.read_retry(here, seq));
  close(pages(0, 1), NotifyEvent::kMigrate);
  EXPECT_FALSE(registry.read_retry(here, seq));
}

TEST_F(Notifiers, ReadBeginSleepsWhileAnInvalidationIsOpen) {  // MN-03, MN-06
  open(pages(0, 1));
  open(pages(1, 1));  // nested and parallel brackets are normal
  std::atomic<bool> through{false};
  std::thread reader([&] {
    (void)registry.read_begin(here);
    through = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(through);
  close(pages(0, 1));
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(through);  // one is still open
  close(pages(1, 1));
  reader.join();
  EXPECT_TRUE(through);
}

TEST_F(Notifiers, WhoSubscribesDuringABracketReadsAfterIt) {  // MN-07
  for (const bool busy : {false, true}) {
    const PageRange range = busy ? pages(0, 1) : pages(50, 1);  // hitting a subscription, or none
    open(range);
    Watcher late;
    ASSERT_TRUE(registry.insert(late, kStart, kPageSize));
    std::atomic<bool> through{false};
    std::thread reader([&] {
      (void)registry.read_begin(late);
      through = true;
    });
    std::this_thread::sleep_for(std::chrono::milliseconds(20));
    EXPECT_FALSE(through) << busy;
    close(range);
    reader.join();
    open(pages(0, 1));
    EXPECT_EQ(late.calls, 1) << busy;
    close(pages(0, 1));
    registry.remove(late);
  }
}

TEST_F(Notifiers, RemovalWaitsForTheInvalidationUnderWay) {  // MN-07
  open(pages(0, 1));
  std::atomic<bool> gone{false};
  std::thread remover([&] {
    registry.remove(here);
    gone = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_FALSE(gone);
  close(pages(0, 1));
  remover.join();
  open(pages(0, 1));
  EXPECT_EQ(here.calls, 1);
  close(pages(0, 1));
}

TEST_F(Notifiers, SubscribingFromAnotherThreadWhileACallbackRuns) {  // MN-01
  Watcher late;
  here.on_call = [&] {
    std::thread([&] { EXPECT_TRUE(registry.insert(late, kStart, kPageSize)); }).join();  // the callback may wait for it
  };
  open(pages(0, 1));
  here.on_call = nullptr;
  EXPECT_EQ(late.calls, 0);
  close(pages(0, 1));
  registry.remove(late);
}

// Both passes, into a common record of who was called when.
class InTwoPasses final : public IntervalNotifier {
 public:
  InTwoPasses(std::string name, std::string& record, bool needs_second)
      : name_(std::move(name)), record_(record), needs_second_(needs_second) {}
  bool invalidate(const NotifierRange&, std::uint64_t) noexcept override { return false; }
  bool invalidate_start(const NotifierRange&, std::uint64_t seq, NotifierFinish** finish) noexcept override {
    set_seq(seq);
    record_ += name_ + " ";
    if (needs_second_) *finish = &finish_;
    return true;
  }
  void invalidate_finish(NotifierFinish& finish) noexcept override {
    record_ += (&finish == &finish_ ? name_ : "another's") + "' ";
  }

 private:
  const std::string name_;
  std::string& record_;
  const bool needs_second_;
  NotifierFinish finish_;
};

TEST(NotifiersInTwoPasses, TheSecondFollowsAllFirstOnesInTheirOrder) {  // MN-09
  NotifierRegistry registry;
  std::string record;
  InTwoPasses a("a", record, true), b("b", record, false), c("c", record, true), elsewhere("elsewhere", record, true);
  for (InTwoPasses* sub : {&c, &b, &a}) ASSERT_TRUE(registry.insert(*sub, kStart, kPageSize));  // called newest first
  ASSERT_TRUE(registry.insert(elsewhere, pages(100, 1).first.address(), kPageSize));
  for (int round = 0; round < 2; ++round) {
    registry.invalidate_start(NotifyEvent::kClear, pages(0, 1), nullptr);
    registry.invalidate_end(NotifyEvent::kClear, pages(0, 1), nullptr);
  }
  EXPECT_EQ(record, "a b c a' c' a b c a' c' ");
  for (InTwoPasses* sub : {&a, &b, &c, &elsewhere}) registry.remove(*sub);
}

class Refusing final : public IntervalNotifier {
 public:
  bool invalidate(const NotifierRange&, std::uint64_t) noexcept override { return false; }
};

TEST(NotifiersDeathTest, RefusingABlockableInvalidationStopsTheProcess) {  // MN-08
  EXPECT_DEATH(
      {
        NotifierRegistry registry;
        Refusing refusing;
        (void)registry.insert(refusing, kStart, kPageSize);
        registry.invalidate_start(NotifyEvent::kClear, pages(0, 1), nullptr);
      },
      "refused a blockable invalidation");
}

}  // namespace
}  // namespace whimbrel
