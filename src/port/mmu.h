// Mmu: everything the engine asks of page tables. One implementation drives the real kernel (linux/), one simulates
// it (sim/). The engine above never makes a system call.
//
// What the calls mean, in the kernel's terms:
//   move        take pages out of one place and put them into another, atomically, without copying bytes. After it
//               returns nobody can reach the old place: this is "unmap and isolate a page".
//   copy        put a copy of bytes into an empty slot; visible and complete at once: this is "bring a page home".
//   watch       from now on a touch of an empty slot in the range becomes a Message instead of a zero page.
//   messages    faults and address-space events, read by one thread.
//
// Threading: all calls but read_messages() and wait_for_message() may be made from any engine thread at any time;
// those two from one thread at a time. No call allocates, throws or takes an engine lock.
//
// Errors (Errc): kBusy pinned, COW-shared or KSM page; kAgain transient; kEventPending an address-space event is
// unread, so every page operation refuses until it has been read; kNotFound no source page or no mapping; kExists slot
// filled; kFault marker in the source slot; kInvalid mappings do not fit; kNoMemory; kGone address space is exiting.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "mm/address.h"

namespace whimbrel {

// What the engine needs to know of one mapping (VMA). Flags are bits of Mapping::Flag.
struct Mapping {
  enum Flag : std::uint32_t {
    kReadable = 1u << 0,
    kWritable = 1u << 1,
    kExecutable = 1u << 2,
    kShared = 1u << 3,       // MAP_SHARED of any kind
    kFileBacked = 1u << 4,   // has a file behind it, private or shared (memfd included)
    kLocked = 1u << 5,       // mlock: VmFlags "lo"
    kSpecial = 1u << 6,      // I/O, PFN map, mixed map, don't-expand: VmFlags "io", "pf", "mm", "de"
    kHugetlb = 1u << 7,      // VmFlags "ht"
    kWipeOnFork = 1u << 8,   // VmFlags "wf"
    kDontFork = 1u << 9,     // VmFlags "dc"
    kHugeAdvised = 1u << 10, // MADV_HUGEPAGE
    kNoHuge = 1u << 11,      // MADV_NOHUGEPAGE
    kWatchedMissing = 1u << 12,  // registered for missing faults (by whomever: compare with what we registered)
    kHeap = 1u << 13,        // [heap]
    kStack = 1u << 14,       // [stack]
    kKernelOwned = 1u << 15, // [vdso], [vvar], [vsyscall]
    kFlagsUnknown = 1u << 16, // VmFlags-derived bits were not available (fast query); ask detailed_mapping_at()
  };
  PageRange range;
  std::uint32_t flags = 0;
  std::uint64_t file_offset = 0;  // bytes; 0 for anonymous memory
  std::uint64_t inode = 0;        // 0 for anonymous memory

  [[nodiscard]] bool has(std::uint32_t all) const { return (flags & all) == all; }
  [[nodiscard]] bool has_any(std::uint32_t some) const { return (flags & some) != 0; }
  // Private anonymous memory without a file: what can leave and come home.
  [[nodiscard]] bool is_private_anonymous() const {
    return !has_any(kShared | kFileBacked | kSpecial | kHugetlb | kKernelOwned);
  }
};

// A run of pages of the same kind, as the kernel's own page table has them.
struct PageRun {
  enum Kind : std::uint32_t {
    kPresent = 1u << 0,
    kSwapped = 1u << 1,   // also: device markers, WP markers. Means nothing in a range that was ever armed.
    kZero = 1u << 2,      // the shared zero page
    kHuge = 1u << 3,      // mapped by a 2 MiB entry
    kFile = 1u << 4,
    kWritten = 1u << 5,   // written since armed; meaningless without kPresent
    kGuard = 1u << 6,
    kShared = 1u << 7,    // mapped by another process too, so it cannot move; see report_sharing()
  };
  PageRange range;
  std::uint32_t kind = 0;
};

// How much of a range operation was done. `done` pages from the start are complete; `error` (when set) tells why the
// next one was not. A call that finishes has no error.
struct Progress {
  PageCount done;
  bool failed = false;
  Error error{};
};

enum class Wake : std::uint8_t { kNo, kYes };

// One thing read from the descriptor.
struct Message {
  enum class Kind : std::uint8_t { kFault, kRemap, kRemove, kUnmap, kFork };
  Kind kind = Kind::kFault;
  bool write = false;           // fault: it was a write
  bool write_protect = false;   // fault: the page is there but write-protected
  std::uint32_t thread = 0;     // fault: kernel thread id, 0 when unknown
  VirtualAddress address;       // fault: exact byte address
  PageRange range;              // remove, unmap: what went; remap: where it was
  PageIndex to;                 // remap: where it is now
};

enum class WindowKind : std::uint8_t {
  kSmall,  // never huge pages; ordinary frames
  kHuge,   // 2 MiB aligned, huge pages wanted
};

// Takes mappings as they are read, some at a time, in ascending order.
class MappingSink {
 public:
  // False: enough.
  [[nodiscard]] virtual bool take(std::span<const Mapping> some) noexcept = 0;

