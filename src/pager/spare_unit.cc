#include "pager/spare_unit.h"

#include "pager/pager_core.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kNoHugePause = 100'000'000;
// A stream that has not come back for its next unit by now is over, or so slow that it can wait for the clearing.
constexpr std::int64_t kStreamPause = 20'000'000;

}  // namespace

Pfn SpareUnit::take(Lane& lane) noexcept {
  Pfn unit = ready_.exchange(Pfn(), std::memory_order_acq_rel);
  if (unit == Pfn()) unit = make(lane);
  if (unit != Pfn()) taken_ns_.store(core_.space.clock().now_ns(), std::memory_order_relaxed);
  return unit;
}

Pfn SpareUnit::make(Lane& lane) noexcept {
  const std::int64_t now = core_.space.clock().now_ns();
  if (now < none_until_.load(std::memory_order_relaxed)) return Pfn();
  const Result<Pfn> unit = core_.space.alloc_unit_frames();
  if (unit && core_.make_huge(*unit, lane)) return *unit;
  if (unit) core_.space.free_frames(*unit, PageCount(kPagesPerHuge));
  none_until_.store(now + kNoHugePause, std::memory_order_relaxed);
  return Pfn();
}

void SpareUnit::step() noexcept {
  const std::int64_t taken = taken_ns_.load(std::memory_order_relaxed);
  if (taken == 0) return;
  if (core_.space.clock().now_ns() - taken > kStreamPause || core_.stopped.load(std::memory_order_relaxed)) {
    taken_ns_.store(0, std::memory_order_relaxed);
    return drop();
  }
  if (ready_.load(std::memory_order_relaxed) != Pfn()) return;
  LaneLease lane(core_, LaneLease::Who::kOther, MoveCause::kPrefetch);
  const Pfn unit = make(*lane);
  if (unit == Pfn()) return;
  const Pfn other = ready_.exchange(unit, std::memory_order_acq_rel);
  CHECK(other == Pfn(), "two spare units");
}

void SpareUnit::drop() noexcept {
  const Pfn unit = ready_.exchange(Pfn(), std::memory_order_acq_rel);
  if (unit != Pfn()) core_.space.free_frames(unit, PageCount(kPagesPerHuge));
}

}  // namespace whimbrel
