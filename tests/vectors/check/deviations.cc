#include "deviations.h"

#include <algorithm>
#include <cstdlib>
#include <optional>

#include "host.h"

namespace vectors {
namespace {

struct Entry {
  std::string vector;
  int line = 0;
  Deviation deviation;
};

// NAME:LINE KEY => ANSWER, NAME:LINE KEY =>? ANSWER, NAME:* KEY
std::optional<Entry> parse_entry(std::string_view line) {
  const std::size_t arrow = line.find("=>");
  const std::vector<std::string> words = split_words(line.substr(0, arrow));
  if (words.size() != 2) return std::nullopt;
  const std::size_t colon = words[0].rfind(':');
  if (colon == std::string::npos || colon == 0) return std::nullopt;
  Entry entry{.vector = words[0].substr(0, colon), .line = 0, .deviation = {}};
  entry.deviation.reason = words[1];
  const std::string place = words[0].substr(colon + 1);
  if (place == "*") return arrow == std::string_view::npos ? std::optional(entry) : std::nullopt;
  char* end = nullptr;
  entry.line = static_cast<int>(std::strtol(place.c_str(), &end, 10));
  if (entry.line <= 0 || *end != '\0' || arrow == std::string_view::npos) return std::nullopt;
  std::string_view answer = line.substr(arrow + 2);
  if (answer.starts_with("?")) {
    entry.deviation.may_be_absent = true;
    answer.remove_prefix(1);
  }
  for (const std::string& word : split_words(answer)) {
    if (!entry.deviation.answer.empty()) entry.deviation.answer += " ";
    entry.deviation.answer += word;
  }
  return entry.deviation.answer.empty() ? std::nullopt : std::optional(entry);
}

struct Reason {
  bool holds = true;  // its condition, if it has one
  bool used = false;
};

// "reason KEY: TEXT" or "reason KEY when CONDITION: TEXT", without the first word. The error says what is wrong.
std::expected<std::pair<std::string, Reason>, std::string> parse_reason(std::string_view line,
                                                                        const std::set<std::string>& conditions) {
  const std::size_t colon = line.find(':');
  const std::vector<std::string> words = split_words(line.substr(0, colon));
  const bool conditional = words.size() == 3 && words[1] == "when";
  if (colon == std::string_view::npos || split_words(line.substr(colon + 1)).empty() ||
      (words.size() != 1 && !conditional)) {
    return std::unexpected("a reason needs a text: 'reason KEY: TEXT' or 'reason KEY when CONDITION: TEXT'");
  }
  if (!conditional) return std::pair(words[0], Reason{});
  if (!known_conditions().contains(words[2])) return std::unexpected("unknown condition '" + words[2] + "'");
  return std::pair(words[0], Reason{.holds = conditions.contains(words[2]), .used = false});
}

}  // namespace

std::expected<Deviations, std::string> Deviations::parse(std::string_view text, const std::string& origin,
                                                         const std::set<std::string>& conditions) {
  Deviations list;
  list.origin_ = origin;
  std::map<std::string, Reason> reasons;
  int number = 0;
  const auto fault = [&](const std::string& what) {
    return std::unexpected(origin + ":" + std::to_string(number) + ": " + what);
  };
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    number++;
    if (split_words(line).empty() || line.starts_with("#")) continue;
    constexpr std::string_view kReason = "reason ";
    if (line.starts_with(kReason)) {
      auto reason = parse_reason(line.substr(kReason.size()), conditions);
      if (!reason) return fault(reason.error());
      if (!reasons.insert(*reason).second) return fault("a second reason '" + reason->first + "'");
      continue;
    }
    auto entry = parse_entry(line);
    if (!entry) return fault("neither 'NAME:LINE KEY => ANSWER' nor 'NAME:* KEY'");
    const auto reason = reasons.find(entry->deviation.reason);
    if (reason == reasons.end()) return fault("no reason '" + entry->deviation.reason + "'");
    reason->second.used = true;
    if (!reason->second.holds) continue;
    entry->deviation.list_line = number;
    if (!list.by_place_.emplace(std::pair(entry->vector, entry->line), entry->deviation).second) {
      return fault("a second entry for the same place");
    }
  }
  for (const auto& [key, reason] : reasons) {
    if (!reason.used) return std::unexpected(origin + ": reason '" + key + "' is not used");
  }
  return list;
}

std::expected<void, std::string> Deviations::check(const std::vector<Vector>& vectors, bool partial) const {
  std::string faults;
  for (const auto& [place, deviation] : by_place_) {
    const auto& [name, line] = place;
    const auto vector = std::find_if(vectors.begin(), vectors.end(), [&](const Vector& v) { return v.name == name; });
    std::string what;
    if (vector == vectors.end()) {
      if (!partial) what = "no vector '" + name + "'";
    } else if (line != kWholeVector) {
      const auto recorded = std::find_if(vector->record.begin(), vector->record.end(),
                                         [&, at = line](const RecordedLine& r) { return r.line == at; });
      if (recorded == vector->record.end()) {
        what = name + " has no answer in line " + std::to_string(line);
      } else if (is_seen_by_program(recorded->verb)) {
        what = "what the program itself sees may not deviate: " + recorded->text;
      }
    }
    if (!what.empty()) faults += origin_ + ":" + std::to_string(deviation.list_line) + ": " + what + "\n";
  }
  if (!faults.empty()) return std::unexpected(faults);
  return {};
}

const Deviation* Deviations::find(const std::string& vector, int line) const {
  const auto entry = by_place_.find({vector, line});
  return entry == by_place_.end() ? nullptr : &entry->second;
}

}  // namespace vectors
