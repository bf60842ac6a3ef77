#include "report/memory_map.h"

#include <algorithm>
#include <bit>
#include <cmath>
#include <map>
#include <set>
#include <unordered_map>

#include "replay/page_sets.h"

namespace whimbrel::report {
namespace {

using replay::Event;
using replay::What;

constexpr std::uint64_t kPage = 4096;

std::uint32_t busiest(const replay::Recording& recording) {
  std::unordered_map<std::uint32_t, std::uint64_t> moves;
  for (const Event& event : recording.events) {
    if (event.what == What::kMove) moves[event.pid] += event.pages;
  }
  const auto most = std::max_element(moves.begin(), moves.end(), [](const auto& a, const auto& b) { return a.second < b.second; });
  return most == moves.end() ? 0 : most->first;
}

// All that was mapped at any time it was looked at, and what moved outside of that.
std::vector<MapRegion> regions_of(const replay::Recording& recording, std::uint32_t pid) {
  std::map<std::uint64_t, MapRegion> found;  // by address; do not overlap
  const auto add = [&found](std::uint64_t address, std::uint64_t length, const std::string& name) {
    std::uint64_t end = address + length;
    std::string kept = name;
    auto it = found.lower_bound(address);
    if (it != found.begin() && std::prev(it)->second.address + std::prev(it)->second.length >= address) --it;
    while (it != found.end() && it->first <= end) {
      const MapRegion& old = it->second;
      // Neighbours with different names stay apart.
      if (!old.name.empty() && !name.empty() && old.name != name) {
        if (old.address < address) address = std::max(address, old.address + old.length);
        else end = std::min(end, old.address);
        ++it;
        continue;
      }
      address = std::min(address, old.address);
      end = std::max(end, old.address + old.length);
      if (kept.empty()) kept = old.name;
      it = found.erase(it);
    }
    if (address >= end) return;
    MapRegion region;
    region.name = kept;
    region.address = address;
    region.length = end - address;
    found[address] = region;
  };
  for (const Event& event : recording.events) {
    if (event.pid != pid) continue;
    if (event.what == What::kMappings) {
      for (const replay::Mapping& m : recording.mappings[event.detail]) add(m.address, m.length, m.name);
    } else if (event.what == What::kMove) {
      const std::uint64_t address = event.first_page * kPage;
      const auto after = found.upper_bound(address);
      const bool known = after != found.begin() && address < std::prev(after)->second.address + std::prev(after)->second.length;
      // In steps, or each page that moves makes a region.
      if (!known) add(address & ~std::uint64_t{0xffff}, ((address & 0xffff) + event.pages * kPage + 0xffff) & ~std::uint64_t{0xffff}, "");
    }
  }
  // The engine's own memory and what was only reserved: no page of it ever moved.
  std::set<std::uint64_t> used;
  for (const Event& event : recording.events) {
    if (event.pid != pid || event.what != What::kMove) continue;
    const auto after = found.upper_bound(event.first_page * kPage);
    if (after != found.begin()) used.insert(std::prev(after)->first);
  }
  std::vector<MapRegion> out;
  for (const auto& [address, region] : found) {
    if (used.contains(address)) out.push_back(region);
  }
  return out;
}

void cut_into_cells(MemoryMap* map) {
  std::uint64_t all = 0;
  for (const MapRegion& region : map->regions) all += region.length;
  // A cell of at least 16 pages; each region has at least one.
  map->cell_bytes = std::bit_ceil(std::max<std::uint64_t>(all / kMapCells, 16 * kPage));
  std::size_t next = 0;
  for (MapRegion& region : map->regions) {
    region.first_cell = next;
    region.cells = static_cast<std::size_t>((region.length + map->cell_bytes - 1) / map->cell_bytes);
    next += region.cells;
  }
}

PageRange cell_range(const MemoryMap& map, const MapRegion& region, std::size_t cell) {
  const std::uint64_t first = region.address + cell * map.cell_bytes;
  const std::uint64_t end = std::min(first + map.cell_bytes, region.address + region.length);
  return {PageIndex(first / kPage), PageCount((end - first) / kPage)};
}

char share_digit(std::uint64_t part, std::uint64_t whole) {
  if (part == 0 || whole == 0) return '0';
  return static_cast<char>('1' + std::min<std::uint64_t>(part * 8 / whole, 8));
}

char heat_digit(std::uint64_t fetched) { return static_cast<char>('0' + std::min<unsigned>(static_cast<unsigned>(std::bit_width(fetched)), 9)); }

}  // namespace

bool map_recording(const replay::Recording& recording, std::uint32_t pid, std::size_t frames, MemoryMap* out, std::string* problem) {
  *out = MemoryMap();
  out->pid = pid != 0 ? pid : busiest(recording);
  out->device = recording.device;
  out->knows_away = true;
  for (const replay::Process& process : recording.processes) {
    if (process.pid == out->pid) out->program = process.program;
  }
  out->regions = regions_of(recording, out->pid);
  if (out->regions.empty()) {
    *problem = "nothing moved in that run";
    return false;
  }
  cut_into_cells(out);
  const std::size_t cells = out->regions.back().first_cell + out->regions.back().cells;
  std::vector<std::uint64_t> fetched(cells);
  const auto region_at = [out](std::uint64_t address) -> MapRegion* {
    auto it = std::upper_bound(out->regions.begin(), out->regions.end(), address, [](std::uint64_t a, const MapRegion& r) { return a < r.address; });
    return it == out->regions.begin() || std::prev(it)->address + std::prev(it)->length <= address ? nullptr : &*std::prev(it);
  };
  std::unordered_map<std::uint32_t, replay::PageSets> all;
  const std::uint64_t end = recording.events.empty() ? recording.started_ns : recording.events.back().time_ns;
  const auto frame_end = [&](std::size_t i) { return recording.started_ns + (end - recording.started_ns) * (i + 1) / frames; };
  const auto take_frame = [&](std::uint64_t time) {
    MapFrame frame;
    frame.seconds = static_cast<double>(time - recording.started_ns) / 1e9;
    replay::PageSets& pages = all[out->pid];
    for (const MapRegion& region : out->regions) {
      for (std::size_t c = 0; c < region.cells; ++c) {
        const PageRange range = cell_range(*out, region, c);
        frame.resident += share_digit(pages.resident_in(range), range.count.raw());
        frame.away += share_digit(pages.away_in(range), range.count.raw());
        frame.heat += heat_digit(fetched[region.first_cell + c]);
      }
    }
    frame.resident_bytes = pages.resident() * kPage;
    frame.away_bytes = pages.away() * kPage;
    std::fill(fetched.begin(), fetched.end(), 0);
    out->frames.push_back(std::move(frame));
  };
  for (const Event& event : recording.events) {
    while (out->frames.size() + 1 < frames && frame_end(out->frames.size()) < event.time_ns) take_frame(frame_end(out->frames.size()));
    replay::PageSets& pages = all[event.pid];
    const PageRange range{PageIndex(event.first_page), PageCount(event.pages)};
    switch (event.what) {
      case What::kProcess: {
        const auto parent = all.find(recording.processes[event.detail].parent);
        replay::PageSets fresh;
        if (parent != all.end()) fresh = parent->second;
        all[event.pid] = std::move(fresh);
        break;
      }
      case What::kMove: {
        pages.set(range, event.to == Place::kRam ? replay::PageSets::kResident : replay::PageSets::kAway);
        MapRegion* region = event.pid == out->pid && event.from == Place::kDevice ? region_at(event.first_page * kPage) : nullptr;
        if (region == nullptr) break;
        region->fetched_pages += event.pages;
        if (event.cause == MoveCause::kFault) ++region->faults;
        const std::size_t cell = region->first_cell + static_cast<std::size_t>((event.first_page * kPage - region->address) / out->cell_bytes);
        fetched[cell] += event.pages;
        break;
      }
      case What::kDrop: pages.drop(range); break;
      case What::kRemap: pages.move(range, PageIndex(event.detail)); break;
      default: break;
    }
  }
  take_frame(end);
  return true;
}

void keep_fullest(MemoryMap* map) {
  std::uint64_t most = 0;
  for (const MapFrame& frame : map->frames) most = std::max(most, frame.resident_bytes + frame.away_bytes);
  std::size_t at = map->frames.size() - 1;
  while (at != 0 && (map->frames[at].resident_bytes + map->frames[at].away_bytes) / 9 < most / 10) --at;
  MapFrame kept = map->frames[at];
  for (const MapFrame& frame : map->frames) {
    for (std::size_t cell = 0; cell < kept.heat.size(); ++cell) kept.heat[cell] = std::max(kept.heat[cell], frame.heat[cell]);
  }
  map->frames.assign(1, std::move(kept));
}

std::vector<MapRegion> hottest(const MemoryMap& map, std::size_t most) {
  std::vector<MapRegion> out = map.regions;
  std::stable_sort(out.begin(), out.end(), [](const MapRegion& a, const MapRegion& b) { return a.fetched_pages > b.fetched_pages; });
  while (!out.empty() && out.back().fetched_pages == 0) out.pop_back();
  if (out.size() > most) out.resize(most);
  return out;
}

}  // namespace whimbrel::report
