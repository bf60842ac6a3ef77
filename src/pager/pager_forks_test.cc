// The pager on the real kernel in a program that forks.
#include <random>
#include <thread>
#include <vector>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

using Command = LivePager::Command;

// Victims are taken by the fault thread and stored by the background thread; a fork waits for what is under way.
TEST(PagerLive, TouchesHereAndThereBetweenForks) {
  NEEDS_RAW_THREADS();
  LiveOptions options = with_ram(16 * kMiB);
  options.beside = true;
  options.device = DeviceKind::kZstd;
  LivePager& live = LivePager::start(options);
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  std::uint64_t random = 1;
  const auto touch = [&](int times) {
    std::size_t wrong = 0;
    for (int i = 0; i < times; ++i) {
      random = random * 6364136223846793005ull + 1442695040888963407ull;
      wrong += memory.wrong_words((random >> 33) % memory.pages(), 1);
    }
    return wrong;
  };
  for (int round = 0; round < 6; ++round) {
    // A fork in the middle of it: nothing is under way in one round, much in the next.
    EXPECT_EQ(touch(2500), 0u);
    if (round % 2 == 0) continue;
    const pid_t child = live.fork();
    if (child == 0) _exit(touch(1500) == 0 ? 0 : 1);
    EXPECT_EQ(touch(500), 0u);
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "round " << round << ", status " << status;
  }
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_GT(get(live.stats().handed_over), 10u);
  live.stop();
}

TEST(PagerLive, ForkedChildrenReadEverythingAndPageOn) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  for (int round = 0; round < 3; ++round) {
    const pid_t child = live.fork();
    if (child == 0) {
      if (wrong_in(memory, 1) != 0) _exit(1);
      for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 77);
      if (wrong_in(memory, 77) != 0) _exit(2);
      _exit(0);
    }
    for (std::size_t i = 0; i < 2000; ++i) memory.write(i, 1);
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status)) << status;
    EXPECT_EQ(WEXITSTATUS(status), 0) << "round " << round;
  }
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

