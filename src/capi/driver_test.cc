// The C++ layer for drivers: its allocator against a model, and whole drivers on the real kernel.
#include "whimbrel/driver.hpp"

#include <gtest/gtest.h>

#include <random>
#include <set>
#include <thread>

#include "capi/test_driver.h"

namespace whimbrel {
namespace {

using namespace std::chrono_literals;
using capi::Memory;

// ---- DeviceMemory ------------------------------------------------------------------------------------------------------

TEST(DeviceMemory, WholeUnitsFirstSinglePagesFromOneOfThem) {
  DeviceMemory memory(3 * HPAGE_PMD_NR + 100);
  EXPECT_EQ(memory.pages(), 3 * HPAGE_PMD_NR);  // the rest fills no unit
  const auto single = memory.take(0);
  ASSERT_TRUE(single);
  EXPECT_TRUE(memory.take(9) && memory.take(9));
  EXPECT_FALSE(memory.take(9));  // the third unit is broken
  std::set<std::uint64_t> singles{*single};
  while (const auto page = memory.take(0)) EXPECT_TRUE(singles.insert(*page).second);
  EXPECT_EQ(singles.size(), HPAGE_PMD_NR);
  EXPECT_EQ(memory.in_use(), 3 * HPAGE_PMD_NR);
  for (const std::uint64_t page : singles) memory.give(page, 0);
  EXPECT_TRUE(memory.take(9));  // all of it is back: a unit again
}

TEST(DeviceMemory, PiecesOfASplitUnitComeBackOneByOne) {
  DeviceMemory memory(HPAGE_PMD_NR);
  const auto unit = memory.take(9);
  ASSERT_TRUE(unit);
  for (std::uint64_t i = HPAGE_PMD_NR; i-- > 0;) {
    EXPECT_EQ(memory.in_use(), i + 1);
    memory.give(*unit + i, 0);
  }
  EXPECT_EQ(memory.take(9), unit);
  memory.close();
  memory.give(*unit, 9);
  EXPECT_FALSE(memory.take(9) || memory.take(0));
}

TEST(DeviceMemory, RandomUseAgainstASetOfPages) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    std::mt19937 random(seed);
    DeviceMemory memory(8 * HPAGE_PMD_NR);
    std::vector<std::pair<std::uint64_t, unsigned>> held;
    std::vector<bool> taken(8 * HPAGE_PMD_NR);
    for (int step = 0; step < 20'000; ++step) {
      const auto what = random() % 100;
      if (what < 50) {
        const unsigned order = random() % 40 == 0 ? 9 : 0;
        if (const auto page = memory.take(order)) {
          ASSERT_EQ(order == 0 ? 0 : *page % HPAGE_PMD_NR, 0u) << seed;
          for (std::uint64_t i = *page; i < *page + (1ul << order); ++i) {
            ASSERT_FALSE(taken[i]) << "seed " << seed << " step " << step;
            taken[i] = true;
          }
          held.emplace_back(*page, order);
        }
      } else if (!held.empty()) {
        const std::size_t i = random() % held.size();
        const auto [page, order] = held[i];
        held[i] = held.back();
        held.pop_back();
        if (order == 9 && what < 80) {  // split: its pieces are held from now on
          for (std::uint64_t k = 0; k < HPAGE_PMD_NR; ++k) held.emplace_back(page + k, 0);
          continue;
        }
        for (std::uint64_t k = page; k < page + (1ul << order); ++k) taken[k] = false;
        memory.give(page, order);
      }
      if (step % 64 != 0) continue;
      ASSERT_EQ(memory.in_use(), static_cast<std::uint64_t>(std::count(taken.begin(), taken.end(), true))) << seed;
    }
  }
}

// ---- Driver -------------------------------------------------------------------------------------------------------------

// An array, which can be told to fail.
class ArrayDevice {
 public:
  explicit ArrayDevice(std::uint64_t units) : bytes_(units * HPAGE_PMD_SIZE), pages_(units * HPAGE_PMD_NR) {}
  [[nodiscard]] std::uint64_t pages() const { return pages_; }
  bool store(std::uint64_t page, std::size_t count, const std::byte* from) {
    if (fail_units && count > 1) return false;
    if (fail_stores) return false;
    std::memcpy(bytes_.data() + page * PAGE_SIZE, from, count * PAGE_SIZE);
    return true;
  }
  bool load(std::uint64_t page, std::size_t count, std::byte* to) {
    if (fail_loads) return false;
    std::memcpy(to, bytes_.data() + page * PAGE_SIZE, count * PAGE_SIZE);
    return true;
  }
  std::atomic<bool> fail_units{false}, fail_stores{false}, fail_loads{false};

 private:
  std::vector<std::byte> bytes_;
  std::uint64_t pages_;
};
static_assert(PageDevice<ArrayDevice>);

