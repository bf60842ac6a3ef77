// RefusalTable: remembers which clumps would not move, so that they are not tried again and again.
//
// After a fork every page is shared and refuses; a refused huge page has been split by the attempt. So each refusal of
// a clump doubles the time before the next attempt, and a success forgets it. A fixed table: when two clumps fall on
// one place the later one wins, and the earlier is tried once more than necessary.
//
// Not thread-safe. Time is an argument.
#pragma once

#include <algorithm>
#include <cstddef>
#include <cstdint>

#include "base/memory_source.h"
#include "pager/eviction_policy.h"

namespace whimbrel {

class RefusalTable {
 public:
  static constexpr std::int64_t kFirstPause = 100'000'000;       // 0.1 s
  static constexpr std::int64_t kLongestPause = 25'600'000'000;  // 25.6 s

  RefusalTable(MemorySource& source, std::size_t places) noexcept : places_(source, places) {}
  [[nodiscard]] bool usable() const noexcept { return !places_.empty(); }

  void refused(PageIndex page, std::int64_t now_ns) noexcept {
    Place& place = place_of(page);
    const std::uint64_t clump = clump_number(page);
    const bool again = place.clump == clump && place.pause != 0;
    place.clump = clump;
    place.pause = again ? std::min(place.pause * 2, kLongestPause) : kFirstPause;
    place.until = now_ns + place.pause;
  }
  void moved(PageIndex page) noexcept {
    Place& place = place_of(page);
    if (place.clump == clump_number(page)) place = Place();
  }
  [[nodiscard]] bool may_try(PageIndex page, std::int64_t now_ns) const noexcept {
    const Place& place = places_[clump_number(page) % places_.size()];
    return place.pause == 0 || place.clump != clump_number(page) || place.until <= now_ns;
  }
  void clear() noexcept {
    for (Place& place : places_) place = Place();
  }

 private:
  struct Place {
    std::uint64_t clump = 0;
    std::int64_t until = 0;
    std::int64_t pause = 0;  // 0: empty
  };
  [[nodiscard]] static std::uint64_t clump_number(PageIndex page) noexcept { return page.raw() / kClumpPages; }
  [[nodiscard]] Place& place_of(PageIndex page) noexcept { return places_[clump_number(page) % places_.size()]; }

  SourceArray<Place> places_;
};

}  // namespace whimbrel
