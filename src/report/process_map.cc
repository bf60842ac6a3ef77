// A living process: its mappings from /proc/PID/maps, what of them is in RAM from /proc/PID/pagemap.
#include <fcntl.h>
#include <sys/ioctl.h>
#include <unistd.h>

#include <algorithm>
#include <bit>
#include <cerrno>
#include <cstring>
#include <fstream>

#include "linux/uapi.h"
#include "replay/page_sets.h"
#include "report/memory_map.h"
#include "report/process_mappings.h"

namespace whimbrel::report {
namespace {

constexpr std::uint64_t kPage = 4096;

std::string first_line(const std::string& path) {
  std::ifstream file(path);
  std::string line;
  std::getline(file, line);
  return line;
}

// Adds the pages of [address, end) that are in RAM to `present`, huge ones also to `huge`. False: the kernel refuses.
bool scan(int pagemap, std::uint64_t address, std::uint64_t end, replay::PageSets* present, replay::PageSets* huge) {
  whimbrel::uapi::PageRegion found[256];
  while (address < end) {
    whimbrel::uapi::PagemapScan request{};
    request.size = sizeof request;
    request.start = address;
    request.end = end;
    request.vec = reinterpret_cast<std::uintptr_t>(found);
    request.vec_len = std::size(found);
    request.category_mask = whimbrel::uapi::kPagePresent;
    request.return_mask = whimbrel::uapi::kPagePresent | whimbrel::uapi::kPageHuge | whimbrel::uapi::kPagePfnZero;
    const int n = ioctl(pagemap, whimbrel::uapi::kPagemapScan, &request);
    if (n < 0) return false;
    for (int i = 0; i < n; ++i) {
      if ((found[i].categories & whimbrel::uapi::kPagePfnZero) != 0) continue;
      const PageRange range{PageIndex(found[i].start / kPage), PageCount((found[i].end - found[i].start) / kPage)};
      present->set(range, replay::PageSets::kResident);
      if ((found[i].categories & whimbrel::uapi::kPageHuge) != 0) huge->set(range, replay::PageSets::kResident);
    }
    if (request.walk_end <= address) break;
    address = request.walk_end;
  }
  return true;
}

char share_digit(std::uint64_t part, std::uint64_t whole) {
  return part == 0 || whole == 0 ? '0' : static_cast<char>('1' + std::min<std::uint64_t>(part * 8 / whole, 8));
}

}  // namespace

bool map_process(std::uint32_t pid, MemoryMap* out, std::string* problem) {
  *out = MemoryMap();
  out->pid = pid;
  const std::string directory = "/proc/" + std::to_string(pid);
  out->program = first_line(directory + "/comm");
  const int pagemap = open((directory + "/pagemap").c_str(), O_RDONLY | O_CLOEXEC);
  if (pagemap < 0) {
    *problem = "process " + std::to_string(pid) + ": " + (errno == ENOENT ? "no such process" : std::strerror(errno));
    return false;
  }
  for (const replay::Mapping& mapping : private_mappings(pid)) {
    MapRegion region;
    region.name = mapping.name;
    region.address = mapping.address;
    region.length = mapping.length;
    out->regions.push_back(region);
  }
  if (out->regions.empty()) {
    close(pagemap);
    *problem = "process " + std::to_string(pid) + ": its mappings cannot be seen, or it has none that matter";
    return false;
  }
  std::uint64_t all = 0;
  for (const MapRegion& region : out->regions) all += region.length;
  out->cell_bytes = std::bit_ceil(std::max<std::uint64_t>(all / kMapCells, 16 * kPage));
  MapFrame frame;
  std::size_t next = 0;
  for (MapRegion& region : out->regions) {
    replay::PageSets present, huge;
    if (!scan(pagemap, region.address, region.address + region.length, &present, &huge)) {
      *problem = "process " + std::to_string(pid) + ": its pages cannot be seen: " + std::strerror(errno);
      close(pagemap);
      return false;
    }
    region.first_cell = next;
    for (std::uint64_t at = region.address; at < region.address + region.length; at += out->cell_bytes, ++next) {
      const std::uint64_t end = std::min(at + out->cell_bytes, region.address + region.length);
      const PageRange range{PageIndex(at / kPage), PageCount((end - at) / kPage)};
      frame.resident += share_digit(present.resident_in(range), range.count.raw());
      frame.huge += share_digit(huge.resident_in(range), range.count.raw());
      frame.away += '0';
      frame.heat += '0';
    }
    region.cells = next - region.first_cell;
    frame.resident_bytes += present.resident() * kPage;
  }
  close(pagemap);
  out->frames.push_back(std::move(frame));
  return true;
}

}  // namespace whimbrel::report