class DriverTest : public ::testing::Test {
 protected:
  static constexpr DriverOptions kNoStay{.stay_home = 0ns};
  void SetUp() override {
    auto started = Space::start();
    ASSERT_TRUE(started) << whimbrel_error();
    space.emplace(std::move(*started));
  }
  std::unique_ptr<Driver<ArrayDevice>> make(DriverOptions options = kNoStay) {
    auto driver = Driver<ArrayDevice>::create(*space, device, options);
    EXPECT_TRUE(driver) << whimbrel_error();
    return std::move(*driver);
  }
  std::optional<Space> space;
  ArrayDevice device{8};
};

TEST_F(DriverTest, UnitsAndSinglePagesGoAndComeBack) {
  auto driver = make();
  Memory huge(space->mm(), 2 * HPAGE_PMD_SIZE, true), small(space->mm(), HPAGE_PMD_SIZE);
  huge.fill();
  small.fill();
  const auto first = driver->populate(huge.at(), huge.bytes());
  ASSERT_TRUE(first) << whimbrel_error();
  EXPECT_EQ(first->moved, 1024u);
  EXPECT_TRUE(first->complete());
  EXPECT_EQ(driver->populate(small.at(), small.bytes())->moved, 512u);
  EXPECT_EQ(driver->pages_in_use(), 1536u);
  EXPECT_EQ(huge.wrong(0, 1024), 0u);
  EXPECT_EQ(small.wrong(0, 512), 0u);
  EXPECT_EQ(driver->stats().faults, 2u + 512u / 16u);  // one for each unit, one for each window of 16 pages
  EXPECT_EQ(driver->stats().loaded, 1536u);
}

TEST_F(DriverTest, AUnitThatDoesNotFitGoesInSinglePages) {
  auto driver = make();
  Memory memory(space->mm(), HPAGE_PMD_SIZE, true);
  memory.fill();
  device.fail_units = true;
  EXPECT_EQ(driver->populate(memory.at(), memory.bytes())->moved, 512u);
  EXPECT_EQ(driver->stats().fallbacks, 1u);
  EXPECT_EQ(driver->stats().store_errors, 1u);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
}

TEST_F(DriverTest, AUnitComesHomeInSinglePagesWhenThereIsNoHugePage) {  // CF-11
  space.reset();
  whimbrel_options options{};
  options.struct_size = sizeof options;
  options.huge_bytes = HPAGE_PMD_SIZE;  // one unit in flight
  auto started = Space::start(&options);
  ASSERT_TRUE(started) << whimbrel_error();
  space.emplace(std::move(*started));
  auto driver = make();
  Memory memory(space->mm(), HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver->populate(memory.at(), memory.bytes())->moved, 512u);
  folio* taken = folio_alloc(GFP_HIGHUSER_MOVABLE, HPAGE_PMD_ORDER);
  ASSERT_NE(taken, nullptr);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
  EXPECT_EQ(driver->stats().fallbacks, 1u);
  EXPECT_EQ(driver->stats().faults, 1u);
  folio_put(taken);
}

TEST_F(DriverTest, FailedStoresLeavePagesWhereTheyAre) {
  auto driver = make();
  Memory memory(space->mm(), HPAGE_PMD_SIZE);
  memory.fill();
  device.fail_stores = true;
  const auto sent = driver->populate(memory.at(), memory.bytes());
  ASSERT_TRUE(sent);
  EXPECT_EQ(sent->moved, 0u);
  EXPECT_EQ(sent->stayed, 512u);
  EXPECT_EQ(driver->pages_in_use(), 0u);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
  EXPECT_EQ(driver->stats().faults, 0u);
}

TEST_F(DriverTest, AFullDeviceTakesWhatItCan) {  // PM-02
  auto driver = make();
  Memory memory(space->mm(), 10 * HPAGE_PMD_SIZE, true);
  memory.fill();
  const auto sent = driver->populate(memory.at(), memory.bytes());
  ASSERT_TRUE(sent);
  EXPECT_EQ(sent->moved, 8 * HPAGE_PMD_NR);
  EXPECT_EQ(sent->stayed, 2 * HPAGE_PMD_NR);
  EXPECT_EQ(memory.wrong(0, 10 * HPAGE_PMD_NR), 0u);
}

