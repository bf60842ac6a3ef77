#include "cli/top_text.h"

#include <fmt/format.h>

#include <algorithm>
#include <nlohmann/json.hpp>

#include "cli/summary.h"

namespace whimbrel::cli {
namespace {

const char* mode_name(EngineMode mode) {
  switch (mode) {
    case EngineMode::kWaiting:
      return "waiting";
    case EngineMode::kManaged:
      return "managed";
    case EngineMode::kUnmanaged:
      return "unmanaged";
    case EngineMode::kEnded:
      return "ended";
  }
  return "?";
}

const ProcessSample* find(const Sample& sample, int run, std::uint32_t pid, std::uint32_t session) {
  for (const RunSample& r : sample.runs) {
    if (r.pid != run) continue;
    for (const ProcessSample& p : r.processes) {
      if (p.pid == pid && p.session == session) return &p;
    }
  }
  return nullptr;
}

std::string budget(const RunSample& run) {
  std::string text;
  if (run.ram_limit_bytes != 0) text += " --ram " + human_bytes(run.ram_limit_bytes);
  if (run.total_limit_bytes != 0) text += " --total " + human_bytes(run.total_limit_bytes);
  return text;
}

std::string leaving(const RunSample& run) {
  const std::uint64_t bytes = run.leaving_bytes();
  return bytes == 0 ? "" : fmt::format(" ({} still on the one before)", human_bytes(bytes));
}

// "python3#1" for its first session. Fifteen characters.
std::string short_name(const ProcessSample& p) {
  if (p.session == 0) return p.name;
  const std::string number = "#" + std::to_string(p.session);
  return p.name.substr(0, 15 - number.size()) + number;
}

std::string process_line(const ProcessSample& p, const ProcessSample* before, double seconds) {
  std::string faults = "-", wait = "-";
  // A number that went down belongs to another program in the same process.
  if (before != nullptr && seconds > 0 && p.faults >= before->faults && p.wait_ns >= before->wait_ns) {
    faults = fmt::format("{:.0f}", static_cast<double>(p.faults - before->faults) / seconds);
    wait = fmt::format("{:.1f}%", static_cast<double>(p.wait_ns - before->wait_ns) / 1e7 / seconds);
  }
  const std::uint64_t p99 = wait_quantile(p.waits, 0.99);
  return fmt::format(
      "{:>9} {:<15} {:<9} {:>10} {:>10} {:>10} {:>10} {:>8} {:>7} {:>7}", p.pid, short_name(p), mode_name(p.mode),
      human_bytes(p.resident_bytes), p.limit_bytes != 0 ? human_bytes(p.limit_bytes) : "-", human_bytes(p.away_bytes),
      human_bytes(p.held_bytes), faults, wait, p99 != 0 ? human_duration(static_cast<double>(p99) / 1e9) : "-");
}

// Prometheus' escapes in the value of a label.
std::string label(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '\\' || c == '"') out += '\\';
    if (c == '\n')
      out += "\\n";
    else
      out += c;
  }
  return out;
}

}  // namespace

std::string top_table(const Sample& now, const Sample& before, int width, int height, int picked) {
  std::vector<std::string> lines;
  const double seconds = before.time_ns != 0 ? static_cast<double>(now.time_ns - before.time_ns) / 1e9 : 0;
  if (now.of_other_versions != 0) {
    lines.push_back(fmt::format("{} of another version of whimbrel: not readable by this one, use its own top",
                                now.of_other_versions == 1 ? "a run" : fmt::format("{} runs", now.of_other_versions)));
  }
  if (now.runs.empty() && now.of_other_versions == 0) lines.emplace_back("nothing runs under whimbrel; next: whimbrel run --ram 256M -- PROGRAM");
  for (const RunSample& run : now.runs) {
    if (run.is_watch()) {
      lines.push_back(fmt::format("{}watch {}: sessions", run.pid == picked ? "> " : "", run.pid));
    } else {
      lines.push_back(fmt::format("{}run {}:{} --device {}{}", run.pid == picked ? "> " : "", run.pid, budget(run), run.device, leaving(run)));
    }
    lines.push_back(fmt::format("{:>9} {:<15} {:<9} {:>10} {:>10} {:>10} {:>10} {:>8} {:>7} {:>7}", "PID", "PROGRAM",
                                "MODE", "RESIDENT", "LIMIT", "AWAY", "STORE", "FAULTS/s", "WAIT", "P99"));
    std::vector<const ProcessSample*> order;
    for (const ProcessSample& p : run.processes) order.push_back(&p);
    std::sort(order.begin(), order.end(), [](const ProcessSample* a, const ProcessSample* b) {
      const std::uint64_t of_a = a->resident_bytes + a->away_bytes, of_b = b->resident_bytes + b->away_bytes;
      return of_a != of_b ? of_a > of_b : std::pair(a->pid, a->session) < std::pair(b->pid, b->session);
    });
    for (const ProcessSample* p : order) lines.push_back(process_line(*p, find(before, run.pid, p->pid, p->session), seconds));
    lines.emplace_back();
  }
  while (!lines.empty() && lines.back().empty()) lines.pop_back();
  if (height > 1 && lines.size() >= static_cast<std::size_t>(height)) {
    const std::size_t left_out = lines.size() - static_cast<std::size_t>(height) + 2;
    lines.resize(static_cast<std::size_t>(height) - 2);
    lines.push_back(fmt::format("... and {} more lines", left_out));
  }
  std::string out;
  for (std::string& line : lines) {
    if (width > 0 && line.size() > static_cast<std::size_t>(width)) {
      std::size_t end = static_cast<std::size_t>(width);
      while (end > 0 && (static_cast<unsigned char>(line[end]) & 0xc0) == 0x80) --end;  // no part of a character
      line.resize(end);
    }
    out += line + "\n";
  }
  return out;
}

