#include <gtest/gtest.h>

#include <set>
#include <sstream>
#include <string>

#include "replay/page_sets.h"
#include "replay/policies.h"
#include "replay/recording.h"
#include "replay/simulation.h"

namespace whimbrel::replay {
namespace {

constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;
constexpr std::uint64_t kBase = 1u << 20;  // a page number

PageRange pages(std::uint64_t first, std::uint64_t count) { return {PageIndex(first), PageCount(count)}; }

// ---- page sets ----

TEST(PageSets, AgreeWithASetOfPages) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    std::srand(seed);
    PageSets sets;
    std::set<std::uint64_t> resident, away;
    const auto each = [](PageRange range, auto&& visit) {
      for (PageIndex at = range.first; at < range.end(); ++at) visit(at.raw());
    };
    for (int step = 0; step < 400; ++step) {
      const PageRange range = pages(static_cast<std::uint64_t>(std::rand()) % 900, 1 + static_cast<std::uint64_t>(std::rand()) % 150);
      switch (std::rand() % 6) {
        case 0:
          sets.set(range, PageSets::kResident);
          each(range, [&](std::uint64_t p) { resident.insert(p), away.erase(p); });
          break;
        case 1:
          sets.set(range, PageSets::kAway);
          each(range, [&](std::uint64_t p) { away.insert(p), resident.erase(p); });
          break;
        case 2: {
          std::uint64_t expected = 0;
          each(range, [&](std::uint64_t p) { if (resident.erase(p) != 0) away.insert(p), ++expected; });
          EXPECT_EQ(sets.evict(range), expected);
          break;
        }
        case 3: {
          std::uint64_t expected = 0;
          each(range, [&](std::uint64_t p) { if (away.erase(p) != 0) resident.insert(p), ++expected; });
          EXPECT_EQ(sets.away_in(range), expected);
          EXPECT_EQ(sets.bring(range), expected);
          break;
        }
        case 4:
          sets.drop(range);
          each(range, [&](std::uint64_t p) { resident.erase(p), away.erase(p); });
          break;
        case 5: {
          const std::uint64_t to = 2000 + static_cast<std::uint64_t>(std::rand()) % 100;  // beyond: no overlap
          sets.move(range, PageIndex(to));
          std::set<std::uint64_t> was_resident, was_away;
          each(range, [&](std::uint64_t p) {
            if (resident.erase(p) != 0) was_resident.insert(p - range.first.raw() + to);
            if (away.erase(p) != 0) was_away.insert(p - range.first.raw() + to);
          });
          each({PageIndex(to), range.count}, [&](std::uint64_t p) { resident.erase(p), away.erase(p); });
          resident.merge(was_resident);
          away.merge(was_away);
          break;
        }
      }
      ASSERT_EQ(sets.resident(), resident.size());
      ASSERT_EQ(sets.away(), away.size());
    }
    std::set<std::uint64_t> found;
    std::uint64_t present = 0;
    Clump clump;
    for (PageIndex at(0); sets.next_resident(at, &clump); at = clump.range.end()) {
      ASSERT_LE(at, clump.range.first);
      present += clump.present;
      ASSERT_EQ(clump.range.first.raw() / 64, (clump.range.end().raw() - 1) / 64);
      for (PageIndex page = clump.range.first; page < clump.range.end(); ++page) {
        if (sets.at(page) == PageSets::kResident) found.insert(page.raw());
      }
    }
    EXPECT_EQ(found, resident);
    EXPECT_EQ(present, resident.size());
  }
}

// ---- recordings ----

