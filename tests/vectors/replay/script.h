// A script: operations in order, with fork blocks as a tree.
#pragma once

#include <expected>
#include <memory>
#include <string>
#include <string_view>
#include <vector>

#include "operation.h"

namespace vectors {

struct Fork;

// Either an operation or, when `fork` is set, a whole fork block (`operation` is then the 'fork' line itself).
struct Step {
  Operation operation;
  std::unique_ptr<Fork> fork;
};

using Block = std::vector<Step>;

struct Section {
  bool child = false;
  Block body;
};

struct Fork {
  std::vector<Section> sections;  // in the order in which they run
  Operation end;
};

class Script {
 public:
  // The error names the line.
  [[nodiscard]] static std::expected<Script, std::string> parse(std::string_view text);

  [[nodiscard]] const Block& body() const { return body_; }

 private:
  Block body_;
};

// Part of a script line before its comment.
[[nodiscard]] std::string_view without_comment(std::string_view line);

}  // namespace vectors