// Whatever threads of the parent were in the middle of: nothing on the device stays behind that no page stands for.
TEST(PagerLive, ForkedChildrenCanEmptyTheDevice) {
  NEEDS_RAW_THREADS();
  LiveOptions options = with_ram(12 * kMiB);
  options.spec = "zstd";
  LivePager& live = LivePager::start(options);
  ProgramMemory memory(24 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  std::atomic<bool> stop{false};
  std::atomic<std::uint64_t> wrong{0};
  std::vector<std::thread> readers;
  for (unsigned seed = 1; seed <= 2; ++seed) {
    readers.emplace_back([&, seed] {
      std::minstd_rand random(seed);
      while (!stop) wrong += memory.wrong_words(random() % memory.pages(), 1);
    });
  }
  for (int round = 0; round < 16; ++round) {
    usleep(static_cast<unsigned>(round) * 997 % 5000);
    const pid_t child = live.fork();
    if (child == 0) {
      live.command(Command::kBringAllHome);
      if (live.last_command_failed()) _exit(1);
      _exit(live.stored_pages() == 0 ? 0 : 2);
    }
    int status = -1;
    waitpid(child, &status, 0);
    EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << "round " << round << ", status " << status;
  }
  stop = true;
  for (std::thread& reader : readers) reader.join();
  EXPECT_EQ(wrong.load(), 0u);
  live.stop();
}

// What is shared is passed over, what a child leaves behind is claimed: faults after a fork cost what they always do.
TEST(PagerLive, SharedPagesAreNotTriedAgainAndAgain) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  int wait_for_end[2];
  ASSERT_EQ(pipe(wait_for_end), 0);
  const pid_t child = live.fork();
  if (child == 0) {
    close(wait_for_end[1]);
    char byte;
    (void)!read(wait_for_end[0], &byte, 1);
    _exit(0);
  }
  close(wait_for_end[0]);
  const std::uint64_t before = get(live.stats().refused_pages);
  for (int round = 0; round < 3; ++round) EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_LT(get(live.stats().refused_pages) - before, 1000u) << "while the child lives";
  EXPECT_LE(get(live.stats().peak_resident_pages) * kPageSize, 17 * kMiB);
  close(wait_for_end[1]);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  const std::uint64_t moved = get(live.stats().pages_out);
  for (int round = 0; round < 3; ++round) EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_LT(get(live.stats().refused_pages) - before, 10'000u) << "each once, until it is claimed";
  EXPECT_GT(get(live.stats().pages_out) - moved, 3 * 40 * kMiB / kPageSize / 2);
  live.stop();
}

TEST_P(EveryDevice, FaultsAreServedWhileAForkIsPrepared) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB, GetParam()));
  ProgramMemory memory(12 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  // In pieces of single pages: each fault brings few pages home, and the device takes each back.
  for (int i = 0; i < 1000 && is_present(memory.page(0)); ++i) {  // the memory has to be found first
    live.command(Command::kEvictRange, memory.range(0, 1));
  }
  for (std::size_t i = 2; i + 1 < memory.pages(); i += 2) live.command(Command::kEvictRange, memory.range(i, 1));
  ASSERT_FALSE(is_present(memory.page(0)));
  const std::uint64_t stored = live.device().stats().stored_pages;
  std::size_t wrong = 0;
  const std::size_t half = memory.pages() / 2;
  alarm(100);  // instead of waiting for ever
  const pid_t child = live.fork([&] {
    for (std::size_t i = 0; i < half; ++i) wrong += memory.wrong_words(i, 1);
  });
  if (child == 0) _exit(wrong_in(memory, 1) == 0 ? 0 : 1);
  alarm(0);
  EXPECT_EQ(wrong, 0u);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  // What came home meanwhile is given back to the device afterwards.
  for (int i = 0; i < 500 && live.device().stats().stored_pages > stored / 2; ++i) usleep(10'000);
  EXPECT_LE(live.device().stats().stored_pages, stored / 2);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

TEST(PagerLive, SharingAfterAForkIsBrokenWhenTheLimitAsksForIt) {
  NEEDS_RAW_THREADS();
  OutsideSampler sampler;
  LivePager& live = LivePager::start(with_ram(32 * kMiB));
  ProgramMemory memory(30 * kMiB), more(60 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  // Everything resident is shared with this child now, and refuses to move.
  int wait_for_end[2];
  ASSERT_EQ(pipe(wait_for_end), 0);
  const pid_t child = live.fork();
  if (child == 0) {
    close(wait_for_end[1]);
    char byte;
    (void)!read(wait_for_end[0], &byte, 1);
    _exit(wrong_in(memory, 1) != 0);
  }
  close(wait_for_end[0]);
  for (std::size_t i = 0; i < more.pages(); ++i) more.write(i, 2);
  for (int i = 0; i < 1000 && get(live.stats().resident_pages) * kPageSize > 33 * kMiB; ++i) usleep(10'000);
  EXPECT_LE(get(live.stats().resident_pages) * kPageSize, 33 * kMiB);
  // Less than what is shared: now there is no other way.
  live.pager().set_limits(12 * kMiB, 0);
  for (int i = 0; i < 1000 && get(live.stats().resident_pages) * kPageSize > 13 * kMiB; ++i) usleep(10'000);
  EXPECT_LE(get(live.stats().resident_pages) * kPageSize, 13 * kMiB);
  EXPECT_GT(get(live.stats().unshared_pages), 0u);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_EQ(wrong_in(more, 2), 0u);
  close(wait_for_end[1]);
  int status = -1;
  waitpid(child, &status, 0);
  EXPECT_EQ(status, 0);
  std::printf("  refused %zu, unshared %zu\n", get(live.stats().refused_pages), get(live.stats().unshared_pages));
  live.stop();
}

}  // namespace
}  // namespace whimbrel::live
