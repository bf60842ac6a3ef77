#include "replay/recording.h"

#include <algorithm>
#include <charconv>
#include <cstring>
#include <nlohmann/json.hpp>
#include <string_view>
#include <unordered_map>

#include "replay/page_sets.h"

namespace whimbrel::replay {
namespace {

using Json = nlohmann::json;

constexpr std::uint64_t kPage = 4096;

// The fields of a line without nested values, arrays and escapes: most of a recording, and quickly read.
class Fields {
 public:
  bool parse(std::string_view line) {
    count_ = 0;
    const char* at = line.data();
    const char* const end = at + line.size();
    if (at == end || *at++ != '{') return false;
    for (;;) {
      std::string_view name, value;
      if (!string(at, end, name) || at == end || *at++ != ':' || at == end) return false;
      if (*at == '"') {
        if (!string(at, end, value)) return false;
      } else {
        const char* const start = at;
        while (at != end && *at != ',' && *at != '}') {
          if (*at == '{' || *at == '[') return false;
          ++at;
        }
        value = {start, static_cast<std::size_t>(at - start)};
      }
      if (at == end || count_ == kMost) return false;
      fields_[count_++] = {name, value};
      if (*at == '}') return at + 1 == end;
      if (*at++ != ',') return false;
    }
  }
  [[nodiscard]] std::string_view text(std::string_view name) const {
    for (std::size_t i = 0; i < count_; ++i) {
      if (fields_[i].first == name) return fields_[i].second;
    }
    return {};
  }
  // 0 when it is not there or not a number.
  [[nodiscard]] std::uint64_t number(std::string_view name) const {
    const std::string_view value = text(name);
    std::uint64_t out = 0;
    const auto read = std::from_chars(value.data(), value.data() + value.size(), out);
    return read.ec == std::errc() ? out : 0;
  }

