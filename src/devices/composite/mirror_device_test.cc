#include "devices/composite/mirror_device.h"

#include <gtest/gtest.h>
#include <unistd.h>

#include <cstdlib>
#include <cstring>
#include <filesystem>
#include <thread>
#include <vector>

#include "linux/clock.h"
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
    std::string path = "/var/tmp/whimbrel-mirror-XXXXXX";
    pid_t owner = ::getpid();
  } directory;
  return directory.path;
}

// The second leg fails every few stores and loads, and answers again when it is asked.
class Flaky final : public Device {
 public:
  explicit Flaky(DeviceHandle inner) : inner_(std::move(inner)) {}
  DeviceTraits traits() const noexcept override { return inner_->traits(); }
  DeviceStats stats() const noexcept override { return inner_->stats(); }
  Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override { return inner_->reserve(pages); }
  void release(DeviceSlot first, std::uint32_t pages) noexcept override { inner_->release(first, pages); }
  void submit(DeviceBatch& batch) noexcept override {
    for (DeviceOp& op : batch.ops) {
      if (turns_++ % 50 == 49) {
        op.result = fail(Errc::kDeviceIo, 5, "made to fail");
        continue;
      }
      DeviceBatch one{.ops = {&op, 1}};
      inner_->submit(one);
      inner_->wait(one);
    }
  }
  void wait(DeviceBatch&) noexcept override {}
  Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override {
    return inner_->verify(first, pages, memory);
  }
  bool maintain(std::size_t budget) noexcept override { return inner_->maintain(budget); }
  void prepare_fork() noexcept override { inner_->prepare_fork(); }
  void after_fork_in_parent() noexcept override { inner_->after_fork_in_parent(); }
  void after_fork_in_child() noexcept override { inner_->after_fork_in_child(); }

 private:
  DeviceHandle inner_;
  std::atomic<std::uint32_t> turns_{0};
};
constexpr DeviceKind kFlaky = {.name = "flaky",
                               .usage = "",
                               .check = nullptr,
                               .make = nullptr,
                               .destroy = [](MemorySource& memory, Device* device) noexcept {
                                 destroy_from(memory, static_cast<Flaky*>(device));
                               }};

