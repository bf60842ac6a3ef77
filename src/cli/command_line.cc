// The only file that includes CLI11: it takes seconds to compile.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string_view>

#include "cli/config_file.h"
#include "cli/limits.h"
#include "cli/options.h"

namespace whimbrel::cli {
namespace {

constexpr const char* kVersion = "whimbrel " WHIMBREL_VERSION;

constexpr const char* kRunFooter = R"(
Sizes are bytes, or a number with K, M, G or T (powers of 1024): 64M, 1.5G.
Without --ram, --total is split between resident pages and store as the data compresses; without both, half of the memory that is available now.
Without --total, only uncompressed memory is limited: the store grows as it must.

The summary goes to standard error when the program has ended. whimbrel ends the way the program did: with its exit
status, or by its signal. Its own: 2 bad command line, 125 whimbrel cannot work here, 126 the program cannot be managed,
127 no such program.

Examples:
  whimbrel run --ram 256M -- sort -S 1G big.txt
  whimbrel run --total 1G --device lz4 -- python3 job.py
  whimbrel run --ram 64M --quiet --stats run.json -- redis-server
  whimbrel run --ram 256M --events run.events -- python3 job.py
  whimbrel run --ram 256M --sample-stacks -- ./simulation)";

constexpr const char* kDoctorFooter = R"(
Exit status: 0 everything works, 1 works with restrictions, 2 cannot be used.

Examples:
  whimbrel doctor
  whimbrel doctor /usr/bin/python3)";

constexpr const char* kTopFooter = R"(
Shows the runs of this user; of every user, for root. In a terminal it renews itself until q or Ctrl-C; into a pipe or file it
prints once. Rates are those since the last look. Keys: Tab picks a run (the one with the >), + and - give it a tenth more or less
of its budget, d asks for another device, q ends.

Columns: MODE managed, waiting (below half of its budget: nothing to do yet) or unmanaged; RESIDENT memory in RAM, uncompressed,
of LIMIT; AWAY memory on the device, which takes STORE there; FAULTS/s touches of memory that was away; WAIT share of the time
spent serving faults; 99% of the waits so far were shorter than P99.

Examples:
  whimbrel top
  whimbrel top --once --json
  whimbrel top --metrics /var/lib/node_exporter/whimbrel.prom --interval 15)";

constexpr const char* kReplayFooter = R"(
Answers from a recorded run, without running anything: how often the program would have waited, and how long, with other budgets
and other ways of choosing what leaves. The waiting time comes from what faults cost in the recording.

A recording knows only the touches of memory that was away. So record with little memory: budgets above the recorded one are
answered well, below it the numbers are lower bounds (marked ">").

Policies: second-chance (the engine's), fifo, random, and clairvoyant, which knows the future: a bound for all others.

Examples:
  whimbrel run --ram 128M --events run.events -- python3 job.py
  whimbrel replay run.events
  whimbrel replay run.events --ram 128M,256M,512M --policy second-chance,clairvoyant)";

constexpr const char* kReportFooter = R"(
One HTML file that needs nothing else: RAM, store, faults and waiting over time, why the program waited and what would help, other
budgets, the hottest regions, and a map of its memory with a time slider.

Examples:
  whimbrel run --ram 128M --events run.events -- python3 job.py
  whimbrel report run.events
  whimbrel report run.events --output job.html)";

constexpr const char* kMapFooter = R"(
Of a recording: what is in RAM, what is away, what was fetched often; when it had most, or with --html at any time. The recording may still
be going on. Of a process: what is in RAM, as the kernel tells; without root for your own.

Examples:
  whimbrel map run.events
  whimbrel map run.events --html map.html
  whimbrel map $(pidof python3) --svg map.svg)";

constexpr const char* kBudgetFooter = R"(
The number is that of `whimbrel run` or of any process in it; the budget holds for each process of the run, also for those to come.
Sizes as for run; `none` lifts a limit while the other one stays. Exit status 1: set, but not reached within the time.

Examples:
  whimbrel budget $(pidof -s python3)
  whimbrel budget 4711 --ram 512M
  whimbrel budget 4711 --ram none --total 2G)";