std::string top_json(const Sample& now) {
  nlohmann::ordered_json out;
  out["time_ns"] = now.time_ns;
  out["runs"] = nlohmann::ordered_json::array();
  for (const RunSample& run : now.runs) {
    nlohmann::ordered_json one{{"pid", run.pid},
                               {"ram_limit_bytes", run.ram_limit_bytes},
                               {"total_limit_bytes", run.total_limit_bytes},
                               {"device", run.device},
                               {"leaving_bytes", run.leaving_bytes()},
                               {"processes", nlohmann::ordered_json::array()}};
    for (const ProcessSample& p : run.processes) {
      one["processes"].push_back({{"pid", p.pid},
                                  {"parent", p.parent},
                                  {"program", p.name},
                                  {"mode", mode_name(p.mode)},
                                  {"resident_bytes", p.resident_bytes},
                                  {"resident_limit_bytes", p.limit_bytes},
                                  {"away_bytes", p.away_bytes},
                                  {"store_bytes", p.held_bytes},
                                  {"total_bytes", p.total_bytes},
                                  {"pages_out", p.pages_out},
                                  {"pages_home", p.pages_home},
                                  {"faults", p.faults},
                                  {"zero_faults", p.fresh_faults},
                                  {"wait_ns", p.wait_ns},
                                  {"over_limit", p.over_limit},
                                  {"refused_pages", p.refused_pages},
                                  {"device_errors", p.device_errors + p.load_errors},
                                  {"wait_histogram", p.waits}});
      if (p.session == 0) continue;
      auto& session = one["processes"].back();
      session["session"] = p.session;
      session["device"] = p.device;
      session["ram_limit_bytes"] = p.ram_limit_bytes;
      session["total_limit_bytes"] = p.total_limit_bytes;
    }
    out["runs"].push_back(std::move(one));
  }
  return out.dump(-1, ' ', false, nlohmann::ordered_json::error_handler_t::replace) + "\n";
}

std::string top_metrics(const Sample& now) {
  struct Metric {
    const char* name;
    const char* type;
    const char* help;
    double (*value)(const ProcessSample&);
  };
  static constexpr Metric kMetrics[] = {
      {"resident_bytes", "gauge", "Program memory in RAM, uncompressed",
       [](const ProcessSample& p) { return static_cast<double>(p.resident_bytes); }},
      {"resident_limit_bytes", "gauge", "What that may be now; 0: no limit",
       [](const ProcessSample& p) { return static_cast<double>(p.limit_bytes); }},
      {"away_bytes", "gauge", "Program memory on the device",
       [](const ProcessSample& p) { return static_cast<double>(p.away_bytes); }},
      {"store_bytes", "gauge", "What that takes on the device",
       [](const ProcessSample& p) { return static_cast<double>(p.held_bytes); }},
      {"out_pages_total", "counter", "Pages that left for the device",
       [](const ProcessSample& p) { return static_cast<double>(p.pages_out); }},
      {"home_pages_total", "counter", "Pages that came home",
       [](const ProcessSample& p) { return static_cast<double>(p.pages_home); }},
      {"faults_total", "counter", "Touches of memory that was away",
       [](const ProcessSample& p) { return static_cast<double>(p.faults); }},
      {"fresh_faults_total", "counter", "First touches of memory",
       [](const ProcessSample& p) { return static_cast<double>(p.fresh_faults); }},
      {"wait_seconds_total", "counter", "Time spent serving faults",
       [](const ProcessSample& p) { return static_cast<double>(p.wait_ns) / 1e9; }},
      {"over_limit_total", "counter", "Faults served although no room could be made",
       [](const ProcessSample& p) { return static_cast<double>(p.over_limit); }},
      {"device_errors_total", "counter", "Failed stores and loads",
       [](const ProcessSample& p) { return static_cast<double>(p.device_errors + p.load_errors); }}};
  std::string out;
  for (const Metric& metric : kMetrics) {
    out += fmt::format("# HELP whimbrel_{0} {1}\n# TYPE whimbrel_{0} {2}\n", metric.name, metric.help, metric.type);
    for (const RunSample& run : now.runs) {
      for (const ProcessSample& p : run.processes) {
        const std::string session = p.session == 0 ? "" : fmt::format(",session=\"{}\"", p.session);
        out += fmt::format("whimbrel_{}{{run=\"{}\",pid=\"{}\",program=\"{}\",device=\"{}\"{}}} {}\n", metric.name, run.pid, p.pid,
                           label(p.name), label(p.session == 0 ? run.device : p.device), session, metric.value(p));
      }
    }
  }
  return out;
}

}  // namespace whimbrel::cli
