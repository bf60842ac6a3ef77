#include "devices/composite/chain_device.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "tests/device_kit/device_suite.h"
#include "tests/device_kit/faulty_device.h"

namespace whimbrel::testing {
namespace {

// A directory of this test process's own, gone at its end.
const std::string& scratch() {
  static const struct Directory {
    Directory() {
      if (::mkdtemp(path.data()) == nullptr) std::abort();
    }
    ~Directory() {
      if (::getpid() == owner) std::filesystem::remove_all(path);
    }
    std::string path = "/var/tmp/whimbrel-chain-XXXXXX";
    pid_t owner = ::getpid();
  } directory;
  return directory.path;
}

DevicePtr make(MemorySource& memory, const std::string& spec) {
  SpecMessage message;
  Result<DeviceHandle> made = make_device(spec, {.memory = memory, .kinds = built_in_devices()}, message);
  EXPECT_TRUE(made.has_value()) << message.c_str();
  if (!made) return {};
  auto* handle = new DeviceHandle(std::move(*made));
  return DevicePtr(handle->get(), [handle](Device*) { delete handle; });
}

// The first tier has so little room that everything moves on soon.
DeviceUnderTest chain(std::string name, std::string first, std::string last, bool limited, bool on_disk) {
  return {.name = std::move(name),
          .make =
              [=](MemorySource& memory, std::uint64_t capacity) {
                const std::uint64_t quarter = capacity != 0 ? capacity / 4 : 1 << 20;
                std::string spec = "chain:" + first + "@" + std::to_string(quarter) + "," + last;
                if (on_disk) spec += ":" + scratch();
                if (limited && capacity != 0) spec += "@" + std::to_string(capacity - quarter);
                return make(memory, spec);
              },
          .has_capacity = limited,
          .leftovers =
              [] {
                std::string names;
                for (const auto& entry : std::filesystem::directory_iterator(scratch()))
                  names += entry.path().string() + " ";
                return names;
              }};
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
INSTANTIATE_TEST_SUITE_P(Chain, DeviceSuite,
                         ::testing::Values(chain("lz4_zstd", "lz4", "zstd", true, false),
                                           chain("ram_file", "ram", "file", true, true)),
                         device_name);
#else
INSTANTIATE_TEST_SUITE_P(Chain, DeviceSuite,
                         ::testing::Values(chain("lz4_zstd", "lz4", "zstd", true, false),
                                           chain("zstd_file", "zstd", "file", true, true),
                                           chain("ram_zstd_file", "ram@1M,zstd", "file", false, true),
                                           chain("lz4_zstd_ram", "lz4@1M,zstd:unit=64K", "ram", false, false)),
                         device_name);
#endif

constexpr std::uint32_t kUnit = 16;

// Chains of devices that can be made to fail.
class Chain : public ::testing::Test {
 protected:
  ~Chain() override {
    if (chain_ != nullptr) destroy_from(memory_, chain_);
    EXPECT_EQ(memory_.bytes_in_use(), 0u);
  }
  void make_chain(const std::vector<const char*>& specs) {
    std::vector<DeviceHandle> handles;
    for (std::size_t i = 0; i < specs.size(); ++i) handles.push_back(make_faulty(memory_, specs[i], &tier_[i]));
    chain_ = ChainDevice::create(memory_, handles, {.max_pages = 1 << 20}).value();
    ASSERT_EQ(chain_->traits().unit_pages, kUnit);
  }
  Result<DeviceSlot> put(std::uint64_t seed, Contents contents = Contents::kRandom) {
    Pages pages(kUnit);
    fill_pages(contents, seed, pages.bytes());
    const Result<DeviceSlot> slot = chain_->reserve(kUnit);
    if (!slot) return slot;
    const Result<void> stored = store(*chain_, *slot, kUnit, pages.data());
    if (stored) return slot;
    chain_->release(*slot, kUnit);
    return std::unexpected(stored.error());
  }
  bool holds(DeviceSlot slot, std::uint64_t seed, Contents contents = Contents::kRandom) {
    Pages pages(kUnit), back(kUnit);
    fill_pages(contents, seed, pages.bytes());
    return load(*chain_, slot, kUnit, back.data()).has_value() &&
           std::memcmp(back.data(), pages.data(), kUnit * kPageBytes) == 0;
  }
  std::uint64_t in_tiers() {
    std::uint64_t sum = 0;
    for (std::uint32_t i = 0; i < chain_->tiers(); ++i) sum += chain_->tier(i).stats().stored_pages;
    return sum;
  }

  TestMemory memory_;
  FaultyDevice* tier_[kMostParts] = {};
  ChainDevice* chain_ = nullptr;
};

TEST_F(Chain, WhatCameFirstMovesOnFirst) {
  make_chain({"ram:capacity=1M", "ram:capacity=1M", "ram"});
  std::vector<DeviceSlot> slots;
  for (std::uint64_t i = 0; i < 64; ++i) slots.push_back(put(i).value());
  std::uint32_t tier = 2;
  std::uint64_t in_tier[3] = {};
  for (std::uint64_t i = 0; i < slots.size(); ++i) {
    std::uint64_t before[3];
    for (int t = 0; t < 3; ++t) before[t] = tier_[t]->loads;
    EXPECT_TRUE(holds(slots[i], i));
    for (std::uint32_t t = 0; t < 3; ++t) {
      if (tier_[t]->loads == before[t]) continue;
      EXPECT_EQ(tier_[t]->loads - before[t], kUnit) << "in more than one tier";
      EXPECT_LE(t, tier) << "unit " << i << " lies below an older one";
      tier = t;
      ++in_tier[t];
    }
  }
  for (const std::uint64_t units : in_tier) EXPECT_GT(units, 4u);
  for (const DeviceSlot slot : slots) chain_->release(slot, kUnit);
  EXPECT_EQ(in_tiers(), 0u);
}

TEST_F(Chain, WhatDoesNotShrinkGoesWhereItIsKeptAsItIs) {
  const std::string file = "file:" + scratch();
  make_chain({"lz4:capacity=16M", "zstd:capacity=16M", file.c_str()});
  const DeviceSlot noise = put(1).value();
  EXPECT_EQ(tier_[2]->stats().stored_pages, kUnit);
  const DeviceSlot text = put(2, Contents::kText).value();
  EXPECT_EQ(tier_[0]->stats().stored_pages, kUnit);
  EXPECT_EQ(tier_[1]->stats().stored_pages, 0u);
  EXPECT_EQ(tier_[1]->stores, 0u) << "not tried where it would not shrink either";
  EXPECT_TRUE(holds(noise, 1));
  EXPECT_TRUE(holds(text, 2, Contents::kText));
  // Each page by itself.
  Pages mixed(kUnit), back(kUnit);
  fill_pages(Contents::kText, 3, mixed.bytes());
  fill_pages(Contents::kRandom, 4, {mixed.page(5), 2 * kPageBytes});
  const DeviceSlot slot = chain_->reserve(kUnit).value();
  ASSERT_TRUE(store(*chain_, slot, kUnit, mixed.data()).has_value());
  EXPECT_EQ(tier_[0]->stats().stored_pages, 2 * kUnit - 2);
  EXPECT_EQ(tier_[2]->stats().stored_pages, kUnit + 2);
  ASSERT_TRUE(load(*chain_, slot, kUnit, back.data()).has_value());
  EXPECT_EQ(std::memcmp(back.data(), mixed.data(), kUnit * kPageBytes), 0);
}

TEST_F(Chain, FullEverywhereIsAnErrorAndLosesNothing) {
  make_chain({"ram:capacity=1M", "ram:capacity=2M"});
  std::vector<DeviceSlot> slots;
  for (std::uint64_t i = 0;; ++i) {
    const Result<DeviceSlot> slot = put(i);
    if (!slot) {
      EXPECT_EQ(slot.error().code, Errc::kDeviceFull);
      break;
    }
    slots.push_back(*slot);
  }
  EXPECT_EQ(slots.size(), 48u) << "3 MiB in units of 64 KiB";
  for (std::uint64_t i = 0; i < slots.size(); ++i) EXPECT_TRUE(holds(slots[i], i));
  EXPECT_EQ(in_tiers(), 48u * kUnit);
  chain_->release(slots[7], kUnit);
  EXPECT_TRUE(put(100).has_value());
}

TEST_F(Chain, ATierThatFailsIsPassedOver) {
  make_chain({"ram:capacity=1M", "ram", "ram"});
  tier_[1]->fail_stores = true;
  std::vector<DeviceSlot> slots;
  for (std::uint64_t i = 0; i < 64; ++i) slots.push_back(put(i).value());
  EXPECT_EQ(tier_[1]->stats().stored_pages, 0u);
  EXPECT_GT(tier_[2]->stats().stored_pages, 0u);
  for (std::uint64_t i = 0; i < slots.size(); ++i) EXPECT_TRUE(holds(slots[i], i));
  EXPECT_STREQ(chain_->last_error().where, "made to fail");
  // It is asked again when it has recovered.
  tier_[1]->fail_stores = false;
  for (std::uint64_t i = 64; i < 400; ++i) {
    slots.push_back(put(i).value());
    chain_->release(slots[i - 64], kUnit);
  }
  EXPECT_GT(tier_[1]->stats().stored_pages, 0u);
  for (std::uint64_t i = 336; i < slots.size(); ++i) EXPECT_TRUE(holds(slots[i], i));
}

TEST_F(Chain, ATierThatGivesNothingBackCostsItsOwnPagesOnly) {
  make_chain({"ram:capacity=1M", "ram:capacity=1M", "ram"});
  std::vector<DeviceSlot> slots;
  for (std::uint64_t i = 0; i < 64; ++i) slots.push_back(put(i).value());
  const std::uint64_t there = tier_[1]->stats().stored_pages / kUnit;
  ASSERT_GT(there, 0u);
  tier_[1]->fail_loads = true;
  std::uint64_t lost = 0;
  for (std::uint64_t i = 0; i < slots.size(); ++i) {
    Pages back(kUnit);
    const Result<void> result = load(*chain_, slots[i], kUnit, back.data());
    EXPECT_TRUE(result.has_value() || result.error().code == Errc::kDeviceIo);
    lost += result ? 0 : 1;
  }
  EXPECT_EQ(lost, there);
  // Ageing cannot read them either: they stay, and new pages find a place all the same.
  for (std::uint64_t i = 64; i < 128; ++i) slots.push_back(put(i).value());
  tier_[1]->fail_loads = false;
  for (std::uint64_t i = 0; i < slots.size(); ++i) EXPECT_TRUE(holds(slots[i], i)) << i;
}

TEST_F(Chain, APlaceIsKeptForThoseWhoReadIt) {
  make_chain({"ram:capacity=1M", "ram"});
  const DeviceSlot old = put(0).value();
  tier_[0]->hold_loads = true;
  bool right = false;
  std::thread reader([&] { right = holds(old, 0); });
  ASSERT_TRUE(becomes_true([&] { return tier_[0]->held == 1; }));
  std::vector<DeviceSlot> slots;
  std::thread writer([&] {
    for (std::uint64_t i = 1; i < 32; ++i) slots.push_back(put(i).value());
  });
  // The writer makes room, which begins with reading the oldest pages.
  ASSERT_TRUE(becomes_true([&] { return tier_[0]->held == 2; }));
  tier_[0]->hold_loads = false;
  reader.join();
  writer.join();
  EXPECT_TRUE(right);
  EXPECT_TRUE(holds(old, 0));
  for (std::uint64_t i = 1; i < 32; ++i) EXPECT_TRUE(holds(slots[i - 1], i));
  EXPECT_EQ(in_tiers(), 32u * kUnit);
}

TEST_F(Chain, PagesReleasedAndStoredAgainWhileTheyMove) {
  make_chain({"ram:capacity=1M", "ram"});
  std::vector<DeviceSlot> slots;
  for (std::uint64_t i = 0; i < 12; ++i) slots.push_back(put(i).value());
  tier_[1]->hold_stores = true;
  std::thread writer([&] {
    for (std::uint64_t i = 12; i < 24; ++i) slots.push_back(put(i).value());
  });
  ASSERT_TRUE(becomes_true([&] { return tier_[1]->held == 1; }));
  // The oldest units are on their way now.
  chain_->release(slots[0], kUnit);
  chain_->release(slots[1] + 3, 5);
  Pages fresh(kUnit);
  fill_pages(Contents::kZero, 0, fresh.bytes());
  ASSERT_TRUE(holds(slots[2], 2)) << "loads go on";
  tier_[1]->hold_stores = false;
  writer.join();
  Pages expected(kUnit), back(kUnit);
  fill_pages(Contents::kRandom, 1, expected.bytes());
  for (std::uint32_t page = 0; page < kUnit; ++page) {
    if (page >= 3 && page < 8) continue;
    ASSERT_TRUE(load(*chain_, slots[1] + page, 1, back.data()).has_value());
    EXPECT_EQ(std::memcmp(back.data(), expected.page(page), kPageBytes), 0);
  }
  for (std::uint64_t i = 2; i < 24; ++i) EXPECT_TRUE(holds(slots[i], i));
  EXPECT_EQ(in_tiers(), 22u * kUnit + 11);
  EXPECT_EQ(chain_->stats().stored_pages, 22u * kUnit + 11);
}

TEST_F(Chain, StoredAgainWhileItMoves) {
  make_chain({"lz4:capacity=1M,unit=64K", "ram"});
  Pages fresh(kUnit);
  fill_pages(Contents::kText, 77, fresh.bytes());
  std::vector<DeviceSlot> slots;
  std::uint64_t i = 0;
  tier_[1]->hold_stores = true;
  std::thread writer([&] {
    for (; i < 80; ++i) slots.push_back(put(i, Contents::kHalf).value());
  });
  ASSERT_TRUE(becomes_true([&] { return tier_[1]->held == 1; }));
  // Zeros find room even in a full tier.
  fill_pages(Contents::kZero, 0, fresh.bytes());
  EXPECT_TRUE(store(*chain_, DeviceSlot{0}, kUnit, fresh.data()).has_value());
  EXPECT_TRUE(store(*chain_, DeviceSlot{0}, kUnit, fresh.data()).has_value()) << "and once more";
  chain_->release(DeviceSlot{5}, 1);
  tier_[1]->hold_stores = false;
  writer.join();
  Pages back(1);
  for (std::uint32_t page = 0; page < kUnit; ++page) {
    if (page == 5) continue;
    ASSERT_TRUE(load(*chain_, DeviceSlot{page}, 1, back.data()).has_value());
    EXPECT_EQ(std::memcmp(back.data(), fresh.page(page), kPageBytes), 0);
  }
  for (std::uint64_t k = 1; k < 80; ++k) EXPECT_TRUE(holds(slots[k], k, Contents::kHalf));
  EXPECT_EQ(in_tiers(), 80u * kUnit - 1);
  for (std::uint64_t k = 1; k < 80; ++k) chain_->release(slots[k], kUnit);
  chain_->release(DeviceSlot{0}, 5);
  chain_->release(DeviceSlot{6}, 10);
  EXPECT_EQ(in_tiers(), 0u);
}

TEST_F(Chain, UpkeepMakesRoomAheadOfNeed) {
  make_chain({"ram:capacity=2M", "ram"});
  tier_[1]->fail_stores = true;
  std::vector<DeviceSlot> slots;
  for (std::uint64_t i = 0; i < 32; ++i) slots.push_back(put(i).value());
  tier_[1]->fail_stores = false;
  for (int i = 0; i < 1000 && tier_[1]->stats().stored_pages == 0; ++i) {
    (void)chain_->maintain(1 << 20);
    (void)put(0);  // one tier that failed is left alone for some groups
  }
  EXPECT_GT(tier_[1]->stats().stored_pages, 0u);
  for (std::uint64_t i = 0; i < 32; ++i) EXPECT_TRUE(holds(slots[i], i));
}

// --- specifications -------------------------------------------------------------------------------------------------

std::string problem(const std::string& spec) {
  SpecMessage message;
  return check_device_spec(spec, built_in_devices(), message) ? "" : message.c_str();
}

TEST(ChainSpec, GoodOnes) {
  EXPECT_EQ(problem("chain:lz4@256M,zstd@1G,file:/var/tmp@20G"), "");
  EXPECT_EQ(problem("chain:lz4:unit=16K@256M,zstd:level=3,unit=64K@1G,file:/var/tmp,direct=off"), "");
  EXPECT_EQ(problem("chain:lz4:capacity=256M,file:/var/tmp,size=1G"), "");
  EXPECT_EQ(problem("chain:[chain:lz4@1M,zstd@2M],file:/var/tmp@1G"), "");
}

TEST(ChainSpec, BadOnesSayWhatWouldBeRight) {
  const auto expect = [](const char* spec, const char* words) {
    EXPECT_NE(problem(spec).find(words), std::string::npos) << spec << ": " << problem(spec);
  };
  expect("chain", "needs two devices");
  expect("chain:lz4@1M", "needs two devices");
  expect("chain:lzo@1M,zstd", "no device 'lzo'");
  expect("chain:lz4,zstd", "write lz4@256M");
  expect("chain:lz4@1M@2M,zstd", "two limits");
  expect("chain:lz4:capacity=1M@2M,zstd", "given twice");
  expect("chain:lz4@12,zstd", "capacity is '12'");
  expect("chain:lz4@1M,zstd:level=77", "level is '77'");
  expect("chain:[chain:lz4@1M,zstd@2M]@3M,file:/var/tmp", "limit the devices");
  expect("chain:[chain:lz4@1M,zstd,file:/var/tmp", "no ]");
  expect("chain:lz4@1M,lz4@1M,lz4@1M,lz4@1M,lz4@1M,lz4@1M,lz4", "at most six");
  expect("chain:lz4@1M,file:/no/such/place/at/all", "no such");
}

}  // namespace
}  // namespace whimbrel::testing
