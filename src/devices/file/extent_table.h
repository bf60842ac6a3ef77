// ExtentTable: what a file device knows of each unit: where it lies, what of it is live, and its checksums.
//
// The table grows by pieces of 1024 units and never shrinks; entries never move, so an entry is found without a lock.
// Entries themselves are guarded by the device's locks.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "devices/zeroed_table.h"

namespace whimbrel {

enum class ExtentState : std::uint8_t {
  kFree,
  kReserved,
  kFilled,      // one repeated word: nothing in the file
  kRaw,         // page by page, each with a checksum of its own
  kCompressed,  // one blob (blob.h)
};

struct Extent {
  std::uint64_t live;   // slots that were not released
  std::uint64_t value;  // kFilled: the word; kCompressed: the blob's own checksum; kFree: the next free unit
  std::uint64_t block;  // of the file, where it begins
  std::uint32_t bytes;  // in the file
  std::uint8_t pages;   // reserved
  std::uint8_t file;    // which of the device's files
  ExtentState state;
  std::uint8_t unused;

  static constexpr std::uint32_t kBlockBytes = 4096;
  [[nodiscard]] bool stored() const noexcept { return state != ExtentState::kFree && state != ExtentState::kReserved; }
  [[nodiscard]] bool in_file() const noexcept {
    return state == ExtentState::kRaw || state == ExtentState::kCompressed;
  }
  [[nodiscard]] std::uint32_t blocks() const noexcept { return (bytes + kBlockBytes - 1) / kBlockBytes; }
};
static_assert(sizeof(Extent) == 32, "memory per unit is a promise");

class ExtentTable {
 public:
  ExtentTable(MemorySource& source, std::uint64_t max_units, std::uint32_t unit_pages) noexcept;
  ~ExtentTable();
  ExtentTable(const ExtentTable&) = delete;
  ExtentTable& operator=(const ExtentTable&) = delete;
  [[nodiscard]] bool valid() const noexcept { return !pieces_.empty(); }

  // A free unit, which is the caller's from then on. kNoMemory; kDeviceFull: all numbers are in use.
  [[nodiscard]] Result<std::uint32_t> take() noexcept EXCLUDES(mutex_);
  // The unit is free again.
  void give(std::uint32_t index) noexcept EXCLUDES(mutex_);
  // Null for a number that was never handed out.
  [[nodiscard]] Extent* find(std::uint64_t index) noexcept;
  // One checksum for each page of a unit that find() knows.
  [[nodiscard]] std::uint32_t* sums(std::uint64_t index) noexcept;

 private:
  static constexpr std::uint32_t kPieceUnits = 1024;
  static constexpr std::uint32_t kNone = 0xffffffff;

  [[nodiscard]] std::size_t piece_bytes() const noexcept {
    return kPieceUnits * (sizeof(Extent) + unit_pages_ * sizeof(std::uint32_t));
  }

  MemorySource& source_;
  const std::uint64_t max_units_;
  const std::uint32_t unit_pages_;
  mutable Mutex mutex_;
  ZeroedTable<Extent*> pieces_;                // pointers are set under the lock and read without it
  std::uint32_t used_ GUARDED_BY(mutex_) = 0;  // units from here on were never handed out
  std::uint32_t free_ GUARDED_BY(mutex_) = kNone;
};

}  // namespace whimbrel
