// What a device made of devices knows of each unit of pages: which are live, where they lie, and who is at work on it.
//
// Units are guarded by the stripes of their table, except for the links of lists, which the lists guard. Words (where
// each page lies, see part_batch.h) follow the table's entries.
//
// Moving a page between parts while others use it:
//   * Loads pin the unit (UnitPins) from looking it up until they have ended. Who has put other words in place gives
//   the
//     old places back only when nobody is left who may have seen them.
//   * A unit that somebody moves is busy. Meanwhile nobody else gives back places that he has seen: release() only
//     clears live bits, and a store that replaces the contents leaves the old places and says so (kOvertaken).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/mutex.h"
#include "devices/composite/part_batch.h"
#include "devices/slot_table.h"

namespace whimbrel {

struct CompositeUnit {
  enum class State : std::uint8_t { kFree, kReserved, kStored };
  enum class Busy : std::uint8_t { kNo, kMoving, kOvertaken };

  std::uint64_t live;   // slots that were not released
  std::uint32_t older;  // neighbours in the list; units with one added, 0: none
  std::uint32_t newer;
  State state;
  Busy busy;
  std::uint8_t pages;  // reserved
  std::uint8_t list;   // one more than the list that it is in; 0: none
  std::uint32_t unused;

  static constexpr std::uint32_t kPieceUnits = 512;
  [[nodiscard]] bool is_free() const noexcept { return state == State::kFree; }
  void set_reserved() noexcept { state = State::kReserved; }
  [[nodiscard]] std::uint32_t next_free() const noexcept { return newer; }
  void set_next_free(std::uint32_t unit) noexcept { newer = unit; }
};
static_assert(sizeof(CompositeUnit) == 24, "memory per unit is a promise");

class CompositeTable : public SlotTable<CompositeUnit> {
 public:
  // `copies`: how many words there are for each page.
  CompositeTable(MemorySource& source, std::uint64_t max_pages, std::uint32_t unit_pages, std::uint32_t copies) noexcept
      : SlotTable(source, {.max_units = max_pages / unit_pages,
                           .unit_pages = unit_pages,
                           .extra_bytes = (copies * unit_pages + 1) / 2 * 2 * sizeof(PartWord)}) {}
  // One word for each page of the unit. The caller holds its stripe.
  [[nodiscard]] std::span<PartWord> words(std::uint64_t unit, std::uint32_t copy = 0) noexcept {
    return {reinterpret_cast<PartWord*>(extra(unit)) + copy * unit_pages(), unit_pages()};
  }
};

// Who is reading units, counted by stripe.
class UnitPins {
 public:
  // With the unit's stripe held.
  void pin(std::uint64_t unit) noexcept { count(unit).fetch_add(1); }
  void unpin(std::uint64_t unit) noexcept {
    if (count(unit).fetch_sub(1) == 1 && waiting_.load() != 0) unpinned_.advance();
  }
  // Until everybody who had pinned the unit before has let go. Loads always end, and never wait for a fork.
  void wait_unpinned(std::uint64_t unit) noexcept {
    if (count(unit).load() == 0) return;
    waiting_.fetch_add(1);
    for (;;) {
      const std::uint32_t seen = unpinned_.value();
      if (count(unit).load() == 0) break;
      unpinned_.wait(seen);
    }
    waiting_.fetch_sub(1);
  }
  // In a forked child: those who read do not exist there.
  void reset_in_child() noexcept {
    for (auto& pins : pins_) pins.store(0);
    waiting_.store(0);
    unpinned_.reset_after_fork();
  }

 private:
  static constexpr std::uint32_t kStripes = 256;
  [[nodiscard]] std::atomic<std::uint32_t>& count(std::uint64_t unit) noexcept { return pins_[unit % kStripes]; }
  std::array<std::atomic<std::uint32_t>, kStripes> pins_{};
  std::atomic<std::uint32_t> waiting_{0};
  Event unpinned_;
};

// Units in the order in which they came, a list for each part. Its lock is a leaf.
class AgeLists {
 public:
  explicit AgeLists(CompositeTable& table) noexcept : table_(table) {}
  // At the end: the newest. From whatever list it is in.
  void add_newest(std::uint32_t list, std::uint64_t unit) noexcept EXCLUDES(mutex_);
  void add_oldest(std::uint32_t list, std::uint64_t unit) noexcept EXCLUDES(mutex_);
  void remove(std::uint64_t unit) noexcept EXCLUDES(mutex_);
  // Takes the oldest out; false: there is none.
  [[nodiscard]] bool take_oldest(std::uint32_t list, std::uint64_t* unit) noexcept EXCLUDES(mutex_);

 private:
  struct Ends {
    std::uint32_t oldest = 0, newest = 0;
  };
  void remove_locked(CompositeUnit& entry) noexcept REQUIRES(mutex_);
  [[nodiscard]] CompositeUnit& at(std::uint32_t link) noexcept { return *table_.find(link - 1); }

  CompositeTable& table_;
  Mutex mutex_;
  std::array<Ends, kMostParts> ends_ GUARDED_BY(mutex_);
};

}  // namespace whimbrel
