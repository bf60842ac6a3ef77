// The only file that includes CLI11: it takes seconds to compile.
#include <CLI/CLI.hpp>

#include <cstdio>
#include <filesystem>
#include <iostream>
#include <memory>
#include <string_view>

#include "cli/config_file.h"
#include "cli/help_texts.h"
#include "cli/limits.h"
#include "cli/options.h"

namespace whimbrel::cli {
namespace {

constexpr const char* kVersion = "whimbrel " WHIMBREL_VERSION;

// CLI11 does not know that the rest of the line is another program's.
class ProgramHelp : public CLI::Formatter {
 public:
  std::string make_usage(const CLI::App* app, std::string) const override {
    return "Usage: whimbrel " + app->get_name() + " [OPTIONS] -- PROGRAM [ARGUMENTS...]\n";
  }
};

void add_watch(CLI::App& app, WatchOptions& options) {
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
  app.add_flag("-q,--quiet", options.quiet, "Print no summary");
  app.prefix_command();
  app.formatter(std::make_shared<ProgramHelp>());
}

void add_run(CLI::App& app, RunOptions& options) {
  app.add_option("--ram", options.ram, "Most memory that may be resident and uncompressed")->type_name("SIZE");
  app.add_option("--total", options.total, "Most memory in all: resident, store and whimbrel's own")->type_name("SIZE");
  app.add_option("--device", options.device, "Where pages go: zstd, lz4, ram, file:PATH or nbd:URI, with options as NAME:KEY=VALUE,...")
      ->type_name("SPEC")
      ->capture_default_str();
  add_watch(app, options);
  app.add_flag("--no-huge-pages", options.no_huge_pages, "Do not give streams of the program 2 MiB pages");
  app.footer(kRunFooter);
}

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

// The program and its arguments: what stands after "--", or after the options.
void take_program(const CLI::App& app, bool has_dashes, std::vector<std::string> after_dashes, std::vector<std::string>& to, CommandLine& out) {
  to = app.remaining();
  if (to.empty()) {
    to = std::move(after_dashes);
  } else if (has_dashes) {  // "run sort -- file": that "--" was meant for the program
    to.emplace_back("--");
    to.insert(to.end(), after_dashes.begin(), after_dashes.end());
  }
  if (to.empty() || !to.front().starts_with("-")) return;
  out.what = CommandLine::What::kDone;
  out.status = complain(kExitUsage, "unknown option " + to.front(), "whimbrel " + app.get_name() + " --help");
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
  CLI::App* watch = app.add_subcommand("watch", "Run a program that opens sessions, and look at them");
  add_watch(*watch, out.watch);
  watch->footer(kWatchFooter);
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
    take_program(*run, own < argc, std::move(command), out.run.command, out);
  } else if (watch->parsed()) {
    out.what = CommandLine::What::kWatch;
    take_program(*watch, own < argc, std::move(command), out.watch.command, out);
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
