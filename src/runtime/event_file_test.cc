#include "runtime/event_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <map>
#include <string>
#include <thread>
#include <vector>

namespace whimbrel {
namespace {

PageRange pages(std::uint64_t first, std::uint64_t count) { return {PageIndex(first), PageCount(count)}; }

void add_eviction(EventRing& ring, std::uint64_t page, std::int64_t time) {
  ring.add(EventKind::kMove, MoveCause::kEviction, Place::kRam, Place::kDevice, pages(page, 3), page * 7, time);
}

class EventFileTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/whimbrel-events-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    path_ = directory_ + "/events";
    const Result<EventFile> made = EventFile::create(path_.c_str());
    ASSERT_TRUE(made);
    file_ = *made;
  }
  void TearDown() override {
    unlink(path_.c_str());
    rmdir(directory_.c_str());
  }
  EventRing* claim(std::uint32_t pid, std::int64_t now = 5) { return file_.claim(pid, 1, 0, name_, now); }

  std::string directory_, path_;
  EventFile file_;
  std::array<std::atomic<char>, 16> name_{'s', 'o', 'r', 't'};
};

TEST_F(EventFileTest, IsPrivateAndTakesNoMemoryBeforeItIsUsed) {
  struct stat info {};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);
  EXPECT_EQ(static_cast<std::size_t>(info.st_size), sizeof(EventLayout));
  EXPECT_LT(info.st_blocks * 512, 1 << 20);
  EXPECT_EQ(EventFile::create(path_.c_str()).error().code, Errc::kExists);
  ASSERT_EQ(truncate(path_.c_str(), 4096), 0);
  EXPECT_EQ(EventFile::open(path_.c_str()).error().code, Errc::kInvalid);
}

TEST_F(EventFileTest, WhatAKilledProcessWroteIsThere) {
  const pid_t child = fork();
  if (child == 0) {
    const Result<EventFile> mine = EventFile::open(path_.c_str());
    EventRing* ring = mine ? mine->claim(static_cast<std::uint32_t>(getpid()), 1, 0, name_, 9) : nullptr;
    if (ring == nullptr) _exit(1);
    for (std::uint64_t i = 0; i < 100; ++i) add_eviction(*ring, 1000 + i, static_cast<std::int64_t>(50 + i));
    ring->head.fetch_add(1);  // died between taking a place and filling it
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));

  EventRing& ring = file_.layout().rings[0];
  EXPECT_EQ(ring.owner.load(), static_cast<std::uint32_t>(child));
  EXPECT_EQ(ring.started_ns.load(), 9u);
  EXPECT_EQ(ring.name[3].load(), 't');
  std::uint64_t seen = 0;
  const auto visit = [&seen](const EventRecord& record) {
    EXPECT_EQ(record.time_ns.load(), 50 + seen);
    EXPECT_EQ(record.first_page, 1000 + seen);
    EXPECT_EQ(record.detail, (1000 + seen) * 7);
    EXPECT_EQ(record.pages, 3u);
    EXPECT_EQ(record.cause, MoveCause::kEviction);
    EXPECT_EQ(record.to, Place::kDevice);
    ++seen;
  };
  EXPECT_EQ(ring.take(false, visit), 0u);
  EXPECT_EQ(seen, 100u);
  EXPECT_EQ(ring.head - ring.tail, 1u) << "it could still come";
  EXPECT_EQ(ring.take(true, visit), 1u);
  EXPECT_EQ(ring.head, ring.tail);
  EventFile::release(ring);
  EXPECT_EQ(ring.owner.load(), 0u);
  EXPECT_EQ(claim(7), &ring);
  EXPECT_EQ(ring.take(true, visit), 0u);
  EXPECT_EQ(seen, 100u) << "nothing of the last owner";
}

TEST_F(EventFileTest, AFullRingCountsWhatItDropsAndGoesOn) {
  EventRing& ring = *claim(7);
  for (std::uint64_t i = 0; i < EventRing::kRecords + 10; ++i) add_eviction(ring, i, 1);
  EXPECT_EQ(ring.lost.load(), 10u);
  std::uint64_t seen = 0;
  const auto visit = [&seen](const EventRecord& record) { EXPECT_EQ(record.first_page, seen++); };
  EXPECT_EQ(ring.take(false, visit), 0u);
  EXPECT_EQ(seen, EventRing::kRecords);
  seen = 5;
  add_eviction(ring, 5, 1);
  EXPECT_EQ(ring.take(false, visit), 0u);
  EXPECT_EQ(seen, 6u);
  EXPECT_EQ(ring.lost.load(), 10u);
}

TEST_F(EventFileTest, SeveralWritersAndAReaderLoseNothing) {
  constexpr std::uint64_t kEach = 300'000, kWriters = 3;
  EventRing& ring = *claim(7);
  std::vector<std::thread> writers;
  for (std::uint64_t w = 0; w < kWriters; ++w) {
    writers.emplace_back([&ring, w] {
      for (std::uint64_t i = 0; i < kEach; ++i) add_eviction(ring, w << 32 | i, 1);
    });
  }
  std::map<std::uint64_t, std::uint64_t> next;
  std::uint64_t seen = 0;
  const auto visit = [&](const EventRecord& record) {
    ++seen;
    EXPECT_EQ(record.detail, record.first_page * 7);
    std::uint64_t& expected = next[record.first_page >> 32];
    EXPECT_GE(record.first_page & 0xffffffff, expected) << "each writer's in order";
    expected = (record.first_page & 0xffffffff) + 1;
  };
  while (seen + ring.lost.load() < kEach * kWriters) EXPECT_EQ(ring.take(false, visit), 0u);
  for (std::thread& writer : writers) writer.join();
  EXPECT_EQ(ring.take(false, visit), 0u);
  EXPECT_EQ(seen + ring.lost.load(), kEach * kWriters);
  EXPECT_GT(seen, EventRing::kRecords);
}

TEST_F(EventFileTest, WithoutARingEventsAreCountedAsLost) {
  for (std::size_t i = 0; i < kEventRings; ++i) ASSERT_NE(claim(100 + static_cast<std::uint32_t>(i)), nullptr);
  ASSERT_EQ(claim(99), nullptr);
  EventLog log;
  const auto add = [&log] { log.moved(MoveCause::kFault, Place::kDevice, Place::kRam, pages(1, 1), 10, 30); };
  add();  // off: goes nowhere
  log.attach(nullptr, &file_.layout().header.lost);
  add();
  add();
  EXPECT_EQ(file_.layout().header.lost.load(), 2u);
  log.attach(&file_.layout().rings[3], &file_.layout().header.lost);
  add();
  log.detach();
  add();
  EXPECT_EQ(file_.layout().header.lost.load(), 2u);
  int seen = 0;
  file_.layout().rings[3].take(false, [&seen](const EventRecord& record) {
    ++seen;
    EXPECT_EQ(record.detail, 20u);
    EXPECT_EQ(record.time_ns.load(), 30u);
  });
  EXPECT_EQ(seen, 1);
}

}  // namespace
}  // namespace whimbrel
