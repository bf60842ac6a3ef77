#include "mirror/file_copies.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include <cstring>

#include "base/syscall.h"
#include "linux/sys.h"
#include "mirror/protection_lift.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

long raw(PageIndex page) { return static_cast<long>(page.address().raw()); }
void* pointer(PageIndex page) { return reinterpret_cast<void*>(page.address().raw()); }

int protection_of(const Mapping& mapping) {
  return (mapping.has(Mapping::kReadable) ? PROT_READ : 0) | (mapping.has(Mapping::kWritable) ? PROT_WRITE : 0) |
         (mapping.has(Mapping::kExecutable) ? PROT_EXEC : 0);
}

bool may_hold_copies(const Mapping& mapping) {
  return mapping.has(Mapping::kFileBacked | Mapping::kReadable) &&
         !mapping.has_any(Mapping::kShared | Mapping::kSpecial | Mapping::kHugetlb | Mapping::kKernelOwned);
}

char* put_hex(char* to, std::uint64_t value) {
  int digits = 1;
  while (digits < 16 && (value >> (4 * digits)) != 0) ++digits;
  for (int i = digits; i-- > 0;) *to++ = "0123456789abcdef"[value >> (4 * i) & 15];
  return to;
}

// The kernel's way to the file behind a mapping, whether or not it still has a name.
int open_file_of(PageRange mapping) {
  constexpr char kDirectory[] = "/proc/self/map_files/";
  char path[sizeof kDirectory + 40];
  std::memcpy(path, kDirectory, sizeof kDirectory);
  char* at = put_hex(path + sizeof kDirectory - 1, mapping.first.address().raw());
  *at++ = '-';
  *put_hex(at, mapping.end().address().raw()) = 0;
  const Result<int> file = sys::open(path, O_RDONLY | O_CLOEXEC);
  if (!file) return -1;
  const Result<int> high = sys::duplicate_above(*file, 700);  // out of the way of programs that count theirs
  if (!high) return *file;
  sys::close(*file);
  return *high;
}

}  // namespace

void FileCopies::take(AddressSpace& space, PageRange range) noexcept {
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = space.mmu().mapping_at_or_above(at);
    if (!mapping || mapping->range.first >= range.end()) return;
    const PageRange part = mapping->range.intersect(range);
    at = mapping->range.end();
    if (!may_hold_copies(*mapping) || memory_was_locked().load(std::memory_order_relaxed)) continue;
    if (!Session::of(space).is_alone()) return;
    for (PageIndex scanned = part.first; scanned < part.end();) {
      PageRun runs[64];
      const Result<std::size_t> found = space.mmu().scan(PageRange::between(scanned, part.end()), runs, &scanned);
      if (!found) return;
      for (std::size_t i = 0; i < *found; ++i) {
        const std::uint32_t kind = runs[i].kind;
        if ((kind & PageRun::kPresent) == 0 || (kind & (PageRun::kFile | PageRun::kZero)) != 0) continue;
        if (!take_run(space, runs[i].range, *mapping)) return;
      }
    }
  }
}

bool FileCopies::take_run(AddressSpace& space, PageRange run, const Mapping& before) noexcept {
  // An earlier run has cut the mapping.
  const Result<Mapping> mapping = space.mmu().mapping_at_or_above(run.first);
  if (!mapping || !mapping->range.contains(run) || !may_hold_copies(*mapping) || mapping->inode != before.inode)
    return false;
  const std::size_t bytes = run.count.bytes();
  {
    MutexLock hold(mutex_);
    const int file = file_of(*mapping);
    const std::uint64_t offset = mapping->file_offset + (run.first - mapping->range.first).bytes();
    if (file < 0 || !add_locked({run, offset, mapping->inode, file})) return false;
  }
  bool shared[kPagesPerHuge] = {};
  for (std::uint64_t i = 0; i < run.count.raw() && i < kPagesPerHuge; ++i) {
    shared[i] = space.mmu().is_shared(run.first + PageCount(i)).value_or(false);
  }
  const Result<void*> copy = sys::mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS);
  bool moved = false;
  if (copy) {
    std::memcpy(*copy, pointer(run.first), bytes);
    // In one step: at no time is there anything else to be seen.
    moved = sys::mprotect(*copy, bytes, protection_of(*mapping)) &&
            sys::call(SYS_mremap, sys::arg(*copy), static_cast<long>(bytes), static_cast<long>(bytes),
                      MREMAP_MAYMOVE | MREMAP_FIXED, raw(run.first)) == raw(run.first);
    if (!moved) sys::munmap(*copy, bytes);
  }
  if (!moved) {
    unmapped(run);
    return false;
  }
  Session& session = Session::of(space);
  session.mappings_change();
  session.watch(run);
  // What a fork had shared was readable only, and the copy that is this process's own now keeps that flavour.
  for (std::uint64_t i = 0; i < run.count.raw() && i < kPagesPerHuge; ++i) {
    if (!shared[i]) continue;
    MutexLock hold(space.mutex());
    (void)space.protect_locked({run.first + PageCount(i), PageCount(1)});
  }
  return true;
}

