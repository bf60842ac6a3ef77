#include "devices/unit_table.h"

#include <atomic>

#include "base/check.h"

namespace whimbrel {

UnitTable::UnitTable(MemorySource& source, Allowance& allowance, std::uint64_t max_units) noexcept
    : source_(source),
      allowance_(allowance),
      max_units_(max_units < kNone ? max_units : kNone),
      pieces_(source, (max_units_ + kPieceUnits - 1) / kPieceUnits) {}

UnitTable::~UnitTable() {
  MutexLock lock(mutex_);
  for (std::uint64_t i = 0; i * kPieceUnits < used_; ++i) {
    source_.give(pieces_[i], kPieceBytes);
    allowance_.refund(kPieceBytes);
  }
}

Unit* UnitTable::find(std::uint64_t index) noexcept {
  if (index >= max_units_) return nullptr;
  Unit* piece = std::atomic_ref<Unit*>(pieces_[index / kPieceUnits]).load(std::memory_order_acquire);
  return piece == nullptr ? nullptr : piece + index % kPieceUnits;
}

Unit& UnitTable::at(std::uint32_t index) noexcept {
  Unit* unit = find(index);
  CHECK(unit != nullptr);
  return *unit;
}

Result<std::uint32_t> UnitTable::take() noexcept {
  MutexLock lock(mutex_);
  if (free_ != kNone) {
    const std::uint32_t index = free_;
    free_ = at(index).low;
    return index;
  }
  if (used_ == max_units_) return fail(Errc::kDeviceFull, 0, "unit numbers");
  if (used_ % kPieceUnits == 0) {
    // Once in 4096 units, so taking it under the lock delays nobody for long.
    if (!allowance_.claim(kPieceBytes)) return fail(Errc::kDeviceFull, 0, "unit table");
    auto* piece = static_cast<Unit*>(source_.take(kPieceBytes));
    if (piece == nullptr) {
      allowance_.refund(kPieceBytes);
      return fail(Errc::kNoMemory, 0, "unit table");
    }
    std::atomic_ref<Unit*>(pieces_[used_ / kPieceUnits]).store(piece, std::memory_order_release);
  }
  return used_++;
}

void UnitTable::give(std::uint32_t index) noexcept {
  MutexLock lock(mutex_);
  at(index).low = free_;
  free_ = index;
}

std::size_t UnitTable::held_bytes() const noexcept {
  MutexLock lock(mutex_);
  return (used_ + kPieceUnits - 1) / kPieceUnits * kPieceBytes;
}

}  // namespace whimbrel
