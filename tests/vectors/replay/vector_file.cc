#include "vector_file.h"

#include <cerrno>
#include <cstring>
#include <fstream>
#include <sstream>

#include "script.h"

namespace vectors {
namespace {

constexpr std::string_view kHeader = "== ";
constexpr std::string_view kArrow = "=>";

std::string_view trimmed(std::string_view text) {
  const std::size_t first = text.find_first_not_of(" \t\r");
  if (first == std::string_view::npos) return {};
  return text.substr(first, text.find_last_not_of(" \t\r") - first + 1);
}

// Splits one line into script and answer, and knows how deep in children it runs.
class TranscriptReader {
 public:
  std::expected<void, std::string> add(std::string_view line, Vector& vector) {
    line_number_++;
    const std::size_t arrow = without_comment(line).find(kArrow);
    const std::string_view script_part = line.substr(0, arrow);
    vector.script.append(script_part).append("\n");
    if (split_words(without_comment(script_part)).empty()) return {};
    auto operation = parse_operation(without_comment(script_part), line_number_);
    if (!operation) return std::unexpected(operation.error());
    if (operation->verb == Verb::kEnd && !in_child_.empty()) in_child_.pop_back();
    if (arrow != std::string_view::npos) {
      vector.record.push_back(recorded(*operation, line.substr(arrow + kArrow.size())));
    }
    if (operation->verb == Verb::kFork) in_child_.push_back(false);
    if (operation->verb == Verb::kChild && !in_child_.empty()) in_child_.back() = true;
    if (operation->verb == Verb::kParent && !in_child_.empty()) in_child_.back() = false;
    return {};
  }

 private:
  RecordedLine recorded(const Operation& operation, std::string_view answer) const {
    RecordedLine line;
    line.line = operation.line;
    line.verb = operation.verb;
    if (answer.starts_with("?")) {
      line.stable = false;
      answer.remove_prefix(1);
    }
    for (const bool child : in_child_) line.text.append(child ? "  " : "");
    line.text.append(std::to_string(operation.line)).append(" ").append(operation.text).append(" => ");
    line.text.append(trimmed(answer));
    return line;
  }

  int line_number_ = 0;
  std::vector<bool> in_child_;
};

}  // namespace

std::expected<std::string, std::string> read_file(const std::string& path) {
  std::ifstream file(path);
  if (!file) return std::unexpected("cannot read " + path + ": " + std::strerror(errno));
  std::ostringstream text;
  text << file.rdbuf();
  return std::move(text).str();
}

std::expected<std::vector<Vector>, std::string> parse_vectors(std::string_view text, const std::string& origin) {
  std::vector<Vector> vectors;
  TranscriptReader reader;
  int line_number = 0;
  const auto fault = [&](const std::string& what) {
    return std::unexpected(origin + ":" + std::to_string(line_number) + ": " + what);
  };
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = text.substr(0, end);
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    line_number++;
    if (line.starts_with(kHeader)) {
      vectors.push_back({std::string(trimmed(line.substr(kHeader.size()))), {}, {}});
      reader = {};
    } else if (!vectors.empty()) {
      if (auto added = reader.add(line, vectors.back()); !added) return fault(added.error());
    } else if (!trimmed(without_comment(line)).empty()) {
      return fault("an operation before the first '== NAME'");
    }
  }
  for (const Vector& vector : vectors) {
    if (auto script = Script::parse(vector.script); !script) {
      return std::unexpected(origin + ": " + vector.name + ": " + script.error());
    }
  }
  return vectors;
}

std::expected<std::vector<Vector>, std::string> load_vectors(const std::string& path) {
  auto text = read_file(path);
  if (!text) return std::unexpected(text.error());
  return parse_vectors(*text, path);
}

}  // namespace vectors
