// Starts the program and stands in for it until it ends: signals pass through, stopping and continuing work, and the
// caller ends the way the program ended. Also the time to look after messages while waiting.
#pragma once

#include <sys/resource.h>

#include <functional>
#include <string>
#include <vector>

namespace whimbrel::cli {

struct ProgramEnd {
  int start_error = 0;   // errno when the program could not be started at all
  int exit_status = 0;   // when signal is 0
  int signal = 0;        // that killed it
  bool dumped_core = false;
  double seconds = 0;    // wall clock
  struct rusage usage{};  // of the program and the children it waited for
};

struct Launch {
  std::string path;                     // the file to execute
  std::vector<std::string> arguments;   // argv, [0] included
  std::vector<std::string> environment; // NAME=value
  // Nobody but the program holds its standard input and output: whoever is at the other end sees what the program does
  // with them. This process has /dev/null there from then on.
  bool give_away_streams = false;
  // Called with the program's process when it exists and before it becomes the program; it waits for that. May be empty.
  std::function<void(pid_t)> before_start = {};
};

// Runs to the program's end. `idle` is called a few times a second. Not to be called twice at the same time: it owns the
// process's signal mask and SIGCHLD meanwhile.
[[nodiscard]] ProgramEnd run_program(const Launch& launch, const std::function<void()>& idle);

// Ends this process the way the program ended: same exit status, or death by the same signal (no second core dump).
[[noreturn]] void end_like(const ProgramEnd& end);

}  // namespace whimbrel::cli
