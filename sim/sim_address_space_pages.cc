// What madvise, reclaim, KSM and fork do to the pages of a SimAddressSpace.
#include <vector>

#include "base/check.h"
#include "sim/sim_address_space.h"

namespace whimbrel::sim {

void SimAddressSpace::zap(PageRange range) {
  split_edges(range);
  table_.for_each(range, [this](PageIndex page, const Slot& slot) {
    if (slot.kind == Slot::Kind::kGuard) return;
    table_.split_huge(page);
    Slot gone = table_.take(page);
    // Somebody else may hold the frame (another process, a pipe): it keeps its contents, not the window's memory.
    if (gone.frame != nullptr) gone.frame->take_back();
  });
}

void SimAddressSpace::lazy_free(PageRange range) {
  split_edges(range);
  table_.for_each(range, [this](PageIndex page, const Slot& slot) {
    if (slot.kind == Slot::Kind::kFrame && slot.frame->exclusive) table_.edit(page)->frame->lazy_free = true;
    if (slot.kind == Slot::Kind::kSwapped) table_.clear(page);
  });
}

std::size_t SimAddressSpace::reclaim_lazy_free(PageRange range) {
  std::vector<PageIndex> victims;
  table_.for_each(range, [&](PageIndex page, const Slot& slot) {
    if (slot.kind == Slot::Kind::kFrame && slot.frame->lazy_free && slot.frame->all_pins() == 0)
      victims.push_back(page);
  });
  for (const PageIndex page : victims) {
    table_.split_huge(page);
    Slot gone = table_.take(page);
    gone.frame->take_back();
  }
  return victims.size();
}

Result<void> SimAddressSpace::swap_out(PageIndex page) {
  const Slot& slot = table_.at(page);
  if (slot.kind != Slot::Kind::kFrame || slot.frame->all_pins() != 0 || slot.frame->is_lent()) {
    return fail(Errc::kBusy, 0, "sim swap out");
  }
  auto stored = std::make_shared<Frame>(*swap_);
  stored->exclusive = slot.frame->exclusive;
  if (!slot.frame->is_zero()) {
    std::byte bytes[kPageSize];
    slot.frame->read(0, bytes, kPageSize);
    stored->write(0, bytes, kPageSize);
  }
  const bool write_protected = slot.write_protected;
  table_.split_huge(page);
  table_.set(page, Slot{Slot::Kind::kSwapped, write_protected, std::move(stored)});
  return {};
}

void SimAddressSpace::install_guard(PageRange range) {
  zap(range);
  for (PageIndex page = range.first; page < range.end(); ++page) {
    table_.set(page, Slot{Slot::Kind::kGuard, false, nullptr});
  }
}

void SimAddressSpace::remove_guard(PageRange range) {
  table_.for_each(range, [this](PageIndex page, const Slot& slot) {
    if (slot.kind == Slot::Kind::kGuard) table_.clear(page);
  });
}

bool SimAddressSpace::collapse(PageIndex base) {
  SimPageTable::Block* unit = table_.block(base);
  const Vma* vma = find(base);
  if (!base.is_huge_aligned() || unit == nullptr || unit->huge || unit->filled != kPagesPerHuge) return false;
  if (vma == nullptr || !vma->range.contains({base, PageCount(kPagesPerHuge)})) return false;
  for (const Slot& slot : unit->slots) {
    if (slot.kind != Slot::Kind::kFrame || slot.write_protected) return false;
    if (!slot.frame->exclusive || slot.frame->ksm || slot.frame->all_pins() != 0) return false;
  }
  table_.make_huge(base);
  return true;
}

bool SimAddressSpace::merge(PageIndex a, PageIndex b) {
  const Slot& keep = table_.at(a);
  const Slot& gone = table_.at(b);
  const auto qualifies = [this](PageIndex page, const Slot& slot) {
    return slot.kind == Slot::Kind::kFrame && slot.frame->all_pins() == 0 && slot.frame->folio == nullptr &&
           !slot.write_protected && !slot.frame->is_lent() && find(page) != nullptr;
  };
  if (a == b || !qualifies(a, keep) || !qualifies(b, gone) || keep.frame == gone.frame) return false;
  std::byte one[kPageSize];
  std::byte other[kPageSize];
  keep.frame->read(0, one, kPageSize);
  gone.frame->read(0, other, kPageSize);
  if (std::memcmp(one, other, kPageSize) != 0) return false;
  keep.frame->ksm = true;
  keep.frame->exclusive = false;
  table_.set(b, Slot{Slot::Kind::kFrame, false, keep.frame});
  return true;
}

void SimAddressSpace::split_folio(PageIndex page) {
  SimPageTable::Block* unit = table_.block(page);
  CHECK(unit != nullptr);
  const std::shared_ptr<LargeFolio> folio = table_.at(page).frame->folio;
  CHECK(folio == nullptr || folio->pins == 0);
  table_.split_huge(page);
  const PageIndex base = page.huge_base();
  for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
    Slot& slot = unit->slots[i];
    if (slot.frame == nullptr || slot.frame->folio != folio) continue;
    slot.frame->folio = nullptr;
    const PageIndex at = base + PageCount(i);
    // The page that is being taken is not examined: it leaves at once.
    if (at != page && slot.kind == Slot::Kind::kFrame && slot.frame->exclusive && slot.frame->is_zero() &&
        slot.frame->pins == 0 && !slot.frame->is_lent()) {
      table_.set(at, Slot{Slot::Kind::kZeroPage, false, nullptr});
    }
  }
}

std::unique_ptr<SimAddressSpace> SimAddressSpace::fork() {
  auto child = std::make_unique<SimAddressSpace>(*ram_, *swap_, options_);
  for (const auto& [first, vma] : vmas_) {
    if (vma.has(Mapping::kDontFork)) continue;
    Vma copy = vma;
    copy.watched = copy.watched_write_protect = copy.watched_by_other = false;
    copy.attributes &= ~std::uint32_t{Mapping::kLocked};
    child->vmas_.emplace(first, copy);
    if (vma.has(Mapping::kWipeOnFork)) continue;
    std::vector<PageIndex> huge_units;
    table_.for_each(vma.range, [&](PageIndex page, const Slot& slot) {
      if (slot.kind == Slot::Kind::kWriteProtectMarker) return;
      Slot shared{slot.kind, false, slot.frame};
      if (slot.frame != nullptr && slot.frame->all_pins() != 0) {
        // A pinned page stays the parent's alone; the child gets its copy at once.
        table_.split_huge(page);
        auto own = std::make_shared<Frame>(*ram_);
        std::byte bytes[kPageSize];
        slot.frame->read(0, bytes, kPageSize);
        own->write(0, bytes, kPageSize);
        shared.frame = std::move(own);
      } else if (slot.frame != nullptr) {
        slot.frame->exclusive = false;
      }
      child->table_.set(page, std::move(shared));
      if (table_.is_huge(page) && page.is_huge_aligned()) huge_units.push_back(page);
    });
    for (const PageIndex base : huge_units) {
      if (!table_.is_huge(base)) continue;
      child->table_.block(base)->huge = true;  // the same folio, shared
    }
  }
  return child;
}

void SimAddressSpace::check_invariants() const {
  PageIndex end;
  for (const auto& [first, vma] : vmas_) {
    CHECK(first == vma.range.first && !vma.range.empty() && first >= end, "mappings overlap");
    end = vma.range.end();
  }
  table_.check([this](PageIndex page) {
    const auto it = vmas_.upper_bound(page);
    return it != vmas_.begin() && std::prev(it)->second.range.contains(page);
  });
}

}  // namespace whimbrel::sim
