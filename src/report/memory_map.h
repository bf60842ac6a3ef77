// MemoryMap: a process's memory as a picture: its regions cut into cells, and for each cell how much of it is in RAM, how much away,
// and how often it was fetched; at one moment or at several.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "replay/recording.h"

namespace whimbrel::report {

struct MapRegion {
  std::string name;  // "[heap]", "[stack]", "[anon:...]"; empty: an unnamed mapping
  std::uint64_t address = 0, length = 0;
  std::size_t first_cell = 0, cells = 0;
  std::uint64_t fetched_pages = 0, faults = 0;  // in all frames together
};

// A digit for each cell. Shares: '0' none, '1' a little to '9' all of it. Heat: '0' nothing fetched since the last frame, then by
// powers of two up to '9'.
struct MapFrame {
  double seconds = 0;  // since the start of the run
  std::string resident, away, heat, huge;
  std::uint64_t resident_bytes = 0, away_bytes = 0;
};

struct MemoryMap {
  std::uint32_t pid = 0;
  std::string program, device;
  std::uint64_t cell_bytes = 0;
  bool knows_away = false;  // else what is not in RAM may be away or never have been filled
  std::vector<MapRegion> regions;
  std::vector<MapFrame> frames;  // at least one
};

inline constexpr std::size_t kMapCells = 4096;

// The process with the most moves, or `pid` when it is not 0. False: `problem` says why there is nothing to see.
[[nodiscard]] bool map_recording(const replay::Recording& recording, std::uint32_t pid, std::size_t frames, MemoryMap* out, std::string* problem);
// Leaves one frame: the last one with nearly as much memory in use as there ever was (at its end a program has given it back), with
// the heat of all.
void keep_fullest(MemoryMap* map);
// A living process, as the kernel tells: without root for one's own. Away is not known.
[[nodiscard]] bool map_process(std::uint32_t pid, MemoryMap* out, std::string* problem);

// Blocks for a terminal `columns` wide, the last frame; `colours`: with escape sequences for 256 of them.
[[nodiscard]] std::string map_text(const MemoryMap& map, std::size_t columns, bool colours);
[[nodiscard]] std::string map_svg(const MemoryMap& map);

// Regions by what was fetched into them, most first.
[[nodiscard]] std::vector<MapRegion> hottest(const MemoryMap& map, std::size_t most);

}  // namespace whimbrel::report
