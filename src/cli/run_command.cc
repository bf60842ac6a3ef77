// whimbrel run: checks everything that can be checked before the program starts, starts it, and reports at the end.
#include <cstdlib>

#include "cli/available_memory.h"
#include "cli/device_option.h"
#include "cli/limits.h"
#include "cli/observed_run.h"
#include "cli/options.h"
#include "cli/preload_library.h"
#include "cli/program.h"
#include "cli/readiness.h"
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
  ObservedRun run(options);
  if (const int bad = run.open({limits.ram, limits.total, options.device.c_str()})) return bad;
  device_process::DeviceProcess device;
  if (const int bad = start_device_process(options, &device)) return bad;
  bool told = false;
  const auto look_at_device = [&device, &told] {
    if (told || !device.has_ended()) return;
    told = true;
    complain(0, "the device process has ended: what was on the server cannot be had any more, and touching it is SIGBUS",
             "look for the reason in the kernel's log (out of memory?), and end the program");
  };
  const std::vector<std::string> environment =
      environment_for(library, limits, options, run.stats_path(), run.events_path(), device.address());
  if (const int bad = run.launch({program.path, options.command, environment, true, {}}, look_at_device)) return bad;
  look_at_device();
  device.stop();
  run.tell(options.device);
  constexpr int kLoaderFailed = 127;  // the loader has said what is missing; nothing has run
  if (run.participants() == 0 && run.end().exit_status != kLoaderFailed) {
    // Known only now: a loader of its own, or one that was told by the system to ignore us.
    const int status =
        complain(kExitNotExecutable, program.path + " ran without whimbrel: its loader did not take the library",
                 "see what it says to: LD_DEBUG=files LD_PRELOAD=" + library + " " + program.path);
    if (run.end().signal == 0) return status;
  }
  end_like(run.end());
}

}  // namespace whimbrel::cli
