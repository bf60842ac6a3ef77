// Sessions whose pages go to a server: the device process is the session's own.
#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <fstream>
#include <string>
#include <thread>

#include "tests/device_kit/nbd_server.h"
#include "whimbrel/whimbrel.hpp"

namespace {

using whimbrel::testing::NbdServer;

constexpr std::size_t kMiB = std::size_t{1} << 20;
using Words = whimbrel::array<std::uint64_t>;

std::uint64_t word_at(std::size_t i) { return i * 0x9E3779B97F4A7C15 + i / 512; }

void fill(std::span<std::uint64_t> words) {
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = word_at(i);
}
std::size_t wrong(std::span<const std::uint64_t> words) {
  std::size_t bad = 0;
  for (std::size_t i = 0; i < words.size(); ++i) bad += words[i] != word_at(i) ? 1 : 0;
  return bad;
}

std::string error_of(const std::string& device) {
  try {
    const whimbrel::session session{{.ram = 4 * kMiB, .device = device.c_str()}};
  } catch (const std::exception& error) {
    return error.what();
  }
  return "no error";
}

class NbdSession : public testing::Test {
 protected:
  void SetUp() override { ASSERT_TRUE(server_.is_running()) << "nbdkit does not start: scripts/setup test installs it"; }
  NbdServer server_{{"memory", "256M"}};
  std::string device_ = "nbd:" + server_.uri();
};

TEST_F(NbdSession, ArraysLargerThanTheBudgetKeepTheirContents) {
  whimbrel::session session{{.ram = 8 * kMiB, .device = device_.c_str()}};
  Words a(session, 32 * kMiB / 8);
  fill(a.span());
  EXPECT_EQ(wrong(a.span()), 0u);
  const whimbrel::statistics stats = session.stats();
  EXPECT_GT(stats.pages_out, 5000u);
  EXPECT_GT(stats.stored_pages, 0u);
  EXPECT_EQ(stats.load_errors + stats.device_errors, 0u);
}

TEST_F(NbdSession, AForkedChildReadsWhatIsOnTheServer) {
#if defined(__SANITIZE_THREAD__)
  GTEST_SKIP() << "ThreadSanitizer starts no threads in a forked child";
#endif
  whimbrel::session session{{.ram = 8 * kMiB, .device = device_.c_str()}};
  Words a(session, 32 * kMiB / 8);
  fill(a.span());
  const pid_t child = fork();
  if (child == 0) _exit(wrong(a.span()) == 0 ? 0 : 1);
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  EXPECT_EQ(wrong(a.span()), 0u);
}

TEST_F(NbdSession, AnExportIsFreeAgainWhenTheSessionIsClosed) {
  for (int round = 0; round < 3; ++round) {
    whimbrel::session session{{.ram = 4 * kMiB, .device = device_.c_str()}};
    Words a(session, 16 * kMiB / 8);
    fill(a.span());
    EXPECT_EQ(wrong(a.span()), 0u) << round;
    if (round != 0) continue;
    const std::string error = error_of(device_);
    EXPECT_NE(error.find("another run uses this export"), std::string::npos) << error;
  }
}

TEST_F(NbdSession, AServerThatIsNotThereIsAnErrorThatSaysWhatToDo) {
  const std::string device = "nbd:nbd+unix:///?socket=" + server_.directory() + "/nobody";
  const std::string error = error_of(device);
  EXPECT_NE(error.find("whimbrel_session_open"), std::string::npos) << error;
  EXPECT_NE(error.find("check the address"), std::string::npos) << error;
}

// A file behind the server outlives it, as a real one's storage does.
TEST(NbdSessionServers, AServerThatIsKilledAndComesBackLosesNothing) {
  char path[] = "/var/tmp/whimbrel-export-XXXXXX";
  const int fd = mkstemp(path);
  ASSERT_GE(fd, 0);
  ASSERT_EQ(ftruncate(fd, 256 * kMiB), 0);
  close(fd);
  {
    NbdServer server({"file", path});
    ASSERT_TRUE(server.is_running());
    const std::string device = "nbd:" + server.uri();
    whimbrel::session session{{.ram = 8 * kMiB, .device = device.c_str()}};
    Words a(session, 32 * kMiB / 8);
    fill(a.span());
    server.kill();
    std::size_t bad = 1;
    std::thread reader([&] { bad = wrong(a.span()); });
    std::this_thread::sleep_for(std::chrono::milliseconds(500));
    server.start();  // here: it ends with the thread that has started it
    reader.join();
    EXPECT_EQ(bad, 0u);
    EXPECT_EQ(session.stats().load_errors, 0u);
  }
  std::remove(path);
}

}  // namespace
