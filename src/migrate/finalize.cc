// migrate_vma_finalize and migrate_device_finalize: every frozen slot becomes usable again, as its new identity or its
// old one; all locks and references of the protocol go (FIN-01..FIN-08, RMP-01).
//
// Pages complete run by run: neighbours that end the same way are installed by one COPY or MOVE and woken together.
#include "migrate/install.h"
#include "migrate/migrate_vma.h"

namespace whimbrel {
namespace {

class FinalizeStep {
 public:
  FinalizeStep(AddressSpace& space, MigrateWord* src, MigrateWord* dst, std::uint64_t npages, Pfn fault_page,
               bool read_only = false)
      : space_(space), src_(src), dst_(dst), npages_(npages), fault_page_(fault_page), read_only_(read_only) {}

  void run() {
    for (std::uint64_t i = 0; i < npages_;) {
      if (!src_[i].valid()) {
        release_destination(i);  // FIN-02
        ++i;
        continue;
      }
      const std::uint64_t n = run_length(i);
      if (coherent(i)) {
        map_coherent(i, n);
      } else if (to_ram(i)) {
        bring_home(i, n);
      } else {
        settle(i, n);
      }
      i += n;
    }
    flush_frames();
  }

 private:
  // The source is a large folio, whatever its word says: a unit that could not be split has lost its COMPOUND bit in the
  // pages step (DPG-04), and is put back whole all the same.
  bool is_unit(std::uint64_t i) const {
    if (!src_[i].valid()) return false;
    const Page* head = space_.page(src_[i].pfn());
    return !head->is_tail() && head->order() != 0;
  }
  bool migrated(std::uint64_t i) const { return src_[i].migrating() && dst_[i].valid(); }
  Pfn winner(std::uint64_t i) const { return migrated(i) ? dst_[i].pfn() : src_[i].pfn(); }
  bool to_ram(std::uint64_t i) const { return !winner(i).is_device(); }
  // The winner is memory that the program can reach where it is.
  bool coherent(std::uint64_t i) const {
    const PageMap* map = space_.map_of(winner(i));
    return map != nullptr && map->type() == MemoryType::kCoherent;
  }

  // Entries from i that can be installed together: base pages, same outcome, frames to install consecutive.
  std::uint64_t run_length(std::uint64_t i) const {
    if (is_unit(i)) return 1;
    std::uint64_t n = 1;
    while (i + n < npages_ && n < kPagesPerHuge && src_[i + n].valid() && !is_unit(i + n) &&
           migrated(i + n) == migrated(i) && to_ram(i + n) == to_ram(i) &&
           coherent(i + n) == coherent(i) &&
           ((!to_ram(i) && !coherent(i)) || winner(i + n) == winner(i) + PageCount(n))) {
      ++n;
    }
    return n;
  }

  // Winner is a frame of ours: it goes into the program, by MOVE when it is the stolen frame itself or a fresh one, by
  // COPY otherwise.
  void bring_home(std::uint64_t i, std::uint64_t n) {
    Installer install(space_, read_only_);
    const bool stolen_back = !migrated(i);
    // Frames of the staging pool hold what was moved in, whichever way: it moves on. So do fresh huge pages.
    const PageIndex frame = winner(i).frame();
    const bool by_move = stolen_back || space_.pool(FrameUse::kStaging).contains(frame) ||
                         (!is_unit(i) && space_.pool(FrameUse::kHuge).contains(frame));
    for (std::uint64_t at = i; at < i + n;) {
      std::uint64_t installed = 0;
      {
        MutexLock hold(space_.mutex());
        install.lock_is_held();
        if (is_unit(at)) {
          install.huge_locked(src_[at].pfn(), winner(at));
          installed = 1;
        } else {
          installed = install.run_locked(src_, at, i + n, winner(at), by_move);
        }
      }
      empty_coherent_sources(at, at + installed);
      for (std::uint64_t k = at; k < at + installed; ++k) finish_home(k);
      at += installed;
    }
    if (!stolen_back) {
      const PageCount frames(is_unit(i) ? kPagesPerHuge : n);
      drop_frames(dst_[i].pfn(), frames, is_unit(i));
    } else {
      space_.stats().restored.fetch_add(n, std::memory_order_relaxed);
    }
  }

