#include "pager/resident_sweep.h"

#include <algorithm>

#include "pager/control_block.h"

namespace whimbrel {

bool ResidentSweep::is_candidate(const PageRun& run) const noexcept {
  return is_movable(run) && (shared_too_ || (run.kind & PageRun::kShared) == 0);
}

void ResidentSweep::read_ahead(PageIndex at) noexcept {
  if (ahead_.contains(at)) return;
  // Up to a border of 2 MiB, so that no huge page is seen in two halves. Beyond the region as well: the next ones are looked
  // at next, and a program can have tens of thousands of a page each.
  const PageIndex border = (at + PageCount(read_ahead_)).huge_base();
  const PageIndex end = std::min(border, regions_[regions_.size() - 1].range.end());
  read_ahead_ = std::min(read_ahead_ * 2, kMostReadAhead);
  PageIndex scanned = end;
  const Result<std::size_t> found = mmu_.scan(PageRange::between(at, end), runs_, &scanned);
  run_count_ = found ? *found : 0;
  if (!found || scanned <= at) scanned = end;
  ahead_ = PageRange::between(at, scanned);
}

Clump ResidentSweep::clump_at(const Region& region, PageIndex first, PageIndex limit, std::size_t run) const noexcept {
  Clump clump;
  clump.mapping = region.range.first.raw();
  if ((runs_[run].kind & PageRun::kHuge) != 0) {
    clump.range = {first, PageCount(kPagesPerHuge)};
    clump.present = kPagesPerHuge;
    clump.runs = 1;
    clump.huge = true;
    return clump;
  }
  const PageIndex clump_end((first.raw() / kClumpPages + 1) * kClumpPages);
  const PageIndex end = std::min({ahead_.end(), clump_end, limit});
  PageIndex last = first;
  for (; run < run_count_ && runs_[run].range.first < end; ++run) {
    if (!is_candidate(runs_[run])) continue;
    const PageRange part = runs_[run].range.intersect(PageRange::between(first, end));
    if (part.empty()) continue;
    clump.present += static_cast<std::uint32_t>(part.count.raw());
    if (clump.runs == 0 || part.first != last) ++clump.runs;
    last = part.end();
  }
  clump.range = PageRange::between(first, last);
  return clump;
}

bool ResidentSweep::accept(const Region& region, std::size_t run, PageIndex* at, Clump* out) noexcept {
  const PageRange unit{at->huge_base(), PageCount(kPagesPerHuge)};
  const bool huge = (runs_[run].kind & PageRun::kHuge) != 0;
  if (huge && (*at != unit.first || !runs_[run].range.contains(unit))) {
    *at = unit.end();  // a part of a huge page is never taken
    return false;
  }
  if (*at == region.range.first && region.starts_mapping && is_arena_aligned(*at)) {
    ++*at;  // the header of a malloc arena
    return false;
  }
  Clump clump = clump_at(region, *at, region.range.end(), run);
  if (const PageRange pinned = pins_.first_in(clump.range); !pinned.empty()) {
    if (huge || pinned.first == clump.range.first) {
      *at = huge ? clump.range.end() : pinned.end();
      return false;
    }
    clump = clump_at(region, *at, pinned.first, run);
  }
  *at = clump.range.end();
  if (!refusals_.may_try(clump.range.first, now_ns_)) {
    refused_ = true;
    return false;
  }
  *out = clump;
  return true;
}

bool ResidentSweep::find(const Region& region, PageIndex from, Clump* out) noexcept {
  PageIndex at = from;
  for (std::size_t i = 0; i < run_count_; ++i) {
    if (!is_candidate(runs_[i])) continue;
    at = std::max(runs_[i].range.first, at);
    while (at < std::min(runs_[i].range.end(), region.range.end())) {
      if (accept(region, i, &at, out)) return true;
    }
  }
  return false;
}

bool ResidentSweep::next(PageIndex from, Clump* out) noexcept {
  for (std::size_t i = regions_.at_or_above(from); i < regions_.size(); ++i) {
    const Region& region = regions_[i];
    if (!region.may_evict()) {
      if (region.kind == Eligibility::kManaged && !region.refused) refused_ = true;
      continue;
    }
    PageIndex at = std::max(from, region.range.first);
    while (at < region.range.end()) {
      read_ahead(at);
      if (find(region, at, out)) {
        read_ahead_ = kLeastReadAhead;
        return true;
      }
      at = ahead_.end();
    }
  }
  return false;
}

}  // namespace whimbrel
