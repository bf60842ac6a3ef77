// GuardedArena: addresses whose touches can be felt without userfaultfd. One piece of shared memory, mapped twice:
//
//   the program's view  no rights (PROT_NONE) but where pages are open: a touch of anything else is a SIGSEGV
//   the engine's view   always readable and writable: its descriptor, where the arena was opened by a thread that shares the table
//                       of the engine's; else, and where that fails (RLIMIT_FSIZE), the other mapping
//
// A page is *present* when the shared memory holds its contents, and *open* when the program's view lets everybody at it.
// Contents are written through the engine's view before a page is opened, and a page is closed before they are read: so no
// thread ever sees half a page, and nothing is written to a page that is being read. What is not present is a hole of the
// shared memory: it takes no RAM and reads as zeros.
//
// Each run of open pages costs the kernel up to two mappings, of which a process may have vm.max_map_count. So openness is no
// more than a cache of presence: what is present may be closed (close_part) and opened again at its next touch.
//
// Neither view is inherited by a forked child, and neither is in a core dump whole. Not thread-safe: GuardedMmu's lock.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/memory_source.h"
#include "linux/page_bitmap.h"
#include "mm/address.h"

namespace whimbrel {

class GuardedArena {
 public:
  GuardedArena() = default;
  ~GuardedArena() { close(); }
  GuardedArena(const GuardedArena&) = delete;
  GuardedArena& operator=(const GuardedArena&) = delete;

  // `bytes`: a multiple of 2 MiB. On a thread whose descriptors the users of the arena share. The bookkeeping, two bits per page, comes from `memory`, which must outlive the arena.
  // kNoMemory: no addresses, or the kernel promises no so much memory; kNotPermitted, ...: no shared memory.
  [[nodiscard]] Result<void> open(MemorySource& memory, std::uint64_t bytes) noexcept;
  void close() noexcept;

  // The program's view; aligned to 2 MiB.
  [[nodiscard]] PageRange range() const noexcept { return range_; }

  [[nodiscard]] bool is_present(PageIndex page) const noexcept { return present_.test(at(page)); }
  [[nodiscard]] bool is_open(PageIndex page) const noexcept { return open_.test(at(page)); }
  // The first page of the range that is (not) present; range.end(): none.
  [[nodiscard]] PageIndex next_present(PageRange range) const noexcept {
    return range_.first + PageCount(present_.next_set(at(range.first), at(range.end())));
  }
  [[nodiscard]] PageIndex next_absent(PageRange range) const noexcept {
    return range_.first + PageCount(present_.next_clear(at(range.first), at(range.end())));
  }
  [[nodiscard]] PageIndex next_open(PageRange range) const noexcept {
    return range_.first + PageCount(open_.next_set(at(range.first), at(range.end())));
  }
  // A refusal of the kernel has left pages that are not as they are marked: what is touched is opened again in any case.
  [[nodiscard]] bool is_uncertain() const noexcept { return uncertain_; }
  // Maximal runs of open pages of the arena, and of those that begin in a part of it.
  [[nodiscard]] std::size_t open_runs() const noexcept { return open_runs_; }
  [[nodiscard]] std::size_t open_runs_in(PageRange range) const noexcept { return starts(at(range.first), at(range.end())); }

  // Gives pages contents (null: the zeros that absent ones have); they are present, and as open as they were.
  void fill(PageRange range, const std::byte* from) noexcept;
  // Copies pages that nobody can reach. Absent ones are zeros.
  void read(PageRange range, std::byte* to) const noexcept;
  // Drops the contents of closed pages and gives the RAM back: absent. Fails only where a filter is against it.
  [[nodiscard]] Result<void> drop(PageRange range) noexcept;

  // Lets everybody at pages that are all present. kNoMemory: the kernel has no mapping left for it. Some of the pages may be
  // open then all the same; nothing is wrong with that.
  [[nodiscard]] Result<void> open_part(PageRange range) noexcept;
  // From its return on no thread can reach them. kNoMemory as above: they are still to be taken for open.
  [[nodiscard]] Result<void> close_part(PageRange range) noexcept;

 private:
  [[nodiscard]] std::size_t at(PageIndex page) const noexcept { return (page - range_.first).raw(); }
  [[nodiscard]] std::byte* view(PageIndex page) const noexcept { return engine_view_ + PageCount(at(page)).bytes(); }
  [[nodiscard]] std::size_t starts(std::size_t from, std::size_t end) const noexcept;
  [[nodiscard]] bool transfer(long call, PageRange range, std::byte* buffer) const noexcept;
  void mark_open(PageRange range, bool open) noexcept;
  [[nodiscard]] Result<void> map(std::uint64_t bytes) noexcept;

  PageRange range_;
  std::byte* engine_view_ = nullptr;
  int memory_file_ = -1;
  void* reserved_ = nullptr;  // the program's view with what lies around it
  std::size_t reserved_bytes_ = 0;
  MemorySource* memory_ = nullptr;
  std::uint64_t* words_ = nullptr;
  PageBitmap present_, open_;
  std::size_t open_runs_ = 0;
  bool uncertain_ = false;
};

}  // namespace whimbrel
