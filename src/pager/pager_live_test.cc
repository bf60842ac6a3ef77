// The pager on the real kernel, managing this very process.
#include <random>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

class PagerLive : public ::testing::TestWithParam<DeviceKind> {
 protected:
  void SetUp() override {
    if (!kRawThreadsUsable) GTEST_SKIP() << "engine threads unknown to libc cannot run under this sanitizer";
  }
};

PagerConfig with_ram(std::size_t bytes) {
  PagerConfig config;
  config.ram_bytes = bytes;
  return config;
}

std::uint64_t get(const PagerStats::Number& number) { return number.load(); }

TEST_P(PagerLive, FourTimesTheBudgetFilledAndReadBack) {
  constexpr std::size_t kData = 200 * kMiB, kBudget = 50 * kMiB;
  OutsideSampler sampler;
  LivePager& live = LivePager::start(with_ram(kBudget), GetParam());
  {
    ProgramMemory memory(kData);
    sampler.watch(memory.range(0, memory.pages()));
    for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
    std::size_t wrong = 0;
    for (std::size_t i = 0; i < memory.pages(); ++i) wrong += memory.wrong_words(i, 1);
    EXPECT_EQ(wrong, 0u) << "first reading, in order";
    std::mt19937 random(5);
    for (int n = 0; n < 5000; ++n) {
      const std::size_t i = random() % memory.pages();
      wrong += memory.wrong_words(i, 1);
    }
    EXPECT_EQ(wrong, 0u) << "random reading";
    for (std::size_t i = memory.pages(); i-- > 0;) wrong += memory.wrong_words(i, 1);
    EXPECT_EQ(wrong, 0u) << "backwards";
    EXPECT_GT(get(live.stats().pages_out), kData * 2 / kPageSize);
    EXPECT_GT(get(live.stats().pages_home), kData / kPageSize);
    EXPECT_GT(sampler.samples(), 5u);
    EXPECT_LE(sampler.most() * kPageSize, kBudget + kBudget / 20) << "residency seen from outside";
    std::printf("  most resident %zu MiB of %zu; out %zu, home %zu, faults %zu, holes %zu, back-pressure %zu, over %zu\n",
                sampler.most() * kPageSize / kMiB, kBudget / kMiB, get(live.stats().pages_out),
                get(live.stats().pages_home), get(live.stats().faults), get(live.stats().holes),
                get(live.stats().back_pressure), get(live.stats().over_limit));
    live.stop();
    for (std::size_t i = 0; i < memory.pages(); ++i) wrong += memory.wrong_words(i, 1);
    EXPECT_EQ(wrong, 0u) << "after the engine has ended";
  }
}

INSTANTIATE_TEST_SUITE_P(Devices, PagerLive, ::testing::Values(DeviceKind::kRam, DeviceKind::kLz4, DeviceKind::kZstd),
                         [](const auto& device) {
                           switch (device.param) {
                             case DeviceKind::kRam: return "Ram";
                             case DeviceKind::kLz4: return "Lz4";
                             case DeviceKind::kZstd: return "Zstd";
                           }
                           return "";
                         });

}  // namespace
}  // namespace whimbrel::live
