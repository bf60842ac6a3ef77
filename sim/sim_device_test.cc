#include "sim/sim_device.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>
#include <set>

#include "mm/address.h"
#include "sim/sim_clock.h"

namespace whimbrel::sim {
namespace {

struct Buffer {
  alignas(4096) std::array<std::byte, 4 * kPageSize> bytes{};
  void fill(int value) { std::memset(bytes.data(), value, bytes.size()); }
};

Result<void> run(Device& device, DeviceOp::Kind kind, DeviceSlot slot, Buffer& buffer, std::uint32_t pages = 4) {
  DeviceOp op{kind, slot, pages, buffer.bytes.data(), {}};
  DeviceBatch batch{{&op, 1}};
  device.submit(batch);
  device.wait(batch);
  return op.result;
}

struct Fixture {
  explicit Fixture(SimDevice::Options options = {}) : device(options, choices, nullptr) {}
  Choices choices = Choices::replay({});
  bool started = choices.next();
  SimDevice device;
};

TEST(SimDevice, KeepsWhatItWasGiven) {
  Fixture f;
  Buffer in;
  Buffer out;
  in.fill(7);
  const DeviceSlot slot = f.device.reserve(4).value();
  EXPECT_EQ(run(f.device, DeviceOp::Kind::kLoad, slot, out).error().code, Errc::kInvalid);
  ASSERT_TRUE(run(f.device, DeviceOp::Kind::kStore, slot, in).has_value());
  EXPECT_TRUE(f.device.verify(slot, 4, in.bytes.data()).value());
  ASSERT_TRUE(run(f.device, DeviceOp::Kind::kLoad, slot, out).has_value());
  EXPECT_EQ(in.bytes, out.bytes);
  in.fill(8);
  EXPECT_FALSE(f.device.verify(slot, 4, in.bytes.data()).value());
  f.device.release(slot, 4);
  EXPECT_EQ(f.device.reserved_pages(), 0u);
}

TEST(SimDevice, FullCorruptAndGone) {
  Fixture f({.capacity_pages = 6});
  Buffer buffer;
  const DeviceSlot slot = f.device.reserve(4).value();
  EXPECT_EQ(f.device.reserve(4).error().code, Errc::kDeviceFull);
  ASSERT_TRUE(run(f.device, DeviceOp::Kind::kStore, slot, buffer).has_value());
  ASSERT_TRUE(f.device.corrupt(slot + 2));
  EXPECT_EQ(run(f.device, DeviceOp::Kind::kLoad, slot, buffer).error().code, Errc::kCorrupt);
  f.device.set_gone(true);
  EXPECT_EQ(run(f.device, DeviceOp::Kind::kLoad, slot, buffer, 1).error().code, Errc::kGone);
  f.device.set_gone(false);
  EXPECT_TRUE(run(f.device, DeviceOp::Kind::kLoad, slot, buffer, 1).has_value());
}

TEST(SimDevice, EveryTransferCanFailAndAFailedLoadLeavesRubbish) {
  Choices choices = Choices::exhaustive();
  std::set<Errc> seen;
  while (choices.next()) {
    Failures failures(choices, 1);
    SimDevice device({}, choices, &failures);
    const auto slot = device.reserve(4);
    if (!slot) {
      seen.insert(slot.error().code);
      continue;
    }
    Buffer buffer;
    buffer.fill(5);
    const auto stored = run(device, DeviceOp::Kind::kStore, *slot, buffer);
    if (!stored) {
      seen.insert(stored.error().code);
      EXPECT_EQ(device.stats().stored_pages, 0u);  // the slots stay reserved and empty
      continue;
    }
    Buffer out;
    const auto loaded = run(device, DeviceOp::Kind::kLoad, *slot, out);
    if (!loaded) seen.insert(loaded.error().code);
    EXPECT_EQ(loaded.has_value(), out.bytes == buffer.bytes);
  }
  EXPECT_EQ(seen, (std::set<Errc>{Errc::kDeviceFull, Errc::kNoMemory, Errc::kDeviceIo, Errc::kGone, Errc::kCorrupt}));
}

TEST(SimDevice, LateTransfersReadTheBufferWhenTheyComplete) {
  Choices choices = Choices::exhaustive();
  std::set<int> orders;
  while (choices.next()) {
    SimClock clock;
    Scheduler scheduler(choices, clock, {.max_delays = 0});
    SimDevice device({.late = true}, choices, nullptr);
    scheduler.spawn("engine", Role::kWorker, [&] {
      Buffer one;
      one.fill(1);
      const DeviceSlot slot = device.reserve(4).value();
      // Two stores to one slot: the one that completes last stays.
      Buffer two;
      two.fill(2);
      DeviceOp ops[] = {{DeviceOp::Kind::kStore, slot, 4, one.bytes.data(), {}},
                        {DeviceOp::Kind::kStore, slot, 4, two.bytes.data(), {}}};
      DeviceBatch batch{ops};
      device.submit(batch);
      one.fill(9);  // too early: it has not been read
      device.wait(batch);
      Buffer out;
      ASSERT_TRUE(run(device, DeviceOp::Kind::kLoad, slot, out).has_value());
      orders.insert(std::to_integer<int>(out.bytes[0]));
    });
    ASSERT_EQ(scheduler.run(), Scheduler::Outcome::kFinished);
  }
  EXPECT_EQ(orders, (std::set<int>{2, 9}));
}

}  // namespace
}  // namespace whimbrel::sim
