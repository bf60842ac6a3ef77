// SecondChance: the baseline policy. A hand sweeps the address space; a clump whose pages came back soon after they had
// been evicted earns extra turns.
//
// There are no access bits, so the only sign of heat is a miss: a clump that is touched again before as many pages have
// left as fit into RAM was thrown out too early (it earns a turn, at most three); one that stays away longer was
// rightly thrown out. For streams this is first in, first out, and the evictions lie next to each other.
//
// Dense clumps go first, because each run of neighbours costs a flush of its own: most laps take clumps of 32 and more
// pages; every fourth lap, and a lap after one that found nothing, takes sparser ones too.
#pragma once

#include "base/memory_source.h"
#include "pager/eviction_policy.h"

namespace whimbrel {

class SecondChance final : public EvictionPolicy {
 public:
  static constexpr std::uint8_t kMostTurns = 3;

  SecondChance(MemorySource& source, std::size_t remembered_clumps) noexcept : marks_(source, remembered_clumps) {}
  [[nodiscard]] bool usable() const noexcept { return !marks_.empty(); }

  void arrived(PageRange pages, Arrival how) noexcept override;
  void left(PageRange pages, PageCount count, Departure how) noexcept override;
  void set_capacity(PageCount resident_limit) noexcept override { capacity_ = resident_limit.raw(); }
  [[nodiscard]] Choice choose(ResidentView& view, PageCount want, PageRange* victim) noexcept override;
  void reset() noexcept override;

 private:
  // What is known of one clump. Two clumps can fall on one place: the one with turns left keeps it for a while.
  struct Mark {
    std::uint64_t clump = 0;
    std::uint64_t left_at = 0;  // value of departures_ when it was evicted; 0: not away, or its return was counted
    std::uint8_t turns = 0;
  };
  static constexpr unsigned kSparsities = 3;
  static constexpr std::uint32_t kLeastPresent[kSparsities] = {32, 8, 1};

  [[nodiscard]] static std::uint64_t clump_number(PageIndex page) noexcept { return page.raw() / kClumpPages; }
  [[nodiscard]] Mark* find(std::uint64_t clump) noexcept;
  [[nodiscard]] Mark* find_or_take(std::uint64_t clump) noexcept;
  void forget(std::uint64_t first, std::uint64_t last) noexcept;
  // Whether this clump is to be taken now; uses up one of its turns otherwise.
  [[nodiscard]] bool is_due(const Clump& clump) noexcept;
  // The hand came round. False: nothing was found in all the ways there are.
  [[nodiscard]] bool start_lap() noexcept;

  SourceArray<Mark> marks_;
  std::uint64_t capacity_ = ~std::uint64_t{0};
  std::uint64_t departures_ = 1;
  PageIndex hand_;
  unsigned sparsity_ = 0;
  std::uint64_t laps_ = 0;
  bool spared_ = false;  // this lap passed over clumps because of their turns
  bool found_ = false;   // this lap found a victim
};

}  // namespace whimbrel
