#include "report/page.h"

#include <algorithm>
#include <bit>
#include <map>
#include <nlohmann/json.hpp>

#include "replay/simulation.h"
#include "report/diagnosis.h"
#include "report/page_html.h"

namespace whimbrel::report {
namespace {

using Json = nlohmann::ordered_json;
using replay::Event;
using replay::Recording;
using replay::What;

constexpr std::size_t kPoints = 240;
constexpr std::size_t kMapFrames = 60;
constexpr std::size_t kMostPlaces = 20;

double ratio(double part, double whole) { return whole > 0 ? part / whole : 0; }

Json map_json(const MemoryMap& map) {
  Json out{{"pid", map.pid}, {"program", map.program}, {"device", map.device}, {"cell_bytes", map.cell_bytes}, {"knows_away", map.knows_away}};
  out["regions"] = Json::array();
  for (const MapRegion& r : map.regions) {
    out["regions"].push_back({{"name", r.name}, {"address", r.address}, {"length", r.length}, {"first", r.first_cell}, {"cells", r.cells}, {"fetched", r.fetched_pages}, {"faults", r.faults}});
  }
  out["frames"] = Json::array();
  for (const MapFrame& f : map.frames) {
    out["frames"].push_back({{"t", f.seconds}, {"resident", f.resident}, {"away", f.away}, {"heat", f.heat}, {"huge", f.huge}, {"resident_bytes", f.resident_bytes}, {"away_bytes", f.away_bytes}});
  }
  return out;
}

// All processes together, at kPoints moments.
Json timeline(const Recording& recording) {
  std::map<std::pair<std::uint64_t, std::uint32_t>, replay::Sample> now;
  Json out;
  std::vector<double> t, resident, limit, away, held, wait, faults, fresh, out_rate;
  const std::uint64_t start = recording.started_ns, end = recording.events.empty() ? start + 1 : recording.events.back().time_ns;
  const std::size_t points = std::clamp<std::size_t>(recording.samples.size(), 2, kPoints);
  replay::Sample before;
  std::size_t at = 0;
  for (std::size_t i = 0; i < points; ++i) {
    const std::uint64_t until = start + (end - start) * (i + 1) / points;
    for (; at < recording.events.size() && recording.events[at].time_ns <= until; ++at) {
      const Event& event = recording.events[at];
      if (event.what == What::kSample) now[{recording.samples[event.detail].image, event.pid}] = recording.samples[event.detail];
      if (event.what != What::kExit) continue;
      for (auto& [who, sample] : now) {  // the counters stay
        if (who.second == event.pid) sample.resident_bytes = sample.limit_bytes = sample.away_bytes = sample.held_bytes = 0;
      }
    }
    replay::Sample sum;
    for (const auto& [who, sample] : now) {
      sum.resident_bytes += sample.resident_bytes;
      sum.limit_bytes += sample.limit_bytes;
      sum.away_bytes += sample.away_bytes;
      sum.held_bytes += sample.held_bytes;
      sum.wait_ns += sample.wait_ns;
      sum.faults += sample.faults;
      sum.zero_faults += sample.zero_faults;
      sum.pages_out += sample.pages_out;
    }
    const double seconds = static_cast<double>(end - start) / static_cast<double>(points) / 1e9;
    const auto rate = [seconds](std::uint64_t later, std::uint64_t earlier) { return later < earlier ? 0.0 : ratio(static_cast<double>(later - earlier), seconds); };
    t.push_back(static_cast<double>(until - start) / 1e9);
    resident.push_back(static_cast<double>(sum.resident_bytes));
    limit.push_back(static_cast<double>(sum.limit_bytes));
    away.push_back(static_cast<double>(sum.away_bytes));
    held.push_back(static_cast<double>(sum.held_bytes));
    wait.push_back(rate(sum.wait_ns, before.wait_ns) / 1e9);
    faults.push_back(rate(sum.faults, before.faults));
    fresh.push_back(rate(sum.zero_faults, before.zero_faults));
    out_rate.push_back(rate(sum.pages_out, before.pages_out));
    before = sum;
  }
  return {{"t", t}, {"resident", resident}, {"limit", limit}, {"away", away}, {"held", held}, {"wait", wait}, {"faults", faults}, {"fresh", fresh}, {"out", out_rate}};
}

Json causes(const Recording& recording) {
  static constexpr const char* kNames[kMoveCauses] = {"user", "fault", "prefetch", "eviction", "pressure", "evacuation"};
  std::uint64_t pages[kMoveCauses] = {}, moves[kMoveCauses] = {};
  std::vector<std::uint64_t> waits(40);
  for (const Event& event : recording.events) {
    if (event.what != What::kMove || event.from == Place::kNone) continue;
    const auto cause = static_cast<std::size_t>(event.cause);
    pages[cause] += event.pages;
    ++moves[cause];
    if (event.cause == MoveCause::kFault) ++waits[std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(event.detail)), waits.size() - 1)];
  }
  Json out;
  out["list"] = Json::array();
  for (std::size_t i = 0; i < kMoveCauses; ++i) {
    if (moves[i] != 0) out["list"].push_back({{"cause", kNames[i]}, {"pages", pages[i]}, {"moves", moves[i]}});
  }
  out["waits"] = waits;  // bucket n: [2^(n-1), 2^n) nanoseconds
  return out;
}

