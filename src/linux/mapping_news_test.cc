#include "linux/mapping_news.h"

#include <gtest/gtest.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "linux/sys.h"

namespace whimbrel {
namespace {

// The program's threads, seen from a thread of the engine: the news leave out the thread that opens them.
class MappingNewsTest : public ::testing::Test {
 protected:
  void SetUp() override {
    Result<void> opened = fail(Errc::kNotSupported);
    std::thread([&] { opened = news_.open(); }).join();
    if (!opened) GTEST_SKIP() << "no perf events of one's own here: " << opened.error().sys;
    drain();
  }
  std::vector<PageRange> drain() {
    std::vector<PageRange> all;
    PageRange some[64];
    bool incomplete = false;
    const std::size_t n = news_.take(some, &incomplete);
    all.assign(some, some + n);
    incomplete_ = incomplete;
    return all;
  }
  static void* map(std::size_t bytes) {
    void* at = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    return at == MAP_FAILED ? nullptr : at;
  }
  static bool tells(const std::vector<PageRange>& all, const void* at, std::size_t bytes) {
    const PageIndex first(reinterpret_cast<std::uintptr_t>(at) >> kPageShift);
    for (const PageRange& range : all) {
      if (range.contains(PageRange{first, PageCount(bytes / kPageSize)})) return true;
    }
    return false;
  }
  MappingNews news_;
  bool incomplete_ = false;
};

TEST_F(MappingNewsTest, TellsOfAMappingAtOnce) {
  EXPECT_FALSE(news_.any());
  void* at = map(1 << 20);
  ASSERT_NE(at, nullptr);
  EXPECT_TRUE(news_.any());
  pollfd wait{news_.descriptor(), POLLIN, 0};
  EXPECT_EQ(poll(&wait, 1, 5000), 1);
  EXPECT_TRUE(tells(drain(), at, 1 << 20));
  EXPECT_FALSE(news_.any()) << "taken";
  EXPECT_FALSE(incomplete_);
  munmap(at, 1 << 20);
}

TEST_F(MappingNewsTest, TellsOfTheHeap) {
  void* end = sbrk(0);
  ASSERT_NE(sbrk(1 << 20), reinterpret_cast<void*>(-1));
  const std::vector<PageRange> all = drain();
  ASSERT_FALSE(all.empty());
  const PageIndex last((reinterpret_cast<std::uintptr_t>(end) + (1 << 20) - kPageSize) >> kPageShift);
  EXPECT_TRUE(all[0].contains(last));
  (void)sbrk(-(1 << 20));
}

TEST_F(MappingNewsTest, ThreadsThatComeLaterAreHeardToo) {
  void* at = nullptr;
  std::thread([&] { at = map(3 << 20); }).join();
  ASSERT_NE(at, nullptr);
  EXPECT_TRUE(tells(drain(), at, 3 << 20));
  munmap(at, 3 << 20);
}

TEST_F(MappingNewsTest, AForkedChildHasNoRingsAndItsMappingsAreItsOwn) {
  const pid_t child = fork();
  if (child == 0) {
    std::ifstream maps("/proc/self/maps");
    for (std::string line; std::getline(maps, line);) {
      if (line.find("perf_event") != std::string::npos) _exit(1);
    }
    _exit(map(7 << 20) == nullptr ? 2 : 0);
  }
  int status = -1;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_EQ(status, 0);
  for (const PageRange& range : drain()) {
    EXPECT_NE(range.count.bytes(), 7u << 20) << "news of another process";
  }
}

TEST_F(MappingNewsTest, SaysWhenItCouldNotTellAll) {
  std::vector<void*> all;
  for (int i = 0; i < 500; ++i) all.push_back(map(kPageSize));
  (void)drain();
  EXPECT_TRUE(incomplete_);
  for (void* at : all) munmap(at, kPageSize);
  (void)drain();
  void* at = map(1 << 20);
  EXPECT_TRUE(tells(drain(), at, 1 << 20)) << "and goes on";
  munmap(at, 1 << 20);
}

}  // namespace
}  // namespace whimbrel
