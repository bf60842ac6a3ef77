// The end of a run in words and in JSON.
#pragma once

#include <nlohmann/json_fwd.hpp>
#include <string>

#include "cli/supervisor.h"
#include "runtime/stats_file.h"
#include "stacks/fault_stacks.h"

namespace whimbrel::cli {

struct Summary {
  ProgramEnd end;
  const StatsFile::Totals* totals = nullptr;  // never null when used
  std::uint64_t ram_limit_bytes = 0;
  std::uint64_t total_limit_bytes = 0;
  std::uint32_t budget_changes = 0;  // while it ran
  std::string device;  // empty: of a watch, whose sessions have their own
  std::string program;
  const stacks::StackTotals* stacks = nullptr;  // null: not asked for
};

// A few lines for people, ending with a newline.
[[nodiscard]] std::string describe(const Summary& summary);
// One line, ending with a newline. Numbers are bytes, pages of 4096 bytes and nanoseconds, as the names say.
[[nodiscard]] std::string to_json(const Summary& summary);

// What was found out about places in the code, as in the summary and in the event stream.
[[nodiscard]] nlohmann::ordered_json stacks_json(const stacks::StackTotals& totals);

// "1.5 GiB", "12 KiB", "0 B".
[[nodiscard]] std::string human_bytes(std::uint64_t bytes);
// "850 us", "1.2 s", "3 min 05 s".
[[nodiscard]] std::string human_duration(double seconds);

}  // namespace whimbrel::cli