Json budgets(const Recording& recording, const replay::Simulator& simulator) {
  Json out = Json::array();
  const std::uint64_t from = simulator.recorded_bytes(), to = std::max(simulator.footprint_bytes() + simulator.footprint_bytes() / 10, from + from / 4);
  for (int i = 0; i <= 8; ++i) {
    const replay::Outcome o = simulator.run(from + (to - from) / 8 * static_cast<std::uint64_t>(i), replay::policy_kinds().front());
    out.push_back({{"ram", o.ram_bytes}, {"faults", o.faults}, {"wait", o.wait_seconds}, {"share", o.wait_share}, {"seconds", o.seconds}});
  }
  (void)recording;
  return out;
}

std::string filled(const Json& data) {
  std::string text = data.dump(-1, ' ', false, Json::error_handler_t::replace);
  // Nothing in a string may end the script.
  for (std::size_t at = 0; (at = text.find('<', at)) != std::string::npos;) text.replace(at, 1, "\\u003c");
  std::string page = kPageHtml;
  const std::string mark = "/*DATA*/null";
  page.replace(page.find(mark), mark.size(), text);
  return page;
}

}  // namespace

std::string map_page(const MemoryMap& map) { return filled({{"kind", "map"}, {"map", map_json(map)}}); }

std::string report_page(const Recording& recording) {
  const replay::Simulator simulator(recording);
  std::string command;
  for (const std::string& word : recording.command) command += (command.empty() ? "" : " ") + word;
  Json data{{"kind", "report"},
            {"command", command},
            {"device", recording.device},
            {"unix_time_ns", recording.unix_time_ns},
            {"ram_limit", recording.ram_limit_bytes},
            {"total_limit", recording.total_limit_bytes},
            {"recorded_ram", simulator.recorded_bytes()},
            {"footprint", simulator.footprint_bytes()},
            {"seconds", recording.seconds},
            {"exit_status", recording.exit_status},
            {"complete", recording.complete},
            {"lost", recording.lost},
            {"faults", recording.faults},
            {"fresh_faults", recording.zero_faults},
            {"wait_seconds", static_cast<double>(recording.wait_ns) / 1e9},
            {"pages_out", recording.pages_out},
            {"pages_home", recording.pages_home}};
  data["processes"] = Json::array();
  for (const replay::Process& p : recording.processes) data["processes"].push_back({{"pid", p.pid}, {"parent", p.parent}, {"program", p.program}});
  data["why"] = Json::array();
  for (const Finding& finding : diagnose(recording, simulator)) data["why"].push_back({{"what", finding.what}, {"advice", finding.advice}});
  data["timeline"] = timeline(recording);
  data["causes"] = causes(recording);
  data["budgets"] = budgets(recording, simulator);
  data["budget_changes"] = Json::array();
  for (const replay::BudgetChange& b : recording.budget_changes) {
    data["budget_changes"].push_back({{"t", static_cast<double>(b.time_ns - recording.started_ns) / 1e9}, {"ram", b.ram_limit_bytes}, {"total", b.total_limit_bytes}});
  }
  data["place_samples"] = recording.place_samples;
  data["places"] = Json::array();
  for (const replay::CodePlace& p : recording.places) {
    if (data["places"].size() == kMostPlaces) break;
    data["places"].push_back({{"place", p.place}, {"inside", p.inside}, {"callers", p.callers}, {"samples", p.samples}, {"first_touches", p.first_touches}, {"wait_ns", p.wait_ns}});
  }
  data["hottest"] = Json::array();
  MemoryMap map;
  std::string problem;
  if (map_recording(recording, 0, kMapFrames, &map, &problem)) {
    for (const MapRegion& r : hottest(map, 12)) {
      data["hottest"].push_back({{"name", r.name}, {"address", r.address}, {"length", r.length}, {"fetched", r.fetched_pages}, {"faults", r.faults}});
    }
    data["map"] = map_json(map);
  }
  return filled(data);
}

}  // namespace whimbrel::report
