// Holes, zero pages and write protection of the program's memory as a kernel with the devices would treat them, and the
// mappings of nodes.
#include <cstring>

#include "base/check.h"
#include "mirror/protection_lift.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

alignas(kPageSize) constexpr std::byte kZeroPage[kPageSize]{};

bool all_zero(const std::byte* bytes, std::size_t count) {
  std::uint64_t any = 0;
  for (std::size_t i = 0; i < count; i += sizeof any) {
    std::uint64_t word;
    std::memcpy(&word, bytes + i, sizeof word);
    any |= word;
  }
  return any == 0;
}

// One run that covers the unit, mapped by one entry.
bool is_huge_mapped(AddressSpace& space, PageRange unit, std::uint32_t* kind) {
  PageRun run[1];
  const Result<std::size_t> found = space.mmu().scan(unit, run, nullptr);
  if (!found || *found != 1 || run[0].range != unit || (run[0].kind & PageRun::kHuge) == 0) return false;
  *kind = run[0].kind;
  return true;
}

}  // namespace

void Session::watch(PageRange range, bool exactly) noexcept {
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = space_->mmu().mapping_at_or_above(at);
    if (!mapping || mapping->range.first >= range.end()) break;
    at = mapping->range.end();
    // Whole mappings: a part would be cut off, and the program would see the border (mremap across it fails).
    if (!mapping->is_private_anonymous()) continue;
    (void)space_->mmu().watch(exactly ? mapping->range.intersect(range) : mapping->range);
  }
  MutexLock hold(mutex_);
  for (const PageRange& known : watched_) {
    if (known.contains(range)) return;
  }
  watched_[watched_next_] = range;
  watched_next_ = (watched_next_ + 1) % watched_.size();
}

void Session::note_borders(PageRange changed) noexcept {
  for (const PageIndex border : {changed.first, changed.end()}) {
    const Result<Mapping> mapping = mmu_->mapping_at_or_above(border);
    if (mapping && mapping->range.contains(border)) note_borders(mapping->range, changed);
  }
}

void Session::note_borders(PageRange mapping, PageRange changed) noexcept {
  for (const PageIndex border : {changed.first, changed.end()}) {
    const PageRange unit{border.huge_base(), PageCount(kPagesPerHuge)};
    if (border.is_huge_aligned() || !mapping.contains(unit) || border == mapping.first) continue;
    dissolve_zero_unit(unit, {});  // the kernel makes base zero pages of it
    space_->notify_start(NotifyEvent::kClear, unit, nullptr);
    space_->notify_end(NotifyEvent::kClear, unit, nullptr);
  }
}

void Session::yield_to_application(PageRange range) noexcept {
  MutexLock hold(space_->mutex());
  space_->pump_locked();
  if (space_->table().next_used(range.first, range.end()) != range.end()) return;
  (void)mmu_->unwatch(range);
}

// ---- mappings of nodes ---------------------------------------------------------------------------------------------

void Session::add_node_mapping(PageRange range) noexcept {
  {
    MutexLock hold(mutex_);
    for (PageRange& slot : node_mappings_) {
      if (!slot.empty()) continue;
      slot = range;
      break;
    }
  }
  watch(range);
  MutexLock hold(space_->mutex());
  space_->pump_locked();
  for (PageIndex at = range.first; at < range.end();) {
    const Progress filled = mmu_->copy(at, kZeroPage, PageCount(1), Wake::kYes, true);
    if (filled.failed && filled.error.code == Errc::kEventPending) {
      space_->pump_locked();
      continue;
    }
    ++at;
  }
}

bool Session::is_node_mapping(PageIndex page) noexcept {
  MutexLock hold(mutex_);
  for (const PageRange& range : node_mappings_) {
    if (range.contains(page)) return true;
  }
  return false;
}

