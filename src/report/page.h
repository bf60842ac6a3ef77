// The page that shows a run, or a memory map alone: one HTML file that needs nothing else.
#pragma once

#include <string>

#include "replay/recording.h"
#include "report/memory_map.h"

namespace whimbrel::report {

// All of it: timeline, causes, waits, hottest regions, other budgets, why it was slow, and the map. Simulates some runs: seconds.
[[nodiscard]] std::string report_page(const replay::Recording& recording);
// Only the map.
[[nodiscard]] std::string map_page(const MemoryMap& map);

}  // namespace whimbrel::report
