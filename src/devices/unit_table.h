// UnitTable: what a compressed store knows about each unit, 16 bytes per unit.
//
// The table grows by pieces of 4096 units and never shrinks; entries never move, so an entry is found without a lock.
// Numbers are handed out lowest-used first. Entries themselves are guarded by the device's locks.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "devices/allowance.h"
#include "devices/zeroed_table.h"

namespace whimbrel {

enum class UnitState : std::uint8_t { kFree, kReserved, kFilled, kBlob, kRawBlob };

struct Unit {
  std::uint32_t low;     // kBlob: number of the first chunk; kFilled: low half of the word; kFree: the next free unit
  std::uint32_t high;    // kBlob: bytes of the blob, header included; kFilled: high half of the word
  std::uint16_t live;    // slots that were not released
  std::uint16_t filled;  // kBlob: pages that are same-filled
  UnitState state;
  std::uint8_t pages;  // reserved
  std::uint16_t unused;

  [[nodiscard]] std::uint64_t word() const noexcept { return std::uint64_t{high} << 32 | low; }
  void set_word(std::uint64_t word) noexcept {
    low = static_cast<std::uint32_t>(word);
    high = static_cast<std::uint32_t>(word >> 32);
  }
  [[nodiscard]] bool has_blob() const noexcept { return state == UnitState::kBlob || state == UnitState::kRawBlob; }
  [[nodiscard]] bool stored() const noexcept { return state != UnitState::kFree && state != UnitState::kReserved; }
};
static_assert(sizeof(Unit) == 16, "memory per unit is a promise");

class UnitTable {
 public:
  UnitTable(MemorySource& source, Allowance& allowance, std::uint64_t max_units) noexcept;
  ~UnitTable();
  UnitTable(const UnitTable&) = delete;
  UnitTable& operator=(const UnitTable&) = delete;
  [[nodiscard]] bool valid() const noexcept { return !pieces_.empty(); }

  // A free unit, which is the caller's from then on. kNoMemory; kDeviceFull when all
  // numbers are in use or the allowance is.
  [[nodiscard]] Result<std::uint32_t> take() noexcept EXCLUDES(mutex_);
  // The unit is free again; its entry was reset by the caller.
  void give(std::uint32_t index) noexcept EXCLUDES(mutex_);
  // Null for a number that was never handed out.
  [[nodiscard]] Unit* find(std::uint64_t index) noexcept;
  [[nodiscard]] std::size_t held_bytes() const noexcept EXCLUDES(mutex_);

 private:
  static constexpr std::uint32_t kPieceUnits = 4096;
  static constexpr std::size_t kPieceBytes = kPieceUnits * sizeof(Unit);
  static constexpr std::uint32_t kNone = 0xffffffff;

  [[nodiscard]] Unit& at(std::uint32_t index) noexcept;

  MemorySource& source_;
  Allowance& allowance_;
  const std::uint64_t max_units_;
  mutable Mutex mutex_;
  ZeroedTable<Unit*> pieces_;                  // pointers are set under the lock and read without it
  std::uint32_t used_ GUARDED_BY(mutex_) = 0;  // units from here on were never handed out
  std::uint32_t free_ GUARDED_BY(mutex_) = kNone;
};

}  // namespace whimbrel
