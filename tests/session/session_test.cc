// Sessions on the real kernel, through the shared library and its public headers alone. Run a second time with
// WHIMBREL_RUNG=guarded, as where userfaultfd is not to be had; what is lost there is tested in guarded_session_test.cc.
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <chrono>
#include <cstring>
#include <list>
#include <memory_resource>
#include <numeric>
#include <random>
#include <thread>
#include <vector>

#include "session_test.h"

namespace whimbrel::session_tests {
namespace {

TEST_P(SessionTest, ArraysFourTimesLargerThanTheBudgetKeepTheirContents) {
  whimbrel::session session(budget(8 * kMiB));
  Words a(session, words_of(32 * kMiB));
  fill(a.span());
  EXPECT_EQ(wrong(a.span()), 0u);
  const whimbrel::statistics stats = session.stats();
  EXPECT_GT(stats.pages_out, 5000u);
  EXPECT_GT(stats.faults, 0u);
  EXPECT_LE(stats.resident_pages * kPage, 9 * kMiB);
  EXPECT_EQ(stats.allocated_bytes, 32 * kMiB);
  EXPECT_EQ(stats.load_errors + stats.device_errors, 0u);
}

TEST_P(SessionTest, HintsSayWhatReallyHappened) {
  whimbrel::session session(budget(64 * kMiB));
  Words a(session, words_of(8 * kMiB));
  constexpr std::uint64_t kPages = 8 * kMiB / kPage;
  EXPECT_EQ(session.migrate(a.span()).empty, kPages) << "nothing has been written yet";

  fill(a.subspan(0, words_of(4 * kMiB)));
  whimbrel::outcome out = session.migrate(a.span());
  EXPECT_TRUE(is_whole(out));
  EXPECT_EQ(out.asked, kPages);
  EXPECT_EQ(out.moved, kPages / 2);
  EXPECT_EQ(out.refused, 0u);
  std::vector<whimbrel::page> pages = session.residency(a.span());
  ASSERT_EQ(pages.size(), kPages);
  EXPECT_EQ(count(pages, WHIMBREL_AWAY), kPages / 2);
  EXPECT_EQ(count(pages, WHIMBREL_RESIDENT), 0u);
  EXPECT_EQ(pages[0].rights, WHIMBREL_CAN_READ | WHIMBREL_CAN_WRITE);

  out = session.migrate(a.span());
  EXPECT_EQ(out.already, kPages / 2) << "away already";
  EXPECT_EQ(out.moved, 0u);

  whimbrel::outcome in = session.prefetch(a.subspan(0, words_of(kMiB)));
  EXPECT_TRUE(is_whole(in));
  EXPECT_EQ(in.moved, kMiB / kPage);
  const std::uint64_t faults = session.stats().faults;
  EXPECT_EQ(wrong(a.subspan(0, words_of(kMiB))), 0u);
  EXPECT_EQ(session.stats().faults, faults) << "what was prefetched is touched without a fault";
  in = session.prefetch(a.span());
  EXPECT_EQ(in.already, kMiB / kPage);
  EXPECT_EQ(in.moved, 3 * kMiB / kPage);
  EXPECT_EQ(wrong(a.subspan(0, words_of(4 * kMiB))), 0u);
}

TEST_P(SessionTest, PinnedPagesStayAndAPinBeyondTheBudgetIsRefused) {
  whimbrel::session session(budget(16 * kMiB));
  Words a(session, words_of(48 * kMiB));
  fill(a.span());
  const std::span<std::uint64_t> part = a.subspan(0, words_of(4 * kMiB));
  {
    const whimbrel::pin_guard pin = session.pin(part);
    EXPECT_TRUE(is_whole(pin.happened));
    EXPECT_EQ(pin.happened.refused, 0u);
    const whimbrel::outcome out = session.migrate(part);
    EXPECT_EQ(out.refused, 4 * kMiB / kPage);
    EXPECT_EQ(out.reasons, WHIMBREL_REFUSED_PINNED);
    EXPECT_EQ(wrong(a.span()), 0u);  // everything else comes and goes
    const std::vector<whimbrel::page> pages = session.residency(part);
    EXPECT_EQ(count(pages, WHIMBREL_RESIDENT), pages.size());
    EXPECT_EQ(pages[0].flags, WHIMBREL_IS_PINNED);
    try {
      const whimbrel::pin_guard more = session.pin(a.span());
      ADD_FAILURE() << "48 MiB pinned within 16";
    } catch (const whimbrel::error& error) {
      EXPECT_EQ(error.code().value(), ENOMEM);
      EXPECT_NE(std::string(error.what()).find("budget"), std::string::npos) << error.what();
    }
  }
  EXPECT_EQ(session.migrate(part).moved, 4 * kMiB / kPage) << "free to go again";
  EXPECT_EQ(whimbrel_unpin(session.handle(), part.data(), part.size_bytes()), -ENOENT);
}

TEST_P(SessionTest, PrefetchStopsAtTheBudgetAndSaysSo) {
  whimbrel::session session(budget(8 * kMiB));
  Words a(session, words_of(32 * kMiB));
  fill(a.span());
  (void)session.migrate(a.span());
  const whimbrel::outcome in = session.prefetch(a.span());
  EXPECT_TRUE(is_whole(in));
  EXPECT_GT(in.moved, 4 * kMiB / kPage);
  EXPECT_GT(in.refused, 20 * kMiB / kPage);
  EXPECT_EQ(in.reasons, WHIMBREL_REFUSED_OVER_BUDGET);
  EXPECT_LE(session.stats().resident_pages * kPage, 9 * kMiB);
  EXPECT_EQ(wrong(a.span()), 0u);
}

TEST_P(SessionTest, RequestsRunWhileTheProgramWorks) {
  whimbrel::session session(budget(64 * kMiB));
  Words a(session, words_of(16 * kMiB)), b(session, words_of(16 * kMiB));
  fill(a.span(), 1);
  fill(b.span(), 2);
  whimbrel::request out = session.migrate_async(a.span());
  EXPECT_EQ(wrong(b.span(), 2), 0u);
  const whimbrel::outcome gone = out.wait();
  EXPECT_EQ(gone.moved, 16 * kMiB / kPage);
  EXPECT_FALSE(out.valid());
  std::vector<whimbrel::request> many;
  for (std::size_t i = 0; i < 16; ++i)
    many.push_back(session.prefetch_async(a.subspan(i * words_of(kMiB), words_of(kMiB))));
  std::uint64_t home = 0;
  for (whimbrel::request& one : many) {
    whimbrel::outcome result{};
    while (!one.wait_for(std::chrono::milliseconds(50), &result)) EXPECT_TRUE(one.valid());
    home += result.moved;
  }
  EXPECT_EQ(home, 16 * kMiB / kPage);
  { const whimbrel::request dropped = session.migrate_async(a.span()); }
  EXPECT_EQ(wrong(a.span(), 1), 0u);
}

TEST_P(SessionTest, TooManyRequestsAreRefusedAndEverythingElseGoesOn) {
  whimbrel::session session(budget(64 * kMiB));
  Words a(session, words_of(kMiB));
  fill(a.span());
  std::vector<whimbrel::request> kept;
  int refused = 0;
  for (int i = 0; i < 100; ++i) {
    try {
      kept.push_back(session.migrate_async(a.span()));
    } catch (const whimbrel::error& error) {
      EXPECT_EQ(error.code().value(), EAGAIN);
      ++refused;
    }
  }
  EXPECT_GT(refused, 0);
  EXPECT_GE(kept.size(), 32u);
  { Words other(session, words_of(kMiB)); }
  EXPECT_TRUE(is_whole(session.prefetch(a.span())));
  kept.clear();
  EXPECT_EQ(session.migrate_async(a.span()).wait().asked, kMiB / kPage);
}

TEST_P(SessionTest, DiscardedAndFreedMemoryReadsAsZeros) {
  whimbrel::session session(budget(16 * kMiB));
  Words a(session, words_of(4 * kMiB));
  fill(a.span(), 5);
  (void)session.migrate(a.subspan(0, words_of(2 * kMiB)));
  session.discard(a.span());
  EXPECT_EQ(std::accumulate(a.begin(), a.end(), std::uint64_t{0}), 0u);
  // Not a whole page: nothing is lost.
  fill(a.span(), 5);
  session.discard(a.subspan(1, kWords));
  EXPECT_EQ(wrong(a.span(), 5), 0u);
  const void* place = a.data();
  a = Words();
  Words again(session, words_of(4 * kMiB));
  EXPECT_EQ(static_cast<const void*>(again.data()), place);
  EXPECT_EQ(std::accumulate(again.begin(), again.end(), std::uint64_t{0}), 0u);
  fill(again.span(), 6);
  EXPECT_GT(session.migrate(again.span()).moved, 1000u) << "a place that was used before can be moved at once";
  EXPECT_EQ(wrong(again.span(), 6), 0u);
}

TEST_P(SessionTest, AdoptedMemoryIsManagedAndGivenBack) {
  if (on_guarded_arenas()) GTEST_SKIP() << kNotGuarded;
  whimbrel::session session(budget(8 * kMiB));
  constexpr std::size_t kBytes = 24 * kMiB;
  void* memory = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(memory, MAP_FAILED);
  const std::span<std::uint64_t> words(static_cast<std::uint64_t*>(memory), words_of(kBytes));
  fill(words, 3);  // before: what is there already counts
  session.adopt(words);
  EXPECT_EQ(session.stats().adopted_bytes, kBytes);
  EXPECT_EQ(wrong(words, 3), 0u);
  EXPECT_GT(session.stats().pages_out, 3000u);
  EXPECT_THROW(session.adopt(words.subspan(0, kWords)), whimbrel::error) << "twice";
  EXPECT_THROW(session.release(words.subspan(0, kWords)), whimbrel::error) << "not what was adopted";
  session.release(words);
  EXPECT_THROW((void)session.migrate(words), whimbrel::error) << "not ours any more";
  EXPECT_EQ(wrong(words, 3), 0u);
  munmap(memory, kBytes);

  void* shared = mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  ASSERT_NE(shared, MAP_FAILED);
  EXPECT_EQ(whimbrel_adopt(session.handle(), shared, kMiB), -EOPNOTSUPP);
  EXPECT_NE(std::strstr(whimbrel_error(), "private anonymous"), nullptr) << whimbrel_error();
  EXPECT_EQ(whimbrel_adopt(session.handle(), static_cast<char*>(shared) + 1, kPage), -EINVAL) << "no whole page";
  munmap(shared, kMiB);
}

TEST_P(SessionTest, ClosingBringsAdoptedMemoryHomeAndRefusesWhileSomethingIsAllocated) {
  if (on_guarded_arenas()) GTEST_SKIP() << kNotGuarded;
  whimbrel_session_options options{sizeof options, 4 * kMiB, 0, GetParam(), 0};
  whimbrel_session* session = nullptr;
  ASSERT_EQ(whimbrel_session_open(&options, &session), 0) << whimbrel_error();
  void* own = mmap(nullptr, 16 * kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const std::span<std::uint64_t> words(static_cast<std::uint64_t*>(own), words_of(16 * kMiB));
  ASSERT_EQ(whimbrel_adopt(session, own, 16 * kMiB), 0) << whimbrel_error();
  fill(words, 9);
  void* memory = nullptr;
  ASSERT_EQ(whimbrel_allocate(session, 1, &memory), 0);
  EXPECT_EQ(whimbrel_allocated_size(session, memory), kPage);
  EXPECT_EQ(whimbrel_session_close(session), -EBUSY);
  EXPECT_NE(std::strstr(whimbrel_error(), "whimbrel_free"), nullptr);
  whimbrel_free(session, memory);
  EXPECT_EQ(whimbrel_session_close(session), 0) << whimbrel_error();
  EXPECT_EQ(wrong(words, 9), 0u);
  munmap(own, 16 * kMiB);
}

TEST_P(SessionTest, TheBudgetCanChange) {
  whimbrel::session session(budget(64 * kMiB));
  Words a(session, words_of(32 * kMiB));
  fill(a.span());
  EXPECT_LT(session.stats().pages_out, 100u);
  session.set_budget(8 * kMiB);
  while (session.stats().resident_pages * kPage > 8 * kMiB) std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_GE(session.stats().pages_out, 24 * kMiB / kPage);
  EXPECT_EQ(session.stats().ram_limit_bytes, 8 * kMiB);
  EXPECT_EQ(wrong(a.span()), 0u);
  EXPECT_THROW(session.set_budget(4096), whimbrel::error);
}

TEST_P(SessionTest, AdviceIsHonouredOrRefused) {
  whimbrel::session session(budget(64 * kMiB));
  Words a(session, words_of(16 * kMiB));
  fill(a.span());
  const auto faults_of_a_walk = [&] {
    (void)session.migrate(a.span());
    const std::uint64_t before = session.stats().faults;
    EXPECT_EQ(wrong(a.span()), 0u);
    return session.stats().faults - before;
  };
  session.advise(a.span(), whimbrel::advice::random);
  EXPECT_EQ(faults_of_a_walk(), 16 * kMiB / kPage) << "every page alone";
  session.advise(a.span(), whimbrel::advice::sequential);
  EXPECT_LE(faults_of_a_walk(), 16 * kMiB / kPage / 32) << "full windows from the first touch on";
  session.advise(a.span(), whimbrel::advice::normal);
  EXPECT_LT(faults_of_a_walk(), 16 * kMiB / kPage / 8);
  try {
    session.advise(a.span(), whimbrel::advice::read_mostly);
    ADD_FAILURE() << "cannot be honoured";
  } catch (const whimbrel::error& error) {
    EXPECT_EQ(error.code().value(), EOPNOTSUPP);
  }
  EXPECT_TRUE(session.prefer_device(a.span(), GetParam()));
  EXPECT_FALSE(session.prefer_device(a.span(), "tape"));
}

TEST_P(SessionTest, ColdPagesLeaveFirst) {
  whimbrel::session session(budget(32 * kMiB));
  Words warm(session, words_of(12 * kMiB)), cold(session, words_of(12 * kMiB)), more(session, words_of(14 * kMiB));
  fill(cold.span(), 1);
  fill(warm.span(), 2);
  session.advise(cold.span(), whimbrel::advice::cold);
  fill(more.span(), 3);
  const std::size_t cold_away = count(session.residency(cold.span()), WHIMBREL_AWAY);
  const std::size_t warm_away = count(session.residency(warm.span()), WHIMBREL_AWAY);
  EXPECT_GT(cold_away, 1000u);
  EXPECT_GT(cold_away, warm_away);
  EXPECT_EQ(wrong(cold.span(), 1) + wrong(warm.span(), 2) + wrong(more.span(), 3), 0u);
}

TEST_P(SessionTest, AChildOfForkHasAllContentsAndWorksOn) {
  if (!kForksWithThreads) GTEST_SKIP() << kNoForks;
  if (on_guarded_arenas()) GTEST_SKIP() << kNotGuarded;
  whimbrel::session session(budget(4 * kMiB));
  Words a(session, words_of(8 * kMiB));
  fill(a.span(), 4);
  whimbrel::request pending = session.prefetch_async(a.span());
  const int status = in_child([&] {
    if (wrong(a.span(), 4) != 0) return 1;
    fill(a.span(), 40);
    if (wrong(a.span(), 40) != 0) return 2;
    Words mine(session, words_of(4 * kMiB));
    fill(mine.span(), 41);
    const whimbrel::outcome out = session.migrate(mine.span());
    if (!is_whole(out) || out.moved == 0) return 3;
    if (wrong(mine.span(), 41) != 0) return 4;
    try {
      (void)pending.wait();
      return 5;
    } catch (const whimbrel::error& error) {
      if (error.code().value() != ESRCH) return 6;
    }
    return session.stats().pages_out == 0 ? 7 : 0;
  });
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(is_whole(pending.wait()));
  EXPECT_EQ(wrong(a.span(), 4), 0u) << "the child wrote to a copy of its own";
}

TEST_P(SessionTest, ForksWhileOtherThreadsWork) {
  if (!kForksWithThreads) GTEST_SKIP() << kNoForks;
  if (on_guarded_arenas()) GTEST_SKIP() << kNotGuarded;
  whimbrel::session session(budget(4 * kMiB));
  Words a(session, words_of(6 * kMiB)), b(session, words_of(6 * kMiB));
  fill(a.span(), 1);
  fill(b.span(), 2);
  std::atomic<bool> stop{false};
  std::atomic<std::size_t> bad{0};
  std::thread walker([&] {
    while (!stop) bad += wrong(b.span(), 2);
  });
  std::thread hinter([&] {
    while (!stop) {
      bad += is_whole(session.migrate(b.subspan(0, words_of(1 * kMiB)))) ? 0 : 1;
      bad += is_whole(session.prefetch(b.subspan(0, words_of(2 * kMiB)))) ? 0 : 1;
      Words temporary(session, words_of(kMiB));
      temporary[5] = 5;
    }
  });
  for (int i = 0; i < 4; ++i) {
    EXPECT_EQ(in_child([&] { return wrong(a.span(), 1) == 0 && wrong(b.span(), 2) == 0 ? 0 : 1; }), 0);
  }
  stop = true;
  walker.join();
  hinter.join();
  EXPECT_EQ(bad, 0u);
}

TEST_P(SessionTest, ThreadsAllocateTouchHintAndFree) {
  whimbrel::session session(budget(16 * kMiB));
  std::atomic<std::size_t> bad{0};
  std::vector<std::thread> threads;
  for (unsigned t = 0; t < 4; ++t) {
    threads.emplace_back([&, t] {
      std::mt19937_64 random(t);
      for (int round = 0; round < 12; ++round) {
        Words a(session, words_of(kMiB + random() % (4 * kMiB)));
        fill(a.span(), t * 100 + static_cast<unsigned>(round));
        const std::size_t from = random() % (a.size() / 2), n = 1 + random() % (a.size() / 2);
        switch (random() % 4) {
          case 0:
            bad += is_whole(session.migrate(a.subspan(from, n))) ? 0 : 1;
            break;
          case 1:
            bad += is_whole(session.prefetch(a.subspan(from, n))) ? 0 : 1;
            break;
          case 2:
            session.advise(a.subspan(from, n), whimbrel::advice::sequential);
            break;
          case 3: {
            const whimbrel::pin_guard pin = session.pin(a.subspan(0, kWords * 8));
            bad += is_whole(session.migrate(a.span())) ? 0 : 1;
            break;
          }
        }
        bad += wrong(a.span(), t * 100 + static_cast<unsigned>(round));
      }
    });
  }
  for (std::thread& thread : threads) thread.join();
  EXPECT_EQ(bad, 0u);
  EXPECT_EQ(session.stats().allocated_bytes, 0u);
}

TEST_P(SessionTest, ContainersOfTheStandardLibrary) {
  whimbrel::session session(budget(8 * kMiB));
  {
    std::vector<std::uint64_t, whimbrel::allocator<std::uint64_t>> v{whimbrel::allocator<std::uint64_t>(session)};
    for (std::size_t i = 0; i < words_of(16 * kMiB); ++i) v.push_back(word_at(i));
    EXPECT_EQ(wrong(v), 0u);
    whimbrel::memory_resource pages(session);
    std::pmr::unsynchronized_pool_resource pool(&pages);
    std::pmr::list<std::uint64_t> list(&pool);
    for (std::uint64_t i = 0; i < 200'000; ++i) list.push_back(i);
    EXPECT_EQ(std::accumulate(list.begin(), list.end(), std::uint64_t{0}), 199'999ull * 200'000 / 2);
  }
  EXPECT_EQ(session.stats().allocated_bytes, 0u);
  EXPECT_GT(session.stats().pages_out, 1000u);
}

INSTANTIATE_TEST_SUITE_P(Devices, SessionTest, testing::Values("zstd", "lz4"),
                         [](const auto& device) { return std::string(device.param); });

TEST(Sessions, SeveralBudgetsAndDevicesAtATime) {
  whimbrel::session dense({.ram = 4 * kMiB, .device = "zstd"}), quick({.ram = 8 * kMiB, .device = "lz4"});
  Words a(dense, words_of(16 * kMiB)), b(quick, words_of(16 * kMiB));
  fill(a.span(), 1);
  fill(b.span(), 2);
  EXPECT_EQ(wrong(a.span(), 1) + wrong(b.span(), 2), 0u);
  EXPECT_GT(dense.stats().stored_pages, quick.stats().stored_pages);
  EXPECT_THROW((void)dense.migrate(b.span()), whimbrel::error) << "another session's";
  if (!kForksWithThreads) GTEST_SKIP() << kNoForks;
  if (on_guarded_arenas()) GTEST_SKIP() << kNotGuarded;
  EXPECT_EQ(in_child([&] { return wrong(a.span(), 1) + wrong(b.span(), 2) == 0 ? 0 : 1; }), 0);
}

TEST(Sessions, ATotalHoldsWithTheStoreCounted) {
  whimbrel::session session({.total = 24 * kMiB});
  Words a(session, words_of(48 * kMiB));
  fill(a.span());
  EXPECT_EQ(wrong(a.span()), 0u);
  const whimbrel::statistics stats = session.stats();
  EXPECT_GT(stats.pages_out, 0u);
  EXPECT_LE(stats.total_bytes, 26 * kMiB);
}

TEST(Sessions, OpenAndCloseLeaveNothingBehind) {
  const auto mappings = [] {
    std::size_t lines = 0;
    FILE* maps = std::fopen("/proc/self/maps", "r");
    for (int c; (c = std::fgetc(maps)) != EOF;) lines += c == '\n' ? 1 : 0;
    std::fclose(maps);
    return lines;
  };
  std::size_t first = 0;
  for (int round = 0; round < 12; ++round) {
    {
      whimbrel::session session({.ram = 4 * kMiB, .device = "lz4"});
      Words a(session, words_of(8 * kMiB));
      fill(a.span());
      EXPECT_EQ(wrong(a.span()), 0u);
    }
    if (round == 2) first = mappings();
  }
  if (!kMapsLittle) GTEST_SKIP() << "a sanitizer maps memory of its own; everything but the count has been checked";
  EXPECT_LE(mappings(), first + 3) << "libc may map a little";
}

TEST(Sessions, RefusalsSayWhatToDo) {
  whimbrel_session* session = nullptr;
  const auto refused = [&](std::uint64_t ram, std::uint64_t total, const char* device, const char* words) {
    whimbrel_session_options options{sizeof options, ram, total, device, 0};
    EXPECT_EQ(whimbrel_session_open(&options, &session), -EINVAL);
    EXPECT_NE(std::strstr(whimbrel_error(), words), nullptr) << whimbrel_error();
    EXPECT_NE(std::strstr(whimbrel_error(), "next: "), nullptr) << whimbrel_error();
  };
  refused(0, 0, "zstd", "set ram_bytes");
  refused(4096, 0, "zstd", "2 MiB");
  refused(64 * kMiB, 32 * kMiB, "zstd", "total_bytes is below ram_bytes");
  refused(64 * kMiB, 0, "tape", "tape");
  refused(64 * kMiB, 0, "zstd:level=99", "level");
  whimbrel_session_options old{8, 64 * kMiB, 0, nullptr, 0};
  EXPECT_EQ(whimbrel_session_open(&old, &session), -EINVAL);
  EXPECT_NE(std::strstr(whimbrel_error(), "struct_size"), nullptr);

  whimbrel::session open({.ram = 4 * kMiB});
  void* memory = nullptr;
  EXPECT_EQ(whimbrel_allocate(open.handle(), 0, &memory), -EINVAL);
  EXPECT_EQ(whimbrel_allocate(open.handle(), SIZE_MAX / 2, &memory), -ENOMEM);
  int on_stack = 0;
  EXPECT_EQ(whimbrel_migrate(open.handle(), &on_stack, sizeof on_stack, nullptr), -EINVAL);
  EXPECT_NE(std::strstr(whimbrel_error(), "not within one piece"), nullptr) << whimbrel_error();
  EXPECT_EQ(whimbrel_migrate(nullptr, &on_stack, sizeof on_stack, nullptr), -EINVAL);
}

TEST(Sessions, AFullDeviceLeavesPagesInRamAndSaysSo) {
  whimbrel::session session({.ram = 4 * kMiB, .device = "lz4:capacity=1M"});
  std::mt19937_64 random(1);
  Words a(session, words_of(16 * kMiB));
  for (std::uint64_t& word : a) word = random();  // does not compress
  const whimbrel::outcome out = session.migrate(a.span());
  EXPECT_TRUE(is_whole(out));
  EXPECT_GT(out.refused, 0u);
  EXPECT_NE(out.reasons & WHIMBREL_REFUSED_DEVICE_FULL, 0u) << out.reasons;
  std::mt19937_64 again(1);
  std::size_t bad = 0;
  for (const std::uint64_t word : a) bad += word != again() ? 1 : 0;
  EXPECT_EQ(bad, 0u);
  for (int i = 0; session.notice().empty() && i < 10'000; ++i)
    std::this_thread::sleep_for(std::chrono::milliseconds(1));
  EXPECT_NE(session.notice().find("full"), std::string::npos) << session.notice();
}

TEST(SessionsDeathTest, MemoryThatOutlivesItsSessionStopsTheProgram) {
  GTEST_FLAG_SET(death_test_style, "threadsafe");
  EXPECT_DEATH(
      {
        auto* session = new whimbrel::session({.ram = 4 * kMiB});
        Words kept(*session, 10);
        delete session;
      },
      "destroyed before its memory");
}

}  // namespace
}  // namespace whimbrel::session_tests
