#include <gtest/gtest.h>
#include <unistd.h>

#include <filesystem>
#include <nlohmann/json.hpp>

#include "cli/live_runs.h"
#include "cli/printable.h"
#include "cli/top_text.h"

namespace whimbrel::cli {
namespace {

// A directory with the statistics file of a run whose supervisor and only process are this test.
class TopTest : public testing::Test {
 protected:
  TopTest() {
    directory_ = std::filesystem::temp_directory_path() / ("whimbrel-top-test-" + std::to_string(getpid()));
    std::filesystem::create_directory(directory_);
    const std::string path = directory_ / ("run-" + std::to_string(getpid()));
    file_ = StatsFile::create(path.c_str(), {.ram_bytes = 64 << 20, .total_bytes = 0, .device = "lz4"}).value();
    slot_ = file_.claim(static_cast<std::uint32_t>(getpid()), 1, 5);
    for (int i = 0; i < 4; ++i) slot_->name[static_cast<std::size_t>(i)] = "sort"[i];
    slot_->mode = EngineMode::kManaged;
    slot_->pager.resident_pages = 16384;
    slot_->pager.resident_limit_pages = 16384;
    slot_->stored_pages = 32768;
    slot_->held_bytes = 10 << 20;
    slot_->pager.faults = 1000;
    slot_->pager.wait_ns = 2'000'000'000;
    slot_->pager.wait_histogram[14] = 990;
    slot_->pager.wait_histogram[20] = 10;
  }
  ~TopTest() override { std::filesystem::remove_all(directory_); }
  Sample look() { return sample_runs({directory_.string(), "/nonexistent"}); }

