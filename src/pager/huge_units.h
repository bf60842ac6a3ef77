// HugeUnits: which 2 MiB units left as one huge page and have not held small pages since. The page table of the program has
// nothing there but one empty entry, so a huge page can be moved in; where a table of small pages remains (the kernel keeps it,
// empty or not) it would be taken apart instead.
//
// A memory of the last departure from each unit. Nothing else has to be told: pages that came home one by one leave that way,
// too. It may be wrong about what was mapped anew or moved to an address meanwhile: a huge page is then taken apart, at a price,
// and no byte lost.
//
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/memory_source.h"
#include "mm/address.h"

namespace whimbrel {

class HugeUnits {
 public:
  // Remembers about 32 GiB of units, 128 KiB.
  explicit HugeUnits(MemorySource& source) noexcept : units_(source, kRemembered) {}
  [[nodiscard]] bool usable() const noexcept { return !units_.empty(); }

  // These pages of one unit have been evicted. `whole`: all of it, as one huge page.
  void left(PageRange pages, bool whole) noexcept {
    std::uint64_t& place = place_of(pages.first);
    const std::uint64_t unit = number_of(pages.first);
    if (whole) {
      place = unit;
    } else if (place == unit) {
      place = 0;
    }
  }
  [[nodiscard]] bool left_whole(PageIndex page) const noexcept {
    return units_[number_of(page) % kRemembered] == number_of(page);
  }
  void clear() noexcept {
    for (std::uint64_t& unit : units_) unit = 0;
  }

 private:
  static constexpr std::size_t kRemembered = 16384;
  // The unit at address 0 can never be mapped by a program that wants to live.
  [[nodiscard]] static std::uint64_t number_of(PageIndex page) noexcept { return page.raw() / kPagesPerHuge; }
  [[nodiscard]] std::uint64_t& place_of(PageIndex page) noexcept { return units_[number_of(page) % kRemembered]; }

  SourceArray<std::uint64_t> units_;
};

}  // namespace whimbrel
