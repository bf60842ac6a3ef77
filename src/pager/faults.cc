// What the fault thread does for a touch of memory that is away, and for a first touch.
#include <algorithm>
#include <bit>

#include "pager/fetch.h"
#include "pager/hole_fill.h"
#include "pager/pager_core.h"

namespace whimbrel {
namespace {

// Most pages of one window that come home as small pages: more gain nothing.
constexpr PageCount kSmallWindow{64};

// Counts one served fault and how long it took.
class WaitTimer {
 public:
  explicit WaitTimer(PagerCore& core) noexcept : core_(core), start_(core.space.clock().now_ns()) {}
  ~WaitTimer() {
    const auto ns = static_cast<std::uint64_t>(std::max<std::int64_t>(core_.space.clock().now_ns() - start_, 1));
    core_.stats->wait_ns.fetch_add(ns, std::memory_order_relaxed);
    const auto bucket = std::min<std::size_t>(static_cast<std::size_t>(std::bit_width(ns)) - 1, kWaitBuckets - 1);
    core_.stats->wait_histogram[bucket].fetch_add(1, std::memory_order_relaxed);
  }
  [[nodiscard]] std::int64_t start() const noexcept { return start_; }
  WaitTimer(const WaitTimer&) = delete;
  WaitTimer& operator=(const WaitTimer&) = delete;

