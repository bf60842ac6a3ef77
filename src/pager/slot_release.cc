// PagerCore: device slots that nothing stands for any more go back to the device.
#include "pager/pager_core.h"

namespace whimbrel {

template <class F>
void PagerCore::for_each_folio(F f) noexcept {
  const Pfn end = map->first() + map->count();
  for (Pfn at = map->next_known(map->first()); at < end;) {
    Page& page = *map->find(at);
    const bool head = page.is_allocated() && !page.is_tail();
    const PageCount pages(head ? std::uint64_t{1} << page.order() : 1);
    if (head) f(at, page);
    at = map->next_known(at + pages);
  }
}

void PagerCore::release(Pfn head, unsigned order) noexcept {
  // The device's own gate closes after this one: whoever is let in here is let in there as well.
  const GateSection change(tables);
  if (change) {
    give_back(head, order);
  } else {
    freed.push(*map, head);
  }
}

void PagerCore::release_kept() noexcept {
  if (freed.empty()) return;
  const GateSection change(tables);
  if (change) freed.drain(*map, [this](Pfn head, unsigned order) { give_back(head, order); });
}

// Both at once, as a fork sees it: inside the gate `tables`.
void PagerCore::give_back(Pfn head, unsigned order) noexcept {
  map->find(head)->mark_free();
  device.release(slot_of(head), 1u << order);
}

// The references of slots are right already (AddressSpace::recover_in_child); those of kept copies are made right here. All
// others were the parent's threads', in the middle of bringing a page home or of giving it back: what only they held goes.
void PagerCore::reclaim_in_child() noexcept {
  release_kept();  // its links lie in the pages
  for_each_folio([this](Pfn head, Page& page) {
    if (stands_for_something(head, page.order())) return;
    page.reset_after_fork(page.order(), 0);
    page.clear_mapping();
  });
  {
    MutexLock hold(mutex);
    copies.review([this](PageIndex page, Pfn pfn) {
      if (space.entry(page).pfn() == pfn) return false;  // was on its way home, and has not come
      map->find(pfn)->reset_after_fork(0, 1);
      return true;
    });
  }
  std::uint64_t in_use = 0;
  for_each_folio([&](Pfn head, Page& page) {
    if (page.refs() == 0) return release(head, page.order());
    in_use += std::uint64_t{1} << page.order();
  });
  map->set_pages_in_use(in_use);
}

// Whether a slot of the page table says so.
bool PagerCore::stands_for_something(Pfn head, unsigned order) noexcept {
  for (std::uint64_t i = 0; i < std::uint64_t{1} << order; ++i) {
    const Page* page = map->find(head + PageCount(i));
    if (page->is_mapped() && space.entry(page->mapped_at()).pfn() == head + PageCount(i)) return true;
  }
  return false;
}

}  // namespace whimbrel
