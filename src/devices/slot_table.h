// SlotTable: which slots of a device are reserved, and the entry that the device keeps for each unit of them.
//
// What every device with units of up to 64 pages needs: numbers handed out and taken back, the way from a slot to its
// entry, a lock for each entry, and the gate that lets a fork wait. What an entry says of the contents is the device's
// business. It must be valid as zero bytes, which means free, and have
//
//   live                       unsigned; a bit for each page that was not released
//   pages                      how many were reserved together
//   is_free(), set_reserved()
//   next_free(), set_next_free(std::uint32_t)   while it is free
//   kPieceUnits                how many entries are taken from the memory source together
//
// The table grows by pieces and never shrinks; entries never move, so an entry is found without a lock. Numbers are
// handed out lowest-used first. `extra_bytes` of memory may go with each entry, for what depends on the size of a unit.
//
// Thread-safe. Lock order: gate, stripe, the table's own lock. An entry is guarded by its unit's stripe.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/check.h"
#include "base/error.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "devices/allowance.h"
#include "devices/fork_gate.h"
#include "base/zeroed_table.h"
#include "port/device.h"

namespace whimbrel {

// Consecutive pages within one unit.
struct SlotPlace {
  std::uint64_t unit = 0;
  std::uint32_t page = 0;
  std::uint32_t pages = 0;
  [[nodiscard]] std::uint64_t mask() const noexcept {
    return (pages >= 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << pages) - 1) << page;
  }
};

template <class Entry>
class SlotTable {
 public:
  struct Options {
    std::uint64_t max_units = 0;
    std::uint32_t unit_pages = 1;    // 1..64
    std::size_t extra_bytes = 0;     // for each unit, a multiple of 8, zeroed when first handed out
    Allowance* allowance = nullptr;  // what the table's memory is claimed from; null: no limit
  };
  SlotTable(MemorySource& source, const Options& options) noexcept
      : source_(source),
        allowance_(options.allowance),
        max_units_(options.max_units < kNone ? options.max_units : kNone),
        unit_pages_(options.unit_pages),
        extra_bytes_(options.extra_bytes),
        pieces_(source, (max_units_ + Entry::kPieceUnits - 1) / Entry::kPieceUnits) {}
  ~SlotTable() {
    MutexLock lock(mutex_);
    for (std::uint64_t i = 0; i * Entry::kPieceUnits < used_; ++i) {
      source_.give(pieces_[i], piece_bytes());
      if (allowance_ != nullptr) allowance_->refund(piece_bytes());
    }
  }
  SlotTable(const SlotTable&) = delete;
  SlotTable& operator=(const SlotTable&) = delete;
  [[nodiscard]] bool valid() const noexcept { return !pieces_.empty(); }
  [[nodiscard]] std::uint32_t unit_pages() const noexcept { return unit_pages_; }

  // As of Device::reserve(): passes the gate. kInvalid; kNoMemory; kDeviceFull when all numbers are in use or the
  // allowance is.
  [[nodiscard]] Result<DeviceSlot> reserve(std::uint32_t pages) noexcept EXCLUDES(mutex_) {
    if (pages == 0 || pages > unit_pages_) return fail(Errc::kInvalid, 0, "reserve");
    GatePass pass(gate_);
    const Result<std::uint32_t> index = take();
    if (!index) return std::unexpected(index.error());
    MutexLock lock(stripe(*index));
    Entry* entry = find(*index);
    *entry = {};
    entry->set_reserved();
    entry->pages = static_cast<decltype(entry->pages)>(pages);
    entry->live = static_cast<decltype(entry->live)>(SlotPlace{0, 0, pages}.mask());
    return DeviceSlot{std::uint64_t{*index} * unit_pages_};
  }

