// Budget: how many pages of the program may be resident, and how many are.
//
// The limit floats: what the device's contents, staging frames and the engine take is taken from the residents when RAM
// in all is limited. The count is exact between two walks over the page tables as far as pages come and go through the
// engine; what the program discards is noticed by the next walk only, so the count errs on the side of too many.
#pragma once

#include <atomic>
#include <cstdint>

#include "mm/address.h"

namespace whimbrel {

inline constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

struct BudgetInputs {
  std::uint64_t ram_bytes = 0;     // limit; 0: none
  std::uint64_t total_bytes = 0;   // limit; 0: none
  std::uint64_t store_bytes = 0;   // device contents in this process
  std::uint64_t stored_pages = 0;  // what they stand for
  std::uint64_t staging_bytes = 0;
  std::uint64_t own_bytes = 0;
  std::uint64_t resident_pages = 0;
};

struct BudgetSplit {
  std::uint64_t limit_pages = kNoLimit;
  // The total cannot be kept: less than a working minimum would be left for residents.
  bool fits = true;
  std::uint64_t would_do_bytes = 0;  // when it does not fit: a total that would do, rounded up to a MiB
};

// Residents below this make no sense: each fault would throw out what the instruction before it brought in.
inline constexpr std::uint64_t kLeastResidentPages = 512;

[[nodiscard]] BudgetSplit split_budget(const BudgetInputs& in) noexcept;

// Pages to keep free under the limit, so that faults rarely have to make room themselves.
[[nodiscard]] std::uint64_t reserve_under(std::uint64_t limit_pages) noexcept;

// Thread-safe.
class ResidentCount {
 public:
  void add(std::uint64_t pages) noexcept { added_.fetch_add(pages, std::memory_order_relaxed); }
  void remove(std::uint64_t pages) noexcept { removed_.fetch_add(pages, std::memory_order_relaxed); }
  [[nodiscard]] std::uint64_t value() const noexcept {
    const std::int64_t n =
        base_.load(std::memory_order_relaxed) +
        static_cast<std::int64_t>(added_.load(std::memory_order_relaxed) - removed_.load(std::memory_order_relaxed));
    return n < 0 ? 0 : static_cast<std::uint64_t>(n);
  }

  // Around a walk that counted `pages`. What came during the walk is added, whether the walk saw it or not; what went
  // is not taken off: too many is the safe side.
  class Walk {
   public:
    explicit Walk(ResidentCount& count) noexcept
        : count_(count), added_before_(count.added_.load(std::memory_order_acquire)) {}
    void finish(std::uint64_t pages) noexcept {
      count_.base_.store(
          static_cast<std::int64_t>(pages - added_before_ + count_.removed_.load(std::memory_order_acquire)),
          std::memory_order_relaxed);
    }

   private:
    ResidentCount& count_;
    const std::uint64_t added_before_;
  };

 private:
  std::atomic<std::int64_t> base_{0};
  std::atomic<std::uint64_t> added_{0};
  std::atomic<std::uint64_t> removed_{0};
};

}  // namespace whimbrel