void Session::invalidate_start(NotifyEvent event, PageRange range, const void* owner) noexcept {
  (void)owner;
  if (event != NotifyEvent::kUnmap && event != NotifyEvent::kClear) return;
  MutexLock hold(mutex_);
  for (PageIndex& base : zero_units_) {
    if (base != PageIndex() && range.overlaps({base, PageCount(kPagesPerHuge)})) base = PageIndex();
  }
  if (event != NotifyEvent::kUnmap) return;
  file_copies_.unmapped(range);
  for (PageRange& slot : node_mappings_) {
    if (slot.empty() || !slot.overlaps(range)) continue;
    const PageRange before = PageRange::between(slot.first, range.first);
    const PageRange after = PageRange::between(range.end(), slot.end());
    slot = before.empty() ? after : before;
    if (before.empty() || after.empty()) continue;
    for (PageRange& free : node_mappings_) {
      if (!free.empty()) continue;
      free = after;
      break;
    }
  }
}

// After the message that said so: the old place has been announced as unmapped by now, so what moved is asked for by its
// kind at the new place only when it matters. A moved node mapping goes on as ordinary memory.
void Session::remapped(PageRange from, PageIndex to) noexcept { (void)from, (void)to; }

// ---- zero pages ------------------------------------------------------------------------------------------------------

void Session::note_zero_unit(PageIndex base) noexcept {
  MutexLock hold(mutex_);
  for (PageIndex& slot : zero_units_) {
    if (slot == base) return;
  }
  for (PageIndex& slot : zero_units_) {
    if (slot != PageIndex()) continue;
    slot = base;
    return;
  }
}

bool Session::take_zero_unit(PageIndex base) noexcept {
  MutexLock hold(mutex_);
  for (PageIndex& slot : zero_units_) {
    if (slot != base) continue;
    slot = PageIndex();
    return true;
  }
  return false;
}

void Session::dissolve_zero_units(PageRange range) noexcept {
  for (PageIndex base = range.first.huge_base(); base < range.end(); base = base + PageCount(kPagesPerHuge)) {
    const PageRange unit{base, PageCount(kPagesPerHuge)};
    dissolve_zero_unit(unit, range.intersect(unit));
  }
}

void Session::cut_zero_units(PageRange dropped) noexcept {
  for (const PageIndex border : {dropped.first, dropped.end()}) {
    const PageRange unit{border.huge_base(), PageCount(kPagesPerHuge)};
    if (!border.is_huge_aligned()) dissolve_zero_unit(unit, dropped.intersect(unit));
  }
}

void Session::dissolve_zero_unit(PageRange unit, PageRange hole) noexcept {
  if (!take_zero_unit(unit.first)) return;
  ProtectionLift lift(*space_, unit);
  MutexLock hold(space_->mutex());
  dissolve_unit_locked(unit, hole);
}

void Session::dissolve_unit_locked(PageRange unit, PageRange hole) noexcept {
  space_->pump_locked();
  std::uint32_t kind = 0;
  // Written meanwhile: ordinary memory.
  if (!is_huge_mapped(*space_, unit, &kind) || (kind & PageRun::kWritten) != 0) return;
  if (space_->table().next_used(unit.first, unit.end()) != unit.end()) return;
  const Result<Pfn> frame = space_->alloc_huge_frame();
  if (!frame) return;
  Progress moved = mmu_->move(frame->frame(), unit.first, unit.count, Wake::kNo);
  // Whoever touches a page from here on waits for the lock that we hold.
  const std::byte* bytes = space_->bytes(*frame);
  if (moved.failed && moved.error.code == Errc::kBusy && moved.done.raw() == 0 && discarder_.discard_locked(*space_, unit)) {
    moved = {unit.count, false, {}};  // a fork shares it, and nobody has written it since: the frame's zeros are its contents
  }
  const bool whole = !moved.failed && all_zero(bytes, kHugeSize);
  for (std::uint64_t i = 0; i < moved.done.raw(); ++i) {
    const PageIndex at = unit.first + PageCount(i);
    if (whole && hole.contains(at)) continue;
    for (int tries = 0; tries < 1000; ++tries) {
      const Progress put = whole ? mmu_->zero(at, PageCount(1), Wake::kNo)
                                 : mmu_->copy(at, bytes + i * kPageSize, PageCount(1), Wake::kNo);
      if (!put.failed || put.error.code != Errc::kEventPending) break;
      space_->pump_locked();
    }
  }
  space_->page(*frame)->unlock();
  space_->put_page(*frame);
  mmu_->wake(unit);
}