DeviceUnderTest mirror(std::string name, std::string first, std::string second, bool flaky = false) {
  return {.name = std::move(name),
          .make =
              [=](MemorySource& memory, std::uint64_t) {
                SpecMessage message;
                const DeviceEnvironment environment{.memory = memory, .kinds = built_in_devices()};
                DeviceHandle legs[2];
                legs[0] = make_device(first, environment, message).value();
                legs[1] = make_device(second, environment, message).value();
                if (flaky) legs[1] = DeviceHandle(memory, kFlaky, make_from<Flaky>(memory, std::move(legs[1])));
                const Result<MirrorDevice*> made = MirrorDevice::create(memory, legs, {});
                EXPECT_TRUE(made.has_value());
                return DevicePtr(*made, [&memory](Device* d) { destroy_from(memory, static_cast<MirrorDevice*>(d)); });
              },
          .has_capacity = false,
          .leftovers =
              [] {
                std::string names;
                for (const auto& entry : std::filesystem::directory_iterator(scratch())) {
                  names += entry.path().string() + " ";
                }
                return names;
              }};
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
INSTANTIATE_TEST_SUITE_P(Mirror, DeviceSuite,
                         ::testing::Values(mirror("zstd_file", "zstd", "file:" + scratch()),
                                           mirror("one_leg_fails", "lz4", "ram", true)),
                         device_name);
#else
INSTANTIATE_TEST_SUITE_P(Mirror, DeviceSuite,
                         ::testing::Values(mirror("zstd_lz4", "zstd", "lz4"),
                                           mirror("file_file", "file:" + scratch(), "file:" + scratch()),
                                           mirror("one_leg_fails", "lz4", "ram", true)),
                         device_name);
#endif

constexpr std::uint32_t kUnit = 16;

class Mirror : public ::testing::Test {
 protected:
  ~Mirror() override {
    if (mirror_ != nullptr) destroy_from(memory_, mirror_);
    EXPECT_EQ(memory_.bytes_in_use(), 0u);
  }
  void make(const char* first = "ram", const char* second = "ram", const Clock* clock = nullptr) {
    DeviceHandle handles[2] = {make_faulty(memory_, first, &leg_[0]), make_faulty(memory_, second, &leg_[1])};
    mirror_ = MirrorDevice::create(memory_, handles, {.max_pages = 1 << 20, .clock = clock}).value();
    ASSERT_EQ(mirror_->traits().unit_pages, kUnit);
  }
  Result<DeviceSlot> put(std::uint64_t seed) {
    Pages pages(kUnit);
    fill_pages(Contents::kRandom, seed, pages.bytes());
    const Result<DeviceSlot> slot = mirror_->reserve(kUnit);
    if (!slot) return slot;
    const Result<void> stored = store(*mirror_, *slot, kUnit, pages.data());
    if (stored) return slot;
    mirror_->release(*slot, kUnit);
    return std::unexpected(stored.error());
  }
  void put_many(std::uint64_t from, std::uint64_t to) {
    for (std::uint64_t i = from; i < to; ++i) slots_.push_back(put(i).value());
  }
  bool holds(DeviceSlot slot, std::uint64_t seed) {
    Pages pages(kUnit), back(kUnit);
    fill_pages(Contents::kRandom, seed, pages.bytes());
    return load(*mirror_, slot, kUnit, back.data()).has_value() &&
           std::memcmp(back.data(), pages.data(), kUnit * kPageBytes) == 0;
  }
  void expect_all(const char* when) {
    for (std::uint64_t i = 0; i < slots_.size(); ++i) EXPECT_TRUE(holds(slots_[i], i)) << i << ' ' << when;
  }
  void fail_leg(std::uint32_t leg, bool on) { leg_[leg]->fail_stores = leg_[leg]->fail_loads = on; }
  void make_whole(std::uint32_t leg) {
    for (int i = 0; i < 10'000 && !mirror_->is_whole(leg); ++i) (void)mirror_->maintain(1 << 20);
    EXPECT_TRUE(mirror_->is_whole(leg));
  }
  // Pages that the leg has, checked by loading everything with the other one dead.
  void expect_leg_has_all(std::uint32_t leg) {
    fail_leg(1 - leg, true);
    expect_all("from one leg alone");
    fail_leg(1 - leg, false);
  }

  TestMemory memory_;
  FaultyDevice* leg_[2] = {};
  MirrorDevice* mirror_ = nullptr;
  std::vector<DeviceSlot> slots_;
};

TEST_F(Mirror, BothLegsHaveEverything) {
  make();
  put_many(0, 32);
  for (FaultyDevice* leg : leg_) EXPECT_EQ(leg->stats().stored_pages, 32 * kUnit);
  EXPECT_EQ(mirror_->stats().stored_pages, 32 * kUnit);
  expect_leg_has_all(0);
  make_whole(1);
  expect_leg_has_all(1);
  for (const DeviceSlot slot : slots_) mirror_->release(slot, kUnit);
  for (FaultyDevice* leg : leg_) EXPECT_EQ(leg->stats().stored_pages, 0u);
}

TEST_F(Mirror, ALegThatDiesCostsNothingAndIsMadeWholeWhenItReturns) {
  make();
  for (const std::uint32_t dead : {0u, 1u}) {
    SCOPED_TRACE(dead);
    const std::uint64_t at = slots_.size();
    put_many(at, at + 16);
    fail_leg(dead, true);
    expect_all("while a leg is dead");
    put_many(at + 16, at + 32);
    EXPECT_FALSE(mirror_->is_up(dead));
    EXPECT_STREQ(mirror_->last_error().where, "made to fail");
    // Some are gone and some are stored anew while it is away.
    mirror_->release(slots_[at], kUnit);
    slots_[at] = put(at).value();
    mirror_->release(slots_[at + 20] + 4, 3);
    for (int i = 0; i < 100; ++i) (void)mirror_->maintain(1 << 20);
    EXPECT_FALSE(mirror_->is_up(dead)) << "it still fails";
    fail_leg(dead, false);
    make_whole(dead);
    mirror_->release(slots_[at + 20], 4);
    mirror_->release(slots_[at + 20] + 7, kUnit - 7);
    slots_[at + 20] = put(at + 20).value();
    EXPECT_EQ(leg_[0]->stats().stored_pages, slots_.size() * kUnit);
    EXPECT_EQ(leg_[1]->stats().stored_pages, slots_.size() * kUnit);
    expect_leg_has_all(dead);
    make_whole(1 - dead);
  }
}

TEST_F(Mirror, StoresAloneBringALegBack) {
  make();
  fail_leg(1, true);
  put_many(0, 8);
  EXPECT_FALSE(mirror_->is_up(1));
  fail_leg(1, false);
  put_many(8, 400);
  EXPECT_TRUE(mirror_->is_whole(1)) << "nobody called maintain()";
  expect_leg_has_all(1);
}

// What a leg had is gone when it comes back: it was a server's memory, say. Files know by checksums.
TEST_F(Mirror, ALegThatHasForgottenIsFilledAgain) {
  const std::string file = "file:" + scratch();
  make("ram", file.c_str());
  put_many(0, 32);
  leg_[1]->with = Errc::kCorrupt;
  leg_[1]->fail_loads = true;
  expect_all("while everything on a leg is damaged");
  // It answers, and what it has stays unreadable until it is stored anew.
  for (int i = 0; i < 50; ++i) (void)mirror_->maintain(1 << 20);
  leg_[1]->fail_loads = false;
  make_whole(1);
  expect_leg_has_all(1);
}

TEST_F(Mirror, BothLegsDeadIsAnErrorAndNothingIsLost) {
  make();
  put_many(0, 16);
  fail_leg(0, true);
  fail_leg(1, true);
  Pages back(kUnit);
  for (const DeviceSlot slot : slots_) {
    EXPECT_EQ(load(*mirror_, slot, kUnit, back.data()).error().code, Errc::kDeviceIo);
  }
  EXPECT_EQ(put(100).error().code, Errc::kDeviceIo);
  fail_leg(0, false);
  fail_leg(1, false);
  expect_all("after both came back");
  make_whole(0);
  make_whole(1);
  EXPECT_EQ(mirror_->stats().stored_pages, 16 * kUnit);
  EXPECT_EQ(leg_[0]->stats().stored_pages, 16 * kUnit);
  EXPECT_EQ(leg_[1]->stats().stored_pages, 16 * kUnit);
}

TEST_F(Mirror, ALegThatHasComeBackUnaskedTakesWhatTheOtherCannot) {
  make();
  for (const std::uint32_t back : {0u, 1u}) {
    SCOPED_TRACE(back);
    const std::uint64_t at = slots_.size();
    fail_leg(back, true);
    put_many(at, at + 8);
    EXPECT_FALSE(mirror_->is_up(back));
    fail_leg(back, false);
    fail_leg(1 - back, true);
    const Result<DeviceSlot> slot = put(at + 8);
    ASSERT_TRUE(slot.has_value()) << slot.error().where;
    slots_.push_back(*slot);
    EXPECT_TRUE(holds(*slot, at + 8));
    fail_leg(1 - back, false);
    expect_all("after both came back");
    make_whole(0);
    make_whole(1);
    expect_leg_has_all(0);
    make_whole(1);
    expect_leg_has_all(1);
    make_whole(0);
  }
}

TEST_F(Mirror, AFullLegMakesTheMirrorFull) {
  make("ram:capacity=1M", "ram");
  Result<DeviceSlot> slot = put(0);
  for (std::uint64_t i = 0; slot; ++i) {
    slots_.push_back(*slot);
    slot = put(i + 1);
  }
  EXPECT_EQ(slot.error().code, Errc::kDeviceFull);
  EXPECT_EQ(slots_.size(), 16u);
  expect_all("full");
  EXPECT_TRUE(mirror_->is_whole(0));
  EXPECT_EQ(leg_[1]->stats().stored_pages, 16 * kUnit) << "a copy without a second one was left behind";
}

TEST_F(Mirror, LoadsGoToTheFasterLeg) {
  static const SystemClock clock;
  make("ram", "ram", &clock);
  put_many(0, 4);
  leg_[0]->slow_loads_us = 3000;
  const auto loads_of = [&](FaultyDevice* leg) {
    const std::uint64_t before = leg->loads;
    for (int i = 0; i < 200; ++i)
      EXPECT_TRUE(holds(slots_[static_cast<std::size_t>(i) % 4], static_cast<std::uint64_t>(i) % 4));
    return leg->loads - before;
  };
  (void)loads_of(leg_[0]);
  EXPECT_LT(loads_of(leg_[0]), 200 * kUnit / 4) << "the slow leg is asked too often";
  EXPECT_GT(loads_of(leg_[0]), 0u) << "the slow leg is never asked again";
  leg_[0]->slow_loads_us = 0;
  leg_[1]->slow_loads_us = 3000;
  for (int i = 0; i < 6; ++i) (void)loads_of(leg_[1]);
  EXPECT_LT(loads_of(leg_[1]), 200 * kUnit / 4) << "who is faster was not noticed to have changed";
}

// A leg comes and goes while four threads store, load, replace and release.
TEST_F(Mirror, ALegComesAndGoesUnderLoad) {
  make("ram", "lz4:unit=64K");
  std::atomic<bool> stop{false};
  std::atomic<int> wrong{0};
  std::array<std::atomic<std::uint64_t>, 4> turns{};  // of each thread
  std::vector<std::thread> threads;
  for (std::uint64_t t = 0; t < 3; ++t) {
    threads.emplace_back([&, t] {
      Random random(t);
      std::vector<std::pair<DeviceSlot, std::uint64_t>> own;
      for (; !stop; ++turns[t]) {
        const std::uint64_t seed = random.next();
        const Result<DeviceSlot> slot = put(seed);
        if (!slot) {
          ++wrong;
          continue;
        }
        own.emplace_back(*slot, seed);
        for (int i = 0; i < 3; ++i) {
          const auto& [where, what] = own[random.below(own.size())];
          wrong += holds(where, what) ? 0 : 1;
        }
        if (own.size() > 24) {
          mirror_->release(own.front().first, kUnit);
          own.erase(own.begin());
        }
      }
      for (const auto& [where, what] : own) {
        wrong += holds(where, what) ? 0 : 1;
        mirror_->release(where, kUnit);
      }
    });
  }
  threads.emplace_back([&] {
    for (; !stop; ++turns[3]) {
      (void)mirror_->maintain(1 << 20);
      std::this_thread::yield();
    }
  });
  // Whatever was under way has ended: a store that one leg has failed may be known of only now.
  const auto all_have_begun_anew = [&] {
    for (std::atomic<std::uint64_t>& thread : turns) {
      const std::uint64_t before = thread;
      if (!becomes_true([&] { return thread != before; }, std::chrono::seconds(30))) return false;
    }
    return true;
  };
  for (int round = 0; round < 6; ++round) {
    const std::uint32_t leg = static_cast<std::uint32_t>(round) % 2;
    fail_leg(leg, true);
    EXPECT_TRUE(becomes_true([&] { return !mirror_->is_up(leg); }, std::chrono::seconds(30)));
    fail_leg(leg, false);
    EXPECT_TRUE(all_have_begun_anew());
    // The other may only go once this one is whole: there is one failure at a time.
    EXPECT_TRUE(becomes_true([&] { return mirror_->is_whole(leg); }, std::chrono::seconds(30)));
  }
  stop = true;
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(wrong, 0);
  EXPECT_EQ(mirror_->stats().stored_pages, 0u);
  for (FaultyDevice* leg : leg_) EXPECT_EQ(leg->stats().stored_pages, 0u);
}

TEST(MirrorSpec, SaysWhatIsWrong) {
  const auto problem = [](const char* spec) -> std::string {
    SpecMessage message;
    return check_device_spec(spec, built_in_devices(), message) ? "" : message.c_str();
  };
  EXPECT_EQ(problem("mirror:file:/var/tmp,direct=off,file:/tmp"), "");
  EXPECT_EQ(problem("mirror:file:/var/tmp@1G,file:/tmp@1G"), "");
  EXPECT_EQ(problem("chain:lz4@64M,[mirror:file:/var/tmp@1G,file:/tmp@1G]"), "");
  EXPECT_NE(problem("mirror:file:/var/tmp").find("made of two devices"), std::string::npos);
  EXPECT_NE(problem("mirror:lz4,lz4,lz4").find("made of two devices"), std::string::npos);
  EXPECT_NE(problem("mirror").find("made of two devices"), std::string::npos);
}

}  // namespace
}  // namespace whimbrel::testing
