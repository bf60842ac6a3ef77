// fork: parent and child go on from the same contents and do not disturb each other.
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cstring>
#include <thread>

#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

// Forks with the device's hooks around it; the child runs `child` and ends with its answer as exit code.
template <class F>
int fork_and_run(Device& device, F&& child) {
  device.prepare_fork();
  const pid_t pid = ::fork();
  if (pid == 0) {
    device.after_fork_in_child();
    ::_exit(child());
  }
  device.after_fork_in_parent();
  EXPECT_GT(pid, 0);
  int status = -1;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}

struct Stored {
  DeviceSlot slot;
  std::uint64_t seed;
};

bool holds(Device& device, const Stored& stored, std::uint32_t pages) {
  Pages contents(pages), back(pages);
  fill_mixed(stored.seed, contents.bytes());
  return load(device, stored.slot, pages, back.data()).has_value() &&
         std::memcmp(back.data(), contents.data(), pages * kPageBytes) == 0;
}

bool put_seed(Device& device, std::vector<Stored>& all, std::uint64_t seed, std::uint32_t pages) {
  Pages contents(pages);
  fill_mixed(seed, contents.bytes());
  const Result<DeviceSlot> slot = device.reserve(pages);
  if (!slot || !store(device, *slot, pages, contents.data())) return false;
  all.push_back({*slot, seed});
  return true;
}

// What a child does with what it inherited and what it adds. The return value says where it went wrong.
int live_on(Device& device, std::vector<Stored>& all, std::uint32_t pages) {
  for (const Stored& stored : all) {
    if (!holds(device, stored, pages)) return 1;
  }
  for (std::size_t i = 0; i < all.size(); i += 2) device.release(all[i].slot, pages);
  std::vector<Stored> rest;
  for (std::size_t i = 1; i < all.size(); i += 2) rest.push_back(all[i]);
  for (std::uint64_t seed = 1000; seed < 1000 + scaled(100, pages); ++seed) {
    if (!put_seed(device, rest, seed, pages)) return 2;
  }
  while (device.maintain(1 << 20)) {
  }
  for (const Stored& stored : rest) {
    if (!holds(device, stored, pages)) return 3;
  }
  // Stored again in place of what was inherited.
  Pages contents(pages);
  fill_mixed(5000, contents.bytes());
  if (!store(device, rest[0].slot, pages, contents.data())) return 4;
  rest[0].seed = 5000;
  if (!holds(device, rest[0], pages)) return 5;
  for (const Stored& stored : rest) device.release(stored.slot, pages);
  return device.stats().stored_pages == 0 ? 0 : 6;
}

TEST_P(DeviceSuite, ParentAndChildLiveOnAfterAFork) {
  if (!device_->traits().shared_on_fork) GTEST_SKIP() << "this device does not share its contents with a child";
  std::vector<Stored> all;
  for (std::uint64_t seed = 0; seed < scaled(300, unit_); ++seed) ASSERT_TRUE(put_seed(*device_, all, seed, unit_));
  EXPECT_EQ(fork_and_run(*device_, [&] { return live_on(*device_, all, unit_); }), 0);
  for (const Stored& stored : all) ASSERT_TRUE(holds(*device_, stored, unit_)) << "the child changed the parent";
  EXPECT_EQ(live_on(*device_, all, unit_), 0) << "the parent after the fork";
}

