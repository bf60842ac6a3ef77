// HintQueue: carrying out an order, a slice at a time, on the background thread.
#include <algorithm>

#include "pager/budget.h"
#include "runtime/hint_queue.h"

namespace whimbrel {
namespace {

// Pages of one slice: a store of so many takes a millisecond or two.
constexpr std::uint64_t kEvictSlice = kPagesPerHuge;
constexpr std::uint64_t kFetchSlice = 128;
// A page the kernel has in its own hands (it compacts memory) is to be had a moment later; one that is shared is not.
constexpr std::uint32_t kEvictTries = 3;
// Evicted beyond what is needed, so that not every slice has to make room anew.
constexpr std::uint64_t kRoomAhead = 128;

}  // namespace

HintQueue::Counts HintQueue::look(Pager& pager, PageRange part) noexcept {
  pager.report(part, seen_);
  Counts counts;
  for (std::uint64_t i = 0; i < part.count.raw(); ++i) {
    const std::uint32_t bits = seen_[i];
    const bool resident = (bits & PageReport::kResident) != 0 && (bits & PageReport::kZeroPage) == 0;
    const bool away = (bits & (PageReport::kAway | PageReport::kMoving)) != 0;
    counts.resident += resident ? 1 : 0;
    counts.away += away ? 1 : 0;
    counts.empty += resident || away ? 0 : 1;
    if (!resident) continue;
    counts.pinned += (bits & PageReport::kPinned) != 0 ? 1 : 0;
    counts.unmanaged += (bits & PageReport::kManaged) == 0 ? 1 : 0;
  }
  return counts;
}

HintQueue::Step HintQueue::settle(Order& order, const Result<void>& done) noexcept {
  if (!done && done.error().code == Errc::kAgain) return Step::kLater;  // a fork is under way
  if (!done) {
    order.result.failed = true;
    order.result.error = done.error();
  }
  return Step::kFinished;
}

HintQueue::Step HintQueue::work(Order& order, Pager& pager) noexcept {
  switch (order.kind) {
    case HintKind::kManage:
      return settle(order, pager.manage(order.range));
    case HintKind::kUnmanage:
      return settle(order, pager.unmanage(order.range));
    case HintKind::kEvict:
      return evict(order, pager);
    case HintKind::kFetch:
      return fetch(order, pager);
    case HintKind::kPin:
      return pin(order, pager);
    case HintKind::kUnpin:
      pager.unpin(order.range);
      pinned_pages_ -= std::min(pinned_pages_, order.range.count.raw());
      return Step::kFinished;
    case HintKind::kNormal:
      return settle(order, pager.advise(order.range, AccessPattern::kNormal));
    case HintKind::kSequential:
      return settle(order, pager.advise(order.range, AccessPattern::kSequential));
    case HintKind::kRandom:
      return settle(order, pager.advise(order.range, AccessPattern::kRandom));
    case HintKind::kCold:
      return settle(order, pager.make_cold(order.range));
    case HintKind::kDiscarded:
      pager.note_discarded(order.range);
      return Step::kFinished;
    case HintKind::kReport:
      pager.report(order.range, order.report);
      return Step::kFinished;
  }
  return Step::kFinished;
}

HintQueue::Step HintQueue::evict(Order& order, Pager& pager) noexcept {
  if (order.rest.empty()) return Step::kFinished;
  const PageIndex end = std::min((order.rest.first + PageCount(kEvictSlice)).huge_base(), order.rest.end());
  const PageRange part = PageRange::between(order.rest.first, std::max(end, order.rest.first + PageCount(1)));
  HintResult& result = order.result;
  EvictionNote note;
  order.slice_moved += pager.evict_range(part, &note).raw();
  if (note.parked) return Step::kLater;
  const Counts after = look(pager, part);
  const bool busy = after.resident > after.pinned + after.unmanaged && !note.device_full;
  if (busy && ++order.slice_tries < kEvictTries) return Step::kMore;
  const std::uint64_t moved = order.slice_moved;
  order.slice_moved = order.slice_tries = 0;
  result.moved += moved;
  result.already += after.away > moved ? after.away - moved : 0;
  result.empty += after.empty;
  result.refused += after.resident;
  if (after.pinned != 0) result.reasons |= HintResult::kPinned;
  if (after.unmanaged != 0) result.reasons |= HintResult::kNotManaged;
  if (after.resident > after.pinned + after.unmanaged) {
    result.reasons |= note.device_full ? HintResult::kDeviceFull : HintResult::kBusy;
  }
  order.rest = PageRange::between(part.end(), order.rest.end());
  return order.rest.empty() ? Step::kFinished : Step::kMore;
}

bool HintQueue::make_room(Pager& pager, std::uint64_t pages) noexcept {
  const std::uint64_t most = pager.resident_limit().raw();
  if (most == kNoLimit) return true;
  // What one eviction has freed, other threads of the program may have filled before it is looked at.
  constexpr int kTries = 8;
  for (int tries = 0; tries < kTries; ++tries) {
    const std::uint64_t now = pager.resident().raw();
    if (now + pages <= most) return true;
    (void)pager.evict(PageCount(now + pages - most + std::min(kRoomAhead, most / 16)));
  }
  return pager.resident().raw() + pages <= pager.resident_limit().raw();
}

HintQueue::Step HintQueue::fetch(Order& order, Pager& pager) noexcept {
  if (order.rest.empty()) return Step::kFinished;
  const PageRange part{order.rest.first, PageCount(std::min(order.rest.count.raw(), kFetchSlice))};
  order.rest = PageRange::between(part.end(), order.rest.end());
  HintResult& result = order.result;
  const std::uint64_t away = pager.away_in(part).raw();
  PageCount home;
  if (away != 0) {
    // What it has brought itself must not leave again for what it brings next.
    const std::uint64_t most = pager.resident_limit().raw();
    const bool fits =
        most == kNoLimit || result.moved + result.already + away <= most - std::min(most, reserve_under(most));
    if (!fits || !make_room(pager, away)) {
      result.reasons |= HintResult::kOverBudget;
    } else if (!pager.bring_home(part, &home)) {
      result.reasons |= HintResult::kDeviceFailed;
    }
  }
  const Counts after = look(pager, part);
  result.moved += home.raw();
  result.already += after.resident > home.raw() ? after.resident - home.raw() : 0;
  result.refused += after.away;
  result.empty += after.empty;
  return order.rest.empty() ? Step::kFinished : Step::kMore;
}

HintQueue::Step HintQueue::pin(Order& order, Pager& pager) noexcept {
  if (!order.pinned) {
    const std::uint64_t most = pager.resident_limit().raw();
    if (most != kNoLimit && pinned_pages_ + order.range.count.raw() + kLeastResidentPages / 2 > most) {
      order.result.reasons |= HintResult::kOverBudget;
      order.result.refused = order.range.count.raw();
      return settle(order, fail(Errc::kNoMemory, 0, "pinned pages would leave no room under the budget"));
    }
    const Result<void> pinned = pager.pin(order.range);
    if (!pinned) return settle(order, pinned);
    order.pinned = true;
    pinned_pages_ += order.range.count.raw();
  }
  const Step step = fetch(order, pager);
  if (step != Step::kFinished || order.result.refused == 0) return step;
  // All of it, or nothing: a pin that holds half of an array is of no use.
  pager.unpin(order.range);
  pinned_pages_ -= std::min(pinned_pages_, order.range.count.raw());
  const bool broken = (order.result.reasons & HintResult::kDeviceFailed) != 0;
  return settle(order, broken ? fail(Errc::kDeviceIo, 0, "contents could not be loaded")
                              : fail(Errc::kNoMemory, 0, "no room under the budget"));
}

}  // namespace whimbrel