 protected:
  ~MappingSink() = default;
};

class Mmu {
 public:
  virtual ~Mmu() = default;

  // ---- what is mapped ------------------------------------------------------------------------------------
  // The mapping that contains `page`, or the next one above it. kNotFound: nothing there or above.
  [[nodiscard]] virtual Result<Mapping> mapping_at_or_above(PageIndex page) noexcept = 0;
  // As above, but guaranteed to have the flags that only a slow reading of the kernel's tables shows
  // (locked, wipe-on-fork, don't-fork, special, hugetlb, watched). Costs up to a walk of all mappings.
  [[nodiscard]] virtual Result<Mapping> detailed_mapping_at_or_above(PageIndex page) noexcept = 0;

  // Fills `out` with detailed mappings from the one that contains `from`, or the next one above it, upwards; returns
  // how many (0: nothing there or above). One walk for many: prefer this to repeated calls of the above.
  [[nodiscard]] virtual Result<std::size_t> detailed_mappings(PageIndex from, std::span<Mapping> out) noexcept {
    std::size_t filled = 0;
    for (; filled < out.size(); ++filled) {
      const Result<Mapping> mapping = detailed_mapping_at_or_above(from);
      if (!mapping && mapping.error().code == Errc::kNotFound) break;
      if (!mapping) return std::unexpected(mapping.error());
      out[filled] = *mapping;
      from = mapping->range.end();
    }
    return filled;
  }
  // The same for all that there are, in one walk: asking again and again for the next ones makes a slow reading begin anew
  // each time. `room` holds what is handed over together. Ends at the last mapping, or when the sink has had enough.
  [[nodiscard]] virtual Result<void> walk_detailed_mappings(PageIndex from, std::span<Mapping> room, MappingSink& sink) noexcept {
    for (;;) {
      const Result<std::size_t> found = detailed_mappings(from, room);
      if (!found) return std::unexpected(found.error());
      if (*found == 0 || !sink.take(room.first(*found)) || *found < room.size()) return {};
      from = room[*found - 1].range.end();
    }
  }

  // ---- what is present -----------------------------------------------------------------------------------
  // Fills `out` with runs of present or swapped pages of `range` in ascending order (holes are left out), and returns
  // how many. `scanned` (may be null) receives the first page not looked at: range.end() unless `out` was too small.
  [[nodiscard]] virtual Result<std::size_t> scan(PageRange range, std::span<PageRun> out,
                                                 PageIndex* scanned) noexcept = 0;
  // From now on scan() finds out which present pages are kShared. That costs a look at every page, so it is asked for
  // only while a fork may have shared some. False: it cannot be found out here.
  virtual bool report_sharing(bool on) noexcept {
    (void)on;
    return false;
  }

  // Does another process map the page that is present here (copy-on-write after a fork)? kNotFound: nothing is present.
  [[nodiscard]] virtual Result<bool> is_shared(PageIndex page) noexcept {
    (void)page;
    return fail(Errc::kNotSupported, 0, "is_shared");
  }

  // ---- watching ------------------------------------------------------------------------------------------
  // Idempotent. kExists: another userfaultfd owns a part. kNoMemory: too many mappings. kInvalid: not watchable.
  [[nodiscard]] virtual Result<void> watch(PageRange range) noexcept = 0;
  // Also wakes whoever waits in the range.
  [[nodiscard]] virtual Result<void> unwatch(PageRange range) noexcept = 0;

