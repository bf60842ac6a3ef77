#include "devices/switch_device.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <thread>
#include <vector>

#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

DeviceHandle part(MemorySource& memory, const std::string& spec) {
  SpecMessage message;
  Result<DeviceHandle> made = make_device(spec, {.memory = memory, .kinds = built_in_devices(), .max_pages = 1 << 16}, message);
  EXPECT_TRUE(made.has_value()) << message.c_str();
  return made ? std::move(*made) : DeviceHandle();
}

SwitchDevice* over(MemorySource& memory, const std::string& spec) { return SwitchDevice::create(memory, part(memory, spec)).value(); }

// The suite of all devices, in the first place and after having been replaced.
DeviceUnderTest switched(std::string name, std::vector<std::string> specs) {
  return {.name = std::move(name), .make = [specs](MemorySource& memory, std::uint64_t capacity) {
            const auto limited = [capacity](const std::string& spec) {
              return capacity == 0 ? spec : spec + ":capacity=" + std::to_string(capacity);
            };
            SwitchDevice* device = over(memory, limited(specs.front()));
            for (std::size_t i = 1; i < specs.size(); ++i) {
              EXPECT_TRUE(device->replace(part(memory, limited(specs[i]))).has_value());
              EXPECT_TRUE(device->retire());
            }
            return DevicePtr(device, [](Device* d) { SwitchDevice::destroy(static_cast<SwitchDevice*>(d)); });
          }};
}

INSTANTIATE_TEST_SUITE_P(Switch, DeviceSuite, ::testing::Values(switched("first", {"zstd"}), switched("third", {"zstd", "ram", "lz4"})),
                         device_name);

class Switch : public ::testing::Test {
 protected:
  static constexpr std::size_t kPage = 4096;
  ~Switch() override {
    SwitchDevice::destroy(device_);
    EXPECT_EQ(memory_.bytes_in_use(), 0u);
  }

  static void fill(std::byte* at, unsigned pages, unsigned seed) {
    for (std::size_t i = 0; i < pages * kPage; ++i) at[i] = static_cast<std::byte>((i * 7 + i / kPage * 13 + seed) % 251);
  }
  DeviceSlot store(unsigned pages, unsigned seed) {
    fill(buffer_, pages, seed);
    const DeviceSlot slot = device_->reserve(pages).value();
    DeviceOp op{DeviceOp::Kind::kStore, slot, pages, buffer_, {}};
    DeviceBatch batch{.ops = {&op, 1}};
    device_->submit(batch);
    device_->wait(batch);
    EXPECT_TRUE(op.result.has_value());
    EXPECT_EQ(op.first, slot);  // the caller's numbers
    return slot;
  }
  bool holds(DeviceSlot slot, unsigned pages, unsigned seed) {
    alignas(kPage) static std::byte expected[16 * kPage];
    fill(expected, pages, seed);
    std::fill_n(buffer_, pages * kPage, std::byte{0xee});
    DeviceOp op{DeviceOp::Kind::kLoad, slot, pages, buffer_, {}};
    DeviceBatch batch{.ops = {&op, 1}};
    device_->submit(batch);
    device_->wait(batch);
    return op.result.has_value() && std::equal(expected, expected + pages * kPage, buffer_);
  }

  TestMemory memory_;
  SwitchDevice* device_ = nullptr;
  alignas(kPage) static inline std::byte buffer_[16 * kPage];
};

TEST_F(Switch, WhatLiesOnTheDeviceBeforeComesBackUntilItIsReleased) {
  device_ = over(memory_, "zstd");
  const DeviceSlot old = store(4, 1);
  ASSERT_TRUE(device_->replace(part(memory_, "ram:unit=64K")).has_value());
  EXPECT_EQ(device_->traits().unit_pages, 16u);
  const DeviceSlot fresh = store(16, 2);
  EXPECT_TRUE(holds(old, 4, 1));
  EXPECT_TRUE(holds(fresh, 16, 2));
  EXPECT_EQ(device_->stats().stored_pages, 20u);
  EXPECT_EQ(device_->leaving().stored_pages, 4u);
  EXPECT_FALSE(device_->retire());  // not empty
  EXPECT_TRUE(holds(old, 4, 1));
  device_->release(old, 4);
  EXPECT_EQ(device_->leaving().devices, 1u);
  EXPECT_TRUE(device_->retire());
  EXPECT_EQ(device_->leaving().devices, 0u);
  EXPECT_TRUE(holds(fresh, 16, 2));
  device_->release(fresh, 16);
}

