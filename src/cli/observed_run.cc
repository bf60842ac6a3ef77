#include "cli/observed_run.h"

#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstring>

#include "cli/engine_watch.h"

namespace whimbrel::cli {
namespace {

// Opened before the program starts: an unwritable place is a mistake to hear of now, not after an hour.
int open_report(const std::string& path, int* fd) {
  if (path.empty()) return 0;
  *fd = open(path.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (*fd >= 0) return 0;
  return complain(kExitUsage, "--stats " + path + ": " + std::strerror(errno), "name a file that can be written");
}

void write_report(int fd, const std::string& text) {
  const char* at = text.data();
  for (std::size_t left = text.size(); left != 0;) {
    const ssize_t done = write(fd, at, left);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      complain(0, std::string("the statistics could not be written: ") + std::strerror(errno));
      break;
    }
    at += done;
    left -= static_cast<std::size_t>(done);
  }
}

}  // namespace

ObservedRun::~ObservedRun() {
  if (report_ >= 0) close(report_);
}

int ObservedRun::open(const StatsFile::Limits& limits) {
  std::string problem, advice;
  if (const int bad = open_report(options_.stats, &report_)) return bad;
  if (!live_.create(limits, &problem)) return complain(kExitCannotRun, problem, "set XDG_RUNTIME_DIR to a directory of yours");
  if (options_.sample_stacks != 0) {
    if (!stacks::PerfStream::permitted(&problem, &advice)) return complain(kExitCannotRun, problem, advice);
    stacks_.emplace(options_.sample_stacks);
  }
  const bool recorded = !options_.events.empty() || stacks_;
  if (recorded && !events_.open(options_.events, live_.path(), stacks_ ? &*stacks_ : nullptr, &problem)) {
    return complain(kExitUsage, problem, "name a file that can be written");
  }
  return 0;
}

int ObservedRun::launch(Launch launch, const std::function<void()>& idle) {
  if (stacks_) {
    launch.before_start = [this](pid_t child) {
      if (!stacks_->open(child)) complain(0, std::string("no stacks are looked at: performance events: ") + std::strerror(errno));
    };
  }
  events_.start(live_.file(), options_.command);
  EngineWatch watch(live_.file().layout(), live_.path(), std::chrono::seconds(options_.watchdog));
  summary_.end = run_program(launch, [&] {
    live_.print_messages();
    watch.look();
    idle();
  });
  const ProgramEnd& end = summary_.end;
  if (end.start_error == 0) return 0;
  return complain(end.start_error == ENOENT ? kExitNotFound : kExitNotExecutable, launch.path + ": " + std::strerror(end.start_error),
                  "run it without whimbrel to see whether it starts");
}

void ObservedRun::tell(const std::string& device) {
  live_.print_messages();
  std::string problem;
  if (!events_.finish(summary_.end, &places_, &problem)) complain(0, problem);
  if (stacks_) summary_.stacks = &places_;
  live_.file().totals(totals_);
  summary_.totals = &totals_;
  // As they are now: whimbrel budget may have changed them.
  const StatsHeader& header = live_.file().layout().header;
  summary_.ram_limit_bytes = header.ram_limit_bytes;
  summary_.total_limit_bytes = header.total_limit_bytes;
  summary_.budget_changes = header.budget_changes;
  summary_.device = device;
  summary_.program = options_.command.front();
  const std::string json = to_json(summary_);
  if (report_ >= 0) write_report(report_, json);
  if (!options_.quiet) std::fputs(options_.json ? json.c_str() : describe(summary_).c_str(), stderr);
  live_.remove();
}

}  // namespace whimbrel::cli
