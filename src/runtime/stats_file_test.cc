#include "runtime/stats_file.h"

#include <gtest/gtest.h>
#include <sys/stat.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>
#include <string>

namespace whimbrel {
namespace {

class StatsFileTest : public testing::Test {
 protected:
  void SetUp() override {
    char name[] = "/tmp/whimbrel-stats-XXXXXX";
    ASSERT_NE(mkdtemp(name), nullptr);
    directory_ = name;
    path_ = directory_ + "/stats";
  }
  void TearDown() override {
    unlink(path_.c_str());
    rmdir(directory_.c_str());
  }
  std::string directory_, path_;
};

TEST_F(StatsFileTest, IsPrivateAndSurvivesTheProcessThatWroteIt) {
  const Result<StatsFile> file = StatsFile::create(path_.c_str(), {1000, 2000, "zstd"});
  ASSERT_TRUE(file);
  struct stat info{};
  ASSERT_EQ(stat(path_.c_str(), &info), 0);
  EXPECT_EQ(info.st_mode & 0777, 0600u);

  const pid_t child = fork();
  if (child == 0) {
    const Result<StatsFile> mine = StatsFile::open(path_.c_str());
    if (!mine) _exit(1);
    StatsSlot* slot = mine->claim(static_cast<std::uint32_t>(getpid()), 1, 5);
    slot->pager.pages_out = 7;
    slot->pager.peak_resident_pages = 900;
    mine->post(42, "out of room");
    kill(getpid(), SIGKILL);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));

  StatsFile::Totals totals;
  file->totals(totals);
  EXPECT_EQ(totals.processes, 1u);
  EXPECT_EQ(totals.pager.pages_out.load(), 7u);
  EXPECT_EQ(totals.pager.peak_resident_pages.load(), 900u);
  char text[248];
  std::uint32_t pid = 0;
  ASSERT_TRUE(file->message(0, text, &pid));
  EXPECT_STREQ(text, "out of room");
  EXPECT_EQ(pid, 42u);
  EXPECT_FALSE(file->message(1, text, &pid));
}

TEST_F(StatsFileTest, NeverReplacesAnExistingFile) {
  ASSERT_TRUE(StatsFile::create(path_.c_str(), {}));
  EXPECT_EQ(StatsFile::create(path_.c_str(), {}).error().code, Errc::kExists);
}

TEST_F(StatsFileTest, RefusesAFileThatIsSomethingElse) {
  ASSERT_EQ(system(("head -c 4096 /dev/zero > " + path_).c_str()), 0);
  EXPECT_EQ(StatsFile::open(path_.c_str()).error().code, Errc::kInvalid);
  ASSERT_EQ(truncate(path_.c_str(), sizeof(StatsLayout)), 0);
  EXPECT_EQ(StatsFile::open(path_.c_str()).error().code, Errc::kInvalid);  // right size, no magic
}

TEST_F(StatsFileTest, SlotsOfTheDeadAreUsedAgainWithoutLosingTheirNumbers) {
  const Result<StatsFile> file = StatsFile::create(path_.c_str(), {});
  ASSERT_TRUE(file);
  const pid_t child = fork();
  if (child == 0) _exit(0);
  waitpid(child, nullptr, 0);  // a pid that certainly names nobody now
  const auto dead = static_cast<std::uint32_t>(child);
  for (std::size_t i = 0; i < kStatsSlots; ++i) {
    StatsSlot* slot = file->claim(dead, 1, 1);
    ASSERT_NE(slot, nullptr);
    slot->pager.pages_home = 2;
    slot->pager.peak_total_bytes = i;
  }
  StatsSlot* again = file->claim(static_cast<std::uint32_t>(getpid()), 1, 1);
  ASSERT_NE(again, nullptr);
  EXPECT_EQ(again->pager.pages_home.load(), 0u);
  again->pager.pages_home = 1;
  StatsFile::Totals totals;
  file->totals(totals);
  EXPECT_EQ(totals.processes, kStatsSlots + 1);
  EXPECT_EQ(totals.pager.pages_home.load(), 2 * kStatsSlots + 1);
  EXPECT_EQ(totals.pager.peak_total_bytes.load(), kStatsSlots - 1);
}

TEST_F(StatsFileTest, HasNoSlotWhenEverybodyLives) {
  const Result<StatsFile> file = StatsFile::create(path_.c_str(), {});
  ASSERT_TRUE(file);
  for (std::size_t i = 0; i < kStatsSlots; ++i) {
    ASSERT_NE(file->claim(static_cast<std::uint32_t>(getpid()), 1, 1), nullptr);
  }
  EXPECT_EQ(file->claim(static_cast<std::uint32_t>(getpid()), 1, 1), nullptr);
}

TEST_F(StatsFileTest, LongMessagesAreCutAndOldOnesOverwritten) {
  const Result<StatsFile> file = StatsFile::create(path_.c_str(), {});
  ASSERT_TRUE(file);
  for (std::size_t i = 0; i <= kStatsMessages; ++i) file->post(1, std::string(1000, 'x').c_str());
  char text[248];
  std::uint32_t pid = 0;
  EXPECT_FALSE(file->message(0, text, &pid));
  ASSERT_TRUE(file->message(kStatsMessages, text, &pid));
  EXPECT_EQ(std::string(text), std::string(247, 'x'));
}

}  // namespace
}  // namespace whimbrel