 private:
  static constexpr std::size_t kMost = 32;
  static bool string(const char*& at, const char* end, std::string_view& out) {
    if (at == end || *at++ != '"') return false;
    const char* const start = at;
    while (at != end && *at != '"') {
      if (*at == '\\') return false;
      ++at;
    }
    if (at == end) return false;
    out = {start, static_cast<std::size_t>(at++ - start)};
    return true;
  }
  std::pair<std::string_view, std::string_view> fields_[kMost];
  std::size_t count_ = 0;
};

bool place_of(std::string_view text, Place* out) {
  if (text == "none") *out = Place::kNone;
  else if (text == "ram") *out = Place::kRam;
  else if (text == "device") *out = Place::kDevice;
  else return false;
  return true;
}

bool cause_of(std::string_view text, MoveCause* out) {
  static constexpr std::pair<std::string_view, MoveCause> kCauses[] = {
      {"user", MoveCause::kUser},         {"fault", MoveCause::kFault},       {"prefetch", MoveCause::kPrefetch},
      {"eviction", MoveCause::kEviction}, {"pressure", MoveCause::kPressure}, {"evacuation", MoveCause::kEvacuation}};
  for (const auto& [name, cause] : kCauses) {
    if (name == text) {
      *out = cause;
      return true;
    }
  }
  return false;
}

// A line that only tells of pages; nothing: it is of another kind. False in `good`: it is one, and makes no sense.
bool read_range(const Fields& fields, std::string_view kind, Recording* out, bool* good) {
  Event event;
  if (kind == "move") event.what = What::kMove;
  else if (kind == "drop") event.what = What::kDrop;
  else if (kind == "remap") event.what = What::kRemap;
  else return false;
  event.time_ns = fields.number("time_ns");
  event.pid = static_cast<std::uint32_t>(fields.number("pid"));
  event.first_page = fields.number("address") / kPage;
  const std::uint64_t pages = fields.number("length") / kPage;
  event.pages = static_cast<std::uint32_t>(std::min<std::uint64_t>(pages, ~std::uint32_t{0}));
  event.detail = event.what == What::kMove ? fields.number("latency_ns") : fields.number("to_address") / kPage;
  *good = event.time_ns != 0 && event.pid != 0 && pages != 0 && cause_of(fields.text("cause"), &event.cause);
  if (event.what == What::kMove) {
    *good = *good && place_of(fields.text("from"), &event.from) && place_of(fields.text("to"), &event.to);
  }
  if (*good) out->events.push_back(event);
  return true;
}

void read_sample(const Fields& fields, Recording* out) {
  Sample s;
  const std::pair<const char*, std::uint64_t*> members[] = {{"image", &s.image},
      {"resident_bytes", &s.resident_bytes}, {"limit_bytes", &s.limit_bytes},     {"away_bytes", &s.away_bytes},
      {"compressed_bytes", &s.compressed_bytes}, {"held_bytes", &s.held_bytes},   {"total_bytes", &s.total_bytes},
      {"pages_out", &s.pages_out},           {"unchanged_out", &s.unchanged_out}, {"pages_home", &s.pages_home},
      {"faults", &s.faults},                 {"zero_faults", &s.zero_faults},     {"wait_ns", &s.wait_ns},
      {"back_pressure", &s.back_pressure},   {"over_limit", &s.over_limit},       {"refused_pages", &s.refused_pages}};
  for (const auto& [name, value] : members) *value = fields.number(name);
  Event event;
  event.what = What::kSample;
  event.time_ns = fields.number("time_ns");
  event.pid = static_cast<std::uint32_t>(fields.number("pid"));
  event.detail = out->samples.size();
  out->samples.push_back(s);
  out->events.push_back(event);
}

// The rare lines.
void read_other(const Json& line, Recording* out) {
  const std::string kind = line.at("event");
  Event event;
  event.time_ns = line.at("time_ns");
  event.pid = line.value("pid", 0u);
  if (kind == "run") {
    if (line.at("version") != 1) throw std::runtime_error("a version that this program does not know");
    out->started_ns = event.time_ns;
    out->unix_time_ns = line.value("unix_time_ns", std::uint64_t{0});
    out->ram_limit_bytes = line.at("ram_limit_bytes");
    out->total_limit_bytes = line.at("total_limit_bytes");
    out->device = line.at("device");
    out->command = line.at("command").get<std::vector<std::string>>();
    return;
  }
  if (kind == "end") {
    out->complete = true;
    out->seconds = line.at("seconds");
    out->exit_status = line.at("exit_status");
    return;
  }
  if (kind == "budget") {
    out->budget_changes.push_back({event.time_ns, line.at("ram_limit_bytes"), line.at("total_limit_bytes")});
    return;
  }
  if (kind == "stacks") {
    out->place_samples = line.at("samples");
    out->places.clear();
    for (const Json& one : line.at("places")) {
      out->places.push_back({one.at("place"), one.at("inside"), one.at("callers").get<std::vector<std::string>>(), one.at("samples"),
                             one.at("first_touches"), one.at("wait_ns")});
    }
    return;
  }
  if (kind == "process") {
    event.what = What::kProcess;
    event.detail = out->processes.size();
    out->processes.push_back({event.pid, line.value("parent", 0u), line.value("program", ""), event.time_ns});
  } else if (kind == "exit") {
    event.what = What::kExit;
  } else if (kind == "lost") {
    event.what = What::kLost;
    event.detail = line.at("count");
    out->lost += event.detail;
  } else if (kind == "mappings") {
    event.what = What::kMappings;
    event.detail = out->mappings.size();
    std::vector<Mapping> list;
    for (const Json& one : line.at("mappings")) list.push_back({one.at(0), one.at(1), one.at(2)});
    out->mappings.push_back(std::move(list));
  } else {
    return;  // of a later version
  }
  out->events.push_back(event);
}

// What the counters say at the end, and what the events do not know of.
void add_up(Recording* out) {
  struct State {
    PageSets pages;
  };
  std::unordered_map<std::uint32_t, State> states;
  std::map<std::pair<std::uint64_t, std::uint32_t>, Sample> finals;  // by program and process
  for (const Event& event : out->events) {
    State& state = states[event.pid];
    switch (event.what) {
      case What::kProcess: {
        state = State();
        const auto parent = states.find(out->processes[event.detail].parent);
        if (parent != states.end()) state.pages = parent->second.pages;
        break;
      }
      case What::kMove:
        state.pages.set({PageIndex(event.first_page), PageCount(event.pages)}, event.to == Place::kRam ? PageSets::kResident : PageSets::kAway);
        break;
      case What::kDrop: state.pages.drop({PageIndex(event.first_page), PageCount(event.pages)}); break;
      case What::kRemap: state.pages.move({PageIndex(event.first_page), PageCount(event.pages)}, PageIndex(event.detail)); break;
      case What::kSample: {
        Sample& sample = out->samples[event.detail];
        const std::uint64_t resident = sample.resident_bytes / kPage;
        sample.unseen_pages = resident - std::min(resident, state.pages.resident());
        finals[{sample.image, event.pid}] = sample;
        break;
      }
      default: break;
    }
  }
  for (const auto& [who, last] : finals) {
    out->faults += last.faults;
    out->zero_faults += last.zero_faults;
    out->wait_ns += last.wait_ns;
    out->pages_out += last.pages_out;
    out->pages_home += last.pages_home;
  }
}

}  // namespace

bool read_recording(std::istream& in, Recording* out, std::string* problem) {
  *out = Recording();
  Fields fields;
  std::size_t number = 0;
  for (std::string line; std::getline(in, line);) {
    ++number;
    const bool cut_off = in.eof();  // no end of line
    bool good = true;
    std::string why = "not a line of an event file";
    const bool flat = fields.parse(line);
    if (flat && number > 1 && read_range(fields, fields.text("event"), out, &good)) {
      // done
    } else if (flat && number > 1 && fields.text("event") == "sample") {
      read_sample(fields, out);
    } else {
      try {
        const Json parsed = Json::parse(line);
        if (number == 1 && parsed.at("event") != "run") throw std::runtime_error("the first line is not of an event file");
        read_other(parsed, out);
      } catch (const Json::exception&) {
        good = false;
      } catch (const std::runtime_error& error) {
        good = false;
        why = error.what();
      }
    }
    if (!good && cut_off && number > 1) break;
    if (!good) {
      *problem = "line " + std::to_string(number) + ": " + why;
      return false;
    }
  }
  if (number == 0) {
    *problem = "the file is empty";
    return false;
  }
  std::stable_sort(out->events.begin(), out->events.end(), [](const Event& a, const Event& b) { return a.time_ns < b.time_ns; });
  if (!out->complete && !out->events.empty()) {
    out->seconds = static_cast<double>(out->events.back().time_ns - out->started_ns) / 1e9;
  }
  add_up(out);
  return true;
}

}  // namespace whimbrel::replay
