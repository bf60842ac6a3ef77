// What `whimbrel top` prints: a table for people, JSON, Prometheus text.
#pragma once

#include <string>

#include "cli/live_runs.h"

namespace whimbrel::cli {

// Rates are those between the two looks; without an earlier one (no runs in it), those since the start are left out.
// At most `width` columns and `height` lines (0: as many as it takes); ends with a newline. The run `picked` is marked; 0: none.
[[nodiscard]] std::string top_table(const Sample& now, const Sample& before, int width, int height, int picked = 0);
// One line. Numbers are bytes, pages of 4096 bytes and nanoseconds, as the names say.
[[nodiscard]] std::string top_json(const Sample& now);
// Prometheus' text exposition format.
[[nodiscard]] std::string top_metrics(const Sample& now);

}  // namespace whimbrel::cli
