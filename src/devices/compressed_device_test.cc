#include "devices/compressed_device.h"

#include <gtest/gtest.h>

#include <atomic>
#include <cstring>
#include <thread>
#include <vector>

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

class CompressedDeviceTest : public ::testing::Test {
 protected:
  TestMemory memory_;
};

TEST_F(CompressedDeviceTest, OptionsOutOfRangeAreRefused) {
  const auto error = [&](const CompressedDevice::Options& options) {
    return CompressedDevice::create(memory_, options).error().code;
  };
  EXPECT_EQ(error({.unit_pages = 0}), Errc::kInvalid);
  EXPECT_EQ(error({.unit_pages = 3}), Errc::kInvalid);
  EXPECT_EQ(error({.unit_pages = 32}), Errc::kInvalid);
  EXPECT_EQ(error({.codec = CodecId::kRaw}), Errc::kInvalid);
  EXPECT_EQ(error({.level = 0}), Errc::kInvalid);
  EXPECT_EQ(error({.store_contexts = 0}), Errc::kInvalid);
  EXPECT_EQ(error({.load_contexts = 0}), Errc::kInvalid);
  EXPECT_EQ(memory_.bytes_in_use(), 0u);
}

// Fails at every point of the set-up in turn: each time with an error, and with nothing left behind.
TEST_F(CompressedDeviceTest, SetUpFailsCleanlyWhereverMemoryEnds) {
  int failures = 0;
  for (std::size_t limit = 0;; limit += 64 << 10) {
    TestMemory memory(limit);
    const Result<CompressedDevice*> device = CompressedDevice::create(memory, {});
    if (device) {
      destroy_from(memory, *device);
      break;
    }
    EXPECT_EQ(device.error().code, Errc::kNoMemory);
    EXPECT_EQ(memory.bytes_in_use(), 0u);
    ++failures;
  }
  EXPECT_GT(failures, 20);
}

// Damages each byte of the stored blob in turn: loads must say so, and never hand out wrong contents.
TEST_F(CompressedDeviceTest, DamageInTheStoreIsNoticed) {
  constexpr std::size_t kSegment = std::size_t{64} << 10;
  for (const CodecId codec : {CodecId::kLz4, CodecId::kZstd}) {
    for (const Contents kind : {Contents::kText, Contents::kRandom}) {
      const DevicePtr device = make(memory_, {.codec = codec, .unit_pages = 1, .segment_bytes = kSegment});
      Pages contents(1), back(1);
      fill_pages(kind, 1, contents.bytes());
      const DeviceSlot slot = device->reserve(1).value();
      ASSERT_TRUE(store(*device, slot, 1, contents.data()));
      const std::size_t size = device->stats().compressed_bytes;
      std::byte* segment = nullptr;  // the blob is the first thing in the only one
      for (const TestMemory::Block& block : memory_.blocks()) {
        if (block.bytes == kSegment) segment = block.memory;
      }
      ASSERT_NE(segment, nullptr);
      std::size_t noticed = 0;
      for (std::size_t i = 0; i < size; ++i) {
        segment[i] ^= std::byte{0x40};
        const Result<void> result = load(*device, slot, 1, back.data());
        if (result) {
          ASSERT_EQ(std::memcmp(back.data(), contents.data(), kPageBytes), 0) << "wrong contents, byte " << i;
        } else {
          ASSERT_EQ(result.error().code, Errc::kCorrupt);
          ++noticed;
        }
        segment[i] ^= std::byte{0x40};
      }
      EXPECT_GE(noticed, size * 99 / 100) << "bits that mean nothing to the codec should be rare";
      EXPECT_EQ(device->stats().errors, noticed);
      EXPECT_TRUE(load(*device, slot, 1, back.data()).has_value()) << "it may be tried again";
      device->release(slot, 1);
    }
  }
}

