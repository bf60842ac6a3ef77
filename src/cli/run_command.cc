// whimbrel run: checks everything that can be checked before the program starts, starts it, and reports at the end.
#include <fcntl.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <optional>

#include "cli/available_memory.h"
#include "cli/device_option.h"
#include "cli/engine_watch.h"
#include "cli/event_stream.h"
#include "cli/limits.h"
#include "cli/live_stats.h"
#include "cli/options.h"
#include "cli/preload_library.h"
#include "cli/program.h"
#include "cli/readiness.h"
#include "cli/summary.h"
#include "cli/supervisor.h"
#include "device_process/launch.h"
#include "devices/device_spec.h"
#include "runtime/settings.h"

extern char** environ;

namespace whimbrel::cli {
namespace {

int read_limits(const RunOptions& options, Limits* out) {
  if (options.ram_given) {
    if (const int bad = read_limit("--ram", options.ram, &out->ram)) return bad;
  }
  if (options.total_given) {
    if (const int bad = read_limit("--total", options.total, &out->total)) return bad;
  }
  if (const int bad = check_limits(*out)) return bad;
  if (out->ram == 0 && out->total == 0) {
    const std::uint64_t half = available_memory() / 2;
    out->ram = half > kSmallestBudget ? half : kSmallestBudget;
  }
  return 0;
}

// What stands behind the device process is tried out before the program starts: a server that is not there is a mistake
// to hear of now.
int start_device_process(const RunOptions& options, device_process::DeviceProcess* process) {
  if (!needs_device_process(options.device, built_in_devices())) return 0;
  std::string problem, advice;
  if (!process->start(false, &problem, &advice)) return complain(kExitCannotRun, problem, advice);
  SpecMessage message;
  if (try_device_spec(options.device, built_in_devices(), process->address().c_str(), message)) return 0;
  problem = "--device " + options.device + ": " + message.c_str();
  if (const std::size_t next = problem.find("; next: "); next != std::string::npos) {
    advice = problem.substr(next + 8);
    problem.erase(next);
  }
  return complain(kExitUsage, problem, advice);
}

int check_program(const ProgramReport& report) {
  switch (report.verdict) {
    case Manageable::kYes: return 0;
    case Manageable::kNotFound: return complain(kExitNotFound, report.reason, report.advice);
    case Manageable::kNotExecutable:
    case Manageable::kNo: return complain(kExitNotExecutable, report.reason, report.advice);
  }
  return kExitCannotRun;
}

// This process's environment with what the library needs. Ours comes first in LD_PRELOAD, so that nobody registers
// fork handlers before us.
std::vector<std::string> environment_for(const std::string& library, const Limits& limits, const RunOptions& options,
                                         const std::string& stats, const std::string& events,
                                         const std::string& device_process) {
  std::vector<std::string> out;
  std::string preload = "LD_PRELOAD=" + library;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    if (text.starts_with("LD_PRELOAD=")) {
      if (text.size() > 11) preload.append(":").append(text.substr(11));
    } else if (!text.starts_with("WHIMBREL_RAM=") && !text.starts_with("WHIMBREL_TOTAL=") &&
               !text.starts_with("WHIMBREL_DEVICE=") && !text.starts_with("WHIMBREL_DEVICE_PROCESS=") && !text.starts_with("WHIMBREL_STATS=") &&
               !text.starts_with("WHIMBREL_EVENTS=") && !text.starts_with("WHIMBREL_HUGE_PAGES=")) {
      out.emplace_back(text);
    }
  }
  out.push_back(preload);
  out.push_back(std::string(kEnvRam) + "=" + std::to_string(limits.ram));
  out.push_back(std::string(kEnvTotal) + "=" + std::to_string(limits.total));
  out.push_back(std::string(kEnvDevice) + "=" + options.device);
  out.push_back(std::string(kEnvStats) + "=" + stats);
  if (!device_process.empty()) out.push_back(std::string(kEnvDeviceProcess) + "=" + device_process);
  if (!events.empty()) out.push_back(std::string(kEnvEvents) + "=" + events);
  if (options.no_huge_pages) out.push_back(std::string(kEnvHugePages) + "=0");
  return out;
}

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
  close(fd);
}

}  // namespace

