// A memory map in letters, and as SVG.
#include <fmt/format.h>

#include <algorithm>

#include "report/memory_map.h"

namespace whimbrel::report {
namespace {

constexpr std::size_t kMostRegions = 40;

std::string human(std::uint64_t bytes) {
  static constexpr const char* kUnits[] = {"B", "KiB", "MiB", "GiB", "TiB"};
  auto value = static_cast<double>(bytes);
  std::size_t unit = 0;
  while (value >= 1024 && unit + 1 < std::size(kUnits)) value /= 1024, ++unit;
  return fmt::format("{:.{}f} {}", value, value >= 100 || unit == 0 ? 0 : 1, kUnits[unit]);
}

struct Cell {
  int resident = 0, away = 0, heat = 0, huge = 0;  // 0 to 9
};

// Cells [first, first + count) as one.
Cell together(const MapFrame& frame, std::size_t first, std::size_t count) {
  Cell sum, most;
  for (std::size_t i = first; i < first + count; ++i) {
    sum.resident += frame.resident[i] - '0';
    sum.away += frame.away[i] - '0';
    most.heat = std::max(most.heat, frame.heat[i] - '0');
    if (!frame.huge.empty()) sum.huge += frame.huge[i] - '0';
  }
  const auto mean = [count](int n) { return (n + static_cast<int>(count) - 1) / static_cast<int>(count); };
  return {mean(sum.resident), mean(sum.away), most.heat, mean(sum.huge)};
}

// Of the 256: grey for nothing, blue for away, green to yellow to red for resident by heat.
int colour_256(const Cell& cell) {
  static constexpr int kHeat[10] = {28, 34, 40, 76, 112, 148, 184, 214, 208, 196};
  if (cell.resident == 0 && cell.away == 0) return 238;
  if (cell.away > cell.resident) return cell.heat > 4 ? 135 : cell.away > 5 ? 25 : 67;
  return kHeat[cell.heat];
}

const char* letter(const Cell& cell) {
  if (cell.resident == 0 && cell.away == 0) return ".";
  if (cell.away == 0) return cell.huge > 4 ? "H" : "#";
  if (cell.resident == 0) return "o";
  return "+";
}

std::string rgb(const Cell& cell) {
  if (cell.resident == 0 && cell.away == 0) return "#d8dde3";
  if (cell.away > cell.resident) return fmt::format("hsl(215,{}%,{}%)", 35 + cell.away * 5, 78 - cell.away * 4);
  return fmt::format("hsl({},65%,{}%)", 135 - cell.heat * 14, 62 - cell.resident * 2);
}

std::string name_of(const MapRegion& region) { return region.name.empty() ? "anonymous" : region.name; }

std::string escape(const std::string& text) {
  std::string out;
  for (const char c : text) {
    if (c == '<') out += "&lt;";
    else if (c == '>') out += "&gt;";
    else if (c == '&') out += "&amp;";
    else out += c;
  }
  return out;
}

std::string head_line(const MemoryMap& map) {
  const MapFrame& frame = map.frames.back();
  std::string out = fmt::format("{} {}: {} in RAM", map.program, map.pid, human(frame.resident_bytes));
  if (map.knows_away) out += fmt::format(", {} away on {}, {:.1f} s into the run", human(frame.away_bytes), map.device, frame.seconds);
  return out;
}

// The largest, in the order of their addresses.
std::vector<MapRegion> shown(const MemoryMap& map) {
  std::vector<MapRegion> out = map.regions;
  std::stable_sort(out.begin(), out.end(), [](const MapRegion& a, const MapRegion& b) { return a.length > b.length; });
  if (out.size() > kMostRegions) out.resize(kMostRegions);
  std::sort(out.begin(), out.end(), [](const MapRegion& a, const MapRegion& b) { return a.address < b.address; });
  return out;
}

}  // namespace

std::string map_text(const MemoryMap& map, std::size_t columns, bool colours) {
  const std::size_t width = std::clamp<std::size_t>(columns, 40, 256) - 2;
  const MapFrame& frame = map.frames.back();
  std::string out = head_line(map) + "\n";
  const std::vector<MapRegion> regions = shown(map);
  // All in one scale, and the whole in some 24 lines.
  std::size_t cells = 0;
  for (const MapRegion& region : regions) cells += region.cells;
  const std::size_t each = std::max<std::size_t>((cells + 24 * width - 1) / (24 * width), 1);
  for (const MapRegion& region : regions) {
    out += fmt::format("\n{:012x}  {:>9}  {}\n", region.address, human(region.length), name_of(region));
    std::size_t column = 0;
    for (std::size_t c = 0; c < region.cells; c += each) {
      const Cell cell = together(frame, region.first_cell + c, std::min(each, region.cells - c));
      if (column == 0) out += "  ";
      out += colours ? fmt::format("\x1b[38;5;{}m\u2588", colour_256(cell)) : letter(cell);
      if (++column == width) {
        out += colours ? "\x1b[0m\n" : "\n";
        column = 0;
      }
    }
    if (column != 0) out += colours ? "\x1b[0m\n" : "\n";
  }
  if (regions.size() < map.regions.size()) out += fmt::format("\nand {} smaller regions\n", map.regions.size() - regions.size());
  const std::string one = human(map.cell_bytes * each);
  if (colours) {
    out += fmt::format("\n\x1b[38;5;28m\u2588\x1b[0m in RAM \x1b[38;5;196m\u2588\x1b[0m fetched often \x1b[38;5;25m\u2588\x1b[0m {} "
                       "\x1b[38;5;238m\u2588\x1b[0m {}; one block is {}\n",
                       map.knows_away ? "away" : "", map.knows_away ? "empty" : "not in RAM", one);
  } else {
    out += fmt::format("\n# in RAM, {}{} {}; one is {}\n", map.knows_away ? "o away, + both, ." : "H huge pages, .", "", map.knows_away ? "empty" : "not in RAM: away or never used", one);
  }
  return out;
}

std::string map_svg(const MemoryMap& map) {
  constexpr int kCell = 8, kPerRow = 120, kLeft = 10, kTop = 40;
  const MapFrame& frame = map.frames.back();
  std::string body;
  int y = kTop;
  for (const MapRegion& region : shown(map)) {
    y += 18;
    body += fmt::format("<text x=\"{}\" y=\"{}\">{:x} \u00b7 {} \u00b7 {}</text>\n", kLeft, y, region.address, human(region.length), escape(name_of(region)));
    y += 5;
    for (std::size_t c = 0; c < region.cells;) {
      // Equal neighbours in a row are one rectangle.
      const int column = static_cast<int>(c % kPerRow), row = static_cast<int>(c / kPerRow);
      const std::string colour = rgb(together(frame, region.first_cell + c, 1));
      int n = 1;
      while (column + n < kPerRow && c + static_cast<std::size_t>(n) < region.cells &&
             rgb(together(frame, region.first_cell + c + static_cast<std::size_t>(n), 1)) == colour) {
        ++n;
      }
      body += fmt::format("<rect x=\"{}\" y=\"{}\" width=\"{}\" height=\"{}\" fill=\"{}\"/>\n", kLeft + column * kCell, y + row * kCell, n * kCell - 1, kCell - 1, colour);
      c += static_cast<std::size_t>(n);
    }
    y += static_cast<int>((region.cells + kPerRow - 1) / kPerRow) * kCell + 4;
  }
  return fmt::format("<svg xmlns=\"http://www.w3.org/2000/svg\" width=\"{0}\" height=\"{1}\" viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" font-size=\"12\">\n"
                     "<rect width=\"100%\" height=\"100%\" fill=\"white\"/>\n<text x=\"{2}\" y=\"24\" font-size=\"15\">{3}</text>\n{4}"
                     "<text x=\"{2}\" y=\"{5}\">green: in RAM, to red the more often fetched \u00b7 blue: away \u00b7 grey: {6} \u00b7 one cell is {7}</text>\n</svg>\n",
                     kLeft * 2 + kCell * kPerRow, y + 40, kLeft, escape(head_line(map)), body, y + 24, map.knows_away ? "empty" : "not in RAM", human(map.cell_bytes));
}

}  // namespace whimbrel::report
