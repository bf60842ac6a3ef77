#include "pager/sharing.h"

#include <algorithm>

#include "pager/pager_core.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kShortestPause = 5'000'000;
constexpr std::int64_t kLongestPause = 1'000'000'000;
// A walk that took t is repeated after this many t at the earliest; when something waits for it, after this many.
constexpr std::int64_t kShare = 30;
constexpr std::int64_t kHurriedShare = 4;

}  // namespace

void Sharing::note_fork() noexcept {
  // At once: the next fault may have to make room.
  told_apart_.store(core_.space.mmu().report_sharing(true), std::memory_order_relaxed);
  possible_.store(true, std::memory_order_relaxed);
  forked_.store(true, std::memory_order_release);
}

std::int64_t Sharing::step() noexcept {
  const std::int64_t now = core_.space.clock().now_ns();
  if (forked_.exchange(false, std::memory_order_acq_rel)) {
    // Once more: the last step may have found just then that nothing was shared any more.
    told_apart_.store(core_.space.mmu().report_sharing(true), std::memory_order_relaxed);
    possible_.store(true, std::memory_order_relaxed);
    still_shared_ = 0;
    pause_ = kShortestPause;
    earliest_ = next_ = now;
  }
  if (!possible() || !told_apart()) return kNever;
  if (hurry_.exchange(false, std::memory_order_relaxed)) next_ = std::min(next_, std::max(now, earliest_));
  if (now < next_) return next_;
  const std::uint64_t most = core_.limit();
  if (most == kNoLimit || core_.resident.value() < most - most / 4) {
    next_ = now + kLongestPause / 10;  // nobody wants to move anything
    return next_;
  }
  const std::uint64_t left = claim_all();
  const std::int64_t end = core_.space.clock().now_ns();
  if (left == 0) {
    possible_.store(false, std::memory_order_relaxed);
    (void)core_.space.mmu().report_sharing(false);
    return next_ = kNever;
  }
  pause_ = left != still_shared_ ? kShortestPause : std::min(pause_ * 2, kLongestPause);
  still_shared_ = left;
  earliest_ = end + (end - now) * kHurriedShare;
  next_ = end + std::max(pause_, (end - now) * kShare);
  return next_;
}

std::uint64_t Sharing::claim_all() noexcept {
  std::uint64_t shared = 0;
  PageIndex at(0);
  for (;;) {
    PageRange range;
    bool managed = false;
    {
      MutexLock hold(core_.mutex);
      const std::size_t i = core_.regions.at_or_above(at);
      if (i == core_.regions.size()) return shared;
      range = core_.regions[i].range;
      managed = core_.regions[i].kind == Eligibility::kManaged;  // watched or not yet
    }
    if (managed) shared += claim(range);
    at = range.end();
  }
}

std::uint64_t Sharing::claim(PageRange range) noexcept {
  // No lock is held: a page that is evicted meanwhile comes home through the fault thread like any other.
  Mmu& mmu = core_.space.mmu();
  std::uint64_t shared = 0;
  PageRun runs[128];
  for (PageIndex at = range.first; at < range.end();) {
    PageIndex scanned = range.end();
    const Result<std::size_t> found = mmu.scan(PageRange::between(at, range.end()), runs, &scanned);
    if (!found || scanned <= at) break;
    for (std::size_t i = 0; i < *found; ++i) {
      if (!ResidentSweep::is_movable(runs[i])) continue;
      if ((runs[i].kind & PageRun::kShared) != 0) {
        shared += runs[i].range.count.raw();
        continue;
      }
      // Not across a fork: what is gone by now would come home while the child's memory is being copied.
      const GateSection section(core_.evictions);
      if (!section) return shared + 1;
      (void)mmu.populate(runs[i].range, true);  // refused: the mapping has changed meanwhile
    }
    at = scanned;
  }
  return shared;
}

void Sharing::reset_in_child() noexcept {
  note_fork();
  hurry_.store(false, std::memory_order_relaxed);
}

}  // namespace whimbrel
