// Batches in flight together, damage, the time around a fork, and the end: closed, or killed in the middle.
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <algorithm>
#include <atomic>
#include <chrono>
#include <cstring>
#include <thread>

#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

using namespace std::chrono_literals;

// Two batches of one thread, waited for in the other order.
TEST_P(DeviceSuite, BatchesInFlightTogether) {
  constexpr std::size_t kUnits = 8;
  Pages contents(kUnits * unit_), back(kUnits * unit_);
  fill_mixed(21, contents.bytes());
  std::vector<DeviceSlot> slots;
  std::vector<DeviceOp> ops[2];
  for (std::size_t i = 0; i < kUnits; ++i) {
    slots.push_back(device_->reserve(unit_).value());
    ops[i % 2].push_back(
        {.kind = DeviceOp::Kind::kStore, .first = slots[i], .pages = unit_, .memory = contents.page(i * unit_)});
  }
  const auto run_both = [&] {
    DeviceBatch a{.ops = ops[0]}, b{.ops = ops[1]};
    device_->submit(a);
    device_->submit(b);
    device_->wait(b);
    for (const DeviceOp& op : ops[1]) EXPECT_TRUE(op.result.has_value());
    device_->wait(a);
    for (const DeviceOp& op : ops[0]) EXPECT_TRUE(op.result.has_value());
  };
  run_both();
  for (std::size_t i = 0; i < kUnits; ++i) {
    DeviceOp& op = ops[i % 2][i / 2];
    op.kind = DeviceOp::Kind::kLoad;
    op.memory = back.page(i * unit_);
    op.result = fail(Errc::kAgain);  // whoever leaves it alone is found out
  }
  run_both();
  EXPECT_EQ(std::memcmp(back.data(), contents.data(), contents.count() * kPageBytes), 0);
  for (const DeviceSlot slot : slots) device_->release(slot, unit_);
}

TEST_P(DeviceSuite, DamageIsAnErrorAndNeverWrongContents) {
  if (!GetParam().damage) GTEST_SKIP() << "what this device keeps cannot be reached from outside";
  std::vector<DeviceSlot> slots;
  Pages contents(unit_), back(unit_);
  for (std::uint64_t i = 0; i < 4; ++i) {
    fill_pages(i % 2 == 0 ? Contents::kRandom : Contents::kText, i, contents.bytes());
    slots.push_back(put(contents));
  }
  GetParam().damage(*device_);
  std::uint64_t noticed = 0;
  for (std::uint64_t i = 0; i < slots.size(); ++i) {
    fill_pages(i % 2 == 0 ? Contents::kRandom : Contents::kText, i, contents.bytes());
    for (std::uint32_t page = 0; page < unit_; ++page) {
      const Result<void> result = load(*device_, slots[i] + page, 1, back.data());
      if (result) {
        ASSERT_EQ(std::memcmp(back.data(), contents.page(page), kPageBytes), 0) << "wrong contents handed out";
      } else {
        ASSERT_EQ(result.error().code, Errc::kCorrupt);
        ++noticed;
      }
    }
  }
  EXPECT_GE(noticed, slots.size()) << "a damaged byte went unnoticed";
  EXPECT_GE(device_->stats().errors, slots.size());
  // Stored again, it is whole again.
  EXPECT_TRUE(store(*device_, slots[0], unit_, contents.data()).has_value());
  expect_same(slots[0], contents);
  for (const DeviceSlot slot : slots) device_->release(slot, unit_);
}

// While a fork is prepared loads must go on (libc may touch what is away), and everything that changes must wait.
TEST_P(DeviceSuite, LoadsGoOnWhileAForkIsPrepared) {
  Pages contents(unit_);
  fill_mixed(31, contents.bytes());
  const DeviceSlot slot = put(contents);
  device_->prepare_fork();
  std::atomic<bool> loaded{false}, stored{false};
  std::thread loader([&] {
    Pages back(unit_);
    EXPECT_TRUE(load(*device_, slot, unit_, back.data()).has_value());
    EXPECT_EQ(std::memcmp(back.data(), contents.data(), unit_ * kPageBytes), 0);
    loaded = true;
  });
  EXPECT_TRUE(becomes_true([&] { return loaded.load(); }, 2000ms))
      << "a load waits for the fork, which may wait for it";
  std::thread storer([&] {
    const Result<DeviceSlot> fresh = device_->reserve(unit_);
    EXPECT_TRUE(fresh.has_value());
    stored = true;
    if (fresh) device_->release(*fresh, unit_);
  });
  std::this_thread::sleep_for(50ms);
  EXPECT_FALSE(stored) << "something changed while the copy may be made";
  device_->after_fork_in_parent();
  loader.join();
  EXPECT_TRUE(becomes_true([&] { return stored.load(); }));
  storer.join();
  device_->release(slot, unit_);
}