  // ---- moving bytes --------------------------------------------------------------------------------------
  // Moves `count` pages from `from` to `to`. The destination must be watched (a window: see open_window) and empty.
  // Stops at the first page that cannot be moved. A whole aligned huge page moves huge.
  [[nodiscard]] virtual Progress move(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept = 0;
  // Copies bytes into empty slots of a watched range. write_protected: the pages arrive read-only (a write then
  // becomes a Message with write_protect); only where the range was watched with write protection.
  [[nodiscard]] virtual Progress copy(PageIndex to, const std::byte* from, PageCount count, Wake wake,
                                      bool write_protected = false) noexcept = 0;
  // Maps the shared zero page.
  [[nodiscard]] virtual Progress zero(PageIndex to, PageCount count, Wake wake) noexcept = 0;
  // Removes (or sets) write protection; kNo: sleepers stay asleep.
  [[nodiscard]] virtual Result<void> write_protect(PageRange range, bool protect, Wake wake) noexcept = 0;
  // Sends SIGBUS with `address` in si_addr to a thread of the program that waits for that page; one that does not wait any
  // more is left alone. The slot stays as it is. Any error: use poison().
  [[nodiscard]] virtual Result<void> raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept {
    (void)thread, (void)address;
    return fail(Errc::kNotSupported, 0, "raise_bus_error");
  }
  // Makes the empty slots give SIGBUS. Sticky: discard() removes it.
  [[nodiscard]] virtual Result<void> poison(PageRange range) noexcept = 0;
  // Re-drives everybody who waits in the range. Harmless when nobody waits, and on ranges that are gone.
  virtual void wake(PageRange range) noexcept = 0;
  // Drops pages (MADV_DONTNEED). On a watched range this makes a kRemove message that somebody must read.
  [[nodiscard]] virtual Result<void> discard(PageRange range) noexcept = 0;
  // Drops many ranges of the program in one call, where the kernel can; falls back to single calls.
  [[nodiscard]] virtual Result<void> discard_many(std::span<const PageRange> ranges) noexcept = 0;
  // From now on untouched 2 MiB units of the range, a whole mapping, get huge pages where the kernel can (MADV_HUGEPAGE).
  // kNotFound: not mapped.
  [[nodiscard]] virtual Result<void> advise_huge(PageRange range) noexcept {
    (void)range;
    return fail(Errc::kNotSupported, 0, "advise_huge");
  }
  // Faults every page of the range in, for reading or for writing (breaks copy-on-write sharing).
  [[nodiscard]] virtual Result<void> populate(PageRange range, bool write) noexcept = 0;

  // ---- windows: memory of the engine's own, outside the program's sight ------------------------------------
  // A private anonymous mapping, not watched, page-aligned (kHuge: 2 MiB aligned), empty, never inherited by exec,
  // left out of core dumps. Given back by close_window with the same range.
  [[nodiscard]] virtual Result<PageRange> open_window(PageCount count, WindowKind kind) noexcept = 0;
  virtual void close_window(PageRange window) noexcept = 0;
  // Between the two, several move()s into this part of one window cost less. Optional, never nested, by whoever holds the
  // engine's lock; in between nothing there may be discarded. A failure changes nothing.
  [[nodiscard]] virtual Result<void> begin_moves_into(PageRange part) noexcept {
    (void)part;
    return {};
  }
  virtual void end_moves_into(PageRange part) noexcept { (void)part; }
  // The bytes of a page of an open window. Reading an empty page gives zeros. In the simulation this is not the
  // page's address.
  [[nodiscard]] virtual std::byte* bytes(PageIndex window_page) noexcept = 0;
  // Copies pages of one window out, empty ones as zeros. Cheaper than reading them at bytes() where they came a moment
  // ago: the processor knows nothing of them there.
  virtual void read_window(PageRange pages, std::byte* to) noexcept {
    for (std::uint64_t i = 0; i < pages.count.raw(); ++i) {
      __builtin_memcpy(to + i * kPageSize, bytes(pages.first + PageCount(i)), kPageSize);
    }
  }
  // Copies one page of the *program* out without going through a mapping of ours; kNotFound when it is not there.
  // May count as a pin for its duration.
  [[nodiscard]] virtual Result<void> read_program(PageIndex page, std::byte* to) noexcept = 0;

  // ---- messages ------------------------------------------------------------------------------------------
  // Sleeps until a message can be read, `nanoseconds` have passed (negative: no limit) or interrupt() is called.
  // True: there is (probably) one.
  [[nodiscard]] virtual bool wait_for_message(std::int64_t nanoseconds) noexcept = 0;
  // Ends a wait_for_message() in another thread early.
  virtual void interrupt() noexcept = 0;
  // Whether a message is there that nobody has read. False also where that cannot be told.
  [[nodiscard]] virtual bool has_unread() noexcept { return false; }
  // Reads what is there without waiting; 0: nothing. Events unblock the thread that caused them the moment they are
  // read: the caller must hold the lock that keeps others from acting on stale tables.
  [[nodiscard]] virtual std::size_t read_messages(std::span<Message> out) noexcept = 0;

  // ---- abilities -----------------------------------------------------------------------------------------
  struct Abilities {
    bool kernel_faults = true;   // false: user-mode-only, system calls on away memory give EFAULT
    bool move = true;
    bool write_protect = false;
    bool poison = false;
    bool thread_id = false;
    bool fork_event = false;
  };
  [[nodiscard]] virtual Abilities abilities() const noexcept = 0;
};

}  // namespace whimbrel
