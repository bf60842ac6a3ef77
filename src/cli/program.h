// Finds the program a user names and says whether whimbrel can manage it.
//
// The library reaches a program through the dynamic loader; so a program without a loader (static), one the loader
// must not trust the environment for (setuid, file capabilities), one for another machine, or one with another libc
// cannot be managed. Better to say so than to run it without a budget.
#pragma once

#include <string>
#include <string_view>

namespace whimbrel::cli {

enum class Manageable {
  kYes,
  kNotFound,       // no such file, also not in PATH
  kNotExecutable,  // a directory, no execute permission, or not a program at all
  kNo,             // a program, but one that the library cannot be loaded into
};

struct ProgramReport {
  Manageable verdict = Manageable::kNotFound;
  std::string path;         // the file to execute; empty when not found
  std::string interpreter;  // of a script: what really runs; otherwise empty
  std::string reason;       // why not, one sentence; empty when kYes
  std::string advice;       // what to do next, one sentence; empty when there is nothing
};

// Looks `name` up as a shell would: names with a slash as they are, others along PATH.
[[nodiscard]] std::string find_program(std::string_view name);
// Finds and inspects a program; scripts are judged by their interpreter.
[[nodiscard]] ProgramReport inspect_program(std::string_view name);

}  // namespace whimbrel::cli
