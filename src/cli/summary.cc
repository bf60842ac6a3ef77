#include "cli/summary.h"

#include <fmt/format.h>

#include <cstring>
#include <nlohmann/json.hpp>

namespace whimbrel::cli {
namespace {

constexpr std::uint64_t kPage = 4096;
constexpr std::uint64_t kMiB = std::uint64_t{1} << 20;

// Plain numbers of the counters that both forms show.
struct Numbers {
  explicit Numbers(const PagerStats& p)
      : peak_total(p.peak_total_bytes), pages_out(p.pages_out), pages_home(p.pages_home), faults(p.faults), holes(p.holes),
        wait_ns(p.wait_ns), errors(p.device_errors + p.load_errors) {}
  std::uint64_t peak_total, pages_out, pages_home, faults, holes, wait_ns, errors;
  [[nodiscard]] double wait_seconds() const { return static_cast<double>(wait_ns) / 1e9; }
};

double compression_ratio(const StatsFile::Totals& t) {
  if (t.compressed_bytes == 0) return 0;
  return static_cast<double>(t.peak_stored_pages * kPage) / static_cast<double>(t.compressed_bytes);
}

// Residency is sampled inside the program; one that ended before the first sample has only what the kernel counted.
std::uint64_t peak_resident(const Summary& s) {
  const std::uint64_t pages = s.totals->pager.peak_resident_pages;
  if (pages != 0) return pages * kPage;
  return static_cast<std::uint64_t>(s.end.usage.ru_maxrss) * 1024;
}

std::string ending(const ProgramEnd& end) {
  if (end.signal != 0) {
    return fmt::format("ended by signal {} ({}){}", end.signal, strsignal(end.signal), end.dumped_core ? ", core dumped" : "");
  }
  return fmt::format("exit status {}", end.exit_status);
}

std::string count(std::uint64_t n) {
  std::string digits = fmt::format("{}", n);
  for (std::size_t at = digits.size(); at > 3;) digits.insert(at -= 3, 1, '\'');
  return digits;
}

std::string describe_places(const stacks::StackTotals& t) {
  constexpr std::size_t kMost = 10, kMostCallers = 3;
  if (t.samples + t.first_touches == 0) return fmt::format("  {:<14} none of the sampled faults (1 in {}) was for memory that was away\n", "places", t.period);
  std::string out = fmt::format("  {:<14} of {} sampled faults (1 in {}), where the program waits for memory that was away:\n", "places", count(t.samples), t.period);
  std::size_t shown = 0;
  for (const stacks::PlaceTotals& place : t.places) {
    if (shown++ == kMost || place.samples == 0) break;
    out += fmt::format("    {:>5.1f} %  {}{}{}\n", 100.0 * static_cast<double>(place.samples) / static_cast<double>(t.samples), place.place,
                       place.inside.empty() ? "" : ", in ", place.inside);
    std::string callers;
    for (std::size_t i = 0; i < place.callers.size() && i < kMostCallers; ++i) callers += " < " + place.callers[i];
    if (!callers.empty()) out += fmt::format("            {}\n", callers);
  }
  if (t.skipped != 0) out += fmt::format("    {} more were counted without their place, to save time; a larger N looks at fewer\n", count(t.skipped));
  if (t.lost != 0) out += fmt::format("    {} more were lost; a larger N looks at fewer\n", count(t.lost));
  return out;
}

}  // namespace

nlohmann::ordered_json stacks_json(const stacks::StackTotals& t) {
  nlohmann::ordered_json out{{"period", t.period},   {"samples", t.samples}, {"first_touches", t.first_touches},   {"ordinary", t.ordinary},
                             {"skipped", t.skipped}, {"lost", t.lost},       {"with_system_calls", t.system_calls}};
  auto& places = out["places"] = nlohmann::ordered_json::array();
  for (const stacks::PlaceTotals& p : t.places) {
    places.push_back({{"place", p.place}, {"inside", p.inside}, {"samples", p.samples}, {"first_touches", p.first_touches}, {"wait_ns", p.wait_ns}, {"callers", p.callers}});
  }
  return out;
}

std::string human_bytes(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) {
    value /= 1024;
    ++unit;
  }
  return fmt::format("{:.{}f} {}", value, unit == 0 || value >= 99.95 ? 0 : 1, kUnits[unit]);
}

