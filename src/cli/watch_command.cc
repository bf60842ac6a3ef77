// whimbrel watch: a program that opens sessions, looked at from outside. Nothing of it is managed that it does not manage itself.
#include <cstdlib>

#include "cli/observed_run.h"
#include "cli/program.h"
#include "runtime/settings.h"

extern char** environ;

namespace whimbrel::cli {
namespace {

std::vector<std::string> environment_with(const std::string& stats) {
  const std::string name = std::string(kEnvWatch) + "=";
  std::vector<std::string> out;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    if (!std::string_view(*entry).starts_with(name)) out.emplace_back(*entry);
  }
  out.push_back(name + stats);
  return out;
}

}  // namespace

int watch_command(const WatchOptions& options) {
  if (options.command.empty()) return complain(kExitUsage, "no program given", "whimbrel watch -- PROGRAM ARGUMENTS");
  const ProgramReport program = inspect_program(options.command.front());
  if (program.verdict == Manageable::kNotFound) return complain(kExitNotFound, program.reason, program.advice);
  if (program.verdict == Manageable::kNotExecutable) return complain(kExitNotExecutable, program.reason, program.advice);
  ObservedRun run(options);
  if (const int bad = run.open({})) return bad;
  if (const int bad = run.launch({program.path, options.command, environment_with(run.stats_path()), true, {}}, [] {})) return bad;
  run.tell("");
  if (run.participants() == 0) {
    complain(0, "no session was opened", "this is for programs that open sessions themselves (docs/api.md); for others: whimbrel run");
  }
  end_like(run.end());
}

}  // namespace whimbrel::cli
