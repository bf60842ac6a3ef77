// The device against a model, by one thread and by several at a time.
#include <atomic>
#include <cstring>
#include <shared_mutex>
#include <thread>

#include "tests/device_kit/device_suite.h"

namespace whimbrel::testing {
namespace {

// What the device should hold. Each unit has a lock, so that loads of one unit meet each other but no store.
class Model {
 public:
  Model(Device& device, std::size_t units) : device_(device), unit_(device.traits().unit_pages), units_(units) {}

  // One random operation; false with `what` set when the device disagrees with the model.
  bool step(Random& random, std::string& what) {
    Unit& unit = units_[random.below(units_.size())];
    if (random.below(100) < 55) {
      const std::shared_lock lock(unit.mutex);
      return unit.live == 0 || check(unit, random, what);
    }
    const std::unique_lock lock(unit.mutex);
    if (unit.live == 0) return fill(unit, random, what);
    if (random.below(100) < 15) return refill(unit, random, what);
    drop(unit, random);
    return true;
  }

  bool check_all(std::string& what) {
    Random random(1);
    for (Unit& unit : units_) {
      if (unit.live != 0 && !check(unit, random, what)) return false;
    }
    return true;
  }

  void drop_all() {
    for (Unit& unit : units_) {
      for (std::uint32_t i = 0; i < unit.pages; ++i) {
        if (unit.live & (1u << i)) device_.release(unit.slot + i, 1);
      }
      unit.live = 0;
    }
  }

  [[nodiscard]] std::uint64_t live_pages() const {
    std::uint64_t sum = 0;
    for (const Unit& unit : units_) sum += static_cast<std::uint64_t>(std::popcount(unit.live));
    return sum;
  }

 private:
  struct Unit {
    std::shared_mutex mutex;
    DeviceSlot slot{};
    std::uint32_t pages = 0;
    std::uint32_t live = 0;  // a bit per page that was not released
    std::uint64_t seed = 0;
  };

  bool fill(Unit& unit, Random& random, std::string& what) {
    unit.pages = static_cast<std::uint32_t>(1 + random.below(unit_ < 16 ? unit_ : 16));
    const Result<DeviceSlot> slot = device_.reserve(unit.pages);
    if (!slot) return what = "reserve failed", false;
    unit.slot = *slot;
    unit.live = (1u << unit.pages) - 1;
    return refill(unit, random, what);
  }

  bool refill(Unit& unit, Random& random, std::string& what) {
    if (unit.live != (1u << unit.pages) - 1) return true;  // stores cover whole reservations
    unit.seed = random.next();
    Pages contents(unit.pages);
    fill_mixed(unit.seed, contents.bytes());
    if (!store(device_, unit.slot, unit.pages, contents.data())) return what = "store failed", false;
    return true;
  }

  void drop(Unit& unit, Random& random) {
    if (random.below(2) == 0) {  // all that is left, in one call where it is in one piece
      const auto first = static_cast<std::uint32_t>(std::countr_zero(unit.live));
      const auto run = static_cast<std::uint32_t>(std::countr_one(unit.live >> first));
      device_.release(unit.slot + first, run);
      unit.live &= ~(((1u << run) - 1) << first);
    } else {
      const auto page = static_cast<std::uint32_t>(std::countr_zero(unit.live));
      device_.release(unit.slot + page, 1);
      unit.live &= unit.live - 1;
    }
  }

  bool check(Unit& unit, Random& random, std::string& what) {
    Pages contents(unit.pages), back(unit.pages);
    fill_mixed(unit.seed, contents.bytes());
    auto first = static_cast<std::uint32_t>(random.below(unit.pages));
    while (!(unit.live & (1u << first))) first = (first + 1) % unit.pages;
    const auto run = static_cast<std::uint32_t>(std::countr_one(unit.live >> first));
    const auto count = static_cast<std::uint32_t>(1 + random.below(run));
    if (random.below(4) == 0) {
      const Result<bool> same = device_.verify(unit.slot + first, count, contents.page(first));
      if (same ? !*same : same.error().code != Errc::kNotSupported) return what = "verify failed", false;
    }
    if (!load(device_, unit.slot + first, count, back.data())) return what = "load failed", false;
    if (std::memcmp(back.data(), contents.page(first), count * kPageBytes) != 0) return what = "wrong contents", false;
    return true;
  }

  Device& device_;
  std::uint32_t unit_;
  std::vector<Unit> units_;
};

TEST_P(DeviceSuite, RandomOperationsAgreeWithAModel) {
  Random random(run_seed());
  Model model(*device_, 200);
  std::string what;
  for (int i = 0; i < 4000; ++i) {
    ASSERT_TRUE(model.step(random, what)) << what << " at operation " << i;
    if (i % 16 == 0) device_->maintain(16 << 10);
    if (i % 500 == 0) {
      ASSERT_EQ(device_->stats().stored_pages, model.live_pages());
    }
  }
  EXPECT_TRUE(model.check_all(what)) << what;
  model.drop_all();
  EXPECT_EQ(device_->stats().stored_pages, 0u);
}

TEST_P(DeviceSuite, FourThreadsAgreeWithAModel) {
  const std::uint64_t seed = run_seed();
  Model model(*device_, 64);
  std::atomic<bool> stop{false};
  std::atomic<int> failures{0};
  std::string first_failure;
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      Random random(seed + t);
      std::string what;
      for (int i = 0; i < 2000 && failures == 0; ++i) {
        if (!model.step(random, what) && failures++ == 0) first_failure = what;
      }
    });
  }
  std::thread upkeep([&] {
    while (!stop) {
      device_->maintain(64 << 10);
      EXPECT_LE(device_->stats().same_filled_pages, 64u * 16u);
      std::this_thread::yield();
    }
  });
  for (std::thread& thread : threads) thread.join();
  stop = true;
  upkeep.join();
  ASSERT_EQ(failures, 0) << first_failure;
  std::string what;
  EXPECT_TRUE(model.check_all(what)) << what;
  EXPECT_EQ(device_->stats().stored_pages, model.live_pages());
  model.drop_all();
  EXPECT_EQ(device_->stats().stored_pages, 0u);
}

}  // namespace
}  // namespace whimbrel::testing
