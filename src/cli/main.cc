#include "cli/options.h"

int main(int argc, char** argv) {
  using namespace whimbrel::cli;
  const CommandLine line = parse_command_line(argc, argv);
  switch (line.what) {
    case CommandLine::What::kRun: return run_command(line.run);
    case CommandLine::What::kWatch: return watch_command(line.watch);
    case CommandLine::What::kDoctor: return doctor_command(line.doctor);
    case CommandLine::What::kTop: return top_command(line.top);
    case CommandLine::What::kReplay: return replay_command(line.replay);
    case CommandLine::What::kReport: return report_command(line.report);
    case CommandLine::What::kMap: return map_command(line.map);
    case CommandLine::What::kBudget: return budget_command(line.budget);
    case CommandLine::What::kDevice: return device_command(line.device);
    case CommandLine::What::kDone: break;
  }
  return line.status;
}
