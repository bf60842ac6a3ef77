// migrate_device_range and migrate_device_pfns: the frame-range protocol, mappings found by reverse map (PR-02, PLK, RNG,
// PFN).
#include "base/check.h"
#include "migrate/migrate_vma.h"

namespace whimbrel {
namespace {

// PLK-01: a reference and the lock of the folio whose head this is; 0 for tails, free and busy pages.
MigrateWord migrate_device_pfn_lock(AddressSpace& space, Pfn pfn) {
  Page* page = space.page(pfn);
  if (page == nullptr || page->is_tail() || !page->try_get()) return MigrateWord();
  if (!page->try_lock()) {
    space.put_page(pfn);
    return MigrateWord();
  }
  return MigrateWord::of(pfn).with(MigrateWord::kMigrate);
}

void undo_lock(AddressSpace& space, MigrateWord word) {
  if (!word.valid()) return;
  space.page(word.pfn())->unlock();
  space.put_page(word.pfn());
}

std::uint64_t pages_in_folio(AddressSpace& space, Pfn pfn) {
  const Page* page = space.page(pfn);
  return page == nullptr || page->is_tail() ? 1 : std::uint64_t{1} << page->order();
}

// UNM-06: every slot that maps the folio is frozen; its mapping reference goes.
bool unmap_folio_locked(AddressSpace& space, Pfn head_pfn) REQUIRES(space.mutex()) {
  Page* head = space.page(head_pfn);
  const std::uint64_t n = std::uint64_t{1} << head->order();
  if (head->is_mapped() && space.table().get(head->mapped_at()).is_huge()) {
    const PageIndex base = head->mapped_at();
    const PageEntry entry = space.table().get(base);
    if (entry.state() != PageState::kDevice) return false;
    CHECK(space.table().set_huge(base, entry.after(PageEvent::kCollectHome)).has_value());
    CHECK(!head->put());
    return true;
  }
  for (std::uint64_t i = 0; i < n; ++i) {
    const Page* piece = space.page(head_pfn + PageCount(i));
    if (!piece->is_mapped()) continue;
    const PageEntry entry = space.table().get(piece->mapped_at());
    if (entry.state() == PageState::kCoherent) {
      PageRun run[1];
      const Result<std::size_t> found = space.mmu().scan({piece->mapped_at(), PageCount(1)}, run, nullptr);
      const Result<Mapping> mapping = space.mmu().mapping_at_or_above(piece->mapped_at());
      const bool writable = found && *found == 1 && mapping && space.is_writable(run[0].kind, *mapping);
      if (!space.take_coherent_locked(piece->mapped_at(), writable ? PageEntry::kWritable : 0)) return false;
      CHECK(!head->put());
      continue;
    }
    if (entry.state() != PageState::kDevice) continue;
    space.table().update(piece->mapped_at(), entry.after(PageEvent::kCollectHome));
    CHECK(!head->put());
  }
  return true;
}

void unmap(AddressSpace& space, MigrateWord* src, std::uint64_t npages) {
  for (std::uint64_t i = 0; i < npages; ++i) {
    if (!src[i].valid()) continue;
    bool unmapped = false;
    {
      MutexLock hold(space.mutex());
      space.pump_locked();
      unmapped = unmap_folio_locked(space, src[i].pfn());
    }
    if (unmapped) continue;
    undo_lock(space, src[i]);
    src[i] = MigrateWord();
  }
}

}  // namespace

void migrate_device_range(AddressSpace& space, MigrateWord* src, Pfn first, std::uint64_t npages) noexcept {
  for (std::uint64_t i = 0; i < npages;) {
    src[i] = migrate_device_pfn_lock(space, first + PageCount(i));
    const std::uint64_t n = pages_in_folio(space, first + PageCount(i));
    if (n > npages - i) {  // RNG-01: a folio that does not fit ends the range
      undo_lock(space, src[i]);
      for (std::uint64_t k = i; k < npages; ++k) src[k] = MigrateWord();
      break;
    }
    if (n > 1) src[i] = src[i].with(MigrateWord::kCompound);
    for (std::uint64_t k = 1; k < n; ++k) src[i + k] = MigrateWord();
    i += n;
  }
  unmap(space, src, npages);
}

void migrate_device_pfns(AddressSpace& space, MigrateWord* src, std::uint64_t npages) noexcept {
  for (std::uint64_t i = 0; i < npages;) {
    const Pfn pfn(src[i].raw());
    src[i] = migrate_device_pfn_lock(space, pfn);
    const std::uint64_t n = pages_in_folio(space, pfn);
    if (n > npages - i) {
      undo_lock(space, src[i]);
      for (std::uint64_t k = i; k < npages; ++k) src[k] = MigrateWord();
      break;
    }
    if (n > 1) src[i] = src[i].with(MigrateWord::kCompound);
    for (std::uint64_t k = 1; k < n; ++k) src[i + k] = MigrateWord();
    i += n;
  }
  unmap(space, src, npages);
}

}  // namespace whimbrel
