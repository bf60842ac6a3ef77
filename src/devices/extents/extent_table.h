// ExtentTable: what a device knows of each unit: where it lies, what of it is live, and its checksums.
#pragma once

#include <cstdint>

#include "devices/slot_table.h"

namespace whimbrel {

enum class ExtentState : std::uint8_t {
  kFree,
  kReserved,
  kFilled,      // one repeated word: nothing in the store
  kRaw,         // page by page, each with a checksum of its own
  kCompressed,  // one blob (blob.h)
};

struct Extent {
  std::uint64_t live;   // slots that were not released
  std::uint64_t value;  // kFilled: the word; kCompressed: the blob's own checksum; kFree: the next free unit.
                        // Encrypted: the number of the store
  std::uint64_t block;  // of the volume, where it begins
  std::uint32_t bytes;  // in the store
  std::uint8_t pages;   // reserved
  std::uint8_t volume;  // which of the device's
  ExtentState state;
  std::uint8_t unused;

  static constexpr std::uint32_t kBlockBytes = 4096;
  static constexpr std::uint32_t kPieceUnits = 1024;
  [[nodiscard]] bool is_free() const noexcept { return state == ExtentState::kFree; }
  void set_reserved() noexcept { state = ExtentState::kReserved; }
  [[nodiscard]] std::uint32_t next_free() const noexcept { return static_cast<std::uint32_t>(value); }
  void set_next_free(std::uint32_t unit) noexcept { value = unit; }
  [[nodiscard]] bool stored() const noexcept { return state != ExtentState::kFree && state != ExtentState::kReserved; }
  [[nodiscard]] bool in_store() const noexcept {
    return state == ExtentState::kRaw || state == ExtentState::kCompressed;
  }
  [[nodiscard]] std::uint32_t blocks() const noexcept { return (bytes + kBlockBytes - 1) / kBlockBytes; }
};
static_assert(sizeof(Extent) == 32, "memory per unit is a promise");

// With a mark for each page of a unit, by which its contents are known again: a checksum of 4 bytes, or a tag of 16
// (extent_cipher.h). A compressed unit that is encrypted has one tag, the first.
class ExtentTable : public SlotTable<Extent> {
 public:
  ExtentTable(MemorySource& source, std::uint64_t max_units, std::uint32_t unit_pages, std::size_t mark_bytes) noexcept
      : SlotTable(
            source,
            {.max_units = max_units, .unit_pages = unit_pages, .extra_bytes = (unit_pages * mark_bytes + 7) / 8 * 8}) {}
  // Of a unit that find() knows.
  [[nodiscard]] std::byte* marks(std::uint64_t unit) noexcept { return extra(unit); }
};

}  // namespace whimbrel
