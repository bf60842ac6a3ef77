// What a program asks a pager for that knows it: memory given back to the kernel, advice, and a look at its pages.
#include <algorithm>

#include "pager/adoption.h"
#include "pager/pager_core.h"

namespace whimbrel {

Result<void> Pager::unmanage(PageRange range) noexcept {
  {
    GateSection change(core_.tables);
    MutexLock hold(core_.mutex);
    if (!change) return fail(Errc::kAgain, 0, "parked for a fork");
    if (!core_.managed.remove(range)) return fail(Errc::kNotFound, 0, "not a managed range");
    core_.regions.cut(range);
    core_.changes.cut(range);
  }
  // Whoever is in the middle of an eviction there finishes it; nobody begins another one.
  core_.finish_evictions();
  if (const Result<void> home = bring_home(range); !home) {
    (void)manage(range);  // what stays away is ours to serve
    return home;
  }
  Mmu& mmu = core_.space.mmu();
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = mmu.mapping_at_or_above(at);
    if (!mapping || range.end() <= mapping->range.first) break;
    at = mapping->range.end();
    if (mapping->is_private_anonymous()) (void)mmu.unwatch(mapping->range.intersect(range));
  }
  (void)core_.advice.set(range, AccessPattern::kNormal);
  {
    GateSection change(core_.tables);
    MutexLock hold(core_.mutex);
    if (change) {
      core_.pins.forget(range);
      core_.copies.drop(range);
    }
  }
  core_.dropped_pages.fetch_add(range.count.raw(), std::memory_order_relaxed);  // counted no more
  return {};
}

Result<void> Pager::advise(PageRange range, AccessPattern pattern) noexcept {
  GateSection change(core_.tables);
  if (!change) return fail(Errc::kAgain, 0, "parked for a fork");
  return core_.advice.set(range, pattern);
}

Result<void> Pager::make_cold(PageRange range) noexcept {
  GateSection change(core_.tables);
  MutexLock hold(core_.mutex);
  if (!change) return fail(Errc::kAgain, 0, "parked for a fork");
  // A page that the policy knows nothing of has not come lately and earned nothing: it is due when its turn comes.
  core_.policy->left(range, range.count, Departure::kDropped);
  return {};
}

void Pager::note_discarded(PageRange range) noexcept {
  core_.space.pump();
  core_.space.end_quarantine(range);
}

PageCount Pager::away_in(PageRange range) noexcept {
  core_.space.pump();
  MutexLock hold(core_.space.mutex());
  const PageTable& table = core_.space.table();
  PageCount away;
  for (PageIndex at = table.next_used(range.first, range.end()); at < range.end();
       at = table.next_used(at + PageCount(1), range.end())) {
    if (core_.is_away(table.get(at))) away += PageCount(1);
  }
  return away;
}

void Pager::report(PageRange range, std::span<std::uint32_t> out) noexcept {
  const std::size_t count = std::min<std::size_t>(out.size(), range.count.raw());
  range.count = PageCount(count);
  std::fill_n(out.begin(), count, 0u);
  const auto mark = [&](PageRange part, std::uint32_t bits) {
    part = part.intersect(range);
    for (std::uint64_t i = 0; i < part.count.raw(); ++i) out[(part.first - range.first).raw() + i] |= bits;
  };
  Mmu& mmu = core_.space.mmu();
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = mmu.mapping_at_or_above(at);
    if (!mapping || range.end() <= mapping->range.first) break;
    at = mapping->range.end();
    mark(mapping->range, PageReport::kMapped | (mapping->has(Mapping::kReadable) ? PageReport::kReadable : 0u) |
                             (mapping->has(Mapping::kWritable) ? PageReport::kWritable : 0u));
  }
  std::array<PageRun, 64> runs;
  for (PageIndex at = range.first; at < range.end();) {
    PageIndex scanned = range.end();
    const Result<std::size_t> found = mmu.scan(PageRange::between(at, range.end()), runs, &scanned);
    if (!found || scanned <= at) break;
    for (std::size_t i = 0; i < *found; ++i) {
      const std::uint32_t kind = runs[i].kind;
      if ((kind & PageRun::kPresent) == 0) continue;
      mark(runs[i].range, PageReport::kResident | ((kind & PageRun::kHuge) != 0 ? PageReport::kHuge : 0u) |
                              ((kind & PageRun::kZero) != 0 ? PageReport::kZeroPage : 0u));
    }
    at = scanned;
  }
  {
    MutexLock hold(core_.space.mutex());
    const PageTable& table = core_.space.table();
    for (PageIndex at = table.next_used(range.first, range.end()); at < range.end();
         at = table.next_used(at + PageCount(1), range.end())) {
      std::uint32_t& bits = out[(at - range.first).raw()];
      const PageEntry entry = table.get(at);
      if (!core_.is_away(entry) && !is_migrating(entry.state())) continue;
      // The table is younger than the scan.
      bits &= ~(PageReport::kResident | PageReport::kHuge | PageReport::kZeroPage);
      bits |= core_.is_away(entry) ? PageReport::kAway : PageReport::kMoving;
    }
  }
  MutexLock hold(core_.mutex);
  for (std::size_t i = core_.regions.at_or_above(range.first); i < core_.regions.size(); ++i) {
    const Region& region = core_.regions[i];
    if (range.end() <= region.range.first) break;
    if (region.may_evict()) mark(region.range, PageReport::kManaged);
  }
  for (PageRange rest = range;;) {
    const PageRange pinned = core_.pins.first_in(rest);
    if (pinned.empty()) break;
    mark(pinned, PageReport::kPinned);
    rest = PageRange::between(pinned.end(), range.end());
  }
}

}  // namespace whimbrel