// ---- holes -----------------------------------------------------------------------------------------------------------

bool Session::wants_huge(PageIndex page) noexcept {
  const std::uint64_t changes = mapping_changes_.load(std::memory_order_acquire);
  const Result<Mapping> mapping = mmu_->mapping_at_or_above(page);
  if (!mapping || !mapping->range.contains(page)) return false;
  {
    MutexLock hold(mutex_);
    if (advice_.changes == changes && advice_.mapping == mapping->range) return advice_.huge;
  }
  const Result<Mapping> detailed = mmu_->detailed_mapping_at_or_above(page);
  if (!detailed || !detailed->range.contains(page)) return false;
  MutexLock hold(mutex_);
  advice_.mapping = detailed->range;
  advice_.changes = changes;
  advice_.huge = detailed->has(Mapping::kHugeAdvised);
  return advice_.huge;
}

bool Session::serve_hole(AddressSpace& space, const PendingFault& fault, const Mapping& mapping) noexcept {
  const PageRange unit{fault.page.huge_base(), PageCount(kPagesPerHuge)};
  if (mapping.range.contains(unit)) {
    PageRun run[1];
    const Result<std::size_t> present = space.mmu().scan(unit, run, nullptr);
    // Whether huge pages are wanted only the slow query tells: asked once for each untouched unit.
    if (present && *present == 0 && wants_huge(fault.page)) {
      bool installed = false;
      {
        const ProtectionLift lift(space, unit);
        MutexLock hold(space.mutex());
        installed = space.table().next_used(unit.first, unit.end()) == unit.end() &&
                    install_huge_zeros_locked(space, unit, fault.write);
      }
      if (installed) {
        space.mmu().wake(unit);
        return true;
      }
    }
  }
  MutexLock hold(space.mutex());
  return fill_hole_locked(space, fault);
}

bool Session::install_huge_zeros_locked(AddressSpace& space, PageRange unit, bool writable) noexcept {
  const Result<Pfn> frame = space.alloc_huge_frame();
  if (!frame) return false;
  *space.bytes(*frame) = std::byte{0};  // faults in a huge page of zeros
  const Progress moved = space.mmu().move(unit.first, frame->frame(), unit.count, Wake::kNo);
  // What a read brings in stands for the huge zero page: readable until the first write.
  if (!moved.failed && !writable && space.config().track_protection) {
    (void)space.mmu().write_protect(unit, true, Wake::kNo);
    note_zero_unit(unit.first);
  }
  space.page(*frame)->unlock();
  space.put_page(*frame);
  return moved.done.raw() != 0 || !moved.failed;
}

bool Session::serve_write_protect(AddressSpace& space, const PendingFault& fault) noexcept {
  const PageRange unit{fault.page.huge_base(), PageCount(kPagesPerHuge)};
  const bool shared = space.mmu().is_shared(fault.page).value_or(false);
  const bool replaced = shared || is_node_mapping(fault.page);
  (void)take_zero_unit(unit.first);
  bool lifted = false;
  PageRange range{fault.page, PageCount(1)};
  {
    MutexLock hold(space.mutex());
    std::uint32_t kind = 0;
    // A huge page of this process alone becomes writable whole; of a shared one, the kernel copies the page written.
    if (!shared && is_huge_mapped(space, unit, &kind)) range = unit;
    lifted = space.mmu().write_protect(range, false, Wake::kNo).has_value();
  }
  if (!lifted) return false;
  // MN: a page that a write replaces is another page for every device.
  if (replaced) {
    space.notify_start(NotifyEvent::kClear, range, nullptr);
    space.notify_end(NotifyEvent::kClear, range, nullptr);
  }
  space.mmu().wake(range);
  return true;
}

}  // namespace whimbrel::mirror