int run_command(const RunOptions& given) {
  RunOptions options = given;
  options.device = with_absolute_path(given.device);
  if (options.command.empty()) return complain(kExitUsage, "no program given", "whimbrel run --ram 64M -- PROGRAM ARGUMENTS");
  Limits limits;
  if (const int bad = read_limits(options, &limits)) return bad;
  if (const int bad = check_device("--device", options.device)) return bad;
  const ProgramReport program = inspect_program(options.command.front());
  if (const int bad = check_program(program)) return bad;
  std::string problem, advice;
  if (!ready_to_run(&problem, &advice)) return complain(kExitCannotRun, problem, advice);
  const std::string library = find_preload_library(&problem);
  if (library.empty()) {
    return complain(kExitCannotRun, "libwhimbrel-preload.so is not there (tried " + problem + ")",
                    "install whimbrel again, library and program together");
  }
  std::string load_error;
  if (!can_be_loaded(library, &load_error)) {
    return complain(kExitCannotRun, "the library cannot be loaded into programs: " + load_error,
                    "install whimbrel again, on a file system that is not mounted noexec");
  }
  int report = -1;
  if (const int bad = open_report(options.stats, &report)) return bad;
  LiveStats live;
  if (!live.create({limits.ram, limits.total, options.device.c_str()}, &problem)) {
    return complain(kExitCannotRun, problem, "set XDG_RUNTIME_DIR to a directory of yours");
  }
  std::optional<stacks::FaultStacks> stacks;
  if (options.sample_stacks != 0) {
    if (!stacks::PerfStream::permitted(&problem, &advice)) return complain(kExitCannotRun, problem, advice);
    stacks.emplace(options.sample_stacks);
  }
  EventStream events;
  const bool recorded = !options.events.empty() || stacks;
  if (recorded && !events.open(options.events, live.path(), stacks ? &*stacks : nullptr, &problem)) {
    return complain(kExitUsage, problem, "name a file that can be written");
  }

  device_process::DeviceProcess device;
  if (const int bad = start_device_process(options, &device)) {
    live.remove();
    return bad;
  }
  Launch launch{program.path, options.command,
                environment_for(library, limits, options, live.path(), events.path(), device.address()), true, {}};
  if (stacks) {
    launch.before_start = [&stacks](pid_t child) {
      if (!stacks->open(child)) complain(0, std::string("no stacks are looked at: performance events: ") + std::strerror(errno));
    };
  }
  events.start(live.file(), options.command);
  Summary summary;
  EngineWatch watch(live.file().layout(), live.path(), std::chrono::seconds(options.watchdog));
  bool told = false;
  const auto look_at_device = [&device, &told] {
    if (told || !device.has_ended()) return;
    told = true;
    complain(0, "the device process has ended: what was on the server cannot be had any more, and touching it is SIGBUS",
             "look for the reason in the kernel's log (out of memory?), and end the program");
  };
  summary.end = run_program(launch, [&live, &watch, &look_at_device] {
    live.print_messages();
    watch.look();
    look_at_device();
  });
  if (summary.end.start_error != 0) {
    return complain(summary.end.start_error == ENOENT ? kExitNotFound : kExitNotExecutable,
                    program.path + ": " + std::strerror(summary.end.start_error), "run it without whimbrel to see whether it starts");
  }
  look_at_device();
  device.stop();
  live.print_messages();
  stacks::StackTotals places;
  if (!events.finish(summary.end, &places, &problem)) complain(0, problem);
  if (stacks) summary.stacks = &places;
  StatsFile::Totals totals;
  live.file().totals(totals);
  summary.totals = &totals;
  // As they are now: whimbrel budget may have changed them.
  summary.ram_limit_bytes = live.file().layout().header.ram_limit_bytes;
  summary.total_limit_bytes = live.file().layout().header.total_limit_bytes;
  summary.budget_changes = live.file().layout().header.budget_changes;
  summary.device = options.device;
  summary.program = options.command.front();
  const std::string json = to_json(summary);
  if (report >= 0) write_report(report, json);
  if (!options.quiet) std::fputs(options.json ? json.c_str() : describe(summary).c_str(), stderr);
  live.remove();
  constexpr int kLoaderFailed = 127;  // the loader has said what is missing; nothing has run
  if (totals.processes == 0 && summary.end.exit_status != kLoaderFailed) {
    // Known only now: a loader of its own, or one that was told by the system to ignore us.
    const int status =
        complain(kExitNotExecutable, program.path + " ran without whimbrel: its loader did not take the library",
                 "see what it says to: LD_DEBUG=files LD_PRELOAD=" + library + " " + program.path);
    if (summary.end.signal == 0) return status;
  }
  end_like(summary.end);
}

}  // namespace whimbrel::cli
