#include "script.h"

#include <utility>

namespace vectors {
namespace {

std::unexpected<std::string> fault(int line, const std::string& what) {
  return std::unexpected("line " + std::to_string(line) + ": " + what);
}

// Builds the tree from operations in order; a fork block opens a level.
class TreeBuilder {
 public:
  std::expected<void, std::string> add(Operation operation) {
    switch (operation.verb) {
      case Verb::kFork: {
        Step step{std::move(operation), std::make_unique<Fork>()};
        Fork* fork = step.fork.get();
        if (auto placed = place(std::move(step)); !placed) return placed;
        open_.push_back(fork);
        return {};
      }
      case Verb::kChild:
      case Verb::kParent:
        if (open_.empty()) return fault(operation.line, "'" + operation.text + "' outside a fork block");
        open_.back()->sections.push_back({operation.verb == Verb::kChild, {}});
        return {};
      case Verb::kEnd:
        if (open_.empty()) return fault(operation.line, "'end' without 'fork'");
        open_.back()->end = std::move(operation);
        open_.pop_back();
        return {};
      default:
        return place(Step{std::move(operation), nullptr});
    }
  }

  std::expected<Block, std::string> finish() && {
    if (!open_.empty()) return std::unexpected("'end' missing");
    return std::move(top_);
  }

 private:
  std::expected<void, std::string> place(Step step) {
    if (open_.empty()) {
      top_.push_back(std::move(step));
    } else if (open_.back()->sections.empty()) {
      return fault(step.operation.line, "an operation between 'fork' and the first 'child' or 'parent'");
    } else {
      open_.back()->sections.back().body.push_back(std::move(step));
    }
    return {};
  }

  Block top_;
  std::vector<Fork*> open_;  // innermost last
};

}  // namespace

std::string_view without_comment(std::string_view line) { return line.substr(0, line.find('#')); }

std::expected<Script, std::string> Script::parse(std::string_view text) {
  TreeBuilder tree;
  int line_number = 0;
  while (!text.empty()) {
    const std::size_t end = text.find('\n');
    const std::string_view line = without_comment(text.substr(0, end));
    text.remove_prefix(end == std::string_view::npos ? text.size() : end + 1);
    line_number++;
    if (split_words(line).empty()) continue;
    auto operation = parse_operation(line, line_number);
    if (!operation) return fault(line_number, operation.error());
    if (auto added = tree.add(std::move(*operation)); !added) return std::unexpected(added.error());
  }
  auto body = std::move(tree).finish();
  if (!body) return std::unexpected(body.error());
  Script script;
  script.body_ = std::move(*body);
  return script;
}

}  // namespace vectors
