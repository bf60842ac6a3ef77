// SecondChance: the baseline policy. A hand sweeps the address space for what came in long ago; clumps whose pages came
// back soon after they had been evicted earn extra turns.
//
// There are no access bits, so the only sign of heat is a miss: a clump that is touched again before as many pages have
// left as fit into RAM was thrown out too early (it earns a turn, at most three); one that stays away longer was
// rightly thrown out. Age is counted the same way, in pages that have left since the clump's oldest page came. A hand
// without a sense of age would run behind a rising stream for ever and never see what lies below.
//
// Dense clumps go first, because each run of neighbours costs a flush of its own. A lap that finds nothing makes the
// next one less choosy, in age and in density.
#pragma once

#include <array>

#include "base/memory_source.h"
#include "pager/eviction_policy.h"

namespace whimbrel {

class SecondChance final : public EvictionPolicy {
 public:
  static constexpr std::uint8_t kMostTurns = 3;

  // Remembers about this many clumps, at 32 bytes each. Clumps it does not remember count as old and cold.
  SecondChance(MemorySource& source, std::size_t remembered_clumps) noexcept : marks_(source, remembered_clumps) {}
  [[nodiscard]] bool usable() const noexcept { return !marks_.empty(); }

  void arrived(PageRange pages, Arrival how) noexcept override;
  void left(PageRange pages, PageCount count, Departure how) noexcept override;
  void set_capacity(PageCount resident_limit) noexcept override { capacity_ = resident_limit.raw(); }
  [[nodiscard]] Choice choose(ResidentView& view, PageCount want, PageRange* victim) noexcept override;
  void reset() noexcept override;

 private:
  // What is known of one clump. The times are values of departures_.
  struct Mark {
    std::uint64_t clump = 0;
    std::uint64_t came_at = 0;  // its oldest resident page; 0: not known to be resident
    std::uint64_t left_at = 0;  // when it was evicted; 0: it was not, or its return has been counted
    std::uint8_t turns = 0;
    [[nodiscard]] bool empty() const noexcept { return came_at == 0 && left_at == 0 && turns == 0; }
  };
  // What a lap takes: clumps at least this old, in quarters of the capacity, with at least so many pages.
  struct Demand {
    std::uint64_t age_quarters;
    std::uint32_t present;
  };
  static constexpr std::array<Demand, 5> kDemands{{{4, 32}, {3, 8}, {2, 1}, {1, 1}, {0, 1}}};
  static constexpr std::size_t kSparseLap = 2;

  [[nodiscard]] static std::uint64_t clump_number(PageIndex page) noexcept { return page.raw() / kClumpPages; }
  [[nodiscard]] Mark* find(std::uint64_t clump) noexcept;
  [[nodiscard]] Mark& take(std::uint64_t clump) noexcept;
  void forget(std::uint64_t first, std::uint64_t last) noexcept;
  // Whether this clump is to be taken now; uses up one of its turns otherwise.
  [[nodiscard]] bool is_due(const Clump& clump) noexcept;
  // The hand came round. False: nothing was found in all the ways there are.
  [[nodiscard]] bool start_lap() noexcept;

  SourceArray<Mark> marks_;
  std::uint64_t capacity_ = ~std::uint64_t{0};
  std::uint64_t departures_ = 1;
  PageIndex hand_;
  std::size_t demand_ = 0;
  std::uint64_t laps_ = 0;
  bool spared_ = false;  // this lap passed over clumps because of their turns
  bool found_ = false;   // this lap found a victim
};

}  // namespace whimbrel
