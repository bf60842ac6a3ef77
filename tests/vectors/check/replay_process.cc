#include "replay_process.h"

#include <poll.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <cstdio>
#include <cstdlib>
#include <optional>

namespace vectors {
namespace {

using Clock = std::chrono::steady_clock;

// Output goes to files in memory: a pipe could fill up while nobody reads it.
int new_output_file() {
  const int file = memfd_create("replay-output", MFD_CLOEXEC);
  if (file < 0) {
    std::perror("run_vectors: memfd_create");
    std::exit(2);
  }
  return file;
}

std::string take_contents(int file) {
  std::string contents;
  char part[1 << 14];
  off_t at = 0;
  for (ssize_t n = 0; (n = pread(file, part, sizeof part, at)) > 0; at += n) {
    contents.append(part, static_cast<std::size_t>(n));
  }
  close(file);
  return contents;
}

class Running {
 public:
  Running(const std::string& replayer, const ReplayJob& job, Clock::time_point deadline)
      : output_(new_output_file()), errors_(new_output_file()), deadline_(deadline) {
    pid_ = fork();
    if (pid_ < 0) {
      std::perror("run_vectors: fork");
      std::exit(2);
    }
    if (pid_ == 0) become_replayer(replayer, job);
    setpgid(pid_, pid_);  // here as well as in the child, so that it holds before anybody kills the group
    handle_ = static_cast<int>(syscall(SYS_pidfd_open, pid_, 0));
  }

  [[nodiscard]] int handle() const { return handle_; }

  [[nodiscard]] int milliseconds_left() const {
    const auto left = std::chrono::duration_cast<std::chrono::milliseconds>(deadline_ - Clock::now()).count();
    return left > 0 ? static_cast<int>(left) + 1 : 0;
  }

  // The process has ended, or must end now.
  ReplayResult finish(bool timed_out) {
    // Children of the replayer share its group; they may outlive it when it was killed.
    if (timed_out) kill(-pid_, SIGKILL);
    int status = 0;
    waitpid(pid_, &status, 0);
    if (!timed_out) kill(-pid_, SIGKILL);
    close(handle_);
    ReplayResult result{take_contents(output_), take_contents(errors_), {}};
    if (timed_out) {
      result.failure = "took too long";
    } else if (WIFSIGNALED(status)) {
      result.failure = "killed by signal " + std::to_string(WTERMSIG(status));
    } else if (WEXITSTATUS(status) != 0) {
      result.failure = "exit status " + std::to_string(WEXITSTATUS(status));
    }
    return result;
  }

 private:
  [[noreturn]] void become_replayer(const std::string& replayer, const ReplayJob& job) const {
    setpgid(0, 0);
    dup2(output_, STDOUT_FILENO);
    dup2(errors_, STDERR_FILENO);
    if (!job.preload.empty()) setenv("LD_PRELOAD", job.preload.c_str(), 1);
    std::vector<char*> arguments{const_cast<char*>(replayer.c_str())};
    for (const std::string& argument : job.arguments) arguments.push_back(const_cast<char*>(argument.c_str()));
    arguments.push_back(nullptr);
    execv(replayer.c_str(), arguments.data());
    std::perror(replayer.c_str());
    _exit(127);
  }

  int output_;
  int errors_;
  Clock::time_point deadline_;
  pid_t pid_ = -1;
  int handle_ = -1;
};

}  // namespace

void run_replays(const std::string& replayer, std::vector<ReplayJob> jobs, int parallel, int time_limit_seconds) {
  struct Slot {
    std::size_t job;
    Running running;
  };
  std::vector<Slot> slots;
  std::vector<std::optional<ReplayResult>> results(jobs.size());
  std::size_t next = 0;
  std::size_t reported = 0;
  while (reported < jobs.size()) {
    while (next < jobs.size() && slots.size() < static_cast<std::size_t>(parallel)) {
      slots.push_back({next, Running(replayer, jobs[next], Clock::now() + std::chrono::seconds(time_limit_seconds))});
      next++;
    }
    std::vector<pollfd> waits;
    int patience = time_limit_seconds * 1000;
    for (const Slot& slot : slots) {
      waits.push_back({.fd = slot.running.handle(), .events = POLLIN, .revents = 0});
      patience = std::min(patience, slot.running.milliseconds_left());
    }
    poll(waits.data(), waits.size(), patience);
    for (std::size_t i = slots.size(); i-- > 0;) {
      const bool ended = (waits[i].revents & POLLIN) != 0;
      if (!ended && slots[i].running.milliseconds_left() > 0) continue;
      results[slots[i].job] = slots[i].running.finish(!ended);
      slots.erase(slots.begin() + static_cast<std::ptrdiff_t>(i));
    }
    for (; reported < jobs.size() && results[reported]; reported++) {
      jobs[reported].done(*results[reported]);
      results[reported] = ReplayResult{};  // contents are not needed any more
    }
  }
}

}  // namespace vectors
