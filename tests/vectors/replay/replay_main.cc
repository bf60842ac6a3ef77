// replay: runs one script and prints one line per operation.
#include <unistd.h>

#include <algorithm>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>

#include "replayer.h"
#include "vector_file.h"

namespace {

using vectors::ReplayOptions;

constexpr char kUsage[] =
    "usage: replay [options] SCRIPT               runs a script\n"
    "       replay [options] --case NAME VECTORS  runs one script of a file of vectors\n"
    "\n"
    "  --dev PREFIX           device nodes are PREFIX0 .. PREFIX3 (default " DMIRROR_DEFAULT_PREFIX
    ")\n"
    "  --skip-devices         run only what a program without devices would do\n"
    "  --skip-device-writes   leave out device writes\n"
    "\n";

// Longer than any script needs on a loaded machine. A process that hangs ends, and its runner goes on.
constexpr unsigned kTimeLimitSeconds = 300;

struct Arguments {
  ReplayOptions options;
  std::string vector_name;
  std::string path;
};

bool parse_arguments(int argc, char** argv, Arguments& arguments) {
  for (int i = 1; i < argc; i++) {
    const std::string word = argv[i];
    const bool has_next = i + 1 < argc;
    if (word == "--dev" && has_next) {
      arguments.options.device_prefix = argv[++i];
    } else if (word == "--case" && has_next) {
      arguments.vector_name = argv[++i];
    } else if (word == "--skip-devices") {
      arguments.options.skip_devices = true;
    } else if (word == "--skip-device-writes") {
      arguments.options.skip_device_writes = true;
    } else if (word.starts_with("-") || !arguments.path.empty()) {
      return false;
    } else {
      arguments.path = word;
    }
  }
  return !arguments.path.empty();
}

std::expected<std::string, std::string> script_text(const Arguments& arguments) {
  if (arguments.vector_name.empty()) return vectors::read_file(arguments.path);
  auto all = vectors::load_vectors(arguments.path);
  if (!all) return std::unexpected(all.error());
  const auto found = std::find_if(all->begin(), all->end(),
                                  [&](const vectors::Vector& vector) { return vector.name == arguments.vector_name; });
  if (found == all->end()) return std::unexpected("no vector " + arguments.vector_name + " in " + arguments.path);
  return found->script;
}

}  // namespace

int main(int argc, char** argv) {
  Arguments arguments;
  if (argc == 2 && std::strcmp(argv[1], "--help") == 0) {
    std::printf("%s%s", kUsage, vectors::kLanguageHelp);
    return 0;
  }
  if (!parse_arguments(argc, argv, arguments)) {
    std::fprintf(stderr, "%s", kUsage);
    return 2;
  }
  const auto text = script_text(arguments);
  const auto script = text ? vectors::Script::parse(*text) : std::unexpected(text.error());
  if (!script) {
    std::fprintf(stderr, "replay: %s\n", script.error().c_str());
    return 2;
  }
  signal(SIGPIPE, SIG_IGN);  // a process whose partner ended reads that from the pipe
  alarm(kTimeLimitSeconds);
  vectors::Replayer(arguments.options).run(*script);
  return 0;
}