  // Coherent pages that have come home are about to be freed, each of which empties its frame: many at once cost one flush.
  void empty_coherent_sources(std::uint64_t at, std::uint64_t end) {
    const auto left = [&](std::uint64_t k) { return src_[k].pfn().is_device() && !space_.page(src_[k].pfn())->is_mapped(); };
    while (at < end) {
      std::uint64_t n = 1;
      while (at + n < end && src_[at + n].pfn() == src_[at].pfn() + PageCount(n) && left(at + n)) ++n;
      const PageMap* map = space_.map_of(src_[at].pfn());
      if (n > 1 && left(at) && map != nullptr && map->type() == MemoryType::kCoherent) {
        CHECK(space_.mmu().discard({map->frame_of(src_[at].pfn()), PageCount(n)}).has_value());
      }
      at += n;
    }
  }

  // Winner is a page of a coherent device: its frame goes into the program, and the slot says whose it is.
  void map_coherent(std::uint64_t i, std::uint64_t n) {
    Installer install(space_, read_only_);
    const bool moved = migrated(i);
    for (std::uint64_t at = i; at < i + n;) {
      std::uint64_t installed = 0;
      {
        MutexLock hold(space_.mutex());
        install.lock_is_held();
        const PageIndex frame = space_.map_of(winner(at))->frame_of(winner(at));
        installed = install.run_locked(src_, at, i + n, Pfn::of_frame(frame), true, winner(at));
      }
      for (std::uint64_t k = at; k < at + installed; ++k) finish_settled(k, moved);
      at += installed;
    }
  }

  // After the slot is usable again: the source goes. A source that could not be installed (no memory) is on its device
  // still, with its mapping.
  void finish_home(std::uint64_t i) {
    const Pfn source = src_[i].pfn();
    if (!migrated(i)) release_destination(i);  // FIN-03
    if (!source.is_device()) {
      drop_frames(source, PageCount(is_unit(i) ? kPagesPerHuge : 1), is_unit(i));
      return;
    }
    unlock_source(source);
    space_.put_page(source);
    rewake(source);
  }

  // Winner is a device page: nothing to install, the slot just says so.
  void settle(std::uint64_t i, std::uint64_t n) {
    for (std::uint64_t k = i; k < i + n; ++k) {
      const bool moved = migrated(k);
      {
        MutexLock hold(space_.mutex());
        if (is_unit(k)) {
          settle_unit_locked(k, moved);
        } else {
          settle_page_locked(src_[k].pfn(), winner(k), moved);
        }
      }
      finish_settled(k, moved);
    }
  }

  void settle_page_locked(Pfn source, Pfn target, bool moved) REQUIRES(space_.mutex()) {
    Page* page = space_.page(source);
    if (!page->is_mapped()) return;  // dropped meanwhile
    const PageIndex at = page->mapped_at();
    const PageEntry entry = space_.table().get(at);
    const PageEvent event = moved ? PageEvent::kFinish : PageEvent::kReturnToDevice;
    space_.table().update(at, entry.with_pfn(target).after(event));
    space_.trace().add(TraceStep::kSettled, at, target.raw());
    if (moved) {
      page->clear_mapping();
      space_.page(target)->set_mapping(at);
      space_.page(target)->get();
    } else {
      page->get();  // the mapping's reference again; the collector's one is dropped by finish_settled
    }
    space_.wake_waiters_locked(at);
  }

