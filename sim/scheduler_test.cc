#include "sim/scheduler.h"

#include <gtest/gtest.h>

#include <set>
#include <string>

#include "base/mutex.h"
#include "sim/sim_clock.h"

namespace whimbrel::sim {
namespace {

// All orders of the steps of two threads, given enough departures.
std::set<std::string> orders(std::uint32_t max_delays, int steps_each) {
  std::set<std::string> seen;
  Choices choices = Choices::exhaustive();
  while (choices.next()) {
    SimClock clock;
    Scheduler scheduler(choices, clock, {.max_delays = max_delays});
    std::string order;
    for (const char name : {'a', 'b'}) {
      scheduler.spawn(std::string(1, name), Role::kWorker, [&order, name, steps_each] {
        for (int i = 0; i < steps_each; ++i) {
          order += name;
          Scheduler::current()->point();
        }
      });
    }
    EXPECT_EQ(scheduler.run(), Scheduler::Outcome::kFinished);
    seen.insert(order);
  }
  return seen;
}

TEST(Scheduler, EnoughDelaysGiveEveryInterleaving) {
  EXPECT_EQ(orders(100, 3).size(), 20u);  // 6 choose 3
}

TEST(Scheduler, WithoutDelaysThereIsOneOrder) { EXPECT_EQ(orders(0, 3), std::set<std::string>{"aaabbb"}); }

TEST(Scheduler, MutexExcludesAndHandsOver) {
  Choices choices = Choices::exhaustive();
  int contended = 0;
  while (choices.next()) {
    SimClock clock;
    Scheduler scheduler(choices, clock, {.max_delays = 3});
    Mutex mutex;
    int inside = 0;
    int total = 0;
    for (int i = 0; i < 3; ++i) {
      scheduler.spawn("t", Role::kWorker, [&] {
        if (!mutex.try_lock()) {
          ++contended;
          mutex.lock();
        }
        EXPECT_EQ(++inside, 1);
        Scheduler::current()->point();
        --inside;
        ++total;
        mutex.unlock();
      });
    }
    ASSERT_EQ(scheduler.run(), Scheduler::Outcome::kFinished);
    EXPECT_EQ(total, 3);
  }
  EXPECT_GT(contended, 0);
  EXPECT_GT(choices.worlds(), 10u);
}

TEST(Scheduler, LockOrderInversionIsFoundAsDeadlock) {
  Choices choices = Choices::exhaustive();
  int deadlocks = 0;
  int finished = 0;
  while (choices.next()) {
    SimClock clock;
    Scheduler scheduler(choices, clock, {.max_delays = 1});
    Mutex a;
    Mutex b;
    const auto take = [](Mutex& first, Mutex& second) {
      first.lock();
      Scheduler::current()->point();
      second.lock();
      second.unlock();
      first.unlock();
    };
    scheduler.spawn("ab", Role::kWorker, [&] { take(a, b); });
    scheduler.spawn("ba", Role::kWorker, [&] { take(b, a); });
    if (scheduler.run() == Scheduler::Outcome::kDeadlock) {
      ++deadlocks;
      EXPECT_NE(scheduler.describe().find("ab: waits: Mutex"), std::string::npos);
    } else {
      ++finished;
    }
  }
  EXPECT_GT(deadlocks, 0);
  EXPECT_GT(finished, 0);
}

TEST(Scheduler, TimePassesOnlyWhenEverybodyWaits) {
  Choices choices = Choices::replay({});
  ASSERT_TRUE(choices.next());
  SimClock clock;
  Scheduler scheduler(choices, clock, {});
  const std::int64_t start = clock.now_ns();
  std::string order;
  Event event;
  scheduler.spawn("late", Role::kWorker, [&] {
    clock.sleep_ns(5'000'000);
    order += 'l';
    event.advance();
  });
  scheduler.spawn("early", Role::kWorker, [&] {
    clock.sleep_ns(1'000'000);
    order += 'e';
    event.wait(0, 2'000'000);  // runs out of time before `late`
    EXPECT_EQ(event.value(), 0u);
    order += 't';
    event.wait(0);
    order += 'w';
  });
  ASSERT_EQ(scheduler.run(), Scheduler::Outcome::kFinished);
  EXPECT_EQ(order, "etlw");
  EXPECT_GE(clock.now_ns() - start, 5'000'000);
  EXPECT_LT(clock.now_ns() - start, 5'100'000);
}

TEST(Scheduler, WaitingServicesDoNotKeepTheWorldAlive) {
  Choices choices = Choices::replay({});
  ASSERT_TRUE(choices.next());
  SimClock clock;
  Scheduler scheduler(choices, clock, {});
  Event never;
  scheduler.spawn("service", Role::kService, [&] { never.wait(0); });
  scheduler.spawn("worker", Role::kWorker, [] {});
  EXPECT_EQ(scheduler.run(), Scheduler::Outcome::kFinished);
}

TEST(Scheduler, EndlessRetryMeetsTheStepLimit) {
  Choices choices = Choices::replay({});
  ASSERT_TRUE(choices.next());
  SimClock clock;
  Scheduler scheduler(choices, clock, {.max_steps = 1000});
  scheduler.spawn("spins", Role::kWorker, [] {
    for (;;) Scheduler::current()->yield();
  });
  EXPECT_EQ(scheduler.run(), Scheduler::Outcome::kStepLimit);
}

}  // namespace
}  // namespace whimbrel::sim
