#include "devices/file/extent_table.h"

#include <atomic>

#include "base/check.h"

namespace whimbrel {

ExtentTable::ExtentTable(MemorySource& source, std::uint64_t max_units, std::uint32_t unit_pages) noexcept
    : source_(source),
      max_units_(max_units < kNone ? max_units : kNone),
      unit_pages_(unit_pages),
      pieces_(source, (max_units_ + kPieceUnits - 1) / kPieceUnits) {}

ExtentTable::~ExtentTable() {
  MutexLock lock(mutex_);
  for (std::uint64_t i = 0; i * kPieceUnits < used_; ++i) source_.give(pieces_[i], piece_bytes());
}

Extent* ExtentTable::find(std::uint64_t index) noexcept {
  if (index >= max_units_) return nullptr;
  Extent* piece = std::atomic_ref<Extent*>(pieces_[index / kPieceUnits]).load(std::memory_order_acquire);
  return piece == nullptr ? nullptr : piece + index % kPieceUnits;
}

std::uint32_t* ExtentTable::sums(std::uint64_t index) noexcept {
  Extent* piece = std::atomic_ref<Extent*>(pieces_[index / kPieceUnits]).load(std::memory_order_acquire);
  return reinterpret_cast<std::uint32_t*>(piece + kPieceUnits) + index % kPieceUnits * unit_pages_;
}

Result<std::uint32_t> ExtentTable::take() noexcept {
  MutexLock lock(mutex_);
  if (free_ != kNone) {
    const std::uint32_t index = free_;
    free_ = static_cast<std::uint32_t>(find(index)->value);
    return index;
  }
  if (used_ == max_units_) return fail(Errc::kDeviceFull, 0, "unit numbers");
  if (used_ % kPieceUnits == 0) {
    auto* piece = static_cast<Extent*>(source_.take(piece_bytes()));
    if (piece == nullptr) return fail(Errc::kNoMemory, 0, "table of the file");
    std::atomic_ref<Extent*>(pieces_[used_ / kPieceUnits]).store(piece, std::memory_order_release);
  }
  return used_++;
}

void ExtentTable::give(std::uint32_t index) noexcept {
  MutexLock lock(mutex_);
  Extent* extent = find(index);
  CHECK(extent != nullptr);
  *extent = {};
  extent->value = free_;
  free_ = index;
}

}  // namespace whimbrel