  std::filesystem::path directory_;
  StatsFile file_;
  StatsSlot* slot_ = nullptr;
};

TEST_F(TopTest, ReadsWhatTheEnginesStore) {
  const Sample sample = look();
  ASSERT_EQ(sample.runs.size(), 1u);
  EXPECT_EQ(sample.runs[0].pid, getpid());
  EXPECT_EQ(sample.runs[0].device, "lz4");
  ASSERT_EQ(sample.runs[0].processes.size(), 1u);
  const ProcessSample& p = sample.runs[0].processes[0];
  EXPECT_EQ(p.name, "sort");
  EXPECT_EQ(p.resident_bytes, 64u << 20);
  EXPECT_EQ(p.away_bytes, 128u << 20);
}

TEST_F(TopTest, LeavesOutTheDeadAndWhatIsNoStatisticsFile) {
  std::FILE* other = std::fopen((directory_ / "run-1").c_str(), "w");
  std::fputs("something else", other);
  std::fclose(other);
  StatsSlot* dead = file_.claim(0x3fffffff, 1, 5);
  dead->mode = EngineMode::kManaged;
  // A process that has become another program: its last slot counts.
  StatsSlot* again = file_.claim(static_cast<std::uint32_t>(getpid()), 1, 6);
  again->name[0] = 'x';
  const Sample sample = look();
  ASSERT_EQ(sample.runs.size(), 1u);
  ASSERT_EQ(sample.runs[0].processes.size(), 1u);
  EXPECT_EQ(sample.runs[0].processes[0].name, "x");
}

TEST_F(TopTest, RatesAreThoseBetweenTwoLooks) {
  Sample before = look();
  slot_->pager.faults = 1500;
  slot_->pager.wait_ns = 2'500'000'000;
  Sample now = look();
  before.time_ns = 1'000'000'000;
  now.time_ns = 3'000'000'000;
  const std::string text = top_table(now, before, 0, 0);
  EXPECT_NE(text.find("--ram 64.0 MiB --device lz4"), std::string::npos) << text;
  EXPECT_NE(text.find(" 250 "), std::string::npos) << text;
  EXPECT_NE(text.find("25.0%"), std::string::npos) << text;
  EXPECT_NE(text.find("128 MiB"), std::string::npos) << text;
  // The first look has none.
  EXPECT_NE(top_table(now, Sample(), 0, 0).find(" - "), std::string::npos);
}

TEST_F(TopTest, FitsTheTerminal) {
  for (int i = 0; i < 50; ++i) (void)file_.claim(static_cast<std::uint32_t>(getppid()), 1, i);
  const std::string text = top_table(look(), Sample(), 30, 4);
  std::size_t lines = 0, at = 0;
  for (std::size_t end; (end = text.find('\n', at)) != std::string::npos; at = end + 1, ++lines)
    EXPECT_LE(end - at, 30u);
  EXPECT_LE(lines, 4u);
}

TEST(Top, SaysWhatToDoWhenNothingRuns) {
  EXPECT_NE(top_table(sample_runs({}), Sample(), 0, 0).find("whimbrel run"), std::string::npos);
}

TEST_F(TopTest, SaysThatARunIsOfAnotherVersion) {
  StatsLayout& layout = file_.layout();
  layout.header.version = kStatsVersion + 1;
  const std::string text = top_table(look(), Sample(), 0, 0);
  EXPECT_TRUE(text.starts_with("a run of another version of whimbrel")) << text;
  EXPECT_EQ(text.find("nothing runs"), std::string::npos);
}

TEST_F(TopTest, JsonHoldsTheNumbers) {
  const auto json = nlohmann::json::parse(top_json(look()));
  const auto& process = json["runs"][0]["processes"][0];
  EXPECT_EQ(process["program"], "sort");
  EXPECT_EQ(process["mode"], "managed");
  EXPECT_EQ(process["faults"], 1000);
  EXPECT_EQ(process["wait_histogram"][14], 990);
}

TEST_F(TopTest, MetricsAreInPrometheusFormat) {
  slot_->name[0] = '"';
  const std::string text = top_metrics(look());
  EXPECT_NE(text.find("# TYPE whimbrel_faults_total counter\n"), std::string::npos);
  EXPECT_NE(text.find("whimbrel_faults_total{run=\"" + std::to_string(getpid()) + "\",pid=\"" +
                      std::to_string(getpid()) + "\",program=\"\\\"ort\",device=\"lz4\"} 1000\n"),
            std::string::npos)
      << text;
  EXPECT_NE(text.find("whimbrel_wait_seconds_total{"), std::string::npos);
}

TEST(Top, QuantilesOfWaits) {
  std::array<std::uint64_t, kWaitBuckets> waits{};
  EXPECT_EQ(wait_quantile(waits, 0.99), 0u);
  waits[10] = 98;
  waits[20] = 2;
  EXPECT_EQ(wait_quantile(waits, 0.5), 2048u);
  EXPECT_EQ(wait_quantile(waits, 0.99), std::uint64_t{2} << 20);
}

TEST_F(TopTest, NothingThatAProgramWritesIsACommandToTheTerminal) {
  const std::string name = "a\x1b[2Jb\x9b\xc3\xa4\xff";
  for (std::size_t i = 0; i < name.size(); ++i) slot_->name[i] = name[i];
  const Sample now = look();
  ASSERT_EQ(now.runs.size(), 1u);
  EXPECT_EQ(now.runs[0].processes[0].name, "a?[2Jb?\xc3\xa4?");
  EXPECT_EQ(top_table(now, {}, 0, 0).find('\x1b'), std::string::npos);
  EXPECT_EQ(top_metrics(now).find('\x1b'), std::string::npos);
}

TEST(Printable, KeepsCharactersAndNothingElse) {
  EXPECT_EQ(printable("plain text ~"), "plain text ~");
  EXPECT_EQ(printable("\xc3\xa4 \xe2\x82\xac \xf0\x9f\x90\xa6"), "\xc3\xa4 \xe2\x82\xac \xf0\x9f\x90\xa6");
  EXPECT_EQ(printable("\n\t\x7f"), "???");
  EXPECT_EQ(printable("\xc2\x9b"), "??");              // a control sequence in two bytes
  EXPECT_EQ(printable("\xc0\x9b\xed\xa0\x80"), "?????");  // not UTF-8
  EXPECT_EQ(printable("\xe2\x82"), "??");              // cut off
}

}  // namespace
}  // namespace whimbrel::cli
