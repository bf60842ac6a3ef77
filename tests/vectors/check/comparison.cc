#include "comparison.h"

#include <algorithm>
#include <array>

namespace vectors {
namespace {

constexpr std::string_view kAnswer = " => ";
constexpr std::string_view kContents = " : ";

std::vector<std::string> split_lines(std::string_view text) {
  std::vector<std::string> lines;
  while (!text.empty()) {
    const std::size_t end = std::min(text.find('\n'), text.size());
    lines.emplace_back(text.substr(0, end));
    text.remove_prefix(std::min(end + 1, text.size()));
  }
  return lines;
}

// "  7 r 0 4 => v1*4" gives "  7 r 0 4" and "v1*4".
std::pair<std::string_view, std::string_view> split_answer(std::string_view line) {
  const std::size_t at = line.find(kAnswer);
  if (at == std::string_view::npos) return {line, {}};
  return {line.substr(0, at), line.substr(at + kAnswer.size())};
}

// Page contents that a device returned; empty when the answer has none.
std::string_view contents_of(std::string_view answer) {
  const std::size_t at = answer.find(kContents);
  return at == std::string_view::npos ? std::string_view{} : answer.substr(at + kContents.size());
}

class LineComparison {
 public:
  LineComparison(const Vector& vector, const Deviations& deviations) : vector_(vector), deviations_(deviations) {}

  void add(const RecordedLine& want, std::string_view got) {
    const auto [place, answer] = split_answer(got);
    const auto [want_place, want_answer] = split_answer(want.text);
    if (place != want_place) return differ(want.text, got, "another line");
    if (!want.stable) return;
    const Deviation* listed = deviations_.find(vector_.name, want.line);
    const bool same = answer == want_answer;
    if (listed == nullptr) {
      if (!same) differ(want.text, got, "");
    } else if (same) {
      if (!listed->may_be_absent) differ(want.text, got, entry(*listed) + " is not needed");
    } else if (listed->answer != "*" && answer != listed->answer) {
      differ(want.text, got, entry(*listed) + " says " + listed->answer);
    } else if (!contents_of(answer).empty() && !contents_of(want_answer).empty() &&
               contents_of(answer) != contents_of(want_answer)) {
      differ(want.text, got, "page contents may not deviate");
    } else {
      verdict.deviating_lines++;
    }
  }

  void differ(std::string_view want, std::string_view got, std::string why) {
    verdict.differences.push_back({std::string(want), std::string(got), std::move(why)});
  }

  static std::string entry(const Deviation& deviation) {
    return "the deviation in line " + std::to_string(deviation.list_line) + " (" + deviation.reason + ")";
  }

  Verdict verdict;

 private:
  const Vector& vector_;
  const Deviations& deviations_;
};

}  // namespace

Verdict compare(const Vector& vector, std::string_view output, const Deviations& deviations) {
  const std::vector<std::string> got = split_lines(output);
  LineComparison lines(vector, deviations);
  lines.verdict.lines = static_cast<int>(vector.record.size());
  for (std::size_t i = 0; i < vector.record.size(); i++) {
    if (i >= got.size()) {
      lines.differ(vector.record[i].text, "nothing more", "");
      break;
    }
    lines.add(vector.record[i], got[i]);
  }
  if (got.size() > vector.record.size()) lines.differ("nothing more", got[vector.record.size()], "");

  if (const Deviation* whole = deviations.find_whole(vector.name)) {
    if (!lines.verdict.differences.empty()) {
      lines.verdict.differences.clear();
      lines.verdict.deviating_lines = 1;
    } else if (!whole->may_be_absent) {
      lines.differ("", "", LineComparison::entry(*whole) + " is not needed");
    }
  }
  return std::move(lines.verdict);
}

Verdict compare_program_view(std::string_view want, std::string_view got) {
  static constexpr std::array<std::string_view, 5> kVerbs = {"r", "w", "kread", "kwrite", "fread"};
  const auto seen = [](std::string_view text) {
    std::vector<std::string> lines;
    for (std::string& line : split_lines(text)) {
      const std::vector<std::string> words = split_words(line);
      if (words.size() > 1 && std::find(kVerbs.begin(), kVerbs.end(), words[1]) != kVerbs.end()) {
        lines.push_back(std::move(line));
      }
    }
    return lines;
  };
  const std::vector<std::string> wanted = seen(want);
  const std::vector<std::string> found = seen(got);
  Verdict verdict{.differences = {}, .lines = static_cast<int>(wanted.size()), .deviating_lines = 0};
  for (std::size_t i = 0; i < std::max(wanted.size(), found.size()); i++) {
    const std::string& w = i < wanted.size() ? wanted[i] : "nothing more";
    const std::string& g = i < found.size() ? found[i] : "nothing more";
    if (w != g) verdict.differences.push_back({w, g, ""});
  }
  return verdict;
}

}  // namespace vectors
