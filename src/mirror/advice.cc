#include "mirror/advice.h"

#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <cerrno>

#include "base/syscall.h"
#include "mirror/protection_lift.h"
#include "mirror/session.h"

#ifndef MADV_COLLAPSE
#define MADV_COLLAPSE 25
#endif

namespace whimbrel::mirror {
namespace {

constexpr int kGuardInstall = 102;  // MADV_GUARD_INSTALL

PageRange pages(void* address, std::size_t bytes) {
  const auto from = reinterpret_cast<std::uint64_t>(address);
  return PageRange::touching(VirtualAddress(from), VirtualAddress(from + bytes));
}

long raw_madvise(void* address, std::size_t bytes, int advice) {
  return sys::call(SYS_madvise, sys::arg(address), static_cast<long>(bytes), advice);
}

// What the program gave a pointer to, without dying of a bad one.
bool read_own(const void* from, void* to, std::size_t bytes) {
  const iovec local{to, bytes}, remote{const_cast<void*>(from), bytes};
  return sys::call(SYS_process_vm_readv, sys::call(SYS_getpid), sys::arg(&local), 1, sys::arg(&remote), 1) ==
         static_cast<long>(bytes);
}

int protection_of(const Mapping& mapping) {
  return (mapping.has(Mapping::kReadable) ? PROT_READ : 0) | (mapping.has(Mapping::kWritable) ? PROT_WRITE : 0) |
         (mapping.has(Mapping::kExecutable) ? PROT_EXEC : 0);
}

// Advice that is a property of the mapping: where it changes, the mapping is cut.
bool cuts_mappings(int advice) {
  switch (advice) {
    case MADV_NORMAL:
    case MADV_SEQUENTIAL:
    case MADV_RANDOM:
    case MADV_DONTFORK:
    case MADV_DOFORK:
    case MADV_MERGEABLE:
    case MADV_UNMERGEABLE:
    case MADV_HUGEPAGE:
    case MADV_NOHUGEPAGE:
    case MADV_DONTDUMP:
    case MADV_DODUMP:
    case MADV_WIPEONFORK:
    case MADV_KEEPONFORK: return true;
    default: return false;
  }
}

// MA-07. 0: what can be prepared is; otherwise a negative errno.
long prepare_collapse(AddressSpace& space, PageRange range) {
  for (PageIndex base = PageIndex((range.first.raw() + kPagesPerHuge - 1) / kPagesPerHuge * kPagesPerHuge);
       base + PageCount(kPagesPerHuge) <= range.end(); base = base + PageCount(kPagesPerHuge)) {
    const PageRange unit{base, PageCount(kPagesPerHuge)};
    bool any = false, refuse = false;
    {
      MutexLock hold(space.mutex());
      space.pump_locked();
      space.table().for_each(unit, [&](PageRange, PageEntry entry) {
        any = true;
        refuse = refuse || entry.is_huge() || entry.state() == PageState::kCoherent;
        return !refuse;
      });
    }
    if (refuse) return -EINVAL;
    PageRun runs[kPagesPerHuge];
    const Result<std::size_t> found = space.mmu().scan(unit, runs, nullptr);
    const bool huge = found && *found == 1 && runs[0].range == unit && (runs[0].kind & PageRun::kHuge) != 0;
    const Result<Mapping> mapping = space.mmu().mapping_at_or_above(base);
    const bool watched = mapping && mapping->range.contains(unit) && mapping->is_private_anonymous();
    if (huge || !watched || (!any && found && *found == 0)) continue;
    // The kernel does not fill gaps in memory that is watched, nor collapse what is write-protected: both are ours to do.
    (void)space.mmu().write_protect(unit, false, Wake::kNo);
    for (PageIndex at = unit.first; at < unit.end(); ++at) {
      (void)space.mmu().populate({at, PageCount(1)}, mapping->has(Mapping::kWritable));
    }
  }
  return 0;
}

}  // namespace

long protect(void* address, std::size_t bytes, int protection) noexcept {
  const auto raw = [&] { return sys::call(SYS_mprotect, sys::arg(address), static_cast<long>(bytes), protection); };
  Session* session = Session::existing();
  if (session == nullptr) return raw();
  const GatePass pass(session->gate());
  // What has the wanted protection already is passed over. The others are changed in order, until the first gap.
  const PageRange range = pages(address, bytes);
  Mapping before[32];
  std::size_t count = 0;
  for (PageIndex at = range.first; at < range.end() && count < 32;) {
    const Result<Mapping> mapping = session->space().mmu().mapping_at_or_above(at);
    if (!mapping || !mapping->range.contains(at)) break;
    at = mapping->range.end();
    if (protection_of(*mapping) != (protection & (PROT_READ | PROT_WRITE | PROT_EXEC))) before[count++] = *mapping;
  }
  for (std::size_t i = 0; i < count; ++i) session->note_borders(before[i].range, range);
  MutexLock hold(protection_mutex());
  const long result = raw();
  session->mappings_change();
  if (result == 0 || result == -ENOMEM) {
    for (std::size_t i = 0; i < count; ++i) {
      session->space().note_protection_lowered(before[i].range.intersect(range));
    }
    if (count == 32) session->space().note_protection_lowered(range);
  }
  return result;
}

long unmap(void* address, std::size_t bytes) noexcept {
  Session* session = Session::existing();
  if (session != nullptr) {
    const GatePass pass(session->gate());
    session->note_borders(pages(address, bytes));
  }
  const long result = sys::call(SYS_munmap, sys::arg(address), static_cast<long>(bytes));
  if (session != nullptr) session->mappings_change();
  return result;
}

long remap(void* from, std::size_t old_bytes, std::size_t new_bytes, int flags, void* to) noexcept {
  const auto raw = [flags](std::uint64_t at, std::uint64_t old_size, std::uint64_t new_size, std::uint64_t target) {
    Session* existing = Session::existing();
    const PageRange old = PageRange::touching(VirtualAddress(at), VirtualAddress(at + old_size));
    const FileCopies::Lifted copies = existing == nullptr ? FileCopies::Lifted{} : existing->file_copies().lift(old);
    const long result = sys::call(SYS_mremap, static_cast<long>(at), static_cast<long>(old_size),
                                  static_cast<long>(new_size), flags, static_cast<long>(target));
    if (existing != nullptr) {
      const bool failed = result < 0 && result > -4096;
      existing->file_copies().drop(copies, old, failed ? old.first : PageIndex(static_cast<std::uint64_t>(result) >> kPageShift));
      existing->mappings_change();
      if (!failed && (flags & MREMAP_DONTUNMAP) != 0 && copies.count != 0) {
        // The copies are gone from the old place, and the file is there again.
        const GatePass pass(existing->gate());
        existing->file_copies().drop(copies, old, old.first);
        existing->file_copies().give_back(existing->space(), old);
      }
    }
    return result;
  };
  const auto first = reinterpret_cast<std::uint64_t>(from), target = reinterpret_cast<std::uint64_t>(to);
  Session* session = Session::existing();
  if (session != nullptr) {
    const GatePass pass(session->gate());
    if ((flags & MREMAP_DONTUNMAP) == 0) session->note_borders(pages(from, old_bytes));
    if ((flags & MREMAP_FIXED) != 0) session->note_borders(pages(to, new_bytes));
  }
  const long whole = raw(first, old_bytes, new_bytes, target);
  if (whole != -EFAULT || session == nullptr || (flags & MREMAP_FIXED) == 0 || old_bytes != new_bytes) return whole;
  const PageRange range = pages(from, old_bytes);
  Mmu& mmu = session->space().mmu();
  const Result<Mapping> start = mmu.mapping_at_or_above(range.first);
  if (!start || !start->range.contains(range.first)) return whole;
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = mmu.mapping_at_or_above(at);
    if (!mapping || mapping->range.first >= range.end()) break;  // gaps stay gaps
    const PageRange part = mapping->range.intersect(range);
    const std::uint64_t offset = (part.first - range.first).bytes();
    const long moved = raw(first + offset, part.count.bytes(), part.count.bytes(), target + offset);
    if (moved < 0 && moved > -4096) return moved;
    at = part.end();
  }
  return static_cast<long>(target);
}

