// Untouched memory that the engine watches: filled as the kernel would have filled it. Reads get the shared zero page,
// writes a page of zeros, areas that want huge pages whole units.
#include "capi/capi.h"

using namespace whimbrel;

namespace {

bool wants_huge(AddressSpace& space, PageIndex page) noexcept {
  const Result<Mapping> detailed = space.mmu().detailed_mapping_at_or_above(page);
  return detailed && detailed->range.contains(page) && detailed->has(Mapping::kHugeAdvised);
}

bool install_huge_zeros_locked(AddressSpace& space, PageRange unit) noexcept REQUIRES(space.mutex()) {
  const Result<Pfn> frame = space.alloc_huge_frame();
  if (!frame) return false;
  *space.bytes(*frame) = std::byte{0};  // faults in a huge page of zeros
  const Progress moved = space.mmu().move(unit.first, frame->frame(), unit.count, Wake::kNo);
  space.page(*frame)->unlock();
  space.put_page(*frame);
  if (moved.failed && moved.done.raw() == 0) return false;
  space.mmu().wake(unit);
  return true;
}

}  // namespace

bool mm_struct::serve_hole(AddressSpace& space, const PendingFault& fault, const Mapping& mapping) noexcept {
  const PageRange unit{fault.page.huge_base(), PageCount(kPagesPerHuge)};
  MutexLock hold(space.mutex());
  if (!space.table().get(fault.page).is_ram()) return false;
  if (fault.write && mapping.range.contains(unit) &&
      space.table().next_used(unit.first, unit.end()) == unit.end()) {
    PageRun run[1];
    const Result<std::size_t> present = space.mmu().scan(unit, run, nullptr);
    // Only the slow query tells whether huge pages are wanted: asked once for each untouched unit.
    if (present && *present == 0 && wants_huge(space, fault.page) && install_huge_zeros_locked(space, unit)) return true;
  }
  return fill_hole_locked(space, fault);
}
