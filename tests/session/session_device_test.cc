// A session's device is replaced by another while it is used.
#include <atomic>
#include <chrono>
#include <thread>

#include "session_test.h"

namespace whimbrel::session_tests {
namespace {

bool has_moved(const whimbrel::session& session) {
  for (int i = 0; i < 6000 && session.stats().leaving_pages != 0; ++i) std::this_thread::sleep_for(std::chrono::milliseconds(5));
  return session.stats().leaving_pages == 0;
}

TEST_P(SessionTest, TheDeviceCanChangeWhileThreadsRead) {
  whimbrel::session session(budget(8 * kMiB));
  Words a(session, words_of(32 * kMiB));
  fill(a.span());
  std::atomic<bool> stop{false};
  std::atomic<std::size_t> bad{0};
  std::thread reader([&] {
    for (std::size_t page = 0; !stop; page = (page + 977) % (a.size() / kWords)) {
      const std::size_t i = page * kWords + 5;
      bad += a[i] != word_at(i) ? 1 : 0;
    }
  });
  for (const char* device : {"lz4", "zstd:unit=64K", "chain:lz4@4M,zstd", "ram"}) {
    session.set_device(device);
    EXPECT_TRUE(has_moved(session)) << device;
    EXPECT_GT(session.stats().stored_pages, 20 * kMiB / kPage) << device;
  }
  EXPECT_GT(session.stats().held_bytes, 20 * kMiB);  // nothing shrinks on the last one
  stop = true;
  reader.join();
  EXPECT_EQ(bad.load(), 0u);
  EXPECT_EQ(wrong(a.span()), 0u);
}

TEST_P(SessionTest, ADeviceThatCannotBeHadChangesNothing) {
  whimbrel::session session(budget(8 * kMiB));
  Words a(session, words_of(16 * kMiB));
  fill(a.span());
  for (const char* device : {"nonsense", "zstd:unit=3", "file:/no/such/directory", ""}) {
    try {
      session.set_device(device);
      ADD_FAILURE() << device;
    } catch (const whimbrel::error& error) {
      EXPECT_NE(std::strstr(error.what(), "whimbrel_session_set_device"), nullptr) << error.what();
      EXPECT_GT(std::strlen(error.what()), 60u) << error.what();
    }
  }
  EXPECT_EQ(session.stats().leaving_pages, 0u);
  EXPECT_EQ(wrong(a.span()), 0u);
  session.set_device("lz4");
  EXPECT_TRUE(has_moved(session));
  EXPECT_EQ(wrong(a.span()), 0u);
}

TEST_P(SessionTest, AChildOfForkGoesOnWithTheDeviceOfItsParentAndTakesAnother) {
  if (on_guarded_arenas()) GTEST_SKIP() << kNotGuarded;
  if (!kForksWithThreads) GTEST_SKIP() << kNoForks;
  whimbrel::session session(budget(8 * kMiB));
  Words a(session, words_of(32 * kMiB));
  fill(a.span());
  session.set_device("lz4");  // and a fork before everything is there
  const int status = in_child([&] {
    if (!has_moved(session) || wrong(a.span()) != 0) return 1;
    session.set_device("zstd");
    return has_moved(session) && wrong(a.span()) == 0 ? 0 : 2;
  });
  EXPECT_EQ(status, 0);
  EXPECT_TRUE(has_moved(session));
  EXPECT_EQ(wrong(a.span()), 0u);
}

}  // namespace
}  // namespace whimbrel::session_tests
