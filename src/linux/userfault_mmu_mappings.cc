// What is mapped: PROCMAP_QUERY where the kernel has it, the text of maps where not, the text of smaps for the flags
// that only it shows. Nothing is remembered: a mapping may change at any time.
#include <fcntl.h>

#include <cerrno>

#include "linux/proc_maps.h"
#include "linux/sys.h"
#include "linux/uapi.h"
#include "linux/userfault_mmu.h"

namespace whimbrel {
namespace {

// Room for every name that means something to us; longer ones are paths.
constexpr std::uint32_t kNameRoom = 128;

Mapping translate(const uapi::ProcmapQuery& from, const char* name) noexcept {
  std::uint32_t flags = Mapping::kFlagsUnknown;
  if ((from.vma_flags & uapi::kVmaReadable) != 0) flags |= Mapping::kReadable;
  if ((from.vma_flags & uapi::kVmaWritable) != 0) flags |= Mapping::kWritable;
  if ((from.vma_flags & uapi::kVmaExecutable) != 0) flags |= Mapping::kExecutable;
  if ((from.vma_flags & uapi::kVmaShared) != 0) flags |= Mapping::kShared;
  if (from.inode != 0) flags |= Mapping::kFileBacked;
  if (from.vma_page_size > kPageSize) flags |= Mapping::kHugetlb;
  if (from.vma_name_size > 1) flags |= flags_of_name({name, from.vma_name_size - 1});
  Mapping to;
  to.range =
      PageRange::between(PageIndex::of(VirtualAddress(from.vma_start)), PageIndex::of(VirtualAddress(from.vma_end)));
  to.flags = flags;
  to.inode = from.inode;
  if (from.inode != 0) to.file_offset = from.vma_offset;
  return to;
}

// The text also lists [vsyscall], which lies in the kernel's half and is no mapping of the process.
bool in_user_half(const Mapping& mapping) noexcept { return mapping.range.first.address().raw() >> 63 == 0; }

Result<void> read_details(int smaps, PageIndex from, std::span<Mapping> room, MappingSink& sink) noexcept {
  LineReader lines(smaps);
  std::string_view line;
  Mapping current;
  bool wanted = false;
  std::size_t filled = 0;
  while (lines.next(line)) {
    // An entry is its mapping line, some counters, and the flags at the end. Counters start with a capital letter.
    if (!line.empty() && line.front() >= 'A' && line.front() <= 'Z') {
      if (wanted && parse_vm_flags(line, current)) room[filled++] = current;
    } else if (parse_mapping_line(line, current)) {
      wanted = from < current.range.end() && in_user_half(current);
    }
    if (filled < room.size()) continue;
    filled = 0;
    if (!sink.take(room)) return {};
  }
  if (filled != 0) {
    (void)sink.take(room.first(filled));
  } else if (lines.failed()) {
    return std::unexpected(lines.error());
  }
  return {};
}

}  // namespace

Result<Mapping> UserfaultMmu::query_mapping(PageIndex page) noexcept {
  char name[kNameRoom];
  bool want_name = true;
  for (;;) {
    uapi::ProcmapQuery query{};
    query.size = sizeof query;
    query.query_flags = uapi::kCoveringOrNextVma;
    query.query_addr = page.address().raw();
    if (want_name) {
      query.vma_name_addr = VirtualAddress(name).raw();
      query.vma_name_size = kNameRoom;
    }
    const Result<long> answer = sys::ioctl(fds_[Descriptors::kMaps], uapi::kProcmapQuery, &query, "PROCMAP_QUERY");
    if (answer) return translate(query, name);
    if (answer.error().sys == ENAMETOOLONG && want_name) {
      want_name = false;  // a path: it tells nothing that the inode does not
      continue;
    }
    if (answer.error().sys != EINTR) return std::unexpected(answer.error());
  }
}

Result<Mapping> UserfaultMmu::read_mapping(PageIndex page) noexcept {
  LineReader lines(fds_[Descriptors::kMaps]);
  std::string_view line;
  Mapping mapping;
  while (lines.next(line)) {
    if (parse_mapping_line(line, mapping) && page < mapping.range.end() && in_user_half(mapping)) return mapping;
  }
  if (lines.failed()) return std::unexpected(lines.error());
  return fail(Errc::kNotFound, 0, "no mapping at or above");
}

Result<Mapping> UserfaultMmu::mapping_at_or_above(PageIndex page) noexcept {
  if (!no_procmap_query_.load(std::memory_order_relaxed)) {
    Result<Mapping> mapping = query_mapping(page);
    if (mapping || (mapping.error().sys != ENOTTY && mapping.error().sys != EINVAL)) return mapping;
    no_procmap_query_.store(true, std::memory_order_relaxed);
  }
  return read_mapping(page);
}

Result<void> UserfaultMmu::walk_detailed_mappings(PageIndex from, std::span<Mapping> room, MappingSink& sink) noexcept {
  // Opened for each reading, which the next one begins anew, so that readers need not wait for each other. Where that cannot
  // be done any more (chroot, nothing mounted there) the one that was opened in time serves, one reader at a time.
  const Result<int> smaps = sys::open("/proc/thread-self/smaps", O_RDONLY);
  if (smaps) {
    const Result<void> walked = read_details(*smaps, from, room, sink);
    sys::close(*smaps);
    return walked;
  }
  if (!fds_.has(Descriptors::kSmaps)) return std::unexpected(smaps.error());
  MutexLock hold(smaps_mutex_);
  return read_details(fds_[Descriptors::kSmaps], from, room, sink);
}

Result<std::size_t> UserfaultMmu::detailed_mappings(PageIndex from, std::span<Mapping> out) noexcept {
  struct First final : MappingSink {
    std::size_t count = 0;
    bool take(std::span<const Mapping> some) noexcept override {
      count = some.size();
      return false;
    }
  } first;
  if (out.empty()) return std::size_t{0};
  const Result<void> walked = walk_detailed_mappings(from, out, first);
  if (!walked) return std::unexpected(walked.error());
  return first.count;
}

Result<Mapping> UserfaultMmu::detailed_mapping_at_or_above(PageIndex page) noexcept {
  Mapping mapping;
  const Result<std::size_t> filled = detailed_mappings(page, {&mapping, 1});
  if (!filled) return std::unexpected(filled.error());
  if (*filled == 0) return fail(Errc::kNotFound, 0, "no mapping at or above");
  return mapping;
}

}  // namespace whimbrel
