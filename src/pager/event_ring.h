// EventRing: what a pager did, move by move and with the cause of each, for a reader in another process.
//
// A ring of fixed records in a shared mapping: the engine's threads of one process write, one reader takes. Writing takes no
// lock, waits for nobody and costs some tens of nanoseconds; a record that finds no place is counted and dropped. A shape of
// its own, like PagerStats: the pager knows nothing of files. All zero is an empty ring without an owner.
//
// A record is there when its time is: the writer stores it last, the reader sets it back to zero before it gives the place
// away. A writer that dies in between leaves one place that never becomes readable; the reader passes over it when it knows
// that the writer is dead.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "mm/address.h"

namespace whimbrel {

// Why pages moved. The numbers are part of the layout.
enum class MoveCause : std::uint8_t {
  kUser,        // the program asked for it: a hint, a discard, an unmapping
  kFault,       // the program touched it
  kPrefetch,    // came with a page that was touched
  kEviction,    // cold, and made to leave ahead of need
  kPressure,    // made to leave because something else had to come in at that moment
  kEvacuation,  // must not be away (any more): locked, needed at a fork, no longer managed
};
inline constexpr std::size_t kMoveCauses = 6;

enum class Place : std::uint8_t { kNone, kRam, kDevice };

enum class EventKind : std::uint8_t {
  kMove,   // detail: nanoseconds it took, from the moment it was taken up
  kDrop,   // the program unmapped or discarded the range
  kRemap,  // the program moved the range; detail: its first page now
};

struct EventRecord {
  std::atomic<std::uint64_t> time_ns;  // monotonic clock, when it was done; 0: not there
  std::uint64_t first_page;
  std::uint64_t detail;
  std::uint32_t pages;
  EventKind kind;
  MoveCause cause;
  Place from, to;
};
static_assert(sizeof(EventRecord) == 32);

struct alignas(4096) EventRing {
  static constexpr std::size_t kRecords = std::size_t{1} << 16;

  // Set by whoever takes the ring for a process (runtime/event_file.h); 0: nobody has.
  std::atomic<std::uint32_t> owner;
  std::atomic<std::uint32_t> parent;
  std::atomic<std::uint64_t> started_ns;
  std::array<std::atomic<char>, 16> name;
  std::atomic<std::uint32_t> session;  // of the owner; 0: the process as a whole
  std::atomic<std::uint32_t> ended;    // not 0: the session is closed, nothing more will come
  alignas(64) std::atomic<std::uint64_t> head;  // places given out to writers, ever
  std::atomic<std::uint64_t> lost;              // records that found no place, ever
  alignas(64) std::atomic<std::uint64_t> tail;  // places the reader is through with
  alignas(4096) std::array<EventRecord, kRecords> records;

  // Any engine thread of the owner.
  void add(EventKind kind, MoveCause cause, Place from, Place to, PageRange range, std::uint64_t detail,
           std::int64_t now_ns) noexcept {
    std::uint64_t at = head.load(std::memory_order_relaxed);
    do {
      if (at - tail.load(std::memory_order_acquire) >= kRecords) {
        lost.fetch_add(1, std::memory_order_relaxed);
        return;
      }
    } while (!head.compare_exchange_weak(at, at + 1, std::memory_order_relaxed));
    EventRecord& record = records[at % kRecords];
    record.first_page = range.first.raw();
    record.detail = detail;
    record.pages = static_cast<std::uint32_t>(range.count.raw() < ~std::uint32_t{0} ? range.count.raw() : ~std::uint32_t{0});
    record.kind = kind;
    record.cause = cause;
    record.from = from;
    record.to = to;
    record.time_ns.store(static_cast<std::uint64_t>(now_ns), std::memory_order_release);
  }

  // The reader: calls visit(record) for what is there, oldest first. `writer_is_dead`: also passes over places that were
  // taken and never filled; returns how many of these there were.
  template <class Visit>
  std::uint64_t take(bool writer_is_dead, Visit&& visit) noexcept(noexcept(visit(records[0]))) {
    std::uint64_t at = tail.load(std::memory_order_relaxed), unfinished = 0;
    const std::uint64_t end = head.load(std::memory_order_relaxed);
    for (; at != end; ++at) {
      EventRecord& record = records[at % kRecords];
      if (record.time_ns.load(std::memory_order_acquire) != 0) {
        visit(static_cast<const EventRecord&>(record));
        record.time_ns.store(0, std::memory_order_relaxed);
      } else if (writer_is_dead) {
        ++unfinished;
      } else {
        break;
      }
      tail.store(at + 1, std::memory_order_release);
    }
    return unfinished;
  }
};

// Where a pager writes. Off until a ring is attached; in a forked child it must be detached before an engine thread runs.
class EventLog {
 public:
  // `ring` null: no ring is to be had, and `lost` counts what is not recorded.
  void attach(EventRing* ring, std::atomic<std::uint64_t>* lost) noexcept {
    lost_.store(lost, std::memory_order_relaxed);
    ring_.store(ring, std::memory_order_release);
  }
  void detach() noexcept { attach(nullptr, nullptr); }

  void add(EventKind kind, MoveCause cause, Place from, Place to, PageRange range, std::uint64_t detail,
           std::int64_t now_ns) noexcept {
    if (EventRing* ring = ring_.load(std::memory_order_acquire); ring != nullptr) {
      ring->add(kind, cause, from, to, range, detail, now_ns);
    } else if (std::atomic<std::uint64_t>* lost = lost_.load(std::memory_order_relaxed); lost != nullptr) {
      lost->fetch_add(1, std::memory_order_relaxed);
    }
  }
  void moved(MoveCause cause, Place from, Place to, PageRange range, std::int64_t begun_ns, std::int64_t now_ns) noexcept {
    add(EventKind::kMove, cause, from, to, range, static_cast<std::uint64_t>(now_ns - begun_ns), now_ns);
  }

 private:
  std::atomic<EventRing*> ring_{nullptr};
  std::atomic<std::atomic<std::uint64_t>*> lost_{nullptr};
};

}  // namespace whimbrel
