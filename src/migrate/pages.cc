// migrate_vma_pages and migrate_device_pages: the destination becomes the page's identity (DPG, MDP, SUF, INS, IHP).
//
// No data is touched and no lock dropped here; the result is only in src (DPG-14). Slots of pages that existed are still
// frozen afterwards; populated holes already stand for their destination.
#include <algorithm>

#include "base/check.h"
#include "migrate/insert.h"
#include "migrate/migrate_vma.h"

namespace whimbrel {
namespace {

class PagesStep {
 public:
  PagesStep(AddressSpace& space, MigrateWord* src, MigrateWord* dst, std::uint64_t npages, const MigrateVma* vma)
      : space_(space), src_(src), dst_(dst), npages_(npages), vma_(vma) {}

  void run() {
    // PR-06: one MIGRATE bracket from the first populated hole to the end of the range, closed at the end of the step.
    PageRange announced;
    for (std::uint64_t i = 0; vma_ != nullptr && i < npages_; ++i) {
      if (!dst_[i].valid() || src_[i].valid() || !src_[i].migrating()) continue;
      announced = PageRange::between(address(i), PageIndex::of(vma_->end));
      space_.notify_start(NotifyEvent::kMigrate, announced, vma_->pgmap_owner);
      break;
    }
    {
      MutexLock hold(space_.mutex());
      for (std::uint64_t i = 0; i < npages_;) i += step_locked(i);
    }
    if (!announced.empty()) space_.notify_end(NotifyEvent::kMigrate, announced, vma_->pgmap_owner);
  }

 private:
  PageIndex address(std::uint64_t i) const { return PageIndex::of(vma_->start) + PageCount(i); }
  void refuse(std::uint64_t i, std::uint64_t also = 0) { src_[i] = src_[i].without(MigrateWord::kMigrate | also); }

  std::uint64_t step_locked(std::uint64_t i) REQUIRES(space_.mutex()) {
    if (!dst_[i].valid()) {
      refuse(i);  // DPG-01
      return 1;
    }
    if (!src_[i].valid()) return hole_locked(i);
    if (!src_[i].migrating()) return 1;
    if (src_[i].compound() && !dst_[i].compound()) {
      if (vma_ == nullptr) {  // DPG-04: no mapping to split in
        refuse(i, MigrateWord::kCompound);
        return 1;
      }
      if (!split_unmapped_locked(i)) {
        refuse(i, MigrateWord::kCompound);
        return kPagesPerHuge;
      }
      return step_locked(i);
    }
    if (dst_[i].compound() && !src_[i].compound()) {
      refuse(i);  // DPG-05
      return 1;
    }
    move_identity_locked(i);
    return 1;
  }

  std::uint64_t hole_locked(std::uint64_t i) REQUIRES(space_.mutex()) {
    if (!src_[i].migrating() || vma_ == nullptr) return 1;
    HoleInserter insert(space_, vma_->read_only);
    insert.lock_is_held();
    if (src_[i].compound() && !dst_[i].compound()) {  // row 2 of DPG-02: one by one
      src_[i] = src_[i].without(MigrateWord::kCompound);
      const std::uint64_t n = std::min<std::uint64_t>(kPagesPerHuge, npages_ - i);
      for (std::uint64_t j = i; j < i + n; ++j) src_[j] = src_[j].with(MigrateWord::kMigrate);
      insert.base_pages_locked(address(i), src_ + i, dst_ + i, n);
      return n;
    }
    if (dst_[i].compound()) {
      if (!insert.huge_page_locked(address(i), dst_[i].pfn())) refuse(i);
      return 1;
    }
    std::uint64_t n = 1;
    while (i + n < npages_ && dst_[i + n].valid() && !dst_[i + n].compound() && !src_[i + n].valid() &&
           src_[i + n].migrating() && !src_[i + n].compound()) {
      ++n;
    }
    insert.base_pages_locked(address(i), src_ + i, dst_ + i, n);
    return n;
  }

  // SUF: the source is huge, the destinations are not.
  bool split_unmapped_locked(std::uint64_t i) REQUIRES(space_.mutex()) {
    const Pfn head = src_[i].pfn();
    Page* page = space_.page(head);
    const bool fault_folio = vma_->fault_page != Pfn() && space_.head_of(vma_->fault_page) == head;
    if (page->is_mapped() && space_.table().get(page->mapped_at()).is_huge()) {
      if (!space_.split_slot_locked(page->mapped_at().huge_base())) return false;
    }
    if (fault_folio) {
      // The fault path's reference stays with the piece that has the fault page; every piece gets a collector's one.
      CHECK(!page->put());
    }
    if (!space_.split_folio_locked(head, head, true)) {
      if (fault_folio) page->get();
      return false;
    }
    if (fault_folio) space_.page(vma_->fault_page)->get();
    const std::uint64_t bits = src_[i].without(MigrateWord::kCompound).raw() & (MigrateWord::kMigrate | MigrateWord::kWrite);
    const std::uint64_t n = std::min<std::uint64_t>(kPagesPerHuge, npages_ - i);
    for (std::uint64_t j = 0; j < n; ++j) src_[i + j] = MigrateWord::of(head + PageCount(j)).with(bits);
    return true;
  }

  void move_identity_locked(std::uint64_t i) REQUIRES(space_.mutex()) {
    Page* source = space_.page(src_[i].pfn());
    const bool fault = vma_ != nullptr && vma_->fault_page != Pfn() && vma_->fault_page == src_[i].pfn();
    if (source->refs() != (fault ? 2u : 1u)) {  // DPG-12: somebody else holds it
      refuse(i);
      return;
    }
    space_.stats().moved.fetch_add(src_[i].pages().raw(), std::memory_order_relaxed);
    if (src_[i].compound() && !(source->is_mapped() && space_.table().get(source->mapped_at()).is_huge())) {
      // The slot was split meanwhile. The first page may be unmapped while others are not: each speaks for itself.
      for (std::uint64_t j = 0; j < kPagesPerHuge; ++j) commit_base_locked(src_[i].pfn() + PageCount(j));
      return;
    }
    if (!source->is_mapped()) return;  // unmapped meanwhile: finalize frees both
    const PageIndex at = source->mapped_at();
    const PageEntry entry = space_.table().get(at);
    if (entry.state() != PageState::kMigratingOut) return;
    if (entry.is_huge()) {
      CHECK(space_.table().set_huge(at, space_.table().get(at.huge_base()).after(PageEvent::kCommit)).has_value());
    } else {
      space_.table().update(at, entry.after(PageEvent::kCommit));
    }
  }

  void commit_base_locked(Pfn pfn) REQUIRES(space_.mutex()) {
    const Page* piece = space_.page(pfn);
    if (!piece->is_mapped()) return;
    const PageEntry entry = space_.table().get(piece->mapped_at());
    if (entry.state() == PageState::kMigratingOut) {
      space_.table().update(piece->mapped_at(), entry.after(PageEvent::kCommit));
    }
  }

  AddressSpace& space_;
  MigrateWord* const src_;
  MigrateWord* const dst_;
  const std::uint64_t npages_;
  const MigrateVma* const vma_;
};

}  // namespace

void migrate_vma_pages(AddressSpace& space, MigrateVma& args) noexcept {
  PagesStep(space, args.src, args.dst, args.npages, &args).run();
}

void migrate_device_pages(AddressSpace& space, MigrateWord* src, MigrateWord* dst, std::uint64_t npages) noexcept {
  PagesStep(space, src, dst, npages, nullptr).run();
}

}  // namespace whimbrel