std::string human_duration(double seconds) {
  if (seconds < 0.000'999'5) return fmt::format("{:.0f} us", seconds * 1e6);
  if (seconds < 0.999'5) return fmt::format("{:.0f} ms", seconds * 1e3);
  if (seconds < 99.95) return fmt::format("{:.1f} s", seconds);
  const auto whole = static_cast<std::uint64_t>(seconds + 0.5);
  return fmt::format("{} min {:02} s", whole / 60, whole % 60);
}

std::string describe(const Summary& s) {
  const StatsFile::Totals& t = *s.totals;
  const Numbers n(t.pager);
  std::string out = fmt::format("whimbrel: {}: {}, {}\n", s.program, ending(s.end), human_duration(s.end.seconds));
  const auto line = [&out](std::string_view label, const std::string& text) {
    out += fmt::format("  {:<14} {}\n", label, text);
  };
  std::string memory = fmt::format("at most {} resident", human_bytes(peak_resident(s)));
  if (s.ram_limit_bytes != 0) memory += fmt::format(" (--ram {})", human_bytes(s.ram_limit_bytes));
  if (n.peak_total != 0) memory += fmt::format(", {} with store and engine", human_bytes(n.peak_total));
  if (s.total_limit_bytes != 0) memory += fmt::format(" (--total {})", human_bytes(s.total_limit_bytes));
  line("memory", memory);
  if (s.budget_changes != 0) line("budget", fmt::format("changed {} while it ran", s.budget_changes == 1 ? "once" : count(s.budget_changes) + " times"));
  if (n.pages_out == 0) {
    line("moved", s.device.empty() ? "nothing" : "nothing: the program stayed within its budget");
  } else {
    line("moved", fmt::format("{} out, {} home", human_bytes(n.pages_out * kPage), human_bytes(n.pages_home * kPage)));
    std::string store = fmt::format("at most {} away, in {}", human_bytes(t.peak_stored_pages * kPage), human_bytes(t.peak_held_bytes));
    if (!s.device.empty()) store += " of " + s.device;
    if (compression_ratio(t) > 0) store += fmt::format(" (compressed {:.1f} : 1)", compression_ratio(t));
    line("store", store);
    std::string waits = fmt::format("{} in {} faults", human_duration(n.wait_seconds()), count(n.faults + n.holes));
    if (n.faults != 0) waits += fmt::format(", {} of them for memory that was away", count(n.faults));
    line("waited", waits);
  }
  if (s.stacks != nullptr && n.pages_out != 0) out += describe_places(*s.stacks);
  if (s.device.empty()) {
    line("sessions", t.processes > 1 ? count(t.processes) + "; peaks are those of the one where they were highest" : count(t.processes));
  } else if (t.processes > 1) line("processes", fmt::format("{}, of which {} had memory managed", count(t.processes), count(t.managed)));
  if (n.errors != 0) line("device errors", count(n.errors));
  if (const std::uint64_t enough = t.pager.total_would_do; enough != 0) {
    line("next", fmt::format("the data does not fit into --total even when compressed; --total {}M would do",
                             (enough + kMiB - 1) / kMiB));
  }
  return out;
}

std::string to_json(const Summary& s) {
  const StatsFile::Totals& t = *s.totals;
  const Numbers n(t.pager);
  nlohmann::ordered_json out;
  out["program"] = s.program;
  out["exit_status"] = s.end.signal != 0 ? 128 + s.end.signal : s.end.exit_status;
  out["signal"] = s.end.signal;
  out["wall_ns"] = static_cast<std::uint64_t>(s.end.seconds * 1e9);
  out["ram_limit_bytes"] = s.ram_limit_bytes;
  out["total_limit_bytes"] = s.total_limit_bytes;
  out["budget_changes"] = s.budget_changes;
  out["device"] = s.device;
  out["peak_resident_bytes"] = peak_resident(s);
  out["peak_total_bytes"] = n.peak_total;
  out["total_that_would_do_bytes"] = t.pager.total_would_do.load();
  out["max_rss_bytes"] = static_cast<std::uint64_t>(s.end.usage.ru_maxrss) * 1024;
  out["pages_out"] = n.pages_out;
  out["pages_home"] = n.pages_home;
  out["unchanged_out"] = t.pager.unchanged_out.load();
  out["faults"] = n.faults;
  out["zero_faults"] = n.holes;
  out["wait_ns"] = n.wait_ns;
  out["stored_bytes"] = t.peak_held_bytes;
  out["stored_pages"] = t.peak_stored_pages;
  out["compression_ratio"] = compression_ratio(t);
  out["refused_pages"] = t.pager.refused_pages.load();
  out["back_pressure"] = t.pager.back_pressure.load();
  out["over_limit"] = t.pager.over_limit.load();
  out["control_blocks"] = t.pager.control_blocks.load();
  out["scans"] = t.pager.scans.load();
  out["forks"] = t.pager.forks.load();
  out["device_errors"] = n.errors;
  if (s.device.empty()) {
    out["sessions"] = t.processes;
  } else {
    out["processes"] = t.processes;
    out["managed_processes"] = t.managed;
  }
  // Bucket n: waits of 2^n to 2^(n+1) nanoseconds.
  for (const auto& bucket : t.pager.wait_histogram) out["wait_histogram"].push_back(bucket.load());
  if (s.stacks != nullptr) out["stacks"] = stacks_json(*s.stacks);
  // Names may hold bytes that are not UTF-8; a summary must come out anyway.
  return out.dump(-1, ' ', false, nlohmann::json::error_handler_t::replace) + "\n";
}

}  // namespace whimbrel::cli