TEST_F(DriverTest, EvictionNeedsNoTouch) {  // DRV-08
  auto driver = make();
  Memory huge(space->mm(), HPAGE_PMD_SIZE, true), small(space->mm(), HPAGE_PMD_SIZE);
  huge.fill();
  small.fill();
  ASSERT_EQ(driver->populate(huge.at(), huge.bytes())->moved, 512u);
  ASSERT_EQ(driver->populate(small.at(), 100 * PAGE_SIZE)->moved, 100u);
  device.fail_loads = true;
  EXPECT_EQ(driver->evict(), -EBUSY);
  EXPECT_EQ(driver->pages_in_use(), 612u);
  EXPECT_EQ(driver->stats().load_errors, 3u * 101u);  // three attempts
  device.fail_loads = false;
  EXPECT_EQ(driver->evict(), 0);
  EXPECT_EQ(huge.wrong(0, 512) + small.wrong(0, 512), 0u);
  EXPECT_EQ(driver->stats().faults, 0u);
}

TEST_F(DriverTest, WhatCameHomeIsLeftAloneForAWhile) {  // PM-05
  auto driver = make({.stay_home = 300ms});
  Memory memory(space->mm(), 2 * HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->populate(memory.at(), memory.bytes())->moved, 1024u);
  EXPECT_EQ(*memory.at(3), 4);
  const auto again = driver->populate(memory.at(), memory.bytes());
  ASSERT_TRUE(again);
  EXPECT_EQ(again->recent, 512u);  // the touched unit
  EXPECT_EQ(again->moved, 0u);     // the other is away already
  for (int i = 0; i < 100; ++i) {
    std::this_thread::sleep_for(20ms);
    if (driver->populate(memory.at(), HPAGE_PMD_SIZE)->recent == 0) break;
  }
  EXPECT_EQ(driver->pages_in_use(), 1024u);
  EXPECT_EQ(memory.wrong(0, 1024), 0u);
}

TEST_F(DriverTest, WhatWasSentAwayStaysForItsTimeslice) {  // DRV-06
  auto driver = make({.stay_home = 0ns, .stay_away = 50ms});
  Memory memory(space->mm(), HPAGE_PMD_SIZE);
  memory.fill();
  const auto began = std::chrono::steady_clock::now();
  ASSERT_EQ(driver->populate(memory.at(), PAGE_SIZE)->moved, 1u);
  EXPECT_EQ(*memory.at(), 1);
  EXPECT_GE(std::chrono::steady_clock::now() - began, 50ms);
  EXPECT_GT(driver->stats().delayed, 1u);
}

TEST_F(DriverTest, ManyThreadsReadAndWriteWhileTheDriverSendsThemAway) {
  auto driver = make();
  Memory memory(space->mm(), 4 * HPAGE_PMD_SIZE, true);
  constexpr std::size_t kThreads = 3;
  std::atomic<bool> stop{false};
  std::atomic<std::size_t> wrong{0};
  std::vector<std::thread> threads;
  for (std::size_t t = 0; t < kThreads; ++t) {
    threads.emplace_back([&, t] {  // each has words of its own in every page, and knows what it wrote there last
      std::vector<unsigned> mine(2048);
      std::mt19937 random(static_cast<unsigned>(t));
      while (!stop) {
        const std::size_t page = random() % 2048;
        auto* word = reinterpret_cast<volatile unsigned*>(memory.at(page)) + t * 64;
        if (*word != mine[page]) ++wrong;
        *word = ++mine[page];
      }
    });
  }
  std::uint64_t moved = 0;
  const auto end = std::chrono::steady_clock::now() + 2s;
  while (std::chrono::steady_clock::now() < end) {
    const auto sent = driver->populate(memory.at(), memory.bytes());
    ASSERT_TRUE(sent) << whimbrel_error();
    moved += sent->moved;
    if (moved % 3 == 0) (void)driver->evict();
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0u);
  EXPECT_GT(moved, 2048u);
  EXPECT_GT(driver->stats().faults, 0u);
}

TEST_F(DriverTest, DestructionBringsEverythingHome) {
  Memory memory(space->mm(), HPAGE_PMD_SIZE);
  memory.fill();
  {
    auto driver = make();
    ASSERT_EQ(driver->populate(memory.at(), memory.bytes())->moved, 512u);
  }
  EXPECT_EQ(memory.wrong(0, 512), 0u);
}

TEST_F(DriverTest, ErrorsOfARangeAreSaid) {
  auto driver = make();
  Memory memory(space->mm(), HPAGE_PMD_SIZE);
  memory.fill();
  munmap(memory.at(256), 256 * PAGE_SIZE);
  const auto sent = driver->populate(memory.at(), memory.bytes());
  EXPECT_EQ(sent.error(), -ENOENT);
  EXPECT_EQ(driver->pages_in_use(), 256u);  // what came before it has moved
  EXPECT_EQ(driver->populate(memory.at() + 1, PAGE_SIZE).error(), -EINVAL);
  void* other = mmap(nullptr, PAGE_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_EQ(driver->populate(other, PAGE_SIZE).error(), -EINVAL);  // not managed
  munmap(other, PAGE_SIZE);
}

}  // namespace
}  // namespace whimbrel
