#include "tests/device_kit/device_suite.h"

#include <algorithm>
#include <cstring>

namespace whimbrel::testing {

Result<void> store(Device& device, DeviceSlot first, std::uint32_t pages, const std::byte* memory) {
  DeviceOp op{.kind = DeviceOp::Kind::kStore, .first = first, .pages = pages, .memory = const_cast<std::byte*>(memory)};
  DeviceBatch batch{.ops = {&op, 1}};
  device.submit(batch);
  device.wait(batch);
  return op.result;
}

Result<void> load(Device& device, DeviceSlot first, std::uint32_t pages, std::byte* memory) {
  DeviceOp op{.kind = DeviceOp::Kind::kLoad, .first = first, .pages = pages, .memory = memory};
  DeviceBatch batch{.ops = {&op, 1}};
  device.submit(batch);
  device.wait(batch);
  return op.result;
}

std::uint64_t scaled(std::uint64_t units, std::uint32_t unit_pages) {
  return unit_pages <= 16 ? units : std::max<std::uint64_t>(4, units * 16 / unit_pages);
}

void DeviceSuite::SetUp() { remake(0); }

void DeviceSuite::TearDown() {
  device_.reset();
  EXPECT_EQ(memory_.bytes_in_use(), 0u) << "the device did not give all its memory back";
}

void DeviceSuite::remake(std::uint64_t capacity) {
  device_.reset();
  device_ = GetParam().make(memory_, capacity);
  ASSERT_NE(device_.get(), nullptr);
  unit_ = device_->traits().unit_pages;
}

DeviceSlot DeviceSuite::put(Pages& pages) {
  const auto count = static_cast<std::uint32_t>(pages.count());
  const Result<DeviceSlot> slot = device_->reserve(count);
  EXPECT_TRUE(slot.has_value());
  if (!slot) return DeviceSlot{};
  EXPECT_TRUE(store(*device_, *slot, count, pages.data()).has_value());
  return *slot;
}

void DeviceSuite::expect_same(DeviceSlot first, Pages& pages) {
  Pages back(pages.count());
  const Result<void> result = load(*device_, first, static_cast<std::uint32_t>(pages.count()), back.data());
  ASSERT_TRUE(result.has_value()) << errc_name(result.error().code) << ' ' << result.error().where;
  EXPECT_EQ(std::memcmp(back.data(), pages.data(), pages.count() * kPageBytes), 0);
}

// --- one thread -----------------------------------------------------------------------------------------------------

TEST_P(DeviceSuite, TraitsMakeSense) {
  const DeviceTraits traits = device_->traits();
  EXPECT_STRNE(traits.name, "");
  EXPECT_GE(traits.unit_pages, 1u);
  EXPECT_LE(traits.unit_pages, 512u);
  EXPECT_GE(traits.slots, traits.unit_pages);
}

TEST_P(DeviceSuite, EveryKindOfContentsComesBack) {
  for (unsigned kind = 0; kind < static_cast<unsigned>(Contents::kCount); ++kind) {
    SCOPED_TRACE(contents_name(static_cast<Contents>(kind)));
    for (const std::uint32_t pages : {1u, unit_ > 1 ? unit_ - 1 : 1u, unit_}) {
      Pages contents(pages);
      fill_pages(static_cast<Contents>(kind), kind + pages, contents.bytes());
      const DeviceSlot slot = put(contents);
      expect_same(slot, contents);
      expect_same(slot, contents);  // as often as one likes
      device_->release(slot, pages);
    }
  }
}

TEST_P(DeviceSuite, PagesOfDifferentKindsInOneUnit) {
  for (std::uint64_t seed = 0; seed < scaled(200, unit_); ++seed) {
    SCOPED_TRACE(seed);
    Pages contents(1 + seed % unit_);
    fill_mixed(seed, contents.bytes());
    const DeviceSlot slot = put(contents);
    expect_same(slot, contents);
    device_->release(slot, static_cast<std::uint32_t>(contents.count()));
  }
}

TEST_P(DeviceSuite, AnyPartOfAUnitCanBeLoaded) {
  const std::uint32_t pages = unit_ < 16 ? unit_ : 16;
  Pages contents(pages);
  fill_mixed(7, contents.bytes());
  const DeviceSlot slot = put(contents);
  for (std::uint32_t first = 0; first < pages; ++first) {
    for (std::uint32_t count = 1; first + count <= pages; ++count) {
      Pages back(count + 1);
      std::memset(back.page(count), 0x5a, kPageBytes);
      ASSERT_TRUE(load(*device_, slot + first, count, back.data()).has_value());
      ASSERT_EQ(std::memcmp(back.data(), contents.page(first), count * kPageBytes), 0) << first << "+" << count;
      for (std::size_t i = 0; i < kPageBytes; ++i) ASSERT_EQ(back.page(count)[i], std::byte{0x5a}) << "wrote beyond";
    }
  }
  device_->release(slot, pages);
}

TEST_P(DeviceSuite, ReleaseInAnyOrderKeepsTheRest) {
  const std::uint32_t pages = unit_ < 16 ? unit_ : 16;
  Random random(11);
  for (int round = 0; round < 20; ++round) {
    Pages contents(pages);
    fill_mixed(random.next(), contents.bytes());
    const DeviceSlot slot = put(contents);
    std::vector<std::uint32_t> order(pages);
    for (std::uint32_t i = 0; i < pages; ++i) order[i] = i;
    for (std::uint32_t i = pages; i > 1; --i) std::swap(order[i - 1], order[random.below(i)]);
    for (std::uint32_t gone = 0; gone < pages; ++gone) {
      for (std::uint32_t i = gone; i < pages; ++i) {
        Pages back(1);
        ASSERT_TRUE(load(*device_, slot + order[i], 1, back.data()).has_value());
        ASSERT_EQ(std::memcmp(back.data(), contents.page(order[i]), kPageBytes), 0);
      }
      device_->release(slot + order[gone], 1);
    }
  }
  EXPECT_EQ(device_->stats().stored_pages, 0u);
}

TEST_P(DeviceSuite, NothingIsThereBeforeTheStore) {
  const Result<DeviceSlot> slot = device_->reserve(unit_);
  ASSERT_TRUE(slot.has_value());
  Pages back(unit_);
  const Result<void> result = load(*device_, *slot, unit_, back.data());
  ASSERT_FALSE(result.has_value());
  EXPECT_EQ(result.error().code, Errc::kInvalid);
  device_->release(*slot, unit_);
}

TEST_P(DeviceSuite, RefusesWhatDoesNotFitAReservation) {
  EXPECT_FALSE(device_->reserve(0).has_value());
  EXPECT_FALSE(device_->reserve(unit_ + 1).has_value());
  Pages contents(unit_ + 1);
  const Result<DeviceSlot> slot = device_->reserve(unit_);
  ASSERT_TRUE(slot.has_value());
  EXPECT_EQ(store(*device_, *slot, unit_ + 1, contents.data()).error().code, Errc::kInvalid);
  EXPECT_EQ(store(*device_, *slot, 0, contents.data()).error().code, Errc::kInvalid);
  if (unit_ > 1) {
    EXPECT_EQ(store(*device_, *slot, unit_ - 1, contents.data()).error().code, Errc::kInvalid);
    EXPECT_EQ(store(*device_, *slot + 1, unit_ - 1, contents.data()).error().code, Errc::kInvalid);
  }
  device_->release(*slot, unit_);
  EXPECT_EQ(store(*device_, *slot, unit_, contents.data()).error().code, Errc::kInvalid) << "stored into nothing";
  EXPECT_EQ(load(*device_, DeviceSlot{device_->traits().slots}, 1, contents.data()).error().code, Errc::kInvalid);
  EXPECT_EQ(device_->stats().stored_pages, 0u);
}

TEST_P(DeviceSuite, StoringAgainReplaces) {
  Pages old(unit_), fresh(unit_);
  fill_mixed(1, old.bytes());
  fill_mixed(2, fresh.bytes());
  const DeviceSlot slot = put(old);
  ASSERT_TRUE(store(*device_, slot, unit_, fresh.data()).has_value());
  expect_same(slot, fresh);
  EXPECT_EQ(device_->stats().stored_pages, unit_);
  device_->release(slot, unit_);
}

TEST_P(DeviceSuite, BatchesMixStoresAndLoads) {
  const std::size_t units = scaled(32, unit_);
  Pages contents(units * unit_), back(units * unit_);
  fill_mixed(3, contents.bytes());
  std::vector<DeviceSlot> slots;
  std::vector<DeviceOp> ops;
  const auto at = [&](Pages& pages, std::size_t i) { return pages.page(i * unit_); };
  for (std::size_t i = 0; i < units; ++i) {
    slots.push_back(device_->reserve(unit_).value());
    // The first half is there already and is loaded by the same batch that stores the second half.
    if (i < units / 2) {
      ASSERT_TRUE(store(*device_, slots[i], unit_, at(contents, i)).has_value());
      ops.push_back({.kind = DeviceOp::Kind::kLoad, .first = slots[i], .pages = unit_, .memory = at(back, i)});
    } else {
      ops.push_back({.kind = DeviceOp::Kind::kStore, .first = slots[i], .pages = unit_, .memory = at(contents, i)});
    }
  }
  DeviceBatch batch{.ops = ops};
  device_->submit(batch);
  device_->wait(batch);
  for (const DeviceOp& op : ops) EXPECT_TRUE(op.result.has_value());
  for (std::size_t i = units / 2; i < units; ++i) {
    ASSERT_TRUE(load(*device_, slots[i], unit_, at(back, i)).has_value());
  }
  EXPECT_EQ(std::memcmp(back.data(), contents.data(), contents.count() * kPageBytes), 0);
  for (const DeviceSlot slot : slots) device_->release(slot, unit_);
}

TEST_P(DeviceSuite, OneBadOperationDoesNotSpoilABatch) {
  Pages contents(unit_), back(unit_);
  fill_mixed(4, contents.bytes());
  const DeviceSlot good = put(contents);
  const DeviceSlot empty = device_->reserve(unit_).value();
  DeviceOp ops[] = {{.kind = DeviceOp::Kind::kLoad, .first = empty, .pages = unit_, .memory = back.data()},
                    {.kind = DeviceOp::Kind::kLoad, .first = good, .pages = unit_, .memory = back.data()}};
  DeviceBatch batch{.ops = ops};
  device_->submit(batch);
  device_->wait(batch);
  EXPECT_FALSE(ops[0].result.has_value());
  EXPECT_TRUE(ops[1].result.has_value());
  EXPECT_EQ(std::memcmp(back.data(), contents.data(), unit_ * kPageBytes), 0);
  device_->release(good, unit_);
  device_->release(empty, unit_);
}

TEST_P(DeviceSuite, VerifyTellsEqualFromChanged) {
  if (!GetParam().has_verify) GTEST_SKIP() << "this device does not compare";
  for (std::uint64_t seed = 0; seed < scaled(30, unit_); ++seed) {
    Pages contents(unit_);
    fill_mixed(seed, contents.bytes());
    const DeviceSlot slot = put(contents);
    EXPECT_TRUE(device_->verify(slot, unit_, contents.data()).value());
    EXPECT_TRUE(device_->verify(slot + (unit_ - 1), 1, contents.page(unit_ - 1)).value());
    const std::size_t at = Random(seed).below(unit_ * kPageBytes);
    contents.data()[at] ^= std::byte{1};
    EXPECT_FALSE(device_->verify(slot, unit_, contents.data()).value());
    EXPECT_FALSE(device_->verify(slot + at / kPageBytes, 1, contents.page(at / kPageBytes)).value());
    contents.data()[at] ^= std::byte{1};
    expect_same(slot, contents);
    device_->release(slot, unit_);
  }
  const DeviceSlot empty = device_->reserve(1).value();
  Pages page(1);
  EXPECT_FALSE(device_->verify(empty, 1, page.data()).has_value());
  device_->release(empty, 1);
}

TEST_P(DeviceSuite, StatsAddUp) {
  Pages zero(unit_), noise(unit_);
  fill_pages(Contents::kZero, 0, zero.bytes());
  fill_pages(Contents::kRandom, 5, noise.bytes());
  const std::uint64_t held = device_->stats().held_bytes;
  const DeviceSlot a = put(zero);
  if (GetParam().keeps_fills_free) {
    EXPECT_EQ(device_->stats().same_filled_pages, unit_);
    EXPECT_EQ(device_->stats().compressed_bytes, 0u);
    EXPECT_LE(device_->stats().held_bytes, held + (128u << 10)) << "more than a table for a page of zeros";
  }
  const DeviceSlot b = put(noise);
  DeviceStats stats = device_->stats();
  EXPECT_EQ(stats.stored_pages, 2 * unit_);
  EXPECT_EQ(stats.stores, 2 * unit_);
  EXPECT_GE(stats.raw_pages, unit_);
  EXPECT_GE(stats.compressed_bytes, unit_ * kPageBytes);
  EXPECT_GE(stats.held_bytes, stats.compressed_bytes);
  EXPECT_EQ(stats.errors, 0u);
  expect_same(a, zero);
  device_->release(b + (unit_ - 1), 1);
  device_->release(a, unit_);
  stats = device_->stats();
  EXPECT_EQ(stats.stored_pages, unit_ - 1);
  EXPECT_EQ(stats.same_filled_pages, 0u);
  EXPECT_EQ(stats.loads, unit_);
  if (unit_ > 1) device_->release(b, unit_ - 1);
  EXPECT_EQ(device_->stats().stored_pages, 0u);
  EXPECT_EQ(device_->stats().raw_pages, 0u);
  EXPECT_EQ(device_->stats().compressed_bytes, 0u);
}

// --- limits ---------------------------------------------------------------------------------------------------------

// Stores incompressible units until the device is full; then everything stored must still be there, and room that is
// given back must be usable again.
TEST_P(DeviceSuite, FullIsAnErrorAndLosesNothing) {
  if (!GetParam().has_capacity) GTEST_SKIP() << "this device has no limit";
  constexpr std::uint64_t kCapacity = 8u << 20;
  remake(kCapacity);
  EXPECT_EQ(device_->stats().capacity_bytes, kCapacity);
  std::vector<DeviceSlot> slots;
  Pages contents(unit_);
  DeviceSlot failed{};
  for (std::uint64_t i = 0;; ++i) {
    ASSERT_LT(i * unit_ * kPageBytes, 2 * kCapacity) << "the limit was never reached";
    failed = device_->reserve(unit_).value();
    fill_pages(Contents::kRandom, i, contents.bytes());
    const Result<void> result = store(*device_, failed, unit_, contents.data());
    EXPECT_LE(device_->stats().held_bytes, kCapacity);
    if (!result) {
      EXPECT_EQ(result.error().code, Errc::kDeviceFull);
      break;
    }
    slots.push_back(failed);
  }
  EXPECT_GT(slots.size() * unit_ * kPageBytes, kCapacity / 2) << "full far too early";
  Pages back(unit_);
  EXPECT_FALSE(load(*device_, failed, unit_, back.data()).has_value()) << "the failed store left contents";
  for (std::size_t i = 0; i < slots.size(); ++i) {
    fill_pages(Contents::kRandom, i, contents.bytes());
    expect_same(slots[i], contents);
  }
  device_->release(slots.back(), unit_);
  slots.pop_back();
  EXPECT_TRUE(store(*device_, failed, unit_, contents.data()).has_value());
  expect_same(failed, contents);
  slots.push_back(failed);
  for (const DeviceSlot slot : slots) device_->release(slot, unit_);
  EXPECT_EQ(device_->stats().stored_pages, 0u);
}

TEST_P(DeviceSuite, MemoryUsedUpIsAnErrorAndLosesNothing) {
  if (!device_->traits().in_process_memory) GTEST_SKIP() << "this device keeps its contents elsewhere";
  std::vector<DeviceSlot> slots;
  Pages contents(unit_);
  memory_.set_limit(memory_.bytes_in_use() + (6u << 20));
  DeviceSlot failed{};
  for (std::uint64_t i = 0;; ++i) {
    ASSERT_LT(i * unit_ * kPageBytes, 16u << 20);
    const Result<DeviceSlot> slot = device_->reserve(unit_);
    if (!slot) {
      EXPECT_EQ(slot.error().code, Errc::kNoMemory);
      break;
    }
    failed = *slot;
    fill_pages(Contents::kRandom, i, contents.bytes());
    const Result<void> result = store(*device_, failed, unit_, contents.data());
    if (!result) {
      EXPECT_EQ(result.error().code, Errc::kNoMemory);
      device_->release(failed, unit_);
      break;
    }
    slots.push_back(failed);
  }
  ASSERT_FALSE(slots.empty());
  for (std::size_t i = 0; i < slots.size(); ++i) {
    fill_pages(Contents::kRandom, i, contents.bytes());
    expect_same(slots[i], contents);
  }
  memory_.set_limit(std::numeric_limits<std::size_t>::max());
  slots.push_back(put(contents));
  for (const DeviceSlot slot : slots) device_->release(slot, unit_);
}

}  // namespace whimbrel::testing