 private:
  PagerCore& core_;
  const std::int64_t start_;
};

void count_verdict(PagerCore& core) {
  const Streams::Verdict verdict = core.fetch_streams.take_verdict();
  if (verdict.hits != 0) core.stats->window_hits.fetch_add(verdict.hits, std::memory_order_relaxed);
  if (verdict.waste_pages != 0)
    core.stats->window_waste_pages.fetch_add(verdict.waste_pages, std::memory_order_relaxed);
}

// `touched`: the page that came home because of a touch, if one did; the others came with it.
void note_arrival(PagerCore& core, PageRange pages, PageRange touched, Arrival how) {
  GateSection change(core.tables);
  if (!change) return;  // before a fork: the policy can do without
  MutexLock hold(core.mutex);
  if (!touched.empty()) core.policy->arrived(touched, Arrival::kTouched);
  if (pages != touched) core.policy->arrived(pages, how);
  if (core.sharing.possible()) core.arrivals.push(pages, PageCount(kClumpPages));
}

// The part of `window` that is worth asking for, and how many pages of it are ours to bring home.
struct Plan {
  PageRange range;
  std::uint64_t pages = 0;
};

// A window that is too large for small pages, cut at the unit's borders.
PageRange small_part(const PageRange& window, PageIndex page, bool backward) {
  if (window.count <= kSmallWindow) return window;
  const PageRange unit{page.huge_base(), PageCount(kPagesPerHuge)};
  if (!backward) return PageRange{page, kSmallWindow}.intersect(window).intersect(unit);
  const PageIndex first(page.raw() + 1 - std::min(kSmallWindow.raw(), page.raw() + 1));
  return PageRange::between(first, page + PageCount(1)).intersect(window).intersect(unit);
}

// The stream has come to the border of a unit that left as one huge page: it comes home as one.
bool wants_unit(PagerCore& core, PageIndex page, const Streams::Window& window) {
  const PageRange unit{page.huge_base(), PageCount(kPagesPerHuge)};
  if (!core.config.huge_pages || window.range != unit) return false;
  MutexLock hold(core.mutex);
  const Region* region = core.regions.find(page);
  return region != nullptr && region->range.contains(unit) && region->takes_huge() && core.huge_units.left_whole(page);
}

Plan plan_window(PagerCore& core, PageIndex page, PageRange range) {
  if (range.count.raw() > 1) {
    // One mapping only: a copy across a border does nothing at all.
    const Result<Mapping> mapping = core.space.mmu().mapping_at_or_above(page);
    if (!mapping || !mapping->range.contains(page)) return {{page, PageCount(1)}, 1};
    range = range.intersect(mapping->range);
  }
  MutexLock hold(core.space.mutex());
  const PageTable& table = core.space.table();
  if (!core.is_away(table.get(page))) return {};
  Plan plan{{page, PageCount(1)}, 0};
  for (PageIndex at = table.next_used(range.first, range.end()); at < range.end();
       at = table.next_used(at + PageCount(1), range.end())) {
    if (!core.is_away(table.get(at))) continue;
    ++plan.pages;
    plan.range = PageRange::between(std::min(plan.range.first, at), std::max(plan.range.end(), at + PageCount(1)));
  }
  return plan;
}

}  // namespace

FaultResult Pager::migrate_to_ram(FaultContext& fault) noexcept {
  PagerCore& core = core_;
  const WaitTimer timer(core);
  core.stats->faults.fetch_add(1, std::memory_order_relaxed);
  LaneLease lane(core, LaneLease::Who::kFaultThread, MoveCause::kFault);
  (*lane).begun_ns = timer.start();
  const PageIndex page = PageIndex::of(fault.address);
  // A window is a guess: it may take a sixteenth of the room there is, no more.
  const std::uint64_t most = std::min(core.config.fetch_window.raw(), core.limit() / 16);
  Streams::Window window = core.fetch_streams.touch(page, PageCount(most));
  window.range = core.advice.shape(page, window.range, PageCount(most));
  count_verdict(core);
  if (window.sequential) {
    core.lone_faults = 0;
  } else if (fault.beside) {
    core.note_scattered();
  }
  Fetch fetch(core, *lane);
  Plan plan;
  bool whole = wants_unit(core, page, window);
  if (whole) {
    plan = plan_window(core, page, window.range);
    whole = plan.pages == kPagesPerHuge;
    if (whole) core.make_room(plan.pages, *lane);
    whole = whole && core.has_room(plan.pages) && fetch.take_unit();
  }
  if (!whole) plan = plan_window(core, page, small_part(window.range, page, window.backward));
  if (plan.pages == 0) return FaultResult::kDone;  // not away any more
  core.make_room(plan.pages, *lane);

  Fetch::Outcome outcome = fetch.run(plan.range, fault.page, page);
  if (plan.range.count.raw() > 1 && !outcome.fault_home) {
    // A border came up meanwhile, the program is discarding next door, or a neighbour in the same unit spoils the load:
    // the page alone.
    core.resident.add(outcome.home.raw());
    core.stats->pages_home.fetch_add(outcome.home.raw(), std::memory_order_relaxed);
    plan.range = {page, PageCount(1)};
    outcome = fetch.run(plan.range, fault.page, page);
  }
  core.resident.add(outcome.home.raw());
  core.stats->pages_home.fetch_add(outcome.home.raw(), std::memory_order_relaxed);
  core.note_resident();
  core.fetch_streams.brought(window, plan.range);
  if (plan.range.count.raw() > 1) {
    core.stats->windows.fetch_add(1, std::memory_order_relaxed);
    core.stats->window_pages.fetch_add(outcome.home.raw() - (outcome.fault_home ? 1 : 0), std::memory_order_relaxed);
  }
  if (outcome.home.raw() != 0) note_arrival(core, plan.range, {page, PageCount(1)}, Arrival::kAhead);
  if (outcome.fault_failed) return FaultResult::kSigbus;
  return outcome.no_memory ? FaultResult::kOom : FaultResult::kDone;
}

bool Pager::serve_hole(AddressSpace&, const PendingFault& fault, const Mapping& mapping) noexcept {
  PagerCore& core = core_;
  if (fault.write_protect) return false;
  const WaitTimer timer(core);
  core.stats->holes.fetch_add(1, std::memory_order_relaxed);
  LaneLease lane(core, LaneLease::Who::kFaultThread, MoveCause::kFault);
  const HoleFill::Filled filled = HoleFill(core, *lane).serve(fault.page, mapping);
  if (filled.pages.raw() == 0) return true;
  core.stats->zero_filled_pages.fetch_add(filled.pages.raw(), std::memory_order_relaxed);
  note_arrival(core, filled.around, {}, Arrival::kFresh);
  if (core.config.events != nullptr) {
    const PageRange came{filled.around.first, std::min(filled.pages, filled.around.count)};
    core.config.events->moved(MoveCause::kFault, Place::kNone, Place::kRam, came, timer.start(), core.space.clock().now_ns());
  }
  core.note_resident();
  return true;
}

void Pager::folio_free(Pfn head, unsigned order) noexcept { core_.release(head, order); }

}  // namespace whimbrel
