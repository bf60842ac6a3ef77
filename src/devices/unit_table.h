// UnitTable: what a compressed store knows about each unit, 16 bytes per unit.
#pragma once

#include <cstdint>

#include "devices/slot_table.h"

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
  static constexpr std::uint32_t kPieceUnits = 4096;
  [[nodiscard]] bool is_free() const noexcept { return state == UnitState::kFree; }
  void set_reserved() noexcept { state = UnitState::kReserved; }
  [[nodiscard]] std::uint32_t next_free() const noexcept { return low; }
  void set_next_free(std::uint32_t unit) noexcept { low = unit; }
  [[nodiscard]] bool has_blob() const noexcept { return state == UnitState::kBlob || state == UnitState::kRawBlob; }
  [[nodiscard]] bool stored() const noexcept { return state != UnitState::kFree && state != UnitState::kReserved; }
};
static_assert(sizeof(Unit) == 16, "memory per unit is a promise");

using UnitTable = SlotTable<Unit>;

}  // namespace whimbrel
