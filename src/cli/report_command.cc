// whimbrel report and whimbrel map: a recorded run, or the memory of a process, to look at.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <cerrno>
#include <charconv>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <fstream>

#include "cli/options.h"
#include "report/memory_map.h"
#include "report/page.h"

namespace whimbrel::cli {
namespace {

int read_events(const std::string& path, replay::Recording* out) {
  std::ifstream file(path);
  if (!file) return complain(kExitUsage, path + ": " + std::strerror(errno), "whimbrel run --events FILE -- PROGRAM writes one");
  std::string problem;
  if (replay::read_recording(file, out, &problem)) return 0;
  return complain(kExitUsage, path + ": " + problem, "name a file that was written by whimbrel run --events");
}

int write_file(const std::string& path, const std::string& text) {
  std::FILE* file = std::fopen(path.c_str(), "we");
  bool good = file != nullptr && std::fwrite(text.data(), 1, text.size(), file) == text.size();
  const int error = errno;
  if (file != nullptr) good = std::fclose(file) == 0 && good;
  if (good) return 0;
  return complain(kExitUsage, path + ": " + std::strerror(file == nullptr ? error : errno), "name a file that can be written");
}

std::size_t columns() {
  winsize size{};
  return ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) == 0 && size.ws_col != 0 ? size.ws_col : 80;
}

}  // namespace

int report_command(const ReportOptions& options) {
  replay::Recording recording;
  if (const int bad = read_events(options.events, &recording)) return bad;
  if (recording.samples.empty()) {
    return complain(1, options.events + ": nothing was managed in that run", "record it with a smaller budget");
  }
  if (const int bad = write_file(options.output, report::report_page(recording))) return bad;
  std::printf("%s\n", options.output.c_str());
  return 0;
}

int map_command(const MapOptions& options) {
  if (!options.svg.empty() && !options.html.empty()) return complain(kExitUsage, "--svg and --html are two forms of the same", "leave one of them out");
  report::MemoryMap map;
  std::string problem;
  unsigned pid = 0;
  const char* const end = options.target.data() + options.target.size();
  if (const auto read = std::from_chars(options.target.data(), end, pid); read.ec == std::errc() && read.ptr == end) {
    if (!report::map_process(pid, &map, &problem)) return complain(1, problem, "a process of yours, or a file of whimbrel run --events");
  } else {
    replay::Recording recording;
    if (const int bad = read_events(options.target, &recording)) return bad;
    if (!report::map_recording(recording, options.pid, 60, &map, &problem)) return complain(1, problem);
    if (options.html.empty()) report::keep_fullest(&map);
  }
  if (!options.html.empty()) return write_file(options.html, report::map_page(map));
  if (!options.svg.empty()) return write_file(options.svg, report::map_svg(map));
  const bool colours = isatty(STDOUT_FILENO) != 0 && std::getenv("NO_COLOR") == nullptr;
  std::fputs(report::map_text(map, columns(), colours).c_str(), stdout);
  return 0;
}

}  // namespace whimbrel::cli
