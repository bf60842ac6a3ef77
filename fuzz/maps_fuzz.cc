// Lists of mappings as the kernel writes them: path names may hold anything but a newline.
//
//   byte 0   even: the input is a list, read through a file; odd: fields of one line, which must come out again
#include <sys/mman.h>
#include <unistd.h>

#include <string>

#include "fuzz/fuzz.h"
#include "linux/proc_maps.h"

namespace whimbrel {
namespace {

int scratch() {
  static const int fd = memfd_create("maps", MFD_CLOEXEC);
  return fd;
}

// Lines come out as they are, cut at the buffer's size, none lost and none invented.
void read_list(std::string_view text) {
  const int fd = scratch();
  PROPERTY(ftruncate(fd, 0) == 0 && pwrite(fd, text.data(), text.size(), 0) == static_cast<ssize_t>(text.size()), "a file");
  LineReader reader(fd);
  std::string_view line;
  std::size_t at = 0;
  while (reader.next(line)) {
    const std::size_t end = text.find('\n', at);
    const bool cut = line.size() == 8192 && (end == std::string_view::npos || end - at >= 8192);
    PROPERTY(cut || end != std::string_view::npos, "a line ends with a newline");
    PROPERTY(line == text.substr(at, cut ? 8192 : end - at), "a line is what the file says");
    Mapping mapping{};
    (void)parse_mapping_line(line, mapping);
    (void)parse_vm_flags(line, mapping);
    if (end == std::string_view::npos) return;
    at = end + 1;
  }
  PROPERTY(!reader.failed(), "a memory file can be read");
  PROPERTY(text.find('\n', at) == std::string_view::npos, "no line is lost");
}

void read_line(fuzz::Decisions& in) {
  const std::uint64_t start = in.number(5) << 12, pages = in.number(3), offset = in.number(4) << 12, inode = in.number(4);
  const std::uint8_t rights = in.byte();
  const std::uint8_t kind = in.byte();
  std::string name(reinterpret_cast<const char*>(in.rest().data()), in.rest().size());
  for (char& c : name) c = c == '\n' || c == 0 ? '_' : c;
  if (kind % 4 == 0) name = "[heap]";
  if (kind % 4 == 1) name = "/" + name;
  char head[160];
  std::snprintf(head, sizeof head, "%08llx-%08llx %c%c%c%c %08llx %02x:%02x %llu", static_cast<unsigned long long>(start),
                static_cast<unsigned long long>(start + pages * 4096), rights & 1 ? 'r' : '-', rights & 2 ? 'w' : '-',
                rights & 4 ? 'x' : '-', rights & 8 ? 's' : 'p', static_cast<unsigned long long>(offset), kind, kind,
                static_cast<unsigned long long>(inode));
  std::string line = head;
  if (!name.empty()) line += std::string(1 + kind % 16, ' ') + name;
  Mapping mapping{};
  PROPERTY(parse_mapping_line(line, mapping), "a line in the kernel's form is understood");
  PROPERTY(mapping.range.first.address().raw() == start && mapping.range.count.raw() == pages, "the range of a mapping");
  PROPERTY(mapping.has(Mapping::kReadable) == ((rights & 1) != 0) && mapping.has(Mapping::kWritable) == ((rights & 2) != 0) &&
               mapping.has(Mapping::kExecutable) == ((rights & 4) != 0) && mapping.has(Mapping::kShared) == ((rights & 8) != 0),
           "the rights of a mapping");
  PROPERTY(mapping.has(Mapping::kHeap) == (kind % 4 == 0), "the heap is known by its name");
  PROPERTY(!mapping.has(Mapping::kFileBacked) || mapping.file_offset == offset, "the offset in the file");
  PROPERTY(mapping.has(Mapping::kFlagsUnknown), "flags come from another line");
  Mapping flags{};
  PROPERTY(parse_vm_flags("VmFlags: rd wr mr mw me ac sd", flags), "a line of flags");
}

}  // namespace
}  // namespace whimbrel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace whimbrel;
  fuzz::Decisions in({data, size});
  if (in.byte() % 2 == 0) {
    read_list({reinterpret_cast<const char*>(data), size});
  } else {
    read_line(in);
  }
  return 0;
}