TEST_F(CompressedDeviceTest, AFullStoreShrinksAsItEmpties) {
  const DevicePtr device = make(memory_, {.codec = CodecId::kLz4});
  const std::uint64_t empty = device->stats().held_bytes;
  constexpr std::uint32_t kUnits = 4000;
  std::vector<DeviceSlot> slots;
  Pages contents(4);
  for (std::uint32_t i = 0; i < kUnits; ++i) {
    fill_pages(Contents::kText, i, contents.bytes());
    slots.push_back(device->reserve(4).value());
    ASSERT_TRUE(store(*device, slots.back(), 4, contents.data()));
  }
  const std::uint64_t full = device->stats().held_bytes;
  Random random(3);
  for (std::uint32_t i = kUnits; i > 1; --i) std::swap(slots[i - 1], slots[random.below(i)]);
  std::uint64_t held = full;
  for (std::uint32_t i = 0; i < kUnits; ++i) {
    device->release(slots[i], 4);
    if (i % 500 != 499) continue;
    while (device->maintain(1 << 20)) {
    }
    held = device->stats().held_bytes;
    // Two segments: one partly filled, one that may be kept empty.
    const std::uint64_t payload = device->stats().compressed_bytes;
    EXPECT_LE(held, empty + (128 << 10) + payload * 120 / 100 + (4 << 20)) << i;
  }
  EXPECT_LE(held, empty + (128 << 10)) << "an empty store holds its table and nothing else";
}

TEST_F(CompressedDeviceTest, NothingIsTakenBetweenSetUpAndStores) {
  const DevicePtr device = make(memory_, {});
  const std::size_t before = memory_.bytes_in_use();
  Pages contents(4), back(4);
  fill_pages(Contents::kText, 1, contents.bytes());
  const DeviceSlot slot = device->reserve(4).value();
  ASSERT_TRUE(store(*device, slot, 4, contents.data()));
  const std::size_t after = memory_.bytes_in_use();
  EXPECT_EQ(after - before, (2u << 20) + (64u << 10)) << "one segment and one piece of the table";
  memory_.set_limit(after);
  for (int i = 0; i < 100; ++i) {
    ASSERT_TRUE(load(*device, slot, 4, back.data()).has_value());
    ASSERT_TRUE(store(*device, slot, 4, contents.data()).has_value());
    ASSERT_TRUE(device->verify(slot, 4, contents.data()).value());
  }
  EXPECT_EQ(memory_.bytes_in_use(), after);
}

// A store into a slot that another thread gives back at the same time is a mistake, but must not damage the device.
TEST_F(CompressedDeviceTest, ReleasingWhatIsBeingStoredLeavesNoTrace) {
  const DevicePtr device = make(memory_, {.codec = CodecId::kLz4});
  Pages contents(4);
  fill_pages(Contents::kText, 1, contents.bytes());
  for (int i = 0; i < 300; ++i) {
    const DeviceSlot slot = device->reserve(4).value();
    std::thread storing([&] {
      const Result<void> result = store(*device, slot, 4, contents.data());
      if (!result) {
        EXPECT_EQ(result.error().code, Errc::kInvalid);
      }
    });
    device->release(slot, 4);
    storing.join();
    EXPECT_EQ(device->stats().stored_pages, 0u);
    EXPECT_EQ(device->stats().compressed_bytes, 0u);
  }
}

TEST_F(CompressedDeviceTest, LoadsGoOnWhileAllStoringIsBusy) {
  // Two threads store without a pause through one context; loads have contexts of their own and must not starve.
  const DevicePtr device = make(memory_, {.codec = CodecId::kZstd, .level = 19, .unit_pages = 16, .store_contexts = 1});
  Pages contents(16), back(16);
  fill_pages(Contents::kText, 1, contents.bytes());
  const DeviceSlot slot = device->reserve(16).value();
  ASSERT_TRUE(store(*device, slot, 16, contents.data()));
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> stores{0}, loads{0};
  std::vector<std::thread> threads;
  for (int t = 0; t < 2; ++t) {
    threads.emplace_back([&] {
      const DeviceSlot own = device->reserve(16).value();
      while (!stop) {
        EXPECT_TRUE(store(*device, own, 16, contents.data()).has_value());
        ++stores;
      }
      device->release(own, 16);
    });
  }
  while (stores < 20) {
    ASSERT_TRUE(load(*device, slot, 16, back.data()).has_value());
    ++loads;
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_GT(loads, stores) << "level 19 takes far longer than a load: loads waited for stores";
}

TEST_F(CompressedDeviceTest, DeathByReleasingTwice) {
  const DevicePtr device = make(memory_, {});
  const DeviceSlot slot = device->reserve(2).value();
  device->release(slot, 1);
  EXPECT_DEATH(device->release(slot, 1), "not reserved");
  device->release(slot + 1, 1);
}

}  // namespace
}  // namespace whimbrel::testing
