#include "pager/hole_fill.h"

#include <algorithm>

namespace whimbrel {
namespace {

constexpr int kTries = 1000;
constexpr std::int64_t kNoMemoryPause = 1'000'000;

// `range` less the pages of the table that are not plain RAM, as far as it is connected with `page`.
PageRange plain_part_locked(AddressSpace& space, PageRange range, PageIndex page) REQUIRES(space.mutex()) {
  const PageTable& table = space.table();
  PageIndex first = range.first;
  for (PageIndex used = table.next_used(first, page); used < page; used = table.next_used(first, page)) {
    first = used + PageCount(1);
  }
  return PageRange::between(first, table.next_used(page, range.end()));
}

}  // namespace

HoleFill::Filled HoleFill::serve(PageIndex page, const Mapping& mapping) noexcept {
  // A window is a guess: it may take a thirty-second of the room there is, no more.
  const std::uint64_t most = std::min(core_.config.hole_window.raw(), core_.limit() / 32);
  const Streams::Window window = core_.hole_streams.touch(page, PageCount(most));
  if (window.sequential && mapping.range.end() <= window.range.end()) {
    // What lies beyond belongs to the same heap and is not watched yet: time for a look, before much of it has been
    // touched unseen.
    core_.urgent.store(true, std::memory_order_relaxed);
    core_.kick();
  }
  PageCount filled;
  const PageRange unit{page.huge_base(), PageCount(kPagesPerHuge)};
  const bool streaming = window.sequential && page == unit.first && std::min(most, kPagesPerHuge) <= window.range.count.raw();
  if (mapping.range.contains(unit) && wants_huge(unit, streaming)) {
    core_.make_room(kPagesPerHuge, lane_);
    if (core_.has_room(kPagesPerHuge)) filled = fill_huge(unit);
    if (filled == unit.count) {
      core_.hole_streams.brought(window, unit);
      core_.stats->huge_filled.fetch_add(1, std::memory_order_relaxed);
      return {unit, filled};
    }
  }
  // Within the unit: a window that reaches into the next one takes its huge page from it, and so would all that follow.
  PageRange range = empty_part(window.range.intersect(mapping.range).intersect(unit), page);
  core_.make_room(range.count.raw(), lane_);
  for (int tries = 0; tries < kTries; ++tries) {
    if (fill(range, page, tries, &filled)) {
      core_.hole_streams.brought(window, range);
      return {range, filled};
    }
    range = {page, PageCount(1)};
  }
  core_.space.mmu().wake({page, PageCount(1)});  // whatever is wrong, the toucher comes again and finds out
  return {range, filled};
}

PageRange HoleFill::empty_part(PageRange window, PageIndex page) noexcept {
  if (window.count.raw() <= 1) return {page, PageCount(1)};
  const Result<std::size_t> found = core_.space.mmu().scan(window, lane_.runs, nullptr);
  if (!found) return {page, PageCount(1)};
  PageIndex first = window.first, end = window.end();
  for (std::size_t i = 0; i < *found; ++i) {
    const PageRange run = lane_.runs[i].range;
    if (run.end() <= page) first = run.end();
    if (page <= run.first) {
      end = std::min(end, run.first);
      break;
    }
  }
  // A full buffer means that more pages are there than were reported; the copy stops at them by itself.
  return page < end ? PageRange::between(first, end) : PageRange{page, PageCount(1)};
}

bool HoleFill::fill(PageRange window, PageIndex page, int tries, PageCount* filled) noexcept {
  Mmu& mmu = core_.space.mmu();
  const PageRange one{page, PageCount(1)};
  Errc reason = Errc::kAgain;
  {
    MutexLock hold(core_.space.mutex());
    if (!core_.space.table().get(page).is_ram()) {
      mmu.wake(one);  // became something of ours: served as that when it comes again
      return true;
    }
    const PageRange range = plain_part_locked(core_.space, window, page);
    PageIndex at = range.first;
    while (at < range.end()) {
      const PageCount n(std::min((range.end() - at).raw(), PagerCore::kZeroPages));
      const Progress copied = mmu.copy(at, core_.zeros, n, Wake::kYes);
      core_.resident.add(copied.done.raw());
      *filled += copied.done;
      at = at + copied.done;
      if (!copied.failed) continue;
      reason = copied.error.code;
      break;
    }
    if (page < at) return true;
    if (reason == Errc::kEventPending) {
      core_.space.let_events_pass_locked(tries);
      return false;
    }
    if (at == page && reason == Errc::kExists) {
      mmu.wake(one);
      return true;
    }
  }
  if (reason == Errc::kNoMemory) {
    core_.space.clock().sleep_ns(kNoMemoryPause);
    return false;
  }
  if (reason == Errc::kAgain || reason == Errc::kBusy) return false;
  // The window crossed into something else: the page alone. The page alone was refused: it is not ours any more.
  if (window.count.raw() > 1) return false;
  mmu.wake(one);
  return true;
}

bool HoleFill::wants_huge(PageRange unit, bool streaming) noexcept {
  if (core_.config.hole_window.raw() < kPagesPerHuge || !core_.has_room_for_huge()) return false;
  {
    MutexLock hold(core_.mutex);
    const Region* region = core_.regions.find(unit.first);
    if (region == nullptr || !region->range.contains(unit) || !region->takes_huge()) return false;
    if (region->huge_by_us && !streaming) return false;
  }
  const Result<std::size_t> present = core_.space.mmu().scan(unit, lane_.runs, nullptr);
  return present && *present == 0;
}

PageCount HoleFill::fill_huge(PageRange unit) noexcept {
  AddressSpace& space = core_.space;
  Mmu& mmu = space.mmu();
  const Result<Pfn> frame = space.alloc_huge_frame();
  if (!frame) return PageCount(0);
  PageCount done;
  if (core_.make_huge(*frame, lane_)) {
    MutexLock hold(space.mutex());
    space.pump_locked();
    if (space.table().next_used(unit.first, unit.end()) == unit.end()) {
      done = mmu.move(unit.first, frame->frame(), unit.count, Wake::kYes).done;
      core_.resident.add(done.raw());
    }
  }
  space.page(*frame)->unlock();
  space.put_page(*frame);
  return done;
}

}  // namespace whimbrel
