#include "report/diagnosis.h"

#include <fmt/format.h>

#include <algorithm>
#include <unordered_map>

namespace whimbrel::report {
namespace {

using replay::Event;
using replay::Recording;
using replay::What;

constexpr double kGoodShare = 0.02;  // of the run: not worth a thought
constexpr std::uint64_t kSoon = 1'000'000'000;

struct Counts {
  std::uint64_t faults = 0, fault_ns = 0, fresh_ns = 0, prefetched = 0;
  std::uint64_t evicted = 0, pressed = 0;       // pages, in the background and while somebody waited
  std::uint64_t came_home = 0, came_soon = 0;   // faulted pages; those that had left less than a second before
};

Counts count(const Recording& recording) {
  Counts out;
  std::unordered_map<std::uint64_t, std::uint64_t> left;  // by page and process
  const auto key = [](const Event& event, std::uint64_t i) { return (event.first_page + i) ^ std::uint64_t{event.pid} << 44; };
  for (const Event& event : recording.events) {
    if (event.what != What::kMove) continue;
    if (event.to == Place::kDevice) {
      (event.cause == MoveCause::kPressure ? out.pressed : out.evicted) += event.pages;
      for (std::uint64_t i = 0; i < event.pages; ++i) left[key(event, i)] = event.time_ns;
    } else if (event.cause == MoveCause::kPrefetch) {
      out.prefetched += event.pages;
    } else if (event.cause == MoveCause::kFault && event.from == Place::kNone) {
      out.fresh_ns += event.detail;
    } else if (event.cause == MoveCause::kFault) {
      ++out.faults;
      out.fault_ns += event.detail;
      ++out.came_home;
      const auto found = left.find(key(event, 0));
      if (found != left.end() && event.time_ns - found->second < kSoon) ++out.came_soon;
    }
  }
  return out;
}

std::string mebibytes(std::uint64_t bytes) { return fmt::format("{} MB", (bytes + (std::uint64_t{1} << 20) - 1) >> 20); }
std::string percent(double share) { return share < 0.001 ? "less than 0.1 %" : fmt::format("{:.{}f} %", share * 100, share < 0.1 ? 1 : 0); }

double share(std::uint64_t part, std::uint64_t whole) { return whole == 0 ? 0 : static_cast<double>(part) / static_cast<double>(whole); }

void advise_budget(const Recording& recording, const replay::Simulator& simulator, double waited, std::vector<Finding>* out) {
  for (const double target : {kGoodShare, 0.05, 0.1, 0.2}) {
    if (waited <= target * 1.1) continue;
    replay::Outcome better;
    if (!simulator.smallest_with(target, &better)) continue;
    out->push_back({fmt::format("With {} the waiting time would fall to {} of the run, and the run would take {:.1f} s instead of {:.1f} s.",
                                mebibytes(better.ram_bytes), percent(better.wait_share), better.seconds, recording.seconds),
                    fmt::format("--ram {}M", (better.ram_bytes + (1u << 20) - 1) >> 20)});
    return;
  }
  out->push_back({"No budget would make the waiting much shorter: it goes to memory that is touched for the first time.", ""});
}

}  // namespace

std::vector<Finding> diagnose(const Recording& recording, const replay::Simulator& simulator) {
  std::vector<Finding> out;
  const Counts n = count(recording);
  const double waited = recording.seconds > 0 ? static_cast<double>(recording.wait_ns) / 1e9 / recording.seconds : 0;
  if (recording.lost != 0) {
    out.push_back({fmt::format("{} events were lost; all that is counted here is too low.", recording.lost), "Write the recording to a faster disk."});
  }
  if (waited <= kGoodShare) {
    out.push_back({fmt::format("The program waited {} of its time: this budget is enough.", percent(waited)), "A smaller one may do as well."});
    return out;
  }
  out.push_back({fmt::format("The program waited {} of its time: {:.1f} s of {:.1f} s, in {} touches of memory that was away (each {:.0f} \u00b5s) and first touches of memory.",
                             percent(waited), static_cast<double>(recording.wait_ns) / 1e9, recording.seconds, recording.faults,
                             n.faults == 0 ? 0.0 : static_cast<double>(n.fault_ns) / static_cast<double>(n.faults) / 1e3), ""});
  advise_budget(recording, simulator, waited, &out);
  if (!recording.places.empty() && recording.places.front().samples != 0) {
    const replay::CodePlace& first = recording.places.front();
    out.push_back({fmt::format("{} of the sampled touches of memory that was away come from {}{}.", percent(share(first.samples, recording.place_samples)), first.place,
                               first.inside.empty() ? "" : " (in " + first.inside + ")"), ""});
  }
  if (share(n.came_soon, n.came_home) > 0.3) {
    out.push_back({fmt::format("{} of the pages that were touched had left less than a second before: what the program works on at a time is larger than the budget.",
                               percent(share(n.came_soon, n.came_home))), "More memory helps, or a program that works on smaller parts."});
  }
  if (n.faults > 1000 && n.prefetched < n.faults / 2) {
    out.push_back({"Its touches lie scattered: hardly any page came home before it was asked for, and each costs a fault of its own.",
                   recording.device.starts_with("zstd") ? "--device lz4 brings single pages home three to four times faster." : ""});
  }
  if (n.pressed > n.evicted) {
    out.push_back({fmt::format("{} of the pages that left did so while the program waited for the room.", percent(share(n.pressed, n.pressed + n.evicted))), ""});
  }
  if (n.fresh_ns > n.fault_ns) {
    out.push_back({"More of the waiting goes to memory that is touched for the first time than to memory that was away.",
                   "A budget that holds all of it, or transparent huge pages (madvise), would make that cheaper."});
  }
  std::uint64_t most_away = 0, held = 0, over = 0, refused = 0;
  for (const replay::Sample& sample : recording.samples) {
    if (sample.away_bytes > most_away) most_away = sample.away_bytes, held = sample.held_bytes;
    over = std::max(over, sample.over_limit);
    refused = std::max(refused, sample.refused_pages);
  }
  if (held != 0 && share(most_away, held) < 1.3 && !recording.device.starts_with("file")) {
    out.push_back({fmt::format("The contents hardly compress ({:.2f} : 1): little RAM is gained.", share(most_away, held)), "--device file:/var/tmp puts them on a disk."});
  }
  if (over > recording.faults / 20 + 100) {
    out.push_back({fmt::format("{} touches were served although no room could be made: what was resident could not leave (locked, shared after a fork, in use by devices).", over), ""});
  } else if (refused > recording.pages_out / 4 + 1000) {
    out.push_back({fmt::format("{} pages would not leave when they were asked to: shared after a fork, or in use by devices.", refused), ""});
  }
  return out;
}

}  // namespace whimbrel::report
