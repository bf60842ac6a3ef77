// Runs replayers as processes, several at a time, each with a time limit.
#pragma once

#include <functional>
#include <string>
#include <vector>

namespace vectors {

struct ReplayResult {
  std::string output;
  std::string errors;   // standard error
  std::string failure;  // how it ended when not with status 0, e.g. "killed by signal 11"
};

struct ReplayJob {
  std::vector<std::string> arguments;  // of the replayer, program name excluded
  std::string preload;                 // library to preload, or empty
  std::function<void(const ReplayResult&)> done;
};

// Returns when all jobs are done; `done` is called in this process, in the order of the jobs.
void run_replays(const std::string& replayer, std::vector<ReplayJob> jobs, int parallel, int time_limit_seconds);

}  // namespace vectors
