#include "cli/summary.h"

#include <gtest/gtest.h>

#include <nlohmann/json.hpp>

namespace whimbrel::cli {
namespace {

// A run with its totals, which cannot be copied.
struct EmptyRun {
  EmptyRun() { summary.totals = &totals; }
  StatsFile::Totals totals;
  Summary summary;
};

struct BusyRun : EmptyRun {
  BusyRun() {
    summary.program = "sort";
    summary.device = "zstd";
    summary.end.seconds = 12.34;
    summary.ram_limit_bytes = 64 << 20;
    totals.processes = 1;
    totals.managed = 1;
    totals.pager.peak_resident_pages = 16384;
    totals.pager.peak_total_bytes = 100 << 20;
    totals.pager.pages_out = 100000;
    totals.pager.pages_home = 50000;
    totals.pager.faults = 1000;
    totals.pager.holes = 500;
    totals.pager.wait_ns = 2'000'000'000;
    totals.peak_stored_pages = 1000;
    totals.compressed_bytes = 1000 * 1024;
    totals.peak_held_bytes = 1100 * 1024;
  }
};

TEST(Summary, TellsAPersonWhatMatters) {
  const std::string text = describe(BusyRun().summary);
  for (const char* part : {"sort: exit status 0, 12.3 s", "at most 64.0 MiB resident (--ram 64.0 MiB)", "391 MiB out, 195 MiB home",
                           "compressed 4.0 : 1", "2.0 s in 1'500 faults, 1'000 of them"}) {
    EXPECT_NE(text.find(part), std::string::npos) << part << "\n" << text;
  }
}

TEST(Summary, SaysWhatTotalWouldDo) {
  BusyRun run;
  EXPECT_EQ(describe(run.summary).find("--total"), std::string::npos);
  run.totals.pager.total_would_do = (207 << 20) - 5;
  EXPECT_NE(describe(run.summary).find("--total 207M would do"), std::string::npos) << describe(run.summary);
  EXPECT_EQ(nlohmann::json::parse(to_json(run.summary))["total_that_would_do_bytes"], (207 << 20) - 5);
}

TEST(Summary, SaysSoWhenNothingHadToMove) {
  EmptyRun run;
  Summary& s = run.summary;
  s.program = "true";
  s.device = "zstd";
  s.end.usage.ru_maxrss = 2048;
  EXPECT_NE(describe(s).find("stayed within its budget"), std::string::npos);
  EXPECT_EQ(nlohmann::json::parse(to_json(s))["peak_resident_bytes"], 2048 * 1024);
}

TEST(Summary, OfAWatchCountsSessions) {
  BusyRun run;
  run.summary.device = "";
  run.totals.processes = 3;
  const std::string text = describe(run.summary);
  EXPECT_NE(text.find("sessions       3"), std::string::npos) << text;
  EXPECT_EQ(text.find("processes"), std::string::npos) << text;
  EXPECT_EQ(text.find(" of  "), std::string::npos) << text;
  const nlohmann::json json = nlohmann::json::parse(to_json(run.summary));
  EXPECT_EQ(json["sessions"], 3);
  EXPECT_FALSE(json.contains("processes"));
}

TEST(Summary, SignalsAreNamed) {
  BusyRun run;
  Summary& s = run.summary;
  s.end.signal = 11;
  EXPECT_NE(describe(s).find("signal 11 (Segmentation fault)"), std::string::npos);
  const auto json = nlohmann::json::parse(to_json(s));
  EXPECT_EQ(json["signal"], 11);
  EXPECT_EQ(json["exit_status"], 139);
}

TEST(Summary, JsonHasThePromisedKeysOnOneLine) {
  BusyRun run;
  Summary& s = run.summary;
  s.program = "caf\xe9";  // not UTF-8
  const std::string text = to_json(s);
  EXPECT_EQ(text.find('\n'), text.size() - 1);
  const auto json = nlohmann::json::parse(text);
  for (const char* key : {"peak_resident_bytes", "peak_total_bytes", "pages_out", "unchanged_out", "pages_home", "faults", "zero_faults",
                          "stored_bytes", "compression_ratio", "wait_ns", "ram_limit_bytes", "total_limit_bytes", "device",
                          "exit_status", "signal", "processes"}) {
    EXPECT_TRUE(json.contains(key)) << key;
  }
  EXPECT_DOUBLE_EQ(json["compression_ratio"], 4.0);
}

TEST(Summary, Units) {
  EXPECT_EQ(human_bytes(0), "0 B");
  EXPECT_EQ(human_bytes(1023), "1023 B");
  EXPECT_EQ(human_bytes(1536), "1.5 KiB");
  EXPECT_EQ(human_bytes(std::uint64_t{250} << 30), "250 GiB");
  EXPECT_EQ(human_duration(0.00085), "850 us");
  EXPECT_EQ(human_duration(0.25), "250 ms");
  EXPECT_EQ(human_duration(185), "3 min 05 s");
}

}  // namespace
}  // namespace whimbrel::cli
