// EventStream: turns what the engines of a run record (runtime/event_file.h) into JSON lines while the program runs, with a
// thread of its own. docs/events.md describes the lines.
//
// The thread takes the records twenty times a second (oftener where stacks are looked at), sorts what it took by time and writes
// it. When it is too slow, the rings run full, the engines count what they drop, and the stream says so where it happened: a
// "lost" line.
#pragma once

#include <array>
#include <condition_variable>
#include <cstdint>
#include <mutex>
#include <string>
#include <thread>
#include <unordered_map>
#include <unordered_set>
#include <vector>

#include "cli/supervisor.h"
#include "runtime/event_file.h"
#include "runtime/stats_file.h"
#include "stacks/fault_stacks.h"

namespace whimbrel::cli {

class EventStream {
 public:
  EventStream() = default;
  ~EventStream();
  EventStream(const EventStream&) = delete;
  EventStream& operator=(const EventStream&) = delete;

  // Opens the output (empty: nothing is written) and creates the event file beside the statistics file. False: `problem` says
  // why. Without this the other calls do nothing. `stacks`: is told of all faults, and looked after; may be null.
  [[nodiscard]] bool open(const std::string& output, const std::string& stats_path, stacks::FaultStacks* stacks, std::string* problem);
  // Of the event file; empty: none.
  [[nodiscard]] const std::string& path() const { return path_; }

  // Writes the first line and starts the thread. `stats` stays mapped until finish().
  void start(const StatsFile& stats, const std::vector<std::string>& command);
  // The program has ended: takes what is left and writes the last line. False: not everything could be written. `places` (with
  // stacks) receives what has been found out.
  [[nodiscard]] bool finish(const ProgramEnd& end, stacks::StackTotals* places, std::string* problem);

 private:
  // What is known of the process that has a ring.
  struct Owner {
    std::uint32_t pid = 0, session = 0;
    std::uint64_t started_ns = 0;
    std::uint64_t lost = 0;     // told of
    bool dead = false;
    std::uint64_t quiet_since_ns = 0;  // dead and nothing new since; 0: not so
  };
  struct Taken {
    std::uint64_t time_ns, first_page, detail;
    std::uint32_t pid, pages;
    EventKind kind;
    MoveCause cause;
    Place from, to;
  };

  void run();
  // Whether there was anything.
  bool take_all(bool last);
  void take(EventRing& ring, Owner& owner, bool last);
  void meet(EventRing& ring, Owner& owner);
  void note_death(Owner& owner, const EventRing& ring);
  void write_taken();
  void tell_lost(std::uint32_t pid, std::uint64_t count);
  void look_for_the_dead();
  void tell_stacks();
  void note_changes();
  void note_device();
  void sample();
  void sample_mappings(std::uint32_t pid);
  void put_line(const Taken& taken);
  void put_text(const std::string& line) { buffer_ += line; buffer_ += '\n'; }
  void flush();

  int output_ = -1;  // -1: nothing is written
  int write_error_ = 0;
  std::string path_;
  EventFile file_;
  StatsFile stats_;
  stacks::FaultStacks* stacks_ = nullptr;
  std::thread thread_;
  std::mutex mutex_;
  std::condition_variable stop_;
  bool stopping_ = false;

  // The thread's, afterwards finish()'s.
  std::array<Owner, kEventRings> owners_{};
  std::vector<Taken> taken_;
  std::string buffer_;
  std::unordered_set<std::uint32_t> have_sessions_;  // processes that are alive, as far as known
  std::uint32_t budget_changes_ = 0;  // told of
  std::uint32_t device_changes_ = 0;
  std::uint64_t events_ = 0, lost_ = 0, lost_without_ring_ = 0;
  std::unordered_map<std::uint32_t, std::size_t> mappings_;  // of a process: hash of what has been said
  std::unordered_set<std::uint32_t> sampled_last_;           // slots of the dead
  std::int64_t next_sample_ = 0, next_mappings_ = 0;
};

}  // namespace whimbrel::cli
