#include <gtest/gtest.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstring>
#include <nlohmann/json.hpp>
#include <sstream>

#include "report/diagnosis.h"
#include "report/memory_map.h"
#include "report/page.h"

namespace whimbrel::report {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kBase = std::uint64_t{0x7f0000000000};

// 8 MiB in two regions with 4 MiB of RAM: filled, the first half leaves, and comes home page by page while the second leaves.
replay::Recording recording(double seconds = 1, const char* command = "job", std::uint64_t wait_ns = 500'000'000) {
  std::ostringstream out;
  std::uint64_t time = 1'000'000;
  out << R"({"event":"run","version":1,"time_ns":1000000,"unix_time_ns":1,"pid":1,"ram_limit_bytes":4194304,"total_limit_bytes":0,"device":"zstd","page_bytes":4096,"command":[")"
      << command << "\"]}\n"
      << R"({"event":"process","time_ns":1000001,"pid":7,"parent":1,"program":"job"})" << '\n'
      << R"({"event":"mappings","time_ns":1000002,"pid":7,"left_out":0,"mappings":[[)" << kBase << "," << 4 * kMiB << R"(,"[heap]"],[)" << kBase + 64 * kMiB << ","
      << 4 * kMiB << ",\"\"]]}\n";
  const auto move = [&](std::uint64_t address, std::uint64_t length, const char* from, const char* to, const char* cause) {
    time += 100'000;
    out << R"({"event":"move","time_ns":)" << time << R"(,"pid":7,"address":)" << address << R"(,"length":)" << length << R"(,"from":")" << from << R"(","to":")" << to
        << R"(","cause":")" << cause << R"(","latency_ns":20000})" << '\n';
  };
  move(kBase, 4 * kMiB, "none", "ram", "fault");
  move(kBase, 4 * kMiB, "ram", "device", "pressure");
  move(kBase + 64 * kMiB, 4 * kMiB, "none", "ram", "fault");
  for (std::uint64_t page = 0; page < 1024; ++page) {
    move(kBase + 64 * kMiB + page * 4096, 4096, "ram", "device", "pressure");
    move(kBase + page * 4096, 4096, "device", "ram", "fault");
  }
  out << R"({"event":"sample","time_ns":)" << time << R"(,"pid":7,"image":0,"resident_bytes":4194304,"limit_bytes":4194304,"away_bytes":4194304,"compressed_bytes":4000000,"held_bytes":4000000,"pages_out":2048,"pages_home":1024,"faults":1024,"wait_ns":)"
      << wait_ns << "}\n"
      << R"({"event":"end","time_ns":)" << time + 1 << R"(,"exit_status":0,"seconds":)" << seconds << R"(,"events":2051,"lost":0})" << '\n';
  std::istringstream in(out.str());
  replay::Recording r;
  std::string problem;
  EXPECT_TRUE(read_recording(in, &r, &problem)) << problem;
  return r;
}

TEST(MemoryMap, ShowsWhereAPageIsAtEachTime) {
  const replay::Recording r = recording();
  MemoryMap map;
  std::string problem;
  ASSERT_TRUE(map_recording(r, 0, 10, &map, &problem)) << problem;
  EXPECT_EQ(map.pid, 7u);
  ASSERT_EQ(map.regions.size(), 2u);
  EXPECT_EQ(map.regions[0].name, "[heap]");
  EXPECT_EQ(map.regions[0].faults, 1024u);
  EXPECT_EQ(map.regions[1].faults, 0u);
  ASSERT_EQ(map.frames.size(), 10u);
  EXPECT_EQ(map.cell_bytes, 65536u);
  EXPECT_EQ(map.regions[1].first_cell, 64u);
  for (const MapFrame& frame : map.frames) {
    ASSERT_EQ(frame.resident.size(), 128u);
    EXPECT_GE(frame.resident_bytes, 4 * kMiB - 4096);  // one may just have left
  }
  // Half-way: the first half of the heap is home, and of the other region the first half is away.
  const MapFrame& half = map.frames[4];
  EXPECT_EQ(half.resident.substr(0, 30), std::string(30, '9'));
  EXPECT_EQ(half.away.substr(34, 30), std::string(30, '9'));
  EXPECT_EQ(half.away.substr(64, 30), std::string(30, '9'));
  EXPECT_EQ(half.resident.substr(98, 30), std::string(30, '9'));
  EXPECT_EQ(half.heat.substr(64), std::string(64, '0')) << "nothing was fetched there";
  EXPECT_EQ(half.heat[0], '0') << "not since the last frame";
  EXPECT_EQ(map.frames[0].heat[0], '5') << "16 pages";
  EXPECT_EQ(map.frames[9].resident.substr(0, 64), std::string(64, '9'));
  const std::vector<MapRegion> hot = hottest(map, 5);
  ASSERT_EQ(hot.size(), 1u);
  EXPECT_EQ(hot[0].fetched_pages, 1024u);
}

