// EngineWatch: sees from outside whether the engine in each program still does its work.
//
// A page that is away comes home only through the fault thread of its process. Should that thread end or be stopped by
// itself, whoever touches such a page would wait for ever and nobody would know why. So the process that started the program
// looks once a second at what the engines write into the statistics file and at the state of their threads:
//
//   fault thread gone, or stopped while the program runs     said, and the program gets SIGABRT (its memory cannot be had
//                                                            any more), five seconds later SIGKILL
//   background thread gone, stopped or without a beat        said; the program goes on, its budget is held at faults alone
//   fault thread takes nothing up although touches wait      as if it were gone
//   a thread waits for memory and nobody serves anything     everybody who waits is woken to touch again; said when that helped
//   one message taken up and not answered                    said, and said again when it is over: a device can be slow
//
// A program that is stopped as a whole (SIGSTOP, a debugger; or both engine threads are), is ending, or has replaced itself by
// another one is left alone, and nothing is judged by what happened while this process itself was stopped.
// Single-threaded; prints to standard error.
#pragma once

#include <sys/types.h>

#include <chrono>
#include <cstdint>
#include <string>
#include <unordered_map>

#include "cli/memory_waits.h"
#include "runtime/stats_file.h"

namespace whimbrel::cli {

class EngineWatch {
 public:
  using Time = std::chrono::steady_clock::time_point;  // the clock of the statistics file: CLOCK_MONOTONIC

  // `path`: of the statistics file, as the programs have it mapped. `patience` 0: look() does nothing.
  EngineWatch(StatsLayout& layout, std::string path, std::chrono::seconds patience)
      : layout_(layout), path_(std::move(path)), patience_(patience) {}

  // To be called now and then; looks once a second.
  void look() { look_at(std::chrono::steady_clock::now()); }
  void look_at(Time now);

 private:
  enum class Thread { kRuns, kStopped, kGone };
  // What is known of one thread of an engine.
  struct Watched {
    std::uint32_t thread = 0;
    bool seen = false;     // alive, at some look
    int looks_gone = 0;    // in a row
    Time stopped_since{};  // while it is stopped
    bool stopped = false;
  };
  struct Process {
    std::uint32_t pid = 0, session = 0;
    std::uint64_t started_ns = 0;
    Watched fault, background;
    std::uint64_t said_serving = 0;  // the message that was spoken of
    bool said_background = false;
    MemoryWaits waits;
    Time next_waits_look{};
    bool lost = false;
    Time lost_at{};
  };

  void look_at_process(StatsSlot& slot, Process& process, Time now);
  void look_at_waits(StatsSlot& slot, Process& process, Time now);
  [[nodiscard]] static bool is_engine_stopped(const StatsSlot& slot, const Process& process);
  void look_at_serving(const StatsSlot& slot, Process& process, Time now);
  // Why the thread does not work any more; null: it does, as far as can be seen.
  [[nodiscard]] const char* trouble(const Process& process, Watched& watched, std::uint32_t thread, Time now) const;
  // Another program by now: it does not have our file mapped, or has a slot of its own.
  [[nodiscard]] bool is_replaced(const Process& process) const;
  void end(Process& process, const char* why, Time now);
  void say(const Process& process, const std::string& what, const std::string& next) const;

  StatsLayout& layout_;
  const std::string path_;
  const std::chrono::seconds patience_;
  Time next_look_{};
  std::unordered_map<std::uint32_t, Process> processes_;  // by slot
};

}  // namespace whimbrel::cli
