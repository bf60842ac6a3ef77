#include "migrate/exclusive.h"

#include "base/check.h"

namespace whimbrel {
namespace {

// A page of a coherent device stays on it (EX-01): it is taken back into its own frame.
Result<Pfn> take_coherent_page_locked(AddressSpace& space, PageIndex at) REQUIRES(space.mutex()) {
  const Pfn pfn = space.table().get(at).pfn();
  Page* page = space.page(pfn);
  if (!page->try_lock()) return fail(Errc::kAgain, 0, "make_device_exclusive");
  const bool taken = space.take_coherent_locked(at, PageEntry::kWritable);
  const PageEntry entry = space.table().get(at);
  if (!taken || entry.state() != PageState::kMigratingHome || entry.pfn() != pfn) {
    page->unlock();
    return fail(Errc::kAgain, 0, "make_device_exclusive");
  }
  space.table().update(at, entry.with(PageEntry::kExclusiveMarker).after(PageEvent::kMakeExclusive));
  page->get();  // the caller's reference, beside the mapping's
  return pfn;
}

// Puts a coherent page back into the program; its frame's place is empty afterwards.
Progress put_back_coherent_locked(AddressSpace& space, PageIndex at, Pfn pfn) REQUIRES(space.mutex()) {
  const PageIndex frame = space.map_of(pfn)->frame_of(pfn);
  const Progress back = space.mmu().move(at, frame, PageCount(1), Wake::kNo);
  if (!back.failed || back.error.code == Errc::kEventPending) return back;
  const Progress put = space.mmu().copy(at, space.bytes(pfn), PageCount(1), Wake::kNo);
  if (!put.failed) CHECK(space.mmu().discard({frame, PageCount(1)}).has_value());
  return put;
}

// Takes the page out of the program into a fresh frame; the slot says exclusive. kAgain: try from the start.
Result<Pfn> take_page(AddressSpace& space, PageIndex at) {
  MutexLock hold(space.mutex());
  space.pump_locked();
  const Result<Mapping> mapping = space.mmu().mapping_at_or_above(at);
  if (!mapping || !mapping->range.contains(at)) return fail(Errc::kFault, 0, "make_device_exclusive");
  const PageRange one{at, PageCount(1)};
  if (space.is_quarantined_locked(one)) return fail(Errc::kAgain, 0, "make_device_exclusive");
  if (space.table().get(at).state() == PageState::kCoherent) return take_coherent_page_locked(space, at);
  if (!space.table().get(at).is_ram()) return fail(Errc::kAgain, 0, "make_device_exclusive");
  if (const Result<void> watched = space.mmu().watch(mapping->range); !watched) return std::unexpected(watched.error());
  if (const Result<void> room = space.table().prepare(one); !room) return std::unexpected(room.error());
  const Result<PageIndex> frame = space.pool(FrameUse::kStaging).take(PageCount(1));
  if (!frame) return std::unexpected(frame.error());
  const Pfn pfn = Pfn::of_frame(*frame);
  Page* page = space.page(pfn);
  page->set_mapping(at);
  const PageEntry frozen(PageState::kMigratingOut, pfn, PageEntry::kWritable | PageEntry::kExclusiveMarker);
  space.table().update(at, frozen);
  const Progress moved = space.mmu().move(*frame, at, PageCount(1), Wake::kNo);
  if (moved.failed) {
    space.table().update(at, frozen.after(PageEvent::kRestore));
    space.free_frames(pfn, PageCount(1));
    const Errc code = moved.error.code;
    const bool again = code == Errc::kEventPending || code == Errc::kNotFound || code == Errc::kAgain;
    return fail(again ? Errc::kAgain : code, moved.error.sys, "make_device_exclusive");
  }
  space.table().update(at, frozen.after(PageEvent::kMakeExclusive));
  page->get();  // the mapping's reference, beside the caller's
  return pfn;
}

}  // namespace

Result<Pfn> make_device_exclusive(AddressSpace& space, VirtualAddress address, const void* owner) noexcept {
  const PageIndex at = PageIndex::of(address);
  const PageRange one{at, PageCount(1)};
  for (int tries = 0; tries < 1000; ++tries) {
    const Result<Mapping> mapping = space.mmu().mapping_at_or_above(at);
    if (!mapping || !mapping->range.contains(at) || !mapping->has(Mapping::kWritable)) {
      return fail(Errc::kFault, 0, "make_device_exclusive: no writable mapping");
    }
    // Fault it in writable: sharing broken, zero page replaced, device page home, an older exclusivity revoked.
    if (const Result<void> in = space.mmu().populate(one, true); !in && in.error().code != Errc::kAgain) {
      return fail(Errc::kFault, in.error().sys, "make_device_exclusive");
    }
    if (mapping->has_any(Mapping::kShared | Mapping::kHugetlb | Mapping::kKernelOwned)) {
      return fail(Errc::kNotSupported, 0, "make_device_exclusive: not anonymous memory");
    }
    space.notify_start(NotifyEvent::kExclusive, one, owner);
    const Result<Pfn> taken = take_page(space, at);
    space.notify_end(NotifyEvent::kExclusive, one, owner);
    if (taken || taken.error().code != Errc::kAgain) return taken;
  }
  return fail(Errc::kBusy, 0, "make_device_exclusive");
}

bool revoke_exclusive(AddressSpace& space, PageIndex at) noexcept {
  const PageRange one{at, PageCount(1)};
  space.notify_start(NotifyEvent::kClear, one, nullptr);  // everybody is told, the holder too
  bool settled = true;
  {
    MutexLock hold(space.mutex());
    for (int tries = 0;; ++tries) {
      const PageEntry entry = space.table().get(at);
      if (entry.state() != PageState::kExclusive) break;
      const Pfn pfn = entry.pfn();
      Page* page = space.page(pfn);
      if (!page->try_lock()) {
        space.table().update(at, entry.with(PageEntry::kWaited));
        settled = false;
        break;
      }
      const bool coherent = pfn.is_device();
      const Progress back = coherent ? put_back_coherent_locked(space, at, pfn)
                                     : space.mmu().move(at, pfn.frame(), PageCount(1), Wake::kNo);
      Progress put = back;
      if (!coherent && back.failed && back.error.code != Errc::kEventPending) {
        put = space.mmu().copy(at, space.bytes(pfn), PageCount(1), Wake::kNo);
      }
      if (put.failed && put.error.code == Errc::kEventPending) {
        page->unlock();
        space.let_events_pass_locked(tries);
        continue;
      }
      CHECK(!put.failed || put.error.code == Errc::kExists || put.error.code == Errc::kNotFound || tries < 1000,
            "an exclusive page cannot be put back");
      if (put.failed && put.error.code != Errc::kExists && put.error.code != Errc::kNotFound) {
        page->unlock();
        space.clock().sleep_ns(50'000);
        continue;
      }
      if (coherent && !put.failed) {
        space.table().update(at, entry.without(PageEntry::kWaited).after(PageEvent::kMapCoherent));
        page->unlock();
        break;
      }
      space.table().update(at, entry.after(PageEvent::kRestore));
      page->clear_mapping();
      page->unlock();
      space.put_page(pfn);
      break;
    }
  }
  space.notify_end(NotifyEvent::kClear, one, nullptr);
  if (settled) space.mmu().wake(one);
  return settled;
}

void release_exclusive(AddressSpace& space, Pfn frame) noexcept {
  Page* page = space.page(frame);
  {
    MutexLock hold(space.mutex());
    page->unlock();
    if (page->is_mapped()) space.wake_waiters_locked(page->mapped_at());
  }
  space.put_page(frame);
}

void revoke_all_exclusive(AddressSpace& space) noexcept {
  constexpr PageIndex kEnd(std::uint64_t{1} << (kUserAddressBits - kPageShift));
  PageIndex at;
  for (;;) {
    PageIndex found = kEnd;
    {
      MutexLock hold(space.mutex());
      for (PageIndex i = space.table().next_used(at, kEnd); i < kEnd;
           i = space.table().next_used(i + PageCount(1), kEnd)) {
        if (space.table().get(i).state() != PageState::kExclusive) continue;
        found = i;
        break;
      }
    }
    if (found == kEnd) return;
    if (!revoke_exclusive(space, found)) {
      space.clock().sleep_ns(50'000);
      continue;
    }
    at = found + PageCount(1);
  }
}

}  // namespace whimbrel