TEST(MemoryMap, InLettersAndAsSvg) {
  MemoryMap map;
  std::string problem;
  ASSERT_TRUE(map_recording(recording(), 7, 1, &map, &problem));
  const std::string plain = map_text(map, 80, false);
  EXPECT_NE(plain.find("job 7: 4.0 MiB in RAM, 4.0 MiB away on zstd"), std::string::npos) << plain;
  EXPECT_NE(plain.find("[heap]\n  " + std::string(64, '#') + "\n"), std::string::npos) << plain;
  EXPECT_NE(plain.find("anonymous\n  " + std::string(64, 'o') + "\n"), std::string::npos) << plain;
  EXPECT_EQ(plain.find('\x1b'), std::string::npos);
  EXPECT_NE(map_text(map, 80, true).find("\x1b[38;5;"), std::string::npos);
  const std::string svg = map_svg(map);
  EXPECT_TRUE(svg.starts_with("<svg "));
  EXPECT_TRUE(svg.ends_with("</svg>\n"));
  EXPECT_NE(svg.find("[heap]"), std::string::npos);
}

TEST(MemoryMap, OfALivingProcess) {
  constexpr std::size_t kBytes = 8 * kMiB;
  auto* memory = static_cast<char*>(mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_NE(memory, MAP_FAILED);
  madvise(memory, kBytes, MADV_NOHUGEPAGE);
  std::memset(memory, 1, kBytes / 2);
  MemoryMap map;
  std::string problem;
  const bool seen = map_process(static_cast<std::uint32_t>(getpid()), &map, &problem);
  if (!seen && problem.find("cannot be seen") != std::string::npos) GTEST_SKIP() << problem << " (kernel before 6.7?)";
  ASSERT_TRUE(seen) << problem;
  const auto address = reinterpret_cast<std::uint64_t>(memory);
  std::uint64_t full = 0, empty = 0;
  for (const MapRegion& region : map.regions) {
    for (std::size_t c = 0; c < region.cells; ++c) {
      const std::uint64_t at = region.address + c * map.cell_bytes;
      if (at < address || at + map.cell_bytes > address + kBytes) continue;
      (map.frames[0].resident[region.first_cell + c] == '9' ? full : empty) += map.cell_bytes;
    }
  }
  EXPECT_NEAR(static_cast<double>(full), static_cast<double>(kBytes / 2), static_cast<double>(2 * map.cell_bytes));
  EXPECT_GT(empty, kBytes / 2 - 3 * map.cell_bytes);
  munmap(memory, kBytes);
  EXPECT_FALSE(map_process(0x7ffffffe, &map, &problem));
  EXPECT_NE(problem.find("no such process"), std::string::npos) << problem;
}

TEST(Diagnosis, SaysWhyAndWhatWouldHelp) {
  const replay::Recording r = recording();
  const replay::Simulator simulator(r);
  std::string all;
  for (const Finding& finding : diagnose(r, simulator)) all += finding.what + " -> " + finding.advice + "\n";
  EXPECT_NE(all.find("waited 50 % of its time: 0.5 s of 1.0 s, in 1024 touches"), std::string::npos) << all;
  EXPECT_NE(all.find("would fall to"), std::string::npos) << all;
  EXPECT_NE(all.find("--ram "), std::string::npos) << all;
  EXPECT_NE(all.find("scattered"), std::string::npos) << all;
  EXPECT_NE(all.find("had left less than a second before"), std::string::npos) << all;
  EXPECT_NE(all.find("hardly compress (1.05 : 1)"), std::string::npos) << all;
  EXPECT_NE(all.find("while the program waited for the room"), std::string::npos) << all;
  const replay::Recording good = recording(1, "job", 1'000'000);
  const std::vector<Finding> findings = diagnose(good, replay::Simulator(good));
  ASSERT_EQ(findings.size(), 1u);
  EXPECT_NE(findings[0].what.find("this budget is enough"), std::string::npos);
}

TEST(Page, HoldsItsDataAndNeedsNothingElse) {
  const std::string page = report_page(recording(1, "job </script><script>alert(1)</script>"));
  const std::string mark = "const data = ";
  const std::size_t at = page.find(mark) + mark.size();
  const nlohmann::json data = nlohmann::json::parse(page.substr(at, page.find(";\n", at) - at));
  EXPECT_EQ(data["kind"], "report");
  EXPECT_EQ(data["command"], "job </script><script>alert(1)</script>");
  EXPECT_EQ(data["faults"], 1024);
  EXPECT_EQ(data["timeline"]["t"].size(), data["timeline"]["wait"].size());
  EXPECT_EQ(data["map"]["regions"].size(), 2u);
  EXPECT_GT(data["why"].size(), 2u);
  EXPECT_EQ(data["budgets"].size(), 9u);
  for (const char* foreign : {"http://", "https://", "src=", "@import", "<link"}) {
    std::string rest = page;
    const std::string known = "http://www.w3.org/2000/svg";
    rest.erase(rest.find(known), known.size());
    EXPECT_EQ(rest.find(foreign), std::string::npos) << foreign;
  }
  std::size_t scripts = 0;
  for (std::size_t from = 0; (from = page.find("<script", from)) != std::string::npos; ++from) ++scripts;
  EXPECT_EQ(scripts, 1u);
}

}  // namespace
}  // namespace whimbrel::report