int FileCopies::file_of(const Mapping& mapping) noexcept {
  const int file = open_file_of(mapping.range);
  if (file < 0) return -1;
  struct stat status {};
  const bool known = sys::call(SYS_fstat, file, sys::arg(&status)) == 0;
  for (File& slot : files_) {
    const int open = slot.descriptor.load();
    if (known && open >= 0 && slot.inode == status.st_ino && slot.device == status.st_dev) {
      sys::close(file);
      return open;
    }
    if (!known || open >= 0) continue;
    slot.inode = status.st_ino;
    slot.device = status.st_dev;
    slot.descriptor.store(file);
    return file;
  }
  sys::close(file);
  return -1;
}

bool FileCopies::add_locked(Copy copy) noexcept {
  for (Copy& slot : copies_) {
    if (!slot.range.empty()) continue;
    slot = copy;
    return true;
  }
  return false;
}

void FileCopies::cut_locked(PageRange range) noexcept {
  for (Copy& slot : copies_) {
    if (slot.range.empty() || !slot.range.overlaps(range)) continue;
    const Copy whole = slot;
    const PageRange head = PageRange::between(whole.range.first, range.first);
    const PageRange tail = PageRange::between(range.end(), whole.range.end());
    slot.range = head;
    if (tail.empty()) continue;
    (void)add_locked({tail, whole.offset + (tail.first - whole.range.first).bytes(), whole.inode, whole.file});
  }
}

void FileCopies::unmapped(PageRange range) noexcept {
  MutexLock hold(mutex_);
  cut_locked(range);
}

bool FileCopies::overlaps(PageRange range) noexcept {
  MutexLock hold(mutex_);
  for (const Copy& copy : copies_) {
    if (!copy.range.empty() && copy.range.overlaps(range)) return true;
  }
  return false;
}

void FileCopies::give_back(AddressSpace& space, PageRange range) noexcept {
  for (;;) {
    Copy found;
    {
      MutexLock hold(mutex_);
      for (const Copy& copy : copies_) {
        if (!copy.range.empty() && copy.range.overlaps(range)) found = copy;
      }
      if (found.range.empty()) return;
      cut_locked(found.range.intersect(range));
    }
    const PageRange part = found.range.intersect(range);
    const Result<Mapping> mapping = space.mmu().mapping_at_or_above(part.first);
    if (!mapping || !mapping->range.contains(part.first)) continue;
    const std::uint64_t offset = found.offset + (part.first - found.range.first).bytes();
    sys::call(SYS_mmap, raw(part.first), static_cast<long>(part.count.bytes()), protection_of(*mapping),
              MAP_PRIVATE | MAP_FIXED, found.file, static_cast<long>(offset));
    Session::of(space).mappings_change();
  }
}

FileCopies::Lifted FileCopies::lift(PageRange range) noexcept {
  Lifted lifted;
  MutexLock hold(mutex_);
  for (const Copy& copy : copies_) {
    if (copy.range.empty() || !copy.range.overlaps(range) || lifted.count == lifted.copies.size()) continue;
    Copy part = copy;
    part.range = copy.range.intersect(range);
    part.offset = copy.offset + (part.range.first - copy.range.first).bytes();
    lifted.copies[lifted.count++] = part;
  }
  if (lifted.count != 0) cut_locked(range);
  return lifted;
}

void FileCopies::drop(const Lifted& lifted, PageRange from, PageIndex to) noexcept {
  MutexLock hold(mutex_);
  for (std::size_t i = 0; i < lifted.count; ++i) {
    Copy copy = lifted.copies[i];
    copy.range.first = to + (copy.range.first - from.first);
    (void)add_locked(copy);
  }
}

bool FileCopies::owns_descriptor(int fd) const noexcept {
  for (const File& file : files_) {
    if (file.descriptor.load() == fd) return true;
  }
  return false;
}

}  // namespace whimbrel::mirror
