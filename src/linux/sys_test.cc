#include "linux/sys.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "linux/clock.h"

namespace whimbrel {
namespace {

TEST(Sys, FailuresCarryKindErrnoAndPlaceAndLeaveErrnoAlone) {
  errno = 77;
  const Result<int> fd = sys::open("/nonexistent", O_RDONLY);
  ASSERT_FALSE(fd);
  EXPECT_EQ(fd.error().code, Errc::kNotFound);
  EXPECT_EQ(fd.error().sys, ENOENT);
  EXPECT_STREQ(fd.error().where, "open");
  EXPECT_EQ(errno, 77);
}

TEST(Sys, DescriptorsAreCloseOnExec) {
  const Result<int> fd = sys::open("/proc/self/stat", O_RDONLY);
  ASSERT_TRUE(fd);
  EXPECT_TRUE(fcntl(*fd, F_GETFD) & FD_CLOEXEC);
  const Result<int> high = sys::duplicate_above(*fd, 200);
  ASSERT_TRUE(high);
  EXPECT_GE(*high, 200);
  EXPECT_TRUE(fcntl(*high, F_GETFD) & FD_CLOEXEC);
  sys::close(*fd);
  sys::close(*high);
  EXPECT_EQ(fcntl(*fd, F_GETFD), -1);
}

TEST(Sys, ReadsTextAndNumbers) {
  char text[16];
  ASSERT_TRUE(sys::read_text("/proc/self/maps", text, sizeof text));
  EXPECT_EQ(std::string(text).size(), 15u) << "cut to the room and terminated";
  const Result<std::uint64_t> mappings = sys::read_number("/proc/sys/vm/max_map_count");
  ASSERT_TRUE(mappings);
  EXPECT_GE(*mappings, 1000u);
  EXPECT_FALSE(sys::read_number("/proc/sys/kernel/ostype"));
}

TEST(Sys, LimitsReadAsTheProgramSeesThem) {
  rlimit files{};
  ASSERT_EQ(getrlimit(RLIMIT_NOFILE, &files), 0);
  const Result<sys::Limit> limit = sys::limit(RLIMIT_NOFILE);
  ASSERT_TRUE(limit);
  EXPECT_EQ(limit->soft, files.rlim_cur);
  EXPECT_EQ(limit->hard, files.rlim_max);
}

TEST(Sys, MapsProtectsAndAdvises) {
  const Result<void*> memory = sys::mmap(nullptr, 8192, PROT_NONE, MAP_PRIVATE);
  ASSERT_TRUE(memory);
  ASSERT_TRUE(sys::mprotect(*memory, 8192, PROT_READ | PROT_WRITE));
  static_cast<char*>(*memory)[5] = 1;
  ASSERT_TRUE(sys::madvise(*memory, 8192, MADV_DONTNEED));
  EXPECT_EQ(static_cast<char*>(*memory)[5], 0);
  sys::munmap(*memory, 8192);
  const Result<void> gone = sys::madvise(*memory, 8192, MADV_DONTNEED);
  ASSERT_FALSE(gone);
  EXPECT_EQ(gone.error().sys, ENOMEM);
}

TEST(SystemClock, NeverGoesBackAndSleepsLongEnough) {
  SystemClock clock;
  const std::int64_t start = clock.now_ns();
  clock.sleep_ns(-5);
  clock.sleep_ns(3'000'000);
  const std::int64_t end = clock.now_ns();
  EXPECT_GE(end - start, 3'000'000);
  EXPECT_LT(end - start, 5'000'000'000);
}

}  // namespace
}  // namespace whimbrel