// What the parent releases and overwrites is still the child's.
TEST_P(DeviceSuite, AChildReadsWhatItsParentHasThrownAway) {
  if (!device_->traits().shared_on_fork) GTEST_SKIP() << "this device does not share its contents with a child";
  std::vector<Stored> all;
  for (std::uint64_t seed = 0; seed < scaled(100, unit_); ++seed) ASSERT_TRUE(put_seed(*device_, all, seed, unit_));
  int go[2];
  ASSERT_EQ(::pipe(go), 0);
  device_->prepare_fork();
  const pid_t pid = ::fork();
  if (pid == 0) {
    device_->after_fork_in_child();
    char step = 0;
    if (::read(go[0], &step, 1) != 1) ::_exit(10);
    ::_exit(live_on(*device_, all, unit_));
  }
  device_->after_fork_in_parent();
  const auto upkeep = [&] {
    for (int i = 0; i < 100 && device_->maintain(1 << 20); ++i) {
    }
  };
  for (const Stored& stored : all) device_->release(stored.slot, unit_);
  upkeep();
  std::vector<Stored> fresh;
  for (std::uint64_t seed = 500; seed < 500 + scaled(200, unit_); ++seed) {
    ASSERT_TRUE(put_seed(*device_, fresh, seed, unit_));
  }
  upkeep();
  ASSERT_EQ(::write(go[1], "+", 1), 1);
  int status = -1;
  EXPECT_EQ(::waitpid(pid, &status, 0), pid);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0) << "the step in which the child went wrong";
  ::close(go[0]);
  ::close(go[1]);
  for (const Stored& stored : fresh) EXPECT_TRUE(holds(*device_, stored, unit_));
  for (const Stored& stored : fresh) device_->release(stored.slot, unit_);
}

TEST_P(DeviceSuite, GrandchildrenReadEveryGeneration) {
  if (!device_->traits().shared_on_fork) GTEST_SKIP() << "this device does not share its contents with a child";
  std::vector<Stored> all;
  for (std::uint64_t seed = 0; seed < scaled(100, unit_); ++seed) ASSERT_TRUE(put_seed(*device_, all, seed, unit_));
  EXPECT_EQ(fork_and_run(*device_,
                         [&] {
                           for (std::uint64_t seed = 100; seed < 100 + scaled(100, unit_); ++seed) {
                             if (!put_seed(*device_, all, seed, unit_)) return 20;
                           }
                           return fork_and_run(*device_, [&] { return live_on(*device_, all, unit_); });
                         }),
            0);
}

// Forks while other threads store and load: the child must find everything that was finished, and nothing locked.
TEST_P(DeviceSuite, ForkInTheMiddleOfOperations) {
  if (!device_->traits().shared_on_fork) GTEST_SKIP() << "this device does not share its contents with a child";
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer cannot follow a child of a process with several threads";
#endif
  std::vector<Stored> all;
  for (std::uint64_t seed = 0; seed < scaled(50, unit_); ++seed) ASSERT_TRUE(put_seed(*device_, all, seed, unit_));
  std::atomic<bool> stop{false};
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 2; ++t) {
    threads.emplace_back([&, t] {
      for (std::uint64_t round = 0; !stop; ++round) {
        std::vector<Stored> own;
        for (std::uint64_t i = 0; i < 8; ++i) {
          EXPECT_TRUE(put_seed(*device_, own, (t + 1) * 1'000'000 + round * 8 + i, unit_));
        }
        for (const Stored& stored : own) {
          EXPECT_TRUE(holds(*device_, stored, unit_));
          device_->release(stored.slot, unit_);
        }
        device_->maintain(64 << 10);
      }
    });
  }
  threads.emplace_back([&] {
    while (!stop) EXPECT_GE(device_->stats().stored_pages, all.size());
  });
  // The child must not use the heap: another thread may have held it, and not every sanitizer repairs that.
  Pages contents(unit_), back(unit_);
  const auto intact = [&](DeviceSlot slot, std::uint64_t seed) {
    fill_mixed(seed, contents.bytes());
    return load(*device_, slot, unit_, back.data()).has_value() &&
           std::memcmp(back.data(), contents.data(), unit_ * kPageBytes) == 0;
  };
  for (int i = 0; i < 12; ++i) {
    ASSERT_EQ(fork_and_run(*device_,
                           [&] {
                             for (const Stored& stored : all) {
                               if (!intact(stored.slot, stored.seed)) return 1;
                             }
                             fill_mixed(77, contents.bytes());
                             const Result<DeviceSlot> slot = device_->reserve(unit_);
                             if (!slot || !store(*device_, *slot, unit_, contents.data())) return 2;
                             if (device_->stats().stored_pages < all.size() * unit_) return 4;
                             return intact(*slot, 77) ? 0 : 3;
                           }),
              0);
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  for (const Stored& stored : all) device_->release(stored.slot, unit_);
}

}  // namespace
}  // namespace whimbrel::testing
