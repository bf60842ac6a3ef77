#include "devices/fork_gate.h"

#include <gtest/gtest.h>

#include <atomic>
#include <thread>
#include <vector>

#include "devices/context_pool.h"
#include "tests/device_kit/test_memory.h"

namespace whimbrel::testing {
namespace {

TEST(ForkGate, NobodyIsInsideWhileItIsClosed) {
  ForkGate gate;
  std::atomic<int> inside{0};
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (int t = 0; t < 3; ++t) {
    threads.emplace_back([&] {
      while (!stop) {
        const GatePass pass(gate);
        ++inside;
        --inside;
      }
    });
  }
  std::vector<std::thread> closers;
  std::atomic<int> closed{0};
  for (int t = 0; t < 2; ++t) {
    closers.emplace_back([&] {
      for (int i = 0; i < 2000; ++i) {
        gate.close();
        EXPECT_EQ(closed.fetch_add(1), 0) << "closed twice at a time";
        EXPECT_EQ(inside, 0);
        closed.fetch_sub(1);
        gate.open();
      }
    });
  }
  for (std::thread& thread : closers) thread.join();
  stop = true;
  for (std::thread& thread : threads) thread.join();
}

TEST(ForkGate, ClosingWaitsForThoseInside) {
  ForkGate gate;
  gate.enter();
  std::atomic<bool> closed{false};
  std::thread closer([&] {
    gate.close();
    closed = true;
    gate.open();
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(30));
  EXPECT_FALSE(closed);
  gate.leave();
  closer.join();
  EXPECT_TRUE(closed);
  gate.enter();
  gate.leave();
}

TEST(ForkGate, AChildStartsWithItOpen) {
  ForkGate gate;
  gate.close();
  gate.open_in_child();
  gate.enter();
  gate.leave();
  gate.close();
  gate.open();
}

TEST(ContextPool, EachContextHasOneUserAtATime) {
  TestMemory memory;
  struct Context {
    std::atomic<int> users{0};
    std::uint64_t sum = 0;  // not atomic: the sanitizer checks that it need not be
  };
  ContextPool<Context> pool(memory, 3);
  std::vector<std::thread> threads;
  for (int t = 0; t < 8; ++t) {
    threads.emplace_back([&] {
      for (int i = 0; i < 5000; ++i) {
        const ContextPool<Context>::Lease lease(pool);
        EXPECT_EQ(lease->users.fetch_add(1), 0);
        ++lease->sum;
        lease->users.fetch_sub(1);
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  std::uint64_t sum = 0;
  for (const Context& context : pool) sum += context.sum;
  EXPECT_EQ(sum, 8u * 5000u);
}

}  // namespace
}  // namespace whimbrel::testing
