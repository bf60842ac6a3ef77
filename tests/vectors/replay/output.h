// What the replayer prints: one line per operation, built in memory and written with one call, so that lines of
// several processes never mix.
#pragma once

#include <string>
#include <string_view>

#include "tests/mirror/run_list.h"

namespace vectors {

class Output {
 public:
  // Starts a line: indentation for the nesting depth of processes, line number, the operation itself.
  void begin(int depth, int line, std::string_view operation);

  void put(std::string_view text) { line_.append(text); }
  [[gnu::format(printf, 2, 3)]] void format(const char* format, ...);

  // "ok", or the name of errno when `result` is negative. errno is read here: nothing may come between.
  void put_result(long result);

  // A folded list of words, preceded by a blank; nothing when the list is empty.
  void put_list(run_list& list);

  // Writes the line. Without it the process ends (exit status 3): nobody would see the rest.
  void end();

  // A child inherits the half-built line of its parent.
  void discard() { line_.clear(); }

 private:
  std::string line_;
};

// Name of an errno, e.g. "EINVAL".
[[nodiscard]] const char* errno_name(int error);

}  // namespace vectors