  void settle_unit_locked(std::uint64_t k, bool moved) REQUIRES(space_.mutex()) {
    const Pfn source = src_[k].pfn();
    const Pfn target = moved ? dst_[k].pfn() : source;
    Page* head = space_.page(source);
    const bool still_huge = head->is_mapped() && space_.table().get(head->mapped_at()).is_huge();
    if (!still_huge) {
      // The slot was split or dropped under our feet: page by page. The folio stays whole, one reference per slot.
      for (std::uint64_t j = 0; j < kPagesPerHuge; ++j) {
        Page* piece = space_.page(source + PageCount(j));
        if (!piece->is_mapped()) continue;
        const PageIndex at = piece->mapped_at();
        const PageEvent event = moved ? PageEvent::kFinish : PageEvent::kReturnToDevice;
        space_.table().update(at, space_.table().get(at).with_pfn(target + PageCount(j)).after(event));
        if (moved) piece->clear_mapping();
        space_.page(target + PageCount(j))->set_mapping(at);
        space_.page(target)->get();
        space_.wake_waiters_locked(at);
      }
      return;
    }
    const PageIndex base = head->mapped_at();
    const PageEntry entry = space_.table().get(base);
    const PageEvent event = moved ? PageEvent::kFinish : PageEvent::kReturnToDevice;
    CHECK(space_.table().set_huge(base, entry.with_pfn(target).after(event)).has_value());
    space_.trace().add(TraceStep::kSettled, {base, PageCount(kPagesPerHuge)}, target.raw());
    if (moved) head->clear_mapping();
    space_.page(target)->set_mapping(base);
    space_.page(target)->get();
    space_.wake_waiters_locked(base);
  }

  void finish_settled(std::uint64_t k, bool moved) {
    const Pfn source = src_[k].pfn();
    if (!moved && dst_[k].valid()) release_destination(k);  // FIN-03
    if (source.is_device()) {
      unlock_source(source);
      space_.put_page(source);
      rewake(source);
    } else {
      drop_frames(source, PageCount(is_unit(k) ? kPagesPerHuge : 1), is_unit(k));
    }
    if (moved) {
      space_.page(dst_[k].pfn())->unlock();
      space_.put_page(dst_[k].pfn());
      rewake(dst_[k].pfn());
    }
  }

  void unlock_source(Pfn pfn) {
    // The fault path keeps its lock and its reference (FIN-08).
    if (fault_page_ != Pfn() && space_.head_of(fault_page_) == pfn) return;
    space_.page(pfn)->unlock();
  }

  // Somebody may have found the page locked while its slot already said "device": now he can try again.
  void rewake(Pfn pfn) {
    MutexLock hold(space_.mutex());
    space_.wake_folio_waiters_locked(pfn);
  }

  void release_destination(std::uint64_t i) {
    if (!dst_[i].valid()) return;
    space_.page(dst_[i].pfn())->unlock();
    space_.put_page(dst_[i].pfn());
    rewake(dst_[i].pfn());
  }

  // Frames are freed in runs: one madvise for many.
  void drop_frames(Pfn first, PageCount count, bool folio) {
    if (folio) {
      flush_frames();
      space_.page(first)->clear_mapping();
      space_.page(first)->unlock();
      space_.put_page(first);
      return;
    }
    if (pending_.raw() != 0 && pending_first_ + pending_ == first) {
      pending_ += count;
      return;
    }
    flush_frames();
    pending_first_ = first;
    pending_ = count;
  }
  void flush_frames() {
    if (pending_.raw() != 0) space_.free_frames(pending_first_, pending_);
    pending_ = PageCount(0);
  }

  AddressSpace& space_;
  MigrateWord* const src_;
  MigrateWord* const dst_;
  const std::uint64_t npages_;
  const Pfn fault_page_;
  const bool read_only_;  // the mapping forbids writing, whatever it says at this moment
  Pfn pending_first_;
  PageCount pending_;
};

}  // namespace

void migrate_vma_finalize(AddressSpace& space, MigrateVma& args) noexcept {
  FinalizeStep(space, args.src, args.dst, args.npages, args.fault_page, args.read_only).run();
}

void migrate_device_finalize(AddressSpace& space, MigrateWord* src, MigrateWord* dst, std::uint64_t npages) noexcept {
  FinalizeStep(space, src, dst, npages, Pfn()).run();
}

}  // namespace whimbrel
