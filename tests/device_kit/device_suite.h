// One suite that every Device must pass.
//
// To test a device of your own, link `whimbrel_device_kit` and say how to make it:
//
//   INSTANTIATE_TEST_SUITE_P(MyDevice, DeviceSuite, testing::Values(DeviceUnderTest{
//       .name = "mine", .make = [](MemorySource& memory, std::uint64_t capacity) { return ...; }}), device_name);
//
// `capacity` is a limit on the bytes held, 0 for none; a device without limits sets `has_capacity` to false.
// docs/devices.md has a whole example.
#pragma once

#include <gtest/gtest.h>

#include <chrono>
#include <cstdint>
#include <functional>
#include <memory>
#include <ostream>
#include <string>
#include <thread>
#include <vector>

#include "port/device.h"
#include "tests/device_kit/page_contents.h"
#include "tests/device_kit/test_memory.h"

namespace whimbrel::testing {

using DevicePtr = std::unique_ptr<Device, std::function<void(Device*)>>;

struct DeviceUnderTest {
  std::string name;
  std::function<DevicePtr(MemorySource& memory, std::uint64_t capacity)> make;
  bool has_capacity = true;
  bool has_verify = true;
  bool keeps_fills_free = false;  // pages of one repeated word take no room
  // Changes a byte of everything that is stored, behind the device's back; empty: that cannot be done. Loads must then
  // answer kCorrupt, and never hand out wrong contents.
  std::function<void(Device& device)> damage = {};
  // What is left outside the process once no device of this kind exists, in words; empty: the kind keeps nothing there.
  std::function<std::string()> leftovers = {};
};

inline std::string device_name(const ::testing::TestParamInfo<DeviceUnderTest>& info) { return info.param.name; }

inline std::ostream& operator<<(std::ostream& out, const DeviceUnderTest& device) { return out << device.name; }

// Waits until the condition holds; false when it does not within the limit.
template <class F>
bool becomes_true(F&& condition, std::chrono::milliseconds limit = std::chrono::seconds(5)) {
  const auto end = std::chrono::steady_clock::now() + limit;
  while (!condition()) {
    if (std::chrono::steady_clock::now() > end) return false;
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  }
  return true;
}

// Page-aligned memory of the test.
class Pages {
 public:
  explicit Pages(std::size_t pages) : words_(pages * 512 + 511) {}
  [[nodiscard]] std::byte* data() {
    return reinterpret_cast<std::byte*>((reinterpret_cast<std::uintptr_t>(words_.data()) + 4095) &
                                        ~std::uintptr_t{4095});
  }
  [[nodiscard]] std::byte* page(std::size_t i) { return data() + i * kPageBytes; }
  [[nodiscard]] std::size_t count() const { return (words_.size() - 511) / 512; }
  [[nodiscard]] std::span<std::byte> bytes() { return {data(), count() * kPageBytes}; }

 private:
  std::vector<std::uint64_t> words_;
};

// One operation, done and waited for.
Result<void> store(Device& device, DeviceSlot first, std::uint32_t pages, const std::byte* memory);
Result<void> load(Device& device, DeviceSlot first, std::uint32_t pages, std::byte* memory);

// A number of units, fewer where units are large: a test then moves about as many bytes on every device.
[[nodiscard]] std::uint64_t scaled(std::uint64_t units, std::uint32_t unit_pages);

class DeviceSuite : public ::testing::TestWithParam<DeviceUnderTest> {
 protected:
  void SetUp() override;
  void TearDown() override;
  // Replaces the device by one with this limit.
  void remake(std::uint64_t capacity);
  // Reserves and stores; the test fails when either does.
  DeviceSlot put(Pages& pages);
  void expect_same(DeviceSlot first, Pages& pages);

  TestMemory memory_;
  DevicePtr device_{nullptr, [](Device*) {}};
  std::uint32_t unit_ = 1;
};

}  // namespace whimbrel::testing