constexpr const char* kDeviceFooter = R"(
What is stored from now on goes to the new device, and what lies on the one before moves there while the program goes on; then that is
closed. Holds for each process of the run, also for those to come. To add a tier or a copy, or to take one away, name what is to
be in the end. A process that cannot have the device keeps its own. Exit status 1: not everything has moved within the time.

Examples:
  whimbrel device 4711
  whimbrel device 4711 --to file:/var/tmp
  whimbrel device 4711 --to chain:lz4@256M,zstd)";

// CLI11 does not know that the rest of the line is another program's.
class RunHelp : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App*, std::string) const override {
    return "Usage: whimbrel run [OPTIONS] -- PROGRAM [ARGUMENTS...]\n";
  }
};

void add_run(CLI::App& app, RunOptions& options) {
  app.add_option("--ram", options.ram, "Most memory that may be resident and uncompressed")->type_name("SIZE");
  app.add_option("--total", options.total, "Most memory in all: resident, store and whimbrel's own")->type_name("SIZE");
  app.add_option("--device", options.device, "Where pages go: zstd, lz4, ram, file:PATH or nbd:URI, with options as NAME:KEY=VALUE,...")
      ->type_name("SPEC")
      ->capture_default_str();
  app.add_flag("--json", options.json, "Print the summary as one line of JSON");
  app.add_option("--stats", options.stats, "Also write the summary, as JSON, to this file")->type_name("FILE");
  app.add_option("--events", options.events, "Write each move of pages, with its cause, to this file as it happens, as JSON lines")
      ->type_name("FILE");
  app.add_option("--sample-stacks", options.sample_stacks,
                 "Tell which places in the code wait for memory: look at the stack of 1 in N faults (64, without a number)")
      ->type_name("[N]")
      ->expected(0, 1)
      ->default_str("64")
      ->check(CLI::Range(1u, 1'000'000u));
  app.add_option("--watchdog", options.watchdog,
                 "Seconds after which an engine that is stuck in the program is reported (and ended, where nothing else is left); 0: never")
      ->type_name("SECONDS")
      ->capture_default_str();
  app.add_flag("--no-huge-pages", options.no_huge_pages, "Do not give streams of the program 2 MiB pages");
  app.add_flag("-q,--quiet", options.quiet, "Print no summary");
  app.prefix_command();
  app.formatter(std::make_shared<RunHelp>());
  app.footer(kRunFooter);
}

constexpr const char* kAppFooter = R"(
Defaults for the options can stand in ~/.config/whimbrel/config.toml, or for all users in /etc/whimbrel/config.toml, with a section
for each command; WHIMBREL_CONFIG names another file, or none when it is empty:

  [run]
  ram = "512M"
  device = "chain:lz4@256M,zstd"

  [top]
  interval = 2)";

CLI::App* find_command(CLI::App& app, const std::string& name) {
  const auto found = app.get_subcommands([&](CLI::App* command) { return command->get_name() == name; });
  return found.empty() ? nullptr : found.front();
}

// What the file gives for the command at hand. The command line has the last word, and its budget replaces the file's whole
// budget: --total 1G is not to be held together with the file's "ram". Wrong entries for any command are refused. Returns the
// exit status of a refusal that has been printed; others are thrown.
int apply_config(CLI::App& app, const ConfigFile& file) {
  const CLI::App* const at_hand = app.get_subcommands().front();
  const bool has_budget = at_hand->get_option_no_throw("--ram") != nullptr && at_hand->get_option_no_throw("--total") != nullptr &&
                          at_hand->count("--ram") + at_hand->count("--total") != 0;
  CLI::ConfigTOML format;
  for (const CLI::ConfigItem& item : format.from_file(file.path)) {
    if (item.name == "++" || item.name == "--") continue;  // a section begins or ends
    CLI::App* const command = item.parents.size() == 1 ? find_command(app, item.parents.front()) : nullptr;
    if (command == nullptr) throw CLI::ConfigError("\"" + item.fullname() + "\" is in no command's section, like [run]");
    CLI::Option* const option = command->get_option_no_throw("--" + item.name);
    if (option == nullptr || option == command->get_help_ptr()) {
      throw CLI::ConfigError("whimbrel " + command->get_name() + " has no option --" + item.name);
    }
    const bool is_budget = item.name == "ram" || item.name == "total";
    if (is_budget && command->get_name() != "run") throw CLI::ConfigError("a budget belongs into the section [run]");
    if (command != at_hand || option->count() != 0 || (is_budget && has_budget)) continue;
    if (option->get_expected_min() == 0) {
      option->add_result(option->get_flag_value(item.name, format.to_flag(item)));
    } else {
      option->add_result(item.inputs);
    }
    option->run_callback();
    std::uint64_t bytes = 0;
    if (!is_budget) continue;
    if (const int bad = read_limit((file.path + ": " + item.name + " =").c_str(), option->as<std::string>(), &bytes)) return bad;
  }
  return 0;
}