long advise(void* address, std::size_t bytes, int advice) noexcept {
  Session* session = Session::existing();
  if (session == nullptr) return raw_madvise(address, bytes, advice);
  const GatePass pass(session->gate());
  AddressSpace& space = session->space();
  if (cuts_mappings(advice)) session->note_borders(pages(address, bytes));
  if (advice == kGuardInstall) {
    // UN-09: what was there goes, whatever it was; no message tells of it.
    const long result = raw_madvise(address, bytes, advice);
    if (result == 0) space.note_dropped(pages(address, bytes));
    return result;
  }
  // The kernel frees nothing lazily in mappings of files.
  if (advice == MADV_FREE && session->file_copies().overlaps(pages(address, bytes))) return -EINVAL;
  if (advice == MADV_FREE) {
    space.begin_lazy_free(pages(address, bytes));
    const long result = raw_madvise(address, bytes, advice);
    space.pump();
    space.end_lazy_free(pages(address, bytes));
    return result;
  }
  if (advice == MADV_COLLAPSE) {
    if (const long refused = prepare_collapse(space, pages(address, bytes)); refused != 0) return refused;
  }
  if (advice == MADV_DONTNEED) session->cut_zero_units(pages(address, bytes));
  const long result = raw_madvise(address, bytes, advice);
  session->mappings_change();
  // Back from the call, the pages are gone: what is there now may be migrated at once.
  space.pump();
  space.end_quarantine(pages(address, bytes));
  // ENOMEM: a part is not mapped, and the rest was dropped.
  if ((result == 0 || result == -ENOMEM) && advice == MADV_DONTNEED) session->file_copies().give_back(space, pages(address, bytes));
  return result;
}

