// The pager on the real kernel while its device is replaced by another.
#include <chrono>
#include <thread>
#include <vector>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

LiveOptions on(const char* spec, std::size_t ram) {
  LiveOptions options = with_ram(ram);
  options.spec = spec;
  return options;
}

// Until nothing is left on devices that are leaving, or for so long.
bool is_evacuated(LivePager& live, int seconds) {
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(seconds);
  while (live.leaving_devices() != 0) {
    if (end < std::chrono::steady_clock::now()) return false;
    usleep(1000);
  }
  return true;
}

TEST(PagerEvacuation, EverythingMovesWhileThreadsWrite) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(on("zstd", 12 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> wrong{0}, writes{0};
  std::vector<std::thread> writers;
  for (std::size_t w = 0; w < 2; ++w) {
    writers.emplace_back([&, w] {
      std::uint64_t random = w + 1;
      while (!stop) {
        random = random * 6364136223846793005ull + 1442695040888963407ull;
        const std::size_t page = (random >> 33) % (memory.pages() / 2) * 2 + w;  // each has its own
        wrong += memory.wrong_words(page, 1);
        memory.write(page, 1);
        ++writes;
      }
    });
  }
  for (const char* spec : {"lz4", "zstd:unit=64K", "ram:unit=64K", "chain:lz4@2M,zstd", "mirror:lz4,zstd", "zstd"}) {
    live.replace_device(spec);
    EXPECT_TRUE(is_evacuated(live, 60)) << spec << ": " << live.leaving_pages() << " pages left";
  }
  stop = true;
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(wrong.load(), 0u);
  EXPECT_GT(writes.load(), 100u);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

TEST(PagerEvacuation, WhatFindsNoRoomStaysAndGoesToTheNextOne) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(on("zstd", 12 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  live.replace_device("ram:capacity=2M");
  EXPECT_FALSE(is_evacuated(live, 1));
  EXPECT_GT(live.leaving_pages(), 20 * kMiB / 4096);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.replace_device("lz4");
  EXPECT_TRUE(is_evacuated(live, 60)) << live.leaving_pages() << " pages left";
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

TEST(PagerEvacuation, WhatCannotBeReadStaysUntilItCan) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(on("zstd", 12 * kMiB));
  ProgramMemory memory(32 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  live.device().fail_loads = true;
  live.replace_device("lz4");
  EXPECT_FALSE(is_evacuated(live, 1));
  EXPECT_GT(live.leaving_pages(), 10 * kMiB / 4096);
  live.device().fail_loads = false;
  EXPECT_TRUE(is_evacuated(live, 60)) << live.leaving_pages() << " pages left";
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

TEST(PagerEvacuation, AForkInTheMiddleOfItGoesOnInBoth) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(on("zstd", 12 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  bool in_the_middle = false;
  for (int round = 0; round < 4; ++round) {
    live.replace_device(round % 2 == 0 ? "lz4" : "zstd");
    usleep(round * 7000u);
    in_the_middle = in_the_middle || live.leaving_pages() != 0;
    const pid_t child = live.fork();
    if (child == 0) {
      if (wrong_in(memory, 1) != 0) _exit(1);
      if (!is_evacuated(live, 60)) _exit(2);
      _exit(wrong_in(memory, 1) == 0 ? 0 : 3);
    }
    EXPECT_TRUE(is_evacuated(live, 60)) << live.leaving_pages() << " pages left";
    EXPECT_EQ(wrong_in(memory, 1), 0u);
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "round " << round << ", status " << status;
  }
  EXPECT_TRUE(in_the_middle);
  live.stop();
}

}  // namespace
}  // namespace whimbrel::live
