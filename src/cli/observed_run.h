// ObservedRun: a program that is looked at while it runs, and what is told of it at the end. What whimbrel run and whimbrel
// watch have in common: the statistics file with its messages, the event stream, stacks, the watch over the engines, the summary.
//
// open(), launch(), tell(), in this order. Not thread-safe.
#pragma once

#include <functional>
#include <optional>
#include <string>

#include "cli/event_stream.h"
#include "cli/live_stats.h"
#include "cli/options.h"
#include "cli/summary.h"
#include "cli/supervisor.h"
#include "stacks/fault_stacks.h"

namespace whimbrel::cli {

class ObservedRun {
 public:
  // `options` must outlive this.
  explicit ObservedRun(const WatchOptions& options) : options_(options) {}
  ~ObservedRun();
  ObservedRun(const ObservedRun&) = delete;
  ObservedRun& operator=(const ObservedRun&) = delete;

  // Opens what is written to and what is read from, before anything is started. 0, or the exit status of a refusal that has
  // been printed.
  [[nodiscard]] int open(const StatsFile::Limits& limits);
  // Of the statistics file, and of the event file; the latter empty: none.
  [[nodiscard]] const std::string& stats_path() const { return live_.path(); }
  [[nodiscard]] const std::string& events_path() const { return events_.path(); }

  // Runs the program to its end. `idle` is called a few times a second besides. 0, or the exit status of a failure to start it
  // that has been printed.
  [[nodiscard]] int launch(Launch launch, const std::function<void()>& idle);
  // Writes and prints the summary. `device`: of all processes; empty: the sessions have their own.
  void tell(const std::string& device);

  [[nodiscard]] const ProgramEnd& end() const { return summary_.end; }
  // Processes or sessions that took part. After tell().
  [[nodiscard]] std::uint64_t participants() const { return totals_.processes; }

 private:
  const WatchOptions& options_;
  LiveStats live_;
  EventStream events_;
  std::optional<stacks::FaultStacks> stacks_;
  stacks::StackTotals places_;
  StatsFile::Totals totals_;
  Summary summary_;
  int report_ = -1;  // where the summary goes as JSON
};

}  // namespace whimbrel::cli
