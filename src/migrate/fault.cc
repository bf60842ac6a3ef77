#include "migrate/fault.h"

#include "base/check.h"
#include "migrate/exclusive.h"

namespace whimbrel {
namespace {

// What a hole is filled with. In the library's own read-only data, so it can never be away.
alignas(kPageSize) constexpr std::byte kZeroPage[kPageSize]{};

bool unit_is_one_mapping(Mmu& mmu, PageIndex base) noexcept {
  const Result<Mapping> mapping = mmu.mapping_at_or_above(base);
  return mapping && mapping->range.contains(PageRange{base, PageCount(kPagesPerHuge)});
}

}  // namespace

bool fill_hole_locked(AddressSpace& space, const PendingFault& fault) noexcept {
  if (!space.table().get(fault.page).is_ram()) return false;
  for (int tries = 0; tries < 100; ++tries) {
    const Progress filled = fault.write ? space.mmu().copy(fault.page, kZeroPage, PageCount(1), Wake::kYes)
                                        : space.mmu().zero(fault.page, PageCount(1), Wake::kYes);
    if (!filled.failed) return true;
    if (filled.error.code != Errc::kEventPending) break;
    space.let_events_pass_locked(tries);
    if (!space.table().get(fault.page).is_ram()) break;
  }
  space.mmu().wake({fault.page, PageCount(1)});  // there already, or gone: the access sees what is there now
  return true;
}

std::size_t FaultService::run_once() noexcept {
  space_.begin_serving();
  std::size_t served = 0;
  PendingFault fault;
  while (space_.take_fault(&fault)) {
    beside_ = placement_ != nullptr && placement_->begin(fault.thread);
    serve(fault, false, served == 0);
    if (placement_ != nullptr) placement_->end();
    ++served;
  }
  return served;
}

void FaultService::serve(const PendingFault& fault, bool on_service_thread, bool up_to_date) noexcept {
  space_.stats().faults.fetch_add(1, std::memory_order_relaxed);
  PageEntry entry;
  {
    MutexLock hold(space_.mutex());
    if (!up_to_date) space_.pump_locked();  // changes before faults (UE-02)
    if (!on_service_thread && !space_.taken_fault_waits_locked()) return;  // settled meanwhile with another's fault
    entry = space_.table().get(fault.page);
    space_.trace().add(TraceStep::kFault, fault.page, static_cast<std::uint64_t>(entry.state()));
    if (is_migrating(entry.state())) {
      // MW: remembered; finalize wakes.
      space_.stats().waits.fetch_add(1, std::memory_order_relaxed);
      if (entry.is_huge()) {
        const PageIndex base = fault.page.huge_base();
        CHECK(space_.table().set_huge(base, space_.table().get(base).with(PageEntry::kWaited)).has_value());
      } else {
        space_.table().update(fault.page, entry.with(PageEntry::kWaited));
      }
      return;
    }
  }
  switch (entry.state()) {
    case PageState::kRam: return serve_hole(fault);
    case PageState::kDevice: return serve_device(fault, entry, on_service_thread);
    case PageState::kPoisoned: return fail_access(fault);
    case PageState::kCoherent: return serve_coherent(fault);
    case PageState::kExclusive:
      (void)revoke_exclusive(space_, fault.page);  // refused: its holder re-drives us
      return;
    case PageState::kMigratingOut:
    case PageState::kCommitted:
    case PageState::kMigratingHome:
      space_.mmu().wake({fault.page, PageCount(1)});
      return;
  }
}

void FaultService::serve_hole(const PendingFault& fault) noexcept {
  Mmu& mmu = space_.mmu();
  const PageRange one{fault.page, PageCount(1)};
  if (fault.write_protect) {
    if (holes_ != nullptr && holes_->serve_write_protect(space_, fault)) return;
    // Nothing of ours protects pages in this state any more: let the write through.
    if (!mmu.write_protect(one, false, Wake::kYes)) mmu.wake(one);
    return;
  }
  const Result<Mapping> mapping = mmu.mapping_at_or_above(fault.page);
  if (!mapping || !mapping->range.contains(fault.page)) {
    mmu.wake(one);  // unmapped meanwhile: the access gets its SIGSEGV
    return;
  }
  if (holes_ != nullptr && holes_->serve_hole(space_, fault, *mapping)) return;
  for (int tries = 0; tries < 100; ++tries) {
    MutexLock hold(space_.mutex());
    if (!space_.table().get(fault.page).is_ram()) break;  // became something of ours: served when it comes again
    const Progress filled = mmu.copy(fault.page, kZeroPage, PageCount(1), Wake::kYes);
    if (!filled.failed) {
      space_.trace().add(TraceStep::kHoleFilled, fault.page);
      return;
    }
    if (filled.error.code == Errc::kEventPending) {
      space_.let_events_pass_locked(tries);
      continue;
    }
    if (filled.error.code == Errc::kNoMemory) {
      space_.clock().sleep_ns(1'000'000);
      continue;
    }
    break;  // already there, or not ours any more: touch again and see
  }
  mmu.wake(one);
}

void FaultService::serve_coherent(const PendingFault& fault) noexcept {
  const PageRange one{fault.page, PageCount(1)};
  if (!fault.write_protect) return space_.mmu().wake(one);  // it is there
  MutexLock hold(space_.mutex());
  const PageEntry entry = space_.table().get(fault.page);
  const bool alone = !space_.mmu().is_shared(fault.page).value_or(true);
  if (entry.state() == PageState::kCoherent && !entry.has(PageEntry::kExclusiveMarker) && alone) {
    // The other processes have given it up: it stays where it is.
    space_.table().update(fault.page, entry.with(PageEntry::kExclusiveMarker | PageEntry::kWritable));
  } else if (entry.state() == PageState::kCoherent && !entry.has(PageEntry::kExclusiveMarker)) {
    // FK-11: the writer of a shared page gets a copy in ordinary RAM; the kernel makes it when the write goes on.
    space_.table().update(fault.page, entry.after(PageEvent::kDrop));
    space_.page(entry.pfn())->clear_mapping();
    space_.put_page(entry.pfn());
  }
  if (!space_.mmu().write_protect(one, false, Wake::kYes)) space_.mmu().wake(one);
}

void FaultService::serve_device(const PendingFault& fault, PageEntry entry, bool on_service_thread) noexcept {
  PageMap* map = space_.map_of(entry.pfn());
  if (map == nullptr) {
    // Came home since the slot was looked at, and its device is gone as well: look again.
    space_.mmu().wake({fault.page, PageCount(1)});
    return;
  }
  if (!on_service_thread && !map->ops().serves_inline()) {
    if (queue_ == nullptr || !queue_->push(fault)) space_.mmu().wake({fault.page, PageCount(1)});
    return;
  }
  FaultContext context{space_, entry.pfn(), fault.address, fault.write, entry.is_huge(), fault.thread,
                       !on_service_thread && beside_};
  {
    MutexLock hold(space_.mutex());
    const PageEntry now = space_.table().get(fault.page);
    if (now.without(PageEntry::kWaited) != entry.without(PageEntry::kWaited)) {  // CF-02 step 2
      if (is_migrating(now.state())) {
        if (!now.is_huge()) space_.table().update(fault.page, now.with(PageEntry::kWaited));
        else space_.mmu().wake({fault.page, PageCount(1)});
        return;
      }
      space_.mmu().wake({fault.page, PageCount(1)});
      return;
    }
    const Pfn head = space_.head_of(entry.pfn());
    if (context.huge && !unit_is_one_mapping(space_.mmu(), fault.page.huge_base())) {
      // mprotect, mlock or madvise on a part of the unit has cut its mapping; no message tells of that. The kernel splits
      // the slot then (MP-06), and so must we: no range of the protocol could cover the unit any more, the driver would
      // bring nothing home, and the access would be tried for ever.
      if (!space_.split_slot_locked(fault.page.huge_base())) {
        space_.mmu().wake({fault.page, PageCount(1)});  // no memory for the table now: tried again
        return;
      }
      context.huge = false;
    }
    if (context.huge) context.page = head;
    if (!space_.page(head)->try_lock()) {
      // Somebody is about to bring it home, or has just populated it: whoever unlocks it re-drives us.
      space_.stats().waits.fetch_add(1, std::memory_order_relaxed);
      if (context.huge) {
        const PageIndex base = fault.page.huge_base();
        CHECK(space_.table().set_huge(base, space_.table().get(base).with(PageEntry::kWaited)).has_value());
      } else {
        space_.table().update(fault.page, space_.table().get(fault.page).with(PageEntry::kWaited));
      }
      return;
    }
    space_.page(head)->get();
  }
  const FaultResult result = map->ops().migrate_to_ram(context);
  // The page may be in a smaller folio now (SPL-04): lock and reference are on the one that holds it.
  const Pfn head = space_.head_of(context.page);
  space_.page(head)->unlock();
  space_.put_page(head);
  {
    // Others may have found the page locked, at any slot of a large folio, and nobody else tells them.
    MutexLock hold(space_.mutex());
    space_.wake_waiters_locked(fault.page);
    space_.wake_folio_waiters_locked(head);
    // Came home, or was dropped by a message: whoever did it has told the toucher.
    if (result == FaultResult::kDone && space_.table().get(fault.page).is_ram()) return;
  }
  if (result == FaultResult::kSigbus) return fail_access(fault);
  if (result == FaultResult::kOom) space_.clock().sleep_ns(1'000'000);
  space_.mmu().wake({fault.page, PageCount(1)});  // did not: the access is simply tried again (CF-07)
}

void FaultService::fail_access(const PendingFault& fault) noexcept {
  // A signal for this access only, the data stays where it is (CF-07). Where no thread is known the slot is poisoned: the
  // same signal for the program, until the slot is discarded.
  const PageRange one{fault.page, PageCount(1)};
  if (fault.thread == 0 || !space_.mmu().raise_bus_error(fault.thread, fault.address)) (void)space_.mmu().poison(one);
  space_.mmu().wake(one);
}

}  // namespace whimbrel
