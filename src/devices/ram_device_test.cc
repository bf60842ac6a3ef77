#include "devices/ram_device.h"

#include <gtest/gtest.h>

#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

DeviceUnderTest ram(std::string name, std::uint32_t unit_pages) {
  return {.name = std::move(name), .make = [unit_pages](MemorySource& memory, std::uint64_t capacity) {
            const Result<RamDevice*> device =
                RamDevice::create(memory, {.max_units = 4096, .unit_pages = unit_pages, .capacity_bytes = capacity});
            return DevicePtr(device ? *device : nullptr,
                             [&memory](Device* d) { destroy_from(memory, static_cast<RamDevice*>(d)); });
          }};
}

INSTANTIATE_TEST_SUITE_P(Ram, DeviceSuite, ::testing::Values(ram("page", 1), ram("pages16", 16), ram("huge", 512)),
                         device_name);

TEST(RamDevice, OptionsOutOfRangeAreRefused) {
  TestMemory memory;
  EXPECT_EQ(RamDevice::create(memory, {.unit_pages = 0}).error().code, Errc::kInvalid);
  EXPECT_EQ(RamDevice::create(memory, {.unit_pages = 513}).error().code, Errc::kInvalid);
  EXPECT_EQ(RamDevice::create(memory, {.max_units = 0}).error().code, Errc::kInvalid);
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

TEST(RamDevice, NoMemoryForTheTableIsAnError) {
  TestMemory memory(4096);
  EXPECT_EQ(RamDevice::create(memory, {}).error().code, Errc::kNoMemory);
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

TEST(RamDevice, RunningOutOfUnitsIsFull) {
  TestMemory memory;
  RamDevice* device = RamDevice::create(memory, {.max_units = 2, .unit_pages = 4}).value();
  const DeviceSlot a = device->reserve(4).value();
  ASSERT_TRUE(device->reserve(1).has_value());
  EXPECT_EQ(device->reserve(1).error().code, Errc::kDeviceFull);
  device->release(a, 4);
  EXPECT_TRUE(device->reserve(1).has_value());
  destroy_from(memory, device);
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

TEST(RamDeviceDeathTest, ReleasingTwiceStopsTheProcess) {
  TestMemory memory;
  RamDevice* device = RamDevice::create(memory, {.max_units = 2, .unit_pages = 4}).value();
  const DeviceSlot slot = device->reserve(2).value();
  device->release(slot, 1);
  EXPECT_DEATH(device->release(slot, 1), "not reserved");
  destroy_from(memory, device);
}

}  // namespace
}  // namespace whimbrel::testing
