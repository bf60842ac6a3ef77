#include "linux/beside_faulter.h"

#include <gtest/gtest.h>
#include <sched.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <thread>

#include "linux/clock.h"

namespace whimbrel {
namespace {

ProcessorSet mask_of(std::uint32_t thread) {
  ProcessorSet set;
  EXPECT_TRUE(set.read(thread));
  return set;
}

// A thread that sleeps, as one that waits for a page does.
class Sleeper {
 public:
  Sleeper() : thread_([this] {
    id_ = static_cast<std::uint32_t>(syscall(SYS_gettid));
    while (!stop_) usleep(1000);
  }) {
    while (id_ == 0) usleep(100);
  }
  ~Sleeper() {
    stop_ = true;
    thread_.join();
  }
  [[nodiscard]] std::uint32_t id() const { return id_; }

 private:
  std::atomic<bool> stop_{false};
  std::atomic<std::uint32_t> id_{0};
  std::thread thread_;
};

class BesideFaulterTest : public ::testing::Test {
 protected:
  // Everything happens on a thread of its own: its priority and its mask are changed.
  template <class Body>
  void on_fault_thread(Body body) {
    std::thread([&] {
      BesideFaulter beside(clock_);
      beside.prepare();
      if (!beside.able()) {
        skipped_ = true;
        return;
      }
      body(beside);
    }).join();
    if (skipped_) GTEST_SKIP() << "no right to SCHED_FIFO, or one processor";
  }
  SystemClock clock_;
  bool skipped_ = false;
};

TEST_F(BesideFaulterTest, AStreakHoldsTheFaulterHereAndGivesItsMaskBack) {
  Sleeper sleeper;
  const ProcessorSet before = mask_of(sleeper.id());
  on_fault_thread([&](BesideFaulter& beside) {
    bool held = false;
    for (int i = 0; i < 100; ++i) {
      if (beside.begin(sleeper.id())) {
        held = true;
        EXPECT_EQ(mask_of(sleeper.id()).count(), 1u);
        EXPECT_TRUE(mask_of(sleeper.id()).contains(static_cast<unsigned>(beside.processor())));
      }
      beside.end();
      EXPECT_EQ(mask_of(sleeper.id()), before) << "after fault " << i;
    }
    EXPECT_TRUE(held);
  });
}

TEST_F(BesideFaulterTest, FaultsOfSeveralThreadsInTurnsChangeNothing) {
  Sleeper one, two;
  on_fault_thread([&](BesideFaulter& beside) {
    for (int i = 0; i < 200; ++i) {
      EXPECT_FALSE(beside.begin(i % 2 == 0 ? one.id() : two.id()));
      beside.end();
    }
    EXPECT_EQ(beside.processor(), -1);
  });
}

TEST_F(BesideFaulterTest, AMaskOfTheProgramsOwnIsKept) {
  Sleeper sleeper;
  ProcessorSet all = mask_of(sleeper.id()), last = all;
  unsigned processor = 0;
  for (unsigned i = 0; i < ProcessorSet::kMost; ++i) {
    if (all.contains(i)) processor = i;
  }
  last.set_only(processor);
  ASSERT_TRUE(last.write(sleeper.id()));
  on_fault_thread([&](BesideFaulter& beside) {
    for (int i = 0; i < 100; ++i) {
      (void)beside.begin(sleeper.id());
      EXPECT_EQ(mask_of(sleeper.id()), last);
      beside.end();
      EXPECT_EQ(mask_of(sleeper.id()), last);
    }
  });
}

TEST_F(BesideFaulterTest, AThreadThatIsGoneDoesNoHarm) {
  std::uint32_t gone = 0;
  {
    Sleeper sleeper;
    gone = sleeper.id();
  }
  on_fault_thread([&](BesideFaulter& beside) {
    for (int i = 0; i < 100; ++i) {
      EXPECT_FALSE(beside.begin(gone));
      beside.end();
    }
  });
}

TEST_F(BesideFaulterTest, WhoKeepsOffComesBack) {
  if (mask_of(0).count() < 2) GTEST_SKIP() << "one processor";
  std::thread([&] {
    const ProcessorSet before = mask_of(0);
    KeepsOffFaulter other;
    other.keep_off(0);
    EXPECT_EQ(mask_of(0).count(), before.count() - 1);
    EXPECT_FALSE(mask_of(0).contains(0));
    other.keep_off(1);
    EXPECT_TRUE(mask_of(0).contains(0));
    EXPECT_FALSE(mask_of(0).contains(1));
    other.keep_off(-1);
    EXPECT_EQ(mask_of(0), before);
  }).join();
}

}  // namespace
}  // namespace whimbrel
