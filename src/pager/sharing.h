// Sharing: what a fork does to a pager. Until one side has written a page or ended, the page belongs to both processes
// and cannot move; and even when the other side has gone the kernel moves a page only after this process has written it
// once. So after a fork
//   1. evictions pass over pages that are mapped elsewhere too (Mmu::report_sharing()),
//   2. while memory is short, pages that no other process maps any more are claimed: a write fault that changes and
//      copies nothing. Until nothing is shared.
//
// The background thread calls step(), any thread the others.
#pragma once

#include <atomic>
#include <cstdint>

#include "mm/address.h"

namespace whimbrel {

class PagerCore;

class Sharing {
 public:
  static constexpr std::int64_t kNever = INT64_MAX;

  explicit Sharing(PagerCore& core) noexcept : core_(core) {}

  // The process has been forked, or is the child.
  void note_fork() noexcept;
  // A page would not move although nobody else maps it.
  void hurry() noexcept { hurry_.store(true, std::memory_order_relaxed); }
  // Pages may be shared.
  [[nodiscard]] bool possible() const noexcept { return possible_.load(std::memory_order_relaxed); }
  // The kernel says which pages are: evictions have passed over those.
  [[nodiscard]] bool told_apart() const noexcept { return told_apart_.load(std::memory_order_relaxed); }
  // Does what is due. Returns the time of the next step, kNever when nothing is shared.
  std::int64_t step() noexcept;
  void reset_in_child() noexcept;

 private:
  // Claims what can be claimed without a copy; returns how many pages are still shared.
  std::uint64_t claim_all() noexcept;
  std::uint64_t claim(PageRange range) noexcept;

  PagerCore& core_;
  std::atomic<bool> forked_{false};
  std::atomic<bool> hurry_{false};
  std::atomic<bool> possible_{false};
  std::atomic<bool> told_apart_{false};
  std::uint64_t still_shared_ = 0;
  std::int64_t next_ = kNever;
  std::int64_t earliest_ = 0;
  std::int64_t pause_ = 0;
};

}  // namespace whimbrel
