// The statistics file, which every program of a run can write to: `whimbrel top`, the watcher's messages and the final
// totals read it whatever it holds. Tables keep to their width and contain no control characters, JSON can be parsed,
// and each line of metrics has the form of one.
//
//   byte 0      width of the table
//   bytes 1, 2  how many of the following bytes go over the header; then the same for messages and slots
#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <algorithm>
#include <memory>
#include <nlohmann/json.hpp>
#include <string>

#include "cli/live_runs.h"
#include "cli/printable.h"
#include "cli/top_text.h"
#include "fuzz/fuzz.h"

namespace whimbrel {
namespace {

constexpr std::size_t kSlotsFuzzed = 8;

struct Place {
  Place() : directory("/dev/shm/whimbrel-fuzz-" + std::to_string(getpid())) {
    mkdir(directory.c_str(), 0700);
    path = directory + "/run-" + std::to_string(getpid());
    unlink(path.c_str());
    const Result<StatsFile> made = StatsFile::create(path.c_str(), {.ram_bytes = 1 << 20, .device = "zstd"});
    PROPERTY(made.has_value(), "a statistics file");
    file = *made;
  }
  ~Place() {
    unlink(path.c_str());
    rmdir(directory.c_str());
  }
  std::string directory, path;
  StatsFile file;
};

void lay_over(void* memory, std::size_t size, std::span<const std::uint8_t> bytes) {
  std::memset(memory, 0, size);
  if (!bytes.empty()) std::memcpy(memory, bytes.data(), std::min(size, bytes.size()));
}

// Text, of lines that are printable.
bool is_plain(std::string_view text) {
  std::string lines(text);
  std::replace(lines.begin(), lines.end(), '\n', ' ');
  return cli::printable(lines) == lines;
}

void check_table(const cli::Sample& now, const cli::Sample& before, int width) {
  const std::string table = cli::top_table(now, before, width, 24);
  PROPERTY(is_plain(table), "a table holds no control characters");
  std::size_t lines = 0;
  for (std::size_t at = 0; at < table.size(); ++lines) {
    const std::size_t end = table.find('\n', at);
    PROPERTY(end != std::string::npos, "a line of the table ends");
    PROPERTY(width == 0 || end - at <= static_cast<std::size_t>(width), "a table keeps to its width");
    at = end + 1;
  }
  PROPERTY(lines <= 24, "a table keeps to its height");
}

void check_metrics(const std::string& text) {
  PROPERTY(is_plain(text), "metrics hold no control characters");
  for (std::size_t at = 0; at < text.size();) {
    const std::size_t end = text.find('\n', at);
    PROPERTY(end != std::string::npos, "a line of the metrics ends");
    const std::string line = text.substr(at, end - at);
    at = end + 1;
    if (line.starts_with("# ")) continue;
    const std::size_t close = line.rfind("} ");
    PROPERTY(line.starts_with("whimbrel_") && close != std::string::npos, "a line of metrics has labels and a number");
    char* rest = nullptr;
    (void)std::strtod(line.c_str() + close + 2, &rest);
    PROPERTY(rest != line.c_str() + close + 2 && *rest == 0, "a metric's value is a number");
  }
}

}  // namespace
}  // namespace whimbrel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace whimbrel;
  static Place place;
  fuzz::Decisions in({data, size});
  StatsLayout& layout = place.file.layout();
  const int width = in.byte();
  const auto header = in.bytes(in.number(2));
  const auto messages = in.bytes(in.number(2));
  const auto slots = in.rest();
  lay_over(&layout.header, sizeof layout.header, header);
  if (header.size() < 32) {  // mostly what opening the file wants to see
    layout.header.magic = kStatsMagic;
    layout.header.version = kStatsVersion;
    layout.header.slots = kStatsSlots;
    layout.header.next_slot = kSlotsFuzzed;
  }
  lay_over(layout.messages.data(), 4 * sizeof(StatsMessage), messages);
  lay_over(layout.slots.data(), kSlotsFuzzed * sizeof(StatsSlot), slots);

  static cli::Sample before;
  const cli::Sample now = cli::sample_runs({place.directory});
  check_table(now, before, width);
  before = now;
  PROPERTY(nlohmann::json::accept(cli::top_json(now)), "what top prints is JSON");
  check_metrics(cli::top_metrics(now));
  for (const cli::RunSample& run : now.runs) {
    PROPERTY(is_plain(run.device), "the device's name is printable");
    for (const cli::ProcessSample& process : run.processes) {
      PROPERTY(process.name.size() <= 16, "a name is no longer than its place");
    }
  }
  for (const std::uint32_t number : {0u, 1u, 255u, 256u}) {
    char text[248];
    std::uint32_t pid = 0;
    if (!place.file.message(number, text, &pid)) continue;
    PROPERTY(std::memchr(text, 0, sizeof text) != nullptr, "a message ends");
    PROPERTY(is_plain(cli::printable(text)), "a message is printable");
  }
  auto totals = std::make_unique<StatsFile::Totals>();
  place.file.totals(*totals);
  PROPERTY(totals->processes >= totals->managed || !header.empty(), "managed processes are processes");
  return 0;
}
