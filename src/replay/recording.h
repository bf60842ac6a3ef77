// Recording: an event file of `whimbrel run --events`, read back into memory. docs/events.md describes the lines.
#pragma once

#include <cstdint>
#include <istream>
#include <map>
#include <string>
#include <vector>

#include "pager/event_ring.h"

namespace whimbrel::replay {

enum class What : std::uint8_t { kMove, kDrop, kRemap, kProcess, kExit, kSample, kMappings, kLost };

// One line, as far as simulations want it. In the order of time; lines of the same time in the order of the file.
struct Event {
  std::uint64_t time_ns = 0;
  std::uint64_t first_page = 0;
  std::uint64_t detail = 0;  // moves: nanoseconds; remaps: the first page now; samples and mappings: their index; lost: how many
  std::uint32_t pid = 0;
  std::uint32_t pages = 0;
  What what = What::kMove;
  MoveCause cause = MoveCause::kUser;
  Place from = Place::kNone, to = Place::kNone;
};

struct Process {
  std::uint32_t pid = 0, parent = 0;
  std::string program;
  std::uint64_t started_ns = 0;
};

struct Sample {
  std::uint64_t image = 0;  // which program of the process
  std::uint64_t resident_bytes = 0, limit_bytes = 0, away_bytes = 0, compressed_bytes = 0, held_bytes = 0, total_bytes = 0;
  std::uint64_t pages_out = 0, unchanged_out = 0, pages_home = 0, faults = 0, zero_faults = 0, wait_ns = 0;
  std::uint64_t back_pressure = 0, over_limit = 0, refused_pages = 0;
  // Resident pages that the events up to here do not know of: there from before, and never moved so far.
  std::uint64_t unseen_pages = 0;
};

struct Mapping {
  std::uint64_t address = 0, length = 0;
  std::string name;
};

// A place in the program's code, by the faults that were sampled (`run --sample-stacks`).
struct CodePlace {
  std::string place, inside;
  std::vector<std::string> callers;
  std::uint64_t samples = 0, first_touches = 0, wait_ns = 0;
};

struct BudgetChange {
  std::uint64_t time_ns = 0, ram_limit_bytes = 0, total_limit_bytes = 0;
};

struct Recording {
  std::vector<Event> events;
  std::vector<Process> processes;  // in the order of their events; one process number may stand for several programs
  std::vector<Sample> samples;
  std::vector<std::vector<Mapping>> mappings;
  std::vector<BudgetChange> budget_changes;  // while it ran
  std::vector<CodePlace> places;             // most samples first
  std::uint64_t place_samples = 0;           // of all places
  std::vector<std::string> command;
  std::string device;
  std::uint64_t ram_limit_bytes = 0, total_limit_bytes = 0;
  std::uint64_t started_ns = 0, unix_time_ns = 0;
  double seconds = 0;          // of the run; without a last line, up to the last event
  int exit_status = 0;
  bool complete = false;       // has a last line
  std::uint64_t lost = 0;      // records that the stream does not have

  // Of all processes together, as their last samples say.
  std::uint64_t faults = 0, zero_faults = 0, wait_ns = 0, pages_out = 0, pages_home = 0;
};

// False: `problem` says what is wrong in which line. A last line that is cut off is passed over.
[[nodiscard]] bool read_recording(std::istream& in, Recording* out, std::string* problem);

}  // namespace whimbrel::replay