long mincore(void* address, std::size_t bytes, unsigned char* resident) noexcept {
  const long result = sys::call(SYS_mincore, sys::arg(address), static_cast<long>(bytes), sys::arg(resident));
  Session* session = Session::existing();
  if (session == nullptr || result != 0) return result;
  const GatePass pass(session->gate());
  const PageRange range = pages(address, bytes);
  AddressSpace& space = session->space();
  MutexLock hold(space.mutex());
  space.table().for_each(range, [&](PageRange where, PageEntry entry) {
    if (entry.state() == PageState::kPoisoned) return true;
    for (PageIndex at = where.first; at < where.end(); ++at) resident[(at - range.first).raw()] = 1;
    return true;
  });
  return result;
}

void before_io_uring_register(unsigned opcode, const void* argument, unsigned count) noexcept {
  Session* session = Session::existing();
  if (session == nullptr || argument == nullptr) return;
  constexpr unsigned kRegisterBuffers = 0, kRegisterBuffers2 = 15;
  const void* list = argument;
  if (opcode == kRegisterBuffers2) {
    struct {
      std::uint32_t count, flags;
      std::uint64_t reserved, data, tags;
    } request{};
    if (!read_own(argument, &request, sizeof request)) return;
    list = reinterpret_cast<const void*>(request.data);
    count = request.count;
  } else if (opcode != kRegisterBuffers) {
    return;
  }
  const GatePass pass(session->gate());
  for (unsigned i = 0; i < count; ++i) {
    iovec buffer{};
    if (!read_own(static_cast<const iovec*>(list) + i, &buffer, sizeof buffer)) return;  // the kernel says what is wrong
    if (buffer.iov_base != nullptr && buffer.iov_len != 0) session->bring_coherent_home(pages(buffer.iov_base, buffer.iov_len));
  }
}

}  // namespace whimbrel::mirror
