// Pages and folios, as drivers handle them.
#include <sched.h>

#include <cerrno>
#include <cstring>

#include "capi/capi.h"
#include "capi/convert.h"

using namespace whimbrel;
using capi::complain;
using capi::pfn_of;

namespace {

// The folio's head. A page that the engine does not know is a driver's mistake that would corrupt memory later.
Page& head_page(const folio* folio) {
  Page* page = capi::running().space().page(pfn_of(folio));
  CHECK(page != nullptr && !page->is_tail(), "not the head of a folio of this engine");
  return *page;
}

}  // namespace

folio* page_folio(page* page) { return capi::folio_of(capi::running().space().head_of(pfn_of(page))); }

unsigned int folio_order(const folio* folio) { return head_page(folio).order(); }
int folio_ref_count(const folio* folio) { return static_cast<int>(head_page(folio).refs()); }

bool folio_mapped(folio* folio) {
  const std::uint64_t n = std::uint64_t{1} << head_page(folio).order();
  for (std::uint64_t i = 0; i < n; ++i) {
    if (capi::running().space().page(pfn_of(folio) + PageCount(i))->is_mapped()) return true;
  }
  return false;
}

bool is_device_private_page(const page* page) {
  mm_struct* mm = capi::current();
  const PageMap* map = mm == nullptr ? nullptr : mm->space().map_of(pfn_of(page));
  return map != nullptr && map->type() == MemoryType::kPrivate;
}

bool is_device_coherent_page(const page* page) {
  mm_struct* mm = capi::current();
  const PageMap* map = mm == nullptr ? nullptr : mm->space().map_of(pfn_of(page));
  return map != nullptr && map->type() == MemoryType::kCoherent;
}

void* page_address(const page* page) {
  const Pfn pfn = pfn_of(page);
  if (is_device_private_page(page)) return nullptr;
  if (pfn.is_device() || capi::running().space().page(pfn) != nullptr) return capi::running().space().bytes(pfn);
  return reinterpret_cast<void*>(pfn.raw() << kPageShift);  // RAM in place
}

// ---- references and locks ------------------------------------------------------------------------------------------------

void folio_get(folio* folio) { head_page(folio).get(); }
bool folio_try_get(folio* folio) {
  Page* page = capi::running().space().page(pfn_of(folio));
  return page != nullptr && !page->is_tail() && page->try_get();
}
void folio_put(folio* folio) { capi::running().space().put_page(pfn_of(folio)); }

bool folio_trylock(folio* folio) { return head_page(folio).try_lock(); }
bool folio_test_locked(const folio* folio) { return head_page(folio).is_locked(); }

void folio_lock(folio* folio) {
  Page& page = head_page(folio);
  for (int tries = 0; !page.try_lock(); ++tries) {
    if (tries < 100) sched_yield();
    else capi::running().space().clock().sleep_ns(tries < 200 ? 20'000 : 500'000);
  }
}

void folio_unlock(folio* folio) {
  AddressSpace& space = capi::running().space();
  const Pfn head = pfn_of(folio);
  head_page(folio).unlock();
  // A touch may have found it locked; nobody else tells it.
  MutexLock hold(space.mutex());
  space.wake_folio_waiters_locked(head);
}

// ---- splitting and allocating --------------------------------------------------------------------------------------------

int split_folio(folio* folio) {
  AddressSpace& space = capi::running().space();
  Page& head = head_page(folio);
  if (head.order() == 0) return complain(EINVAL, "split_folio: it is a single page");
  if (!head.is_locked()) return complain(EINVAL, "split_folio: not locked", "folio_lock()");
  MutexLock hold(space.mutex());
  space.pump_locked();
  if (head.is_mapped() && space.table().get(head.mapped_at()).is_huge()) {
    if (is_migrating(space.table().get(head.mapped_at()).state())) return complain(EAGAIN, "split_folio: it is migrating");
    if (const Result<void> done = space.split_slot_locked(head.mapped_at()); !done) {
      return complain(done.error(), "split_folio");
    }
  }
  const Result<void> done = space.split_folio_locked(pfn_of(folio), pfn_of(folio), false);
  return done ? 0 : complain(done.error(), "split_folio");
}

folio* folio_alloc(gfp_t gfp, unsigned int order) {
  mm_struct* mm = capi::current();
  if (mm == nullptr) {
    (void)complain(ENODEV, "folio_alloc: no engine runs", "whimbrel_start()");
    return nullptr;
  }
  if (order != 0 && order != kHugeOrder) {
    (void)complain(EINVAL, "folio_alloc: order 0 or 9");
    return nullptr;
  }
  AddressSpace& space = mm->space();
  const Result<Pfn> frame = order == 0 ? space.alloc_frames(PageCount(1)) : space.alloc_huge_frame();
  if (!frame) {
    (void)complain(frame.error(), "folio_alloc", "finalize what is in flight, or start with more landing_bytes");
    return nullptr;
  }
  space.page(*frame)->unlock();
  if ((gfp & __GFP_ZERO) != 0) std::memset(space.bytes(*frame), 0, kPageSize << order);
  return capi::folio_of(*frame);
}