TEST_F(Switch, SeveralMayBeLeavingAndOneTooManyIsRefused) {
  device_ = over(memory_, "zstd");
  std::vector<DeviceSlot> slots{store(1, 0)};
  unsigned n = 1;
  for (; device_->replace(part(memory_, "lz4")).has_value(); ++n) slots.push_back(store(1, n));
  EXPECT_EQ(n, 4u);
  EXPECT_EQ(device_->replace(part(memory_, "lz4")).error().code, Errc::kBusy);
  for (unsigned i = 0; i < n; ++i) EXPECT_TRUE(holds(slots[i], 1, i)) << i;
  device_->release(slots[1], 1);
  EXPECT_FALSE(device_->retire());  // the others stay
  ASSERT_TRUE(device_->replace(part(memory_, "ram")).has_value());
  const DeviceSlot last = store(1, 9);
  for (const unsigned i : {0u, 2u, 3u}) EXPECT_TRUE(holds(slots[i], 1, i)) << i;
  EXPECT_TRUE(holds(last, 1, 9));
  for (const unsigned i : {0u, 2u, 3u}) device_->release(slots[i], 1);
  device_->release(last, 1);
  EXPECT_TRUE(device_->retire());
}

// The pager forms its loads by the units of the device in use.
TEST_F(Switch, ALoadMayCrossUnitsOfADeviceThatLeaves) {
  device_ = over(memory_, "zstd:unit=4K");
  const DeviceSlot first = store(1, 5);
  std::vector<DeviceSlot> slots{first};
  while (slots.size() < 4) {
    slots.push_back(store(1, 5));
    ASSERT_EQ(slots.back(), first + (slots.size() - 1));
  }
  ASSERT_TRUE(device_->replace(part(memory_, "zstd:unit=16K")).has_value());
  DeviceOp op{DeviceOp::Kind::kLoad, first, 4, buffer_, {}};
  DeviceBatch batch{.ops = {&op, 1}};
  device_->submit(batch);
  ASSERT_TRUE(op.result.has_value());
  EXPECT_EQ(op.pages, 4u);
  alignas(kPage) static std::byte expected[kPage];
  fill(expected, 1, 5);
  for (int i = 0; i < 4; ++i) EXPECT_TRUE(std::equal(expected, expected + kPage, buffer_ + i * kPage)) << i;
  for (const DeviceSlot slot : slots) device_->release(slot, 1);
}

TEST_F(Switch, OneBatchMayGoToSeveralDevices) {
  device_ = over(memory_, "lz4");
  const DeviceSlot old = store(1, 1);
  ASSERT_TRUE(device_->replace(part(memory_, "ram")).has_value());
  const DeviceSlot fresh = store(1, 2);
  DeviceOp ops[3] = {{DeviceOp::Kind::kLoad, fresh, 1, buffer_, {}},
                     {DeviceOp::Kind::kLoad, old, 1, buffer_ + kPage, {}},
                     {DeviceOp::Kind::kLoad, fresh, 1, buffer_ + 2 * kPage, {}}};
  DeviceBatch batch{.ops = ops};
  device_->submit(batch);
  alignas(kPage) static std::byte expected[kPage];
  for (int i = 0; i < 3; ++i) {
    fill(expected, 1, i == 1 ? 1 : 2);
    EXPECT_TRUE(ops[i].result.has_value() && std::equal(expected, expected + kPage, buffer_ + i * kPage)) << i;
  }
  device_->release(old, 1);
  device_->release(fresh, 1);
}

TEST_F(Switch, AChildHasBothDevices) {
  device_ = over(memory_, "zstd");
  const DeviceSlot old = store(4, 1);
  ASSERT_TRUE(device_->replace(part(memory_, "lz4")).has_value());
  const DeviceSlot fresh = store(1, 2);
  device_->prepare_fork();
  const pid_t child = fork();
  if (child == 0) {
    device_->after_fork_in_child();
    device_->settle_in_child();
    device_->drop_carried();
    bool good = holds(old, 4, 1) && holds(fresh, 1, 2);
    device_->release(old, 4);
    good = good && device_->retire() && holds(fresh, 1, 2);
    _exit(good ? 0 : 1);
  }
  device_->after_fork_in_parent();
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0);
  EXPECT_TRUE(holds(old, 4, 1));
  device_->release(old, 4);
  device_->release(fresh, 1);
}

TEST_F(Switch, NumbersMayBeReadWhileDevicesComeAndGo) {
  device_ = over(memory_, "lz4");
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> looks{0};
  std::vector<std::thread> readers;
  for (int i = 0; i < 2; ++i) {
    readers.emplace_back([&] {
      while (!stop) {
        EXPECT_LE(device_->stats().stored_pages, 2u);
        EXPECT_EQ(device_->traits().slots % SwitchDevice::kPlaceSlots, 0u);
        (void)device_->last_error();
        (void)device_->leaving();
        (void)device_->maintain(1 << 16);
        ++looks;
      }
    });
  }
  for (int round = 0; round < 200 || looks < 1000; ++round) {
    const DeviceSlot slot = store(1, 3);
    ASSERT_TRUE(device_->replace(part(memory_, round % 2 == 0 ? "ram" : "lz4")).has_value());
    ASSERT_TRUE(holds(slot, 1, 3));
    device_->release(slot, 1);
    ASSERT_TRUE(device_->retire());
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
}

}  // namespace
}  // namespace whimbrel::testing
