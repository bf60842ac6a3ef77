// What the command line said, as text; each command judges its own.
#pragma once

#include <string>
#include <vector>

namespace whimbrel::cli {

// Exit statuses of whimbrel itself; those of the program pass through.
inline constexpr int kExitUsage = 2;           // the command line makes no sense
inline constexpr int kExitCannotRun = 125;     // whimbrel cannot work here
inline constexpr int kExitNotExecutable = 126; // the program exists but cannot be run under whimbrel
inline constexpr int kExitNotFound = 127;      // there is no such program

// What is told of a program, and the program.
struct WatchOptions {
  bool json = false;
  bool quiet = false;
  unsigned watchdog = 20;             // seconds; 0: off
  std::string stats;                  // file for the summary as JSON; empty: none
  std::string events;                 // file for the event stream; empty: none
  unsigned sample_stacks = 0;         // look at the stack of 1 in so many faults; 0: of none
  std::vector<std::string> command;   // the program and its arguments
};

struct RunOptions : WatchOptions {
  std::string ram, total;
  bool ram_given = false, total_given = false;
  std::string device = "zstd";
  bool no_huge_pages = false;
};

struct DoctorOptions {
  bool json = false;
  std::string program;  // empty: only the machine
};

struct TopOptions {
  bool once = false;
  bool json = false;
  std::string metrics;  // file to keep in Prometheus' text format; empty: none
  double interval = 1;  // seconds
  bool interval_given = false;
};

struct BudgetOptions {
  unsigned pid = 0;
  std::string ram, total;
  bool ram_given = false, total_given = false;
  bool json = false;
  double wait = 10;  // seconds, for the new budget to be reached
};

struct DeviceOptions {
  unsigned pid = 0;
  std::string to;  // specification; empty: only look
  bool json = false;
  double wait = 60;  // seconds, for everything to have moved
};

struct ReplayOptions {
  std::string events;                 // file
  std::vector<std::string> ram;       // sizes; empty: some around the recorded one
  std::vector<std::string> policies;  // names; empty: the engine's
  bool json = false;
};

struct ReportOptions {
  std::string events;  // file
  std::string output = "whimbrel-report.html";
};

struct MapOptions {
  std::string target;  // a process number, or a file of events
  unsigned pid = 0;    // of a file: which process; 0: the one with most moves
  std::string svg, html;
};

struct CommandLine {
  enum class What { kRun, kWatch, kDoctor, kTop, kReplay, kReport, kMap, kBudget, kDevice, kDone } what = What::kDone;
  int status = 0;  // for kDone: help or an error has been printed
  RunOptions run;
  WatchOptions watch;
  DoctorOptions doctor;
  TopOptions top;
  ReplayOptions replay;
  ReportOptions report;
  MapOptions map;
  BudgetOptions budget;
  DeviceOptions device;
};

[[nodiscard]] CommandLine parse_command_line(int argc, char** argv);

int run_command(const RunOptions& options);
int watch_command(const WatchOptions& options);
int doctor_command(const DoctorOptions& options);
int top_command(const TopOptions& options);
int replay_command(const ReplayOptions& options);
int report_command(const ReportOptions& options);
int budget_command(const BudgetOptions& options);
int device_command(const DeviceOptions& options);
int map_command(const MapOptions& options);

// Prints "whimbrel: <problem>" and, when there is one, "  next: <advice>" to standard error; returns `status`.
int complain(int status, const std::string& problem, const std::string& advice = {});

}  // namespace whimbrel::cli
