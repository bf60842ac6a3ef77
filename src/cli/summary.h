// The end of a run in words and in JSON.
#pragma once

#include <string>

#include "cli/supervisor.h"
#include "runtime/stats_file.h"

namespace whimbrel::cli {

struct Summary {
  ProgramEnd end;
  const StatsFile::Totals* totals = nullptr;  // never null when used
  std::uint64_t ram_limit_bytes = 0;
  std::uint64_t total_limit_bytes = 0;
  std::uint32_t budget_changes = 0;  // while it ran
  std::string device;
  std::string program;
};

// A few lines for people, ending with a newline.
[[nodiscard]] std::string describe(const Summary& summary);
// One line, ending with a newline. Numbers are bytes, pages of 4096 bytes and nanoseconds, as the names say.
[[nodiscard]] std::string to_json(const Summary& summary);

// "1.5 GiB", "12 KiB", "0 B".
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);
// "850 us", "1.2 s", "3 min 05 s".
[[nodiscard]] std::string human_duration(double seconds);

}  // namespace whimbrel::cli