  // As of Device::release(): calls `release` with the part that lies in each unit, each inside the gate. Where that has
  // cleared the last live bit and is done with the entry it calls give().
  template <class F>
  void release(DeviceSlot first, std::uint32_t pages, F&& release_in_unit) noexcept {
    while (pages != 0) {
      GatePass pass(gate_);
      SlotPlace place = place_of(first, pages);
      if (place.pages > unit_pages_ - place.page) place.pages = unit_pages_ - place.page;
      release_in_unit(place);
      first = first + place.pages;
      pages -= place.pages;
    }
  }
  // The unit is free again; its entry was reset by the caller.
  void give(std::uint64_t unit) noexcept EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    Entry* entry = find(unit);
    CHECK(entry != nullptr);
    entry->set_next_free(free_);
    free_ = static_cast<std::uint32_t>(unit);
  }

  [[nodiscard]] SlotPlace place_of(DeviceSlot first, std::uint32_t pages) const noexcept {
    const auto number = static_cast<std::uint64_t>(first);
    return {number / unit_pages_, static_cast<std::uint32_t>(number % unit_pages_), pages};
  }
  // Null for a number that was never handed out.
  [[nodiscard]] Entry* find(std::uint64_t unit) noexcept {
    std::byte* const piece = piece_of(unit);
    return piece == nullptr ? nullptr : reinterpret_cast<Entry*>(piece) + unit % Entry::kPieceUnits;
  }
  // The entry when all these slots are reserved, else null. The caller holds its stripe.
  [[nodiscard]] Entry* find_reserved(const SlotPlace& place) noexcept {
    if (place.pages == 0 || place.pages > unit_pages_ - place.page) return nullptr;
    Entry* entry = find(place.unit);
    if (entry == nullptr || entry->is_free()) return nullptr;
    return (entry->live & place.mask()) == place.mask() ? entry : nullptr;
  }
  // What goes with a unit that find() knows.
  [[nodiscard]] std::byte* extra(std::uint64_t unit) noexcept {
    return piece_of(unit) + Entry::kPieceUnits * sizeof(Entry) + unit % Entry::kPieceUnits * extra_bytes_;
  }
  [[nodiscard]] Mutex& stripe(std::uint64_t unit) noexcept { return stripes_[unit % kStripes]; }

  [[nodiscard]] ForkGate& gate() const noexcept { return gate_; }
  // In a forked child, before its gate is opened: locks that loads of the parent may have held.
  void reset_stripes_after_fork() noexcept {
    for (Mutex& stripe : stripes_) stripe.reset_after_fork();
  }
  [[nodiscard]] std::size_t held_bytes() const noexcept EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return (used_ + Entry::kPieceUnits - 1) / Entry::kPieceUnits * piece_bytes();
  }
  // Units from here on were never handed out.
  [[nodiscard]] std::uint64_t used() const noexcept EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    return used_;
  }

 private:
  static constexpr std::uint32_t kNone = 0xffffffff;
  static constexpr std::uint32_t kStripes = 256;

  [[nodiscard]] std::size_t piece_bytes() const noexcept { return Entry::kPieceUnits * (sizeof(Entry) + extra_bytes_); }
  [[nodiscard]] std::byte* piece_of(std::uint64_t unit) noexcept {
    if (unit >= max_units_) return nullptr;
    return std::atomic_ref<std::byte*>(pieces_[unit / Entry::kPieceUnits]).load(std::memory_order_acquire);
  }

  // A free unit, which is the caller's from then on.
  [[nodiscard]] Result<std::uint32_t> take() noexcept EXCLUDES(mutex_) {
    MutexLock lock(mutex_);
    if (free_ != kNone) {
      const std::uint32_t index = free_;
      free_ = find(index)->next_free();
      return index;
    }
    if (used_ == max_units_) return fail(Errc::kDeviceFull, 0, "unit numbers");
    if (used_ % Entry::kPieceUnits == 0) {
      // Once in many units, so taking it under the lock delays nobody for long.
      if (allowance_ != nullptr && !allowance_->claim(piece_bytes())) return fail(Errc::kDeviceFull, 0, "unit table");
      auto* piece = static_cast<std::byte*>(source_.take(piece_bytes()));
      if (piece == nullptr) {
        if (allowance_ != nullptr) allowance_->refund(piece_bytes());
        return fail(Errc::kNoMemory, 0, "unit table");
      }
      std::atomic_ref<std::byte*>(pieces_[used_ / Entry::kPieceUnits]).store(piece, std::memory_order_release);
    }
    return used_++;
  }

  MemorySource& source_;
  Allowance* const allowance_;
  const std::uint64_t max_units_;
  const std::uint32_t unit_pages_;
  const std::size_t extra_bytes_;
  mutable Mutex mutex_;
  ZeroedTable<std::byte*> pieces_;             // pointers are set under the lock and read without it
  std::uint32_t used_ GUARDED_BY(mutex_) = 0;  // units from here on were never handed out
  std::uint32_t free_ GUARDED_BY(mutex_) = kNone;
  mutable ForkGate gate_;
  Mutex stripes_[kStripes];
};

}  // namespace whimbrel
