// PageSets: which pages of an address space are resident and which are away, as far as is known; by runs of 64.
#pragma once

#include <bit>
#include <cstdint>
#include <map>

#include "mm/address.h"
#include "pager/eviction_policy.h"

namespace whimbrel::replay {

class PageSets {
 public:
  enum State : std::uint8_t { kUnknown, kResident, kAway };

  [[nodiscard]] std::uint64_t resident() const noexcept { return resident_; }
  [[nodiscard]] std::uint64_t away() const noexcept { return away_; }
  [[nodiscard]] State at(PageIndex page) const noexcept {
    const auto found = clumps_.find(page.raw() / kClumpPages);
    if (found == clumps_.end()) return kUnknown;
    const std::uint64_t bit = std::uint64_t{1} << page.raw() % kClumpPages;
    return (found->second.resident & bit) != 0 ? kResident : (found->second.away & bit) != 0 ? kAway : kUnknown;
  }
  // Returns how many pages of the range were not in that state before.
  std::uint64_t set(PageRange range, State state) {
    std::uint64_t changed = 0;
    for_each_clump(range, [&](std::uint64_t clump, std::uint64_t mask) {
      Masks& masks = clumps_[clump];
      changed += count(mask & ~(state == kResident ? masks.resident : masks.away));
      change(masks, state == kResident ? masks.resident | mask : masks.resident & ~mask,
             state == kAway ? masks.away | mask : masks.away & ~mask);
    });
    return changed;
  }
  // Only pages that are resident in the range leave; returns how many.
  std::uint64_t evict(PageRange range) {
    std::uint64_t gone = 0;
    for_each_known(range, [&](Masks& masks, std::uint64_t mask) {
      const std::uint64_t leaving = masks.resident & mask;
      gone += count(leaving);
      change(masks, masks.resident & ~leaving, masks.away | leaving);
    });
    return gone;
  }
  // Only pages that are away in the range come; returns how many.
  std::uint64_t bring(PageRange range) {
    std::uint64_t came = 0;
    for_each_known(range, [&](Masks& masks, std::uint64_t mask) {
      const std::uint64_t coming = masks.away & mask;
      came += count(coming);
      change(masks, masks.resident | coming, masks.away & ~coming);
    });
    return came;
  }
  // Pages of the range that are away.
  [[nodiscard]] std::uint64_t away_in(PageRange range) {
    std::uint64_t n = 0;
    for_each_known(range, [&n](const Masks& masks, std::uint64_t mask) { n += count(masks.away & mask); });
    return n;
  }
  [[nodiscard]] std::uint64_t resident_in(PageRange range) {
    std::uint64_t n = 0;
    for_each_known(range, [&n](const Masks& masks, std::uint64_t mask) { n += count(masks.resident & mask); });
    return n;
  }
  void drop(PageRange range) {
    for_each_known(range, [this](Masks& masks, std::uint64_t mask) { change(masks, masks.resident & ~mask, masks.away & ~mask); });
    const auto first = clumps_.lower_bound(range.first.raw() / kClumpPages);
    for (auto it = first; it != clumps_.end() && it->first * kClumpPages < range.end().raw();) {
      it = it->second.resident == 0 && it->second.away == 0 ? clumps_.erase(it) : std::next(it);
    }
  }
  void move(PageRange from, PageIndex to) {
    std::map<std::uint64_t, Masks> was;
    for_each_known_clump(from, [&was](std::uint64_t clump, const Masks& masks, std::uint64_t mask) {
      was[clump] = {masks.resident & mask, masks.away & mask};
    });
    drop(from);
    drop({to, from.count});
    for (const auto& [clump, masks] : was) {
      for (std::uint64_t i = 0; i < kClumpPages; ++i) {
        const std::uint64_t bit = std::uint64_t{1} << i;
        const PageIndex there = to + (PageIndex(clump * kClumpPages + i) - from.first);
        if ((masks.resident & bit) != 0) set({there, PageCount(1)}, kResident);
        if ((masks.away & bit) != 0) set({there, PageCount(1)}, kAway);
      }
    }
  }
  // The first run of 64 with resident pages at or above `from`.
  [[nodiscard]] bool next_resident(PageIndex from, Clump* out) const noexcept {
    std::uint64_t floor = from.raw() % kClumpPages;
    for (auto it = clumps_.lower_bound(from.raw() / kClumpPages); it != clumps_.end(); ++it, floor = 0) {
      if (it->first != from.raw() / kClumpPages) floor = 0;
      const std::uint64_t mask = it->second.resident & (~std::uint64_t{0} << floor);
      if (mask == 0) continue;
      const auto low = static_cast<std::uint64_t>(std::countr_zero(mask)), high = 63 - static_cast<std::uint64_t>(std::countl_zero(mask));
      out->range = {PageIndex(it->first * kClumpPages + low), PageCount(high - low + 1)};
      out->present = static_cast<std::uint32_t>(count(mask));
      out->runs = static_cast<std::uint32_t>(count(mask & ~(mask << 1)));
      out->huge = false;
      out->mapping = 0;
      return true;
    }
    return false;
  }

 private:
  struct Masks {
    std::uint64_t resident = 0, away = 0;
  };
  static std::uint64_t count(std::uint64_t mask) noexcept { return static_cast<std::uint64_t>(std::popcount(mask)); }
  static std::uint64_t mask_of(PageRange range, std::uint64_t clump) noexcept {
    const std::uint64_t first = clump * kClumpPages;
    const std::uint64_t low = range.first.raw() > first ? range.first.raw() - first : 0;
    const std::uint64_t high = range.end().raw() < first + kClumpPages ? range.end().raw() - first : kClumpPages;
    return (~std::uint64_t{0} >> (kClumpPages - (high - low))) << low;
  }
  void change(Masks& masks, std::uint64_t resident, std::uint64_t away) noexcept {
    resident_ += count(resident) - count(masks.resident);
    away_ += count(away) - count(masks.away);
    masks = {resident, away};
  }
  template <class Visit>
  static void for_each_clump(PageRange range, Visit&& visit) {
    for (std::uint64_t clump = range.first.raw() / kClumpPages; clump * kClumpPages < range.end().raw(); ++clump) {
      visit(clump, mask_of(range, clump));
    }
  }
  template <class Visit>
  void for_each_known_clump(PageRange range, Visit&& visit) {
    for (auto it = clumps_.lower_bound(range.first.raw() / kClumpPages);
         it != clumps_.end() && it->first * kClumpPages < range.end().raw(); ++it) {
      visit(it->first, it->second, mask_of(range, it->first));
    }
  }
  template <class Visit>
  void for_each_known(PageRange range, Visit&& visit) {
    for_each_known_clump(range, [&visit](std::uint64_t, Masks& masks, std::uint64_t mask) { visit(masks, mask); });
  }

  std::map<std::uint64_t, Masks> clumps_;
  std::uint64_t resident_ = 0, away_ = 0;
};

}  // namespace whimbrel::replay