TEST_P(DeviceSuite, ClosingGivesEverythingBack) {
  Pages contents(unit_);
  for (int round = 0; round < 2; ++round) {
    for (std::uint64_t i = 0; i < scaled(20, unit_); ++i) {
      fill_mixed(i, contents.bytes());
      (void)put(contents);
    }
    device_.reset();
    EXPECT_EQ(memory_.bytes_in_use(), 0u);
    if (GetParam().leftovers) {
      EXPECT_EQ(GetParam().leftovers(), "");
    }
    remake(0);
  }
}

// A process that has such a device is killed while it stores. The child is made before any thread exists.
TEST_P(DeviceSuite, AKilledProcessLeavesNothingBehind) {
  device_.reset();
  int told[2];
  ASSERT_EQ(::pipe(told), 0);
  const pid_t child = ::fork();
  if (child == 0) {
    TestMemory memory;
    const DevicePtr device = GetParam().make(memory, 0);
    Pages contents(unit_);
    for (std::uint64_t i = 0;; ++i) {
      fill_mixed(i, contents.bytes());
      const Result<DeviceSlot> slot = device ? device->reserve(unit_) : fail(Errc::kGone);
      const bool good = slot && store(*device, *slot, unit_, contents.data());
      if (!good || ::write(told[1], "+", 1) != 1) ::_exit(1);
      if (i % 8 == 7) device->release(*slot, unit_);
    }
  }
  ::close(told[1]);
  char step = 0;
  for (int i = 0; i < 16; ++i) ASSERT_EQ(::read(told[0], &step, 1), 1) << "the child cannot store";
  ::kill(child, SIGKILL);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  ::close(told[0]);
  EXPECT_TRUE(WIFSIGNALED(status));
  if (GetParam().leftovers) {
    EXPECT_EQ(GetParam().leftovers(), "");
  }
  remake(0);
  Pages contents(unit_);
  fill_mixed(9, contents.bytes());
  const DeviceSlot slot = put(contents);
  expect_same(slot, contents);
  device_->release(slot, unit_);
}

// A child shares the store and is killed in the middle of using it: the parent has everything, and once it has released
// that, the room as well.
TEST_P(DeviceSuite, AKilledChildTakesNothingAlong) {
  if (!device_->traits().shared_on_fork) GTEST_SKIP() << "this device does not share its contents with a child";
  const std::uint64_t empty = device_->stats().held_bytes;
  const std::uint64_t units = std::max<std::uint64_t>(16, 256 / unit_);  // a megabyte at least
  std::vector<DeviceSlot> slots;
  Pages contents(unit_);
  for (std::uint64_t i = 0; i < units; ++i) {
    fill_pages(Contents::kRandom, i, contents.bytes());
    slots.push_back(put(contents));
  }
  int told[2];
  ASSERT_EQ(::pipe(told), 0);
  device_->prepare_fork();
  const pid_t child = ::fork();
  if (child == 0) {
    device_->after_fork_in_child();
    DeviceSlot mine{};
    for (std::uint64_t i = 0;; ++i) {
      const Result<DeviceSlot> slot = device_->reserve(unit_);
      if (!slot || !store(*device_, *slot, unit_, contents.data()) || ::write(told[1], "+", 1) != 1) ::_exit(1);
      device_->release(i < units ? slots[i] : mine, unit_);  // first what was inherited
      mine = *slot;
    }
  }
  device_->after_fork_in_parent();
  ::close(told[1]);
  char step = 0;
  for (int i = 0; i < 16; ++i) ASSERT_EQ(::read(told[0], &step, 1), 1) << "the child cannot store";
  ::kill(child, SIGKILL);
  int status = 0;
  EXPECT_EQ(::waitpid(child, &status, 0), child);
  ::close(told[0]);
  for (std::uint64_t i = 0; i < units; ++i) {
    fill_pages(Contents::kRandom, i, contents.bytes());
    expect_same(slots[i], contents);
    device_->release(slots[i], unit_);
  }
  EXPECT_TRUE(becomes_true([&] {
    device_->maintain(std::size_t{64} << 20);
    return device_->stats().held_bytes <= empty + units * unit_ * kPageBytes / 4;
  })) << "held "
      << device_->stats().held_bytes << " bytes for nothing, " << empty << " at first";
}

}  // namespace
}  // namespace whimbrel::testing