// Writes event files as `whimbrel run --events` does.
class Writer {
 public:
  explicit Writer(std::uint64_t ram_bytes, int pid = 7) : pid_(pid) {
    out_ << R"({"event":"run","version":1,"time_ns":1000,"unix_time_ns":1,"pid":1,"ram_limit_bytes":)" << ram_bytes
         << R"(,"total_limit_bytes":0,"device":"zstd","page_bytes":4096,"command":["job","a\"b"]})" << '\n';
    process(pid, 1);
  }
  void process(int pid, int parent) {
    out_ << R"({"event":"process","time_ns":)" << now() << R"(,"pid":)" << pid << R"(,"parent":)" << parent << R"(,"program":"job"})" << '\n';
    pid_ = pid;
  }
  void of(int pid) { pid_ = pid; }
  void move(std::uint64_t page, std::uint64_t count, const char* from, const char* to, const char* cause, std::uint64_t latency = 1000, bool same_time = false) {
    if (!same_time) now();
    out_ << R"({"event":"move","time_ns":)" << time_ << R"(,"pid":)" << pid_ << R"(,"address":)" << page * 4096 << R"(,"length":)" << count * 4096
         << R"(,"from":")" << from << R"(","to":")" << to << R"(","cause":")" << cause << R"(","latency_ns":)" << latency << "}\n";
  }
  void fault(std::uint64_t page, std::uint64_t ahead = 0, std::uint64_t latency = 1000) {
    move(page, 1, "device", "ram", "fault", latency);
    if (ahead != 0) move(page + 1, ahead, "device", "ram", "prefetch", latency, true);
  }
  void line(const std::string& text) { out_ << text << '\n'; }
  void end(double seconds) {
    out_ << R"({"event":"end","time_ns":)" << now() << R"(,"exit_status":0,"seconds":)" << seconds << R"(,"events":0,"lost":0})" << '\n';
  }
  std::uint64_t now() { return time_ += 1000; }
  [[nodiscard]] std::string text() const { return out_.str(); }
  [[nodiscard]] Recording read() const {
    std::istringstream in(out_.str());
    Recording recording;
    std::string problem;
    EXPECT_TRUE(read_recording(in, &recording, &problem)) << problem;
    return recording;
  }

 private:
  std::ostringstream out_;
  std::uint64_t time_ = 1000;
  int pid_;
};

TEST(Recording, ReadsWhatIsThere) {
  Writer writer(64 * kMiB);
  writer.move(kBase, 64, "none", "ram", "fault");
  writer.move(kBase, 64, "ram", "device", "eviction", 5000);
  writer.fault(kBase, 7, 3000);
  writer.line(R"({"event":"remap","time_ns":9000,"pid":7,"address":4096,"length":8192,"to_address":40960,"cause":"user"})");
  writer.line(R"({"event":"sample","time_ns":9500,"pid":7,"resident_bytes":409600,"limit_bytes":67108864,"away_bytes":229376,"faults":3,"wait_ns":77})");
  writer.line(R"({"event":"mappings","time_ns":9600,"pid":7,"left_out":0,"mappings":[[4096,8192,"[heap]"]]})");
  writer.line(R"({"event":"lost","time_ns":9700,"pid":7,"count":5})");
  writer.line(R"({"event":"of a later version","time_ns":9800,"pid":7,"x":{}})");
  writer.end(2.5);
  const Recording r = writer.read();
  EXPECT_EQ(r.command, (std::vector<std::string>{"job", "a\"b"}));
  EXPECT_EQ(r.ram_limit_bytes, 64 * kMiB);
  EXPECT_TRUE(r.complete);
  EXPECT_EQ(r.seconds, 2.5);
  EXPECT_EQ(r.lost, 5u);
  ASSERT_EQ(r.processes.size(), 1u);
  EXPECT_EQ(r.processes[0].program, "job");
  EXPECT_EQ(r.faults, 3u);
  EXPECT_EQ(r.wait_ns, 77u);
  ASSERT_EQ(r.samples.size(), 1u);
  EXPECT_EQ(r.samples[0].unseen_pages, 100u - 8u) << "eight pages are known to be resident";
  ASSERT_EQ(r.mappings.size(), 1u);
  EXPECT_EQ(r.mappings[0][0].name, "[heap]");
  EXPECT_EQ(r.events[2].cause, MoveCause::kEviction);
  EXPECT_EQ(r.events[2].detail, 5000u);
  EXPECT_EQ(r.events[4].cause, MoveCause::kPrefetch);
  EXPECT_EQ(r.events[4].pages, 7u);
  EXPECT_EQ(r.events[4].time_ns, r.events[3].time_ns);
}

