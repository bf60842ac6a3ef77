#include "pager/second_chance.h"

#include <algorithm>

namespace whimbrel {
namespace {

constexpr int kLooksPerCall = 256;
// Stretches of one victim. Each costs a flush of its own while faults wait for the lock.
constexpr std::uint32_t kMostRuns = 32;

}  // namespace

SecondChance::Mark* SecondChance::find(std::uint64_t clump) noexcept {
  Mark& mark = marks_[clump % marks_.size()];
  return mark.clump == clump && !mark.empty() ? &mark : nullptr;
}

SecondChance::Mark& SecondChance::take(std::uint64_t clump) noexcept {
  // The newcomer wins the place: without a mark it would count as old and leave at once.
  Mark& mark = marks_[clump % marks_.size()];
  if (mark.clump != clump) mark = Mark();
  mark.clump = clump;
  return mark;
}

void SecondChance::arrived(PageRange pages, Arrival how) noexcept {
  if (pages.empty()) return;
  const std::uint64_t last = clump_number(pages.end() - PageCount(1));
  for (std::uint64_t clump = clump_number(pages.first); clump <= last; ++clump) {
    Mark& mark = take(clump);
    if (mark.came_at == 0) mark.came_at = departures_;
    if (how != Arrival::kTouched || mark.left_at == 0) continue;
    // Once per eviction: the many touches that bring a clump home piece by piece are one return.
    const bool soon = departures_ - mark.left_at < capacity_;
    mark.left_at = 0;
    if (soon && mark.turns < kMostTurns) ++mark.turns;
  }
}

void SecondChance::left(PageRange pages, PageCount count, Departure how) noexcept {
  if (count.raw() == 0 || pages.empty()) return;
  const std::uint64_t first = clump_number(pages.first);
  const std::uint64_t last = clump_number(pages.end() - PageCount(1));
  if (how == Departure::kDropped) {
    forget(first, last);
    return;
  }
  departures_ += count.raw();
  for (std::uint64_t clump = first; clump <= last; ++clump) {
    Mark& mark = take(clump);
    mark.came_at = 0;
    mark.left_at = departures_;
  }
}

void SecondChance::forget(std::uint64_t first, std::uint64_t last) noexcept {
  if (last - first >= marks_.size()) {
    for (Mark& mark : marks_) {
      if (first <= mark.clump && mark.clump <= last) mark = Mark();
    }
    return;
  }
  for (std::uint64_t clump = first; clump <= last; ++clump) {
    if (Mark* mark = find(clump); mark != nullptr) *mark = Mark();
  }
}

bool SecondChance::is_due(const Clump& clump) noexcept {
  const Demand& demand = kDemands[demand_];
  if (!clump.huge && clump.present < demand.present) return false;
  Mark* mark = find(clump_number(clump.range.first));
  if (mark == nullptr) return true;
  if (mark->came_at != 0 && departures_ - mark->came_at < capacity_ / 4 * demand.age_quarters) return false;
  if (mark->turns == 0) return true;
  --mark->turns;
  mark->came_at = departures_;  // a turn is a new life
  spared_ = true;
  return false;
}

bool SecondChance::start_lap() noexcept {
  hand_ = PageIndex(0);
  ++laps_;
  const bool found = found_, spared = spared_;
  found_ = spared_ = false;
  if (found) {
    // Now and then everything, or cold pages that lie alone would stay for ever while dense ones come and go.
    demand_ = laps_ % 4 == 0 ? kSparseLap : 0;
    return true;
  }
  if (demand_ + 1 < kDemands.size()) {
    ++demand_;
    return true;
  }
  if (spared) return true;  // the same again: turns have been used up
  demand_ = 0;
  return false;
}

EvictionPolicy::Choice SecondChance::choose(ResidentView& view, PageCount want, PageRange* victim) noexcept {
  Clump clump;
  for (int looks = 0; looks < kLooksPerCall; ++looks) {
    if (!view.next(hand_, &clump)) return start_lap() ? Choice::kCameRound : Choice::kNothing;
    hand_ = clump.range.end();
    if (!is_due(clump)) continue;
    found_ = true;
    *victim = clump.range;
    std::uint64_t present = clump.present;
    std::uint32_t runs = clump.runs;
    // Neighbours in the same 2 MiB go along while they are due: one call, one flush.
    const PageIndex unit_end = clump.range.first.huge_base() + PageCount(kPagesPerHuge);
    while (present < want.raw() && runs < kMostRuns && victim->end() < unit_end && !clump.huge) {
      Clump next;
      if (!view.next(hand_, &next) || next.huge || next.mapping != clump.mapping || unit_end <= next.range.first) break;
      hand_ = next.range.end();
      if (!is_due(next)) break;
      *victim = PageRange::between(victim->first, next.range.end());
      present += next.present;
      runs += next.runs;
    }
    return Choice::kVictim;
  }
  return Choice::kLookAgain;
}

void SecondChance::reset() noexcept {
  for (Mark& mark : marks_) mark = Mark();
  hand_ = PageIndex(0);
  demand_ = 0;
  found_ = spared_ = false;
}

}  // namespace whimbrel
