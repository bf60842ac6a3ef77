// DeviceMemory: which pages of a device are free. 2 MiB first, falling back to 4 KiB.
//
// The device's pages come in units of 512, aligned. A unit is free, whole (one 2 MiB folio), or broken into single pages.
// Single pages come from broken units as long as there are any, so that whole units stay available; a broken unit whose
// last page has been given back is free again. Page numbers count from 0.
//
// Thread-safe. All memory is taken by the constructor: give() is called from folio_free(), where nothing may be allocated.
#pragma once

#include <array>
#include <bit>
#include <cstdint>
#include <mutex>
#include <optional>
#include <vector>

#include "whimbrel/mm.h"

namespace whimbrel {

class DeviceMemory {
 public:
  // What does not fill a unit at the end is not used.
  explicit DeviceMemory(std::uint64_t pages) : units_(pages / HPAGE_PMD_NR) {
    free_units_.reserve(units_.size());
    broken_.reserve(units_.size());
    for (std::size_t unit = units_.size(); unit-- > 0;) free_units_.push_back(static_cast<std::uint32_t>(unit));
  }

  [[nodiscard]] std::uint64_t pages() const { return units_.size() * HPAGE_PMD_NR; }

  // The first page of `order` 9 or 0; nothing when there is no room, or teardown has begun.
  [[nodiscard]] std::optional<std::uint64_t> take(unsigned order) {
    const std::lock_guard hold(mutex_);
    if (closed_) return std::nullopt;
    if (order != 0) return take_unit();
    if (broken_.empty()) {
      const auto first = take_unit();
      if (!first) return std::nullopt;
      break_up(unit_of(*first), true);
    }
    Unit& unit = units_[broken_.back()];
    const std::uint64_t base = std::uint64_t{broken_.back()} * HPAGE_PMD_NR;
    for (std::size_t word = 0;; ++word) {
      if (unit.free[word] == 0) continue;
      const auto bit = static_cast<unsigned>(std::countr_zero(unit.free[word]));
      unit.free[word] &= unit.free[word] - 1;
      if (--unit.free_count == 0) unlist(unit);
      ++in_use_;
      return base + word * 64 + bit;
    }
  }

  void give(std::uint64_t page, unsigned order) {
    const std::lock_guard hold(mutex_);
    const std::uint32_t number = unit_of(page);
    Unit& unit = units_[number];
    in_use_ -= std::uint64_t{1} << order;
    if (order != 0) {
      free_units_.push_back(number);
      return;
    }
    if (!unit.broken) break_up(number, false);  // the first piece of a folio that was split
    unit.free[page % HPAGE_PMD_NR / 64] |= std::uint64_t{1} << (page % 64);
    if (++unit.free_count == 1) list(number);
    if (unit.free_count < HPAGE_PMD_NR) return;
    unlist(unit);
    unit = Unit{};
    free_units_.push_back(number);
  }

  // No page is handed out any more (DT-01).
  void close() {
    const std::lock_guard hold(mutex_);
    closed_ = true;
  }
  [[nodiscard]] std::uint64_t in_use() const {
    const std::lock_guard hold(mutex_);
    return in_use_;
  }

 private:
  struct Unit {
    bool broken = false;
    std::uint16_t free_count = 0;
    std::uint32_t place = 0;  // in broken_, while some of it is free
    std::array<std::uint64_t, HPAGE_PMD_NR / 64> free{};
  };
  static std::uint32_t unit_of(std::uint64_t page) { return static_cast<std::uint32_t>(page / HPAGE_PMD_NR); }

  std::optional<std::uint64_t> take_unit() {
    if (free_units_.empty()) return std::nullopt;
    const std::uint64_t unit = free_units_.back();
    free_units_.pop_back();
    in_use_ += HPAGE_PMD_NR;
    return unit * HPAGE_PMD_NR;
  }
  void break_up(std::uint32_t number, bool all_free) {
    Unit& unit = units_[number];
    unit.broken = true;
    unit.free.fill(all_free ? ~std::uint64_t{0} : 0);
    unit.free_count = all_free ? HPAGE_PMD_NR : 0;
    if (!all_free) return;
    in_use_ -= HPAGE_PMD_NR;
    list(number);
  }
  void list(std::uint32_t number) {
    units_[number].place = static_cast<std::uint32_t>(broken_.size());
    broken_.push_back(number);
  }
  void unlist(Unit& unit) {
    broken_[unit.place] = broken_.back();
    units_[broken_.back()].place = unit.place;
    broken_.pop_back();
  }

  mutable std::mutex mutex_;
  std::vector<Unit> units_;
  std::vector<std::uint32_t> free_units_;
  std::vector<std::uint32_t> broken_;  // broken units with free pages
  std::uint64_t in_use_ = 0;
  bool closed_ = false;
};

}  // namespace whimbrel
