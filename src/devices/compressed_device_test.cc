#include "devices/compressed_device.h"

#include <gtest/gtest.h>

#include <cstring>

#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

DevicePtr make(MemorySource& memory, const CompressedDevice::Options& options) {
  const Result<CompressedDevice*> device = CompressedDevice::create(memory, options);
  return DevicePtr(device ? *device : nullptr,
                   [&memory](Device* d) { destroy_from(memory, static_cast<CompressedDevice*>(d)); });
}

DeviceUnderTest compressed(std::string name, CodecId codec, std::uint32_t unit_pages, int level = 1) {
  return {.name = std::move(name),
          .make =
              [=](MemorySource& memory, std::uint64_t capacity) {
                return make(memory, {.codec = codec,
                                     .level = level,
                                     .unit_pages = unit_pages,
                                     .capacity_bytes = capacity,
                                     .segment_bytes = std::size_t{256} << 10});
              },
          .keeps_fills_free = true};
}

INSTANTIATE_TEST_SUITE_P(
    Compressed, DeviceSuite,
    ::testing::Values(compressed("lz4_page", CodecId::kLz4, 1), compressed("lz4_16K", CodecId::kLz4, 4),
                      compressed("lz4_64K", CodecId::kLz4, 16), compressed("zstd_page", CodecId::kZstd, 1),
                      compressed("zstd_16K", CodecId::kZstd, 4), compressed("zstd_64K_level3", CodecId::kZstd, 16, 3)),
    device_name);

}  // namespace
}  // namespace whimbrel::testing