// Exit status of the refusal; 0: all is well.
int read_config(CLI::App& app) {
  const ConfigFile file = find_config_file();
  if (file.path.empty()) return 0;
  try {
    if (std::filesystem::is_directory(file.path)) throw CLI::FileError::Missing(file.path);
    return apply_config(app, file);
  } catch (const CLI::FileError&) {
    return complain(kExitUsage, file.path + ": cannot be read",
                    file.asked_for ? "WHIMBREL_CONFIG names it; empty, it names none" : "WHIMBREL_CONFIG= leaves it out");
  } catch (const CLI::Error& error) {
    return complain(kExitUsage, file.path + ": " + error.what(),
                    "whimbrel --help shows what such a file looks like; WHIMBREL_CONFIG= leaves it out");
  }
}

}  // namespace

CommandLine parse_command_line(int argc, char** argv) {
  CommandLine out;
  // What follows "--" is the program's business; the parser must not look at it.
  int own = 0;
  while (own < argc && std::string_view(argv[own]) != "--") ++own;
  std::vector<std::string> command;
  for (int i = own + 1; i < argc; ++i) command.emplace_back(argv[i]);

  CLI::App app("Runs programs in less memory than they need, by keeping cold pages on a device.", "whimbrel");
  app.set_version_flag("-V,--version", kVersion);
  app.require_subcommand(1);
  app.failure_message(CLI::FailureMessage::simple);
  app.footer(kAppFooter);
  CLI::App* run = app.add_subcommand("run", "Run a program within a memory budget");
  add_run(*run, out.run);
  CLI::App* doctor = app.add_subcommand("doctor", "Tell what whimbrel can do on this machine, and for a program");
  doctor->add_flag("--json", out.doctor.json, "Print JSON");
  doctor->add_option("program", out.doctor.program, "Also say whether this program can be managed")->type_name("PROGRAM");
  doctor->footer(kDoctorFooter);
  CLI::App* top = app.add_subcommand("top", "Show running programs: memory, faults, waiting");
  top->add_flag("--once", out.top.once, "Print one look and end");
  top->add_flag("--json", out.top.json, "Print JSON, a line for each look");
  top->add_option("--metrics", out.top.metrics, "Write Prometheus text to this file at each look, and print nothing")->type_name("FILE");
  top->add_option("--interval", out.top.interval, "Time between looks")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.1, 3600.0))
      ->capture_default_str();
  top->footer(kTopFooter);
  CLI::App* budget = app.add_subcommand("budget", "Show or change the budget of a run under way");
  budget->add_option("pid", out.budget.pid, "The run, or a process in it")->type_name("PID")->required();
  budget->add_option("--ram", out.budget.ram, "Most memory that may be resident and uncompressed")->type_name("SIZE|none");
  budget->add_option("--total", out.budget.total, "Most memory in all: resident, store and whimbrel's own")->type_name("SIZE|none");
  budget->add_option("--wait", out.budget.wait, "How long to wait until the new budget is reached")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 3600.0))
      ->capture_default_str();
  budget->add_flag("--json", out.budget.json, "Print JSON");
  budget->footer(kBudgetFooter);
  CLI::App* device = app.add_subcommand("device", "Show or change the device of a run under way");
  device->add_option("pid", out.device.pid, "The run, or a process in it")->type_name("PID")->required();
  device->add_option("--to", out.device.to, "Where pages go from now on, and where those that are away move to")->type_name("SPEC");
  device->add_option("--wait", out.device.wait, "How long to wait until everything has moved")
      ->type_name("SECONDS")
      ->check(CLI::Range(0.0, 86400.0))
      ->capture_default_str();
  device->add_flag("--json", out.device.json, "Print JSON");
  device->footer(kDeviceFooter);
  CLI::App* replay = app.add_subcommand("replay", "Tell how a recorded run would have done with other budgets and policies");
  replay->add_option("events", out.replay.events, "File written by: whimbrel run --events")->type_name("EVENTS")->required();
  replay->add_option("--ram", out.replay.ram, "Budgets to try; without it, some around the recorded one")->type_name("SIZE[,SIZE...]")->delimiter(',');
  replay->add_option("--policy", out.replay.policies, "Policies to try: second-chance, fifo, random, clairvoyant")
      ->type_name("NAME[,NAME...]")
      ->delimiter(',');
  replay->add_flag("--json", out.replay.json, "Print JSON");
  replay->footer(kReplayFooter);
  CLI::App* report = app.add_subcommand("report", "Make one HTML page of a recorded run");
  report->add_option("events", out.report.events, "File written by: whimbrel run --events")->type_name("EVENTS")->required();
  report->add_option("-o,--output", out.report.output, "Where the page goes")->type_name("FILE")->capture_default_str();
  report->footer(kReportFooter);
  CLI::App* map = app.add_subcommand("map", "Show the memory of a process, or of a recorded run, as a picture");
  map->add_option("target", out.map.target, "A process, or a file written by: whimbrel run --events")->type_name("PID|EVENTS")->required();
  map->add_option("--pid", out.map.pid, "Of a recording: which process; without it, the one that moved most")->type_name("PID");
  map->add_option("--svg", out.map.svg, "Write a picture to this file")->type_name("FILE");
  map->add_option("--html", out.map.html, "Write an interactive page to this file")->type_name("FILE");
  map->footer(kMapFooter);
  try {
    app.parse(own, argv);
  } catch (const CLI::Success& asked) {  // --help, --version
    out.status = app.exit(asked, std::cout, std::cerr);
    return out;
  } catch (const CLI::ParseError& error) {
    out.status = complain(kExitUsage, error.what(),
                          [&]() -> std::string {
                            for (const CLI::App* one : app.get_subcommands()) return "whimbrel " + one->get_name() + " --help";
                            return "whimbrel --help";
                          }());
    return out;
  }
  if (out.status = read_config(app); out.status != 0) return out;
  if (run->parsed()) {
    out.what = CommandLine::What::kRun;
    out.run.ram_given = run->count("--ram") != 0;
    out.run.total_given = run->count("--total") != 0;
    out.run.command = run->remaining();
    if (out.run.command.empty()) {
      out.run.command = std::move(command);
    } else if (own < argc) {  // "run sort -- file": that "--" was meant for the program
      out.run.command.emplace_back("--");
      out.run.command.insert(out.run.command.end(), command.begin(), command.end());
    }
    if (!out.run.command.empty() && out.run.command.front().starts_with("-")) {
      out.what = CommandLine::What::kDone;
      out.status = complain(kExitUsage, "unknown option " + out.run.command.front(), "whimbrel run --help");
    }
  } else if (top->parsed()) {
    out.what = CommandLine::What::kTop;
    out.top.interval_given = top->count("--interval") != 0;
  } else if (budget->parsed()) {
    out.what = CommandLine::What::kBudget;
    out.budget.ram_given = budget->count("--ram") != 0;
    out.budget.total_given = budget->count("--total") != 0;
  } else if (device->parsed()) {
    out.what = CommandLine::What::kDevice;
  } else if (replay->parsed()) {
    out.what = CommandLine::What::kReplay;
  } else if (report->parsed()) {
    out.what = CommandLine::What::kReport;
  } else if (map->parsed()) {
    out.what = CommandLine::What::kMap;
  } else {
    out.what = CommandLine::What::kDoctor;
  }
  return out;
}

int complain(int status, const std::string& problem, const std::string& advice) {
  std::string text = "whimbrel: " + problem + "\n";
  if (!advice.empty()) text += "  next: " + advice + "\n";
  std::fputs(text.c_str(), stderr);
  return status;
}

}  // namespace whimbrel::cli
