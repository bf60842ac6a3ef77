// A file of vectors: scripts together with what a real kernel answered, many in one text file.
//
//   == fork-child-reads
//   # any comment
//   open a 0 => ok
//   map 0 16 rw anon nohuge => ok
//   fork => ok
//    child
//     r 0 4 => v1*4
//    parent
//     snap a 0 16 => ok 01*4 21*12
//   end
//
// A vector starts at "== NAME"; its lines are numbered from 1. What stands after "=>" is the recorded answer; "=>?"
// marks an answer that was not the same in every recording: only its presence counts. Lines without "=>" print
// nothing. Indentation is free.
#pragma once

#include <expected>
#include <string>
#include <string_view>
#include <vector>

#include "operation.h"

namespace vectors {

struct RecordedLine {
  int line = 0;  // of the script
  Verb verb = Verb::kExit;
  bool stable = true;
  std::string text;  // exactly what the replayer should print, indentation included
};

struct Vector {
  std::string name;
  std::string script;
  std::vector<RecordedLine> record;
};

// The error names file and line.
[[nodiscard]] std::expected<std::vector<Vector>, std::string> load_vectors(const std::string& path);

// The same for text in memory; `origin` stands in the errors.
[[nodiscard]] std::expected<std::vector<Vector>, std::string> parse_vectors(std::string_view text,
                                                                            const std::string& origin);

// Whole contents of a file.
[[nodiscard]] std::expected<std::string, std::string> read_file(const std::string& path);

}  // namespace vectors