TEST(Recording, ACutOffLineIsPassedOverAndABrokenOneIsNot) {
  Writer writer(kMiB);
  writer.fault(kBase);
  const std::string good = writer.text();
  Recording r;
  std::string problem;
  std::istringstream cut(good + R"({"event":"move","time_ns":12)");
  EXPECT_TRUE(read_recording(cut, &r, &problem));
  EXPECT_FALSE(r.complete);
  EXPECT_EQ(r.events.size(), 2u);
  for (const char* broken : {"{\"event\":\"move\",\"time_ns\":12}\n", "nonsense\n", "\n", "{\"event\":\"process\"}\n",
                             R"({"event":"move","time_ns":5,"pid":1,"address":0,"length":4096,"from":"moon","to":"ram","cause":"fault","latency_ns":1})"
                             "\n"}) {
    std::istringstream in(good + broken + "x\n");
    EXPECT_FALSE(read_recording(in, &r, &problem)) << broken;
    EXPECT_NE(problem.find("line 4: "), std::string::npos) << problem;
  }
  std::istringstream empty(""), other("{\"time\":1}\n");
  EXPECT_FALSE(read_recording(empty, &r, &problem));
  EXPECT_FALSE(read_recording(other, &r, &problem));
}

TEST(Recording, CostsAreFittedToTheFaults) {
  Writer writer(kMiB);
  for (std::uint64_t i = 0; i < 50; ++i) writer.fault(kBase + i * 100, i % 7, 10'000 + 500 * (i % 7));
  writer.move(1, 4, "none", "ram", "fault", 300);
  const CostModel cost = cost_of(writer.read());
  EXPECT_EQ(cost.faults, 50u);
  EXPECT_NEAR(cost.fault_ns, 10'000, 1);
  EXPECT_NEAR(cost.page_ns, 500, 1);
  EXPECT_NEAR(cost.zero_fault_ns, 300, 1);
}

// ---- simulations ----

// What a run with `ram` pages of memory would have recorded that fills `pages` and then walks them `rounds` times: everything
// comes home each time, nothing is ever found resident.
Recording walk(std::uint64_t ram, std::uint64_t count, int rounds) {
  Writer writer(ram * 4096);
  for (std::uint64_t at = 0; at < count; at += 64) {
    if (at >= ram) writer.move(kBase + at - ram, 64, "ram", "device", "eviction");
    writer.move(kBase + at, 64, "none", "ram", "fault");
  }
  for (int round = 0; round < rounds; ++round) {
    for (std::uint64_t at = 0; at < count; at += 64) {
      writer.move(kBase + (at + count - ram) % count, 64, "ram", "device", "eviction");
      writer.fault(kBase + at, 63, 64'000);
    }
  }
  writer.end(10);
  return writer.read();
}

TEST(Simulation, TheRecordedBudgetGivesAboutWhatWasRecorded) {
  const Recording recording = walk(4096, 8192, 5);
  const Simulator simulator(recording);
  EXPECT_EQ(simulator.recorded_bytes(), 4096u * 4096);
  EXPECT_EQ(simulator.footprint_bytes(), 8192u * 4096);
  const Outcome outcome = simulator.run(simulator.recorded_bytes(), policy_kinds()[0]);
  EXPECT_GT(outcome.pages_home, 8192u * 5 * 6 / 10) << "second chance keeps a part of a loop at best";
  EXPECT_LE(outcome.pages_home, 8192u * 5);
  EXPECT_GE(outcome.pages_out, outcome.pages_home);
  EXPECT_FALSE(outcome.lower_bound);
}

TEST(Simulation, WithRoomForEverythingNothingIsWaitedFor) {
  const Recording recording = walk(4096, 8192, 5);
  const Simulator simulator(recording);
  for (const PolicyKind& policy : policy_kinds()) {
    const Outcome all = simulator.run(9216 * 4096, policy);
    EXPECT_EQ(all.faults, 0u) << policy.name;
    EXPECT_EQ(all.pages_out, 0u) << policy.name;
  }
}

TEST(Simulation, MoreMemoryNeverMeansMuchMoreFaultsAndTheClairvoyantIsBest) {
  const Recording recording = walk(2048, 8192, 6);
  const Simulator simulator(recording);
  for (const PolicyKind& policy : policy_kinds()) {
    std::uint64_t before = ~std::uint64_t{0};
    for (const std::uint64_t ram : {2048u, 4096u, 6144u, 9216u}) {
      const Outcome now = simulator.run(ram * 4096, policy);
      if (before != ~std::uint64_t{0}) {
        EXPECT_LE(now.pages_home, before + before / 20) << policy.name << ram;
      }
      before = now.pages_home;
      const Outcome best = simulator.run(ram * 4096, *find_policy("clairvoyant"));
      EXPECT_LE(best.pages_home, now.pages_home + now.pages_home / 20) << policy.name << " " << ram;
    }
  }
  // A loop: who knows the future keeps a part of it, first in first out keeps nothing.
  EXPECT_LT(simulator.run(6144 * 4096, *find_policy("clairvoyant")).pages_home * 2, simulator.run(6144 * 4096, *find_policy("fifo")).pages_home);
}

TEST(Simulation, FindsTheSmallestBudgetThatIsGoodEnough) {
  const Recording recording = walk(2048, 8192, 6);
  const Simulator simulator(recording);
  Outcome found;
  ASSERT_TRUE(simulator.smallest_with(0.0001, &found));
  EXPECT_GT(found.ram_bytes, 7900u * 4096);
  EXPECT_LT(found.ram_bytes, 9300u * 4096);
  EXPECT_LE(found.wait_share, 0.0001);
  const Outcome less = simulator.run(found.ram_bytes - found.ram_bytes / 16, policy_kinds()[0]);
  EXPECT_GT(less.wait_share, 0.0001) << "it is the smallest";
}

TEST(Simulation, AChildHasWhatItsParentHadAndPaysForItself) {
  Writer writer(4096 * 4096);
  for (std::uint64_t at = 0; at < 8192; at += 64) {
    if (at >= 4096) writer.move(kBase + at - 4096, 64, "ram", "device", "eviction");
    writer.move(kBase + at, 64, "none", "ram", "fault");
  }
  writer.process(8, 7);
  for (std::uint64_t at = 0; at < 4096; at += 64) writer.fault(kBase + at, 63);
  writer.end(1);
  const Recording recording = writer.read();
  const Simulator simulator(recording);
  EXPECT_EQ(simulator.run(16384 * 4096, policy_kinds()[0]).faults, 0u) << "resident in the parent, so in the child";
  EXPECT_GT(simulator.run(4096 * 4096, policy_kinds()[0]).pages_home, 3500u);
}

TEST(Simulation, WhatIsDroppedNeedsNoRoomAndWhatMovesStaysWhatItWas) {
  Writer writer(1024 * 4096);
  for (int round = 0; round < 10; ++round) {
    for (std::uint64_t at = 0; at < 896; at += 64) writer.move(kBase + at, 64, "none", "ram", "fault");
    if (round % 2 == 0) {
      writer.line(R"({"event":"remap","time_ns":)" + std::to_string(writer.now()) + R"(,"pid":7,"address":)" + std::to_string(kBase * 4096) +
                  R"(,"length":)" + std::to_string(896 * 4096) + R"(,"to_address":)" + std::to_string(2 * kBase * 4096) + R"(,"cause":"user"})");
    }
    for (const std::uint64_t from : {kBase, 2 * kBase}) {
      writer.line(R"({"event":"drop","time_ns":)" + std::to_string(writer.now()) + R"(,"pid":7,"address":)" + std::to_string(from * 4096) +
                  R"(,"length":)" + std::to_string(896 * 4096) + R"(,"cause":"user"})");
    }
  }
  writer.end(1);
  const Recording recording = writer.read();
  const Outcome outcome = Simulator(recording).run(1024 * 4096, policy_kinds()[0]);
  EXPECT_EQ(outcome.pages_out, 0u);
  EXPECT_EQ(Simulator(recording).footprint_bytes(), 896u * 4096);
}

TEST(Simulation, UnseenResidentsTakeTheirShare) {
  Writer with(4096 * 4096), without(4096 * 4096);
  for (Writer* writer : {&with, &without}) {
    for (std::uint64_t at = 0; at < 3000; at += 60) writer->move(kBase + at, 60, "none", "ram", "fault");
    const std::uint64_t resident = writer == &with ? 4000 : 3000;
    writer->line(R"({"event":"sample","time_ns":)" + std::to_string(writer->now()) + R"(,"pid":7,"resident_bytes":)" + std::to_string(resident * 4096) + R"(,"limit_bytes":1})");
    writer->end(1);
  }
  const Recording a = with.read(), b = without.read();
  EXPECT_GT(Simulator(a).run(3500 * 4096, policy_kinds()[0]).pages_out, 400u);
  EXPECT_EQ(Simulator(b).run(3500 * 4096, policy_kinds()[0]).pages_out, 0u);
}

}  // namespace
}  // namespace whimbrel::replay
