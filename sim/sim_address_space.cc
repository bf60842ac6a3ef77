#include "sim/sim_address_space.h"

#include "base/check.h"

namespace whimbrel::sim {

Vma* SimAddressSpace::find(PageIndex page) {
  Vma* vma = find_at_or_above(page);
  return vma != nullptr && vma->range.contains(page) ? vma : nullptr;
}

Vma* SimAddressSpace::find_at_or_above(PageIndex page) {
  auto it = vmas_.upper_bound(page);
  if (it != vmas_.begin() && std::prev(it)->second.range.contains(page)) return &std::prev(it)->second;
  return it == vmas_.end() ? nullptr : &it->second;
}

bool SimAddressSpace::is_free(PageRange range) {
  const Vma* vma = find_at_or_above(range.first);
  return vma == nullptr || vma->range.first >= range.end();
}

bool SimAddressSpace::is_covered(PageRange range) {
  for (PageIndex page = range.first; page < range.end();) {
    const Vma* vma = find(page);
    if (vma == nullptr) return false;
    page = vma->range.end();
  }
  return true;
}

bool SimAddressSpace::any_watched(PageRange range) {
  for (Vma* vma = find_at_or_above(range.first); vma != nullptr && vma->range.first < range.end();
       vma = find_at_or_above(vma->range.end())) {
    if (vma->watched) return true;
  }
  return false;
}

Result<void> SimAddressSpace::map(const Vma& vma) {
  CHECK(!vma.range.empty() && is_free(vma.range));
  if (vmas_.size() >= options_.max_mappings) return fail(Errc::kNoMemory, 0, "sim mmap");
  vmas_.emplace(vma.range.first, vma);
  return {};
}

bool SimAddressSpace::split_at(PageIndex page) {
  Vma* vma = find(page);
  if (vma == nullptr || vma->range.first == page) return true;
  if (vmas_.size() >= options_.max_mappings) return false;
  Vma upper = *vma;
  upper.range = PageRange::between(page, vma->range.end());
  vma->range = PageRange::between(vma->range.first, page);
  // Page-table entries of 2 MiB never reach across a mapping's edge.
  if (!page.is_huge_aligned()) table_.split_huge(page);
  vmas_.emplace(page, upper);
  return true;
}

void SimAddressSpace::split_edges(PageRange range) {
  if (!range.first.is_huge_aligned()) table_.split_huge(range.first);
  if (!range.end().is_huge_aligned()) table_.split_huge(range.end());
}

void SimAddressSpace::unmap(PageRange range) {
  // munmap may fail for too many mappings; that case is not modelled, since nothing has changed then.
  const std::size_t limit = options_.max_mappings;
  options_.max_mappings = SIZE_MAX;
  (void)split_at(range.first);
  (void)split_at(range.end());
  options_.max_mappings = limit;
  split_edges(range);
  auto it = vmas_.lower_bound(range.first);
  while (it != vmas_.end() && it->second.range.first < range.end()) it = vmas_.erase(it);
  table_.for_each(range, [this](PageIndex page, const Slot&) {
    table_.split_huge(page);
    Slot gone = table_.take(page);
    if (gone.frame != nullptr) gone.frame->take_back();
  });
}

Result<void> SimAddressSpace::change(PageRange range, const std::function<void(Vma&)>& change) {
  if (!split_at(range.first) || !split_at(range.end())) return fail(Errc::kNoMemory, 0, "sim mapping split");
  for (auto it = vmas_.lower_bound(range.first); it != vmas_.end() && it->first < range.end(); ++it) change(it->second);
  return {};
}

Result<void> SimAddressSpace::move_mapping(PageRange from, PageIndex to, bool keep_source) {
  CHECK(is_free({to, from.count}) && is_covered(from) && find(from.first)->range.contains(from));
  if (!split_at(from.first) || !split_at(from.end())) return fail(Errc::kNoMemory, 0, "sim mremap");
  Vma moved = *find(from.first);
  const bool whole_units = from.first.is_huge_aligned() && to.is_huge_aligned();
  if (!keep_source) vmas_.erase(from.first);
  moved.range = {to, from.count};
  vmas_.emplace(to, moved);
  split_edges(from);
  std::vector<PageIndex> pages;
  table_.for_each(from, [&](PageIndex page, const Slot&) { pages.push_back(page); });
  for (const PageIndex page : pages) {
    const PageIndex target = to + (page - from.first);
    if (table_.is_huge(page)) {
      if (whole_units && page.is_huge_aligned()) {
        table_.move_huge(target, page);
        continue;
      }
      table_.split_huge(page);
    }
    if (!table_.at(page).is_empty()) table_.set(target, table_.take(page));
  }
  return {};
}

void SimAddressSpace::grow(Vma& vma, PageCount to) {
  CHECK(to > vma.range.count && is_free(PageRange::between(vma.range.end(), vma.range.first + to)));
  vma.range.count = to;
}

FramePtr SimAddressSpace::new_frame() {
  if (ram_->limit != 0 && ram_->used >= ram_->limit) return nullptr;
  return std::make_shared<Frame>(*ram_);
}

Access SimAddressSpace::access(PageIndex page, bool write) {
  Vma* vma = find(page);
  if (vma == nullptr) return Access::kSegv;
  if (!vma->has(write ? Mapping::kWritable : Mapping::kReadable)) return Access::kSegv;
  const Slot& now = table_.at(page);
  switch (now.kind) {
    case Slot::Kind::kNone:
    case Slot::Kind::kWriteProtectMarker:
      return vma->watched ? Access::kMissing : fill_hole(*vma, page, write);
    case Slot::Kind::kPoison:
      return Access::kBus;
    case Slot::Kind::kGuard:
      return Access::kSegv;
    case Slot::Kind::kSwapped:
      if (const Access back = bring_back_from_swap(page); back != Access::kDone) return back;
      break;
    case Slot::Kind::kZeroPage:
    case Slot::Kind::kFrame:
      break;
  }
  if (!write) return Access::kDone;
  Slot& slot = *table_.edit(page);
  if (slot.write_protected) {
    if (vma->watched_write_protect) return Access::kWriteProtected;
    slot.write_protected = false;
  }
  if (slot.kind == Slot::Kind::kZeroPage) {
    FramePtr frame = new_frame();
    if (frame == nullptr) return Access::kNoMemory;
    table_.set(page, Slot{Slot::Kind::kFrame, false, std::move(frame)});
    return Access::kDone;
  }
  slot.frame->lazy_free = false;
  return slot.frame->exclusive && !slot.frame->ksm ? Access::kDone : break_sharing(page, slot);
}

Access SimAddressSpace::fill_hole(const Vma& vma, PageIndex page, bool write) {
  const PageRange unit{page.huge_base(), PageCount(kPagesPerHuge)};
  if (vma.has(Mapping::kHugeAdvised) && vma.range.contains(unit) && table_.block_is_empty(page) &&
      (ram_->limit == 0 || ram_->used + kPagesPerHuge <= ram_->limit)) {
    for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
      table_.set(unit.first + PageCount(i), Slot{Slot::Kind::kFrame, false, std::make_shared<Frame>(*ram_)});
    }
    table_.make_huge(unit.first);
    return Access::kDone;
  }
  if (!write && options_.zero_page_on_read) {
    table_.set(page, Slot{Slot::Kind::kZeroPage, false, nullptr});
    return Access::kDone;
  }
  FramePtr frame = new_frame();
  if (frame == nullptr) return Access::kNoMemory;
  table_.set(page, Slot{Slot::Kind::kFrame, false, std::move(frame)});
  return Access::kDone;
}

// The last sharer keeps the frame; the others get a copy.
Access SimAddressSpace::break_sharing(PageIndex page, Slot& slot) {
  if (slot.frame->maps == 1) {
    slot.frame->exclusive = true;
    slot.frame->ksm = false;
    return Access::kDone;
  }
  FramePtr copy = new_frame();
  if (copy == nullptr) return Access::kNoMemory;
  std::byte bytes[kPageSize];
  slot.frame->read(0, bytes, kPageSize);
  if (!slot.frame->is_zero()) copy->write(0, bytes, kPageSize);
  table_.split_huge(page);
  table_.set(page, Slot{Slot::Kind::kFrame, false, std::move(copy)});
  return Access::kDone;
}

Access SimAddressSpace::bring_back_from_swap(PageIndex page) {
  FramePtr frame = new_frame();
  if (frame == nullptr) return Access::kNoMemory;
  const Slot& swapped = table_.at(page);
  frame->exclusive = swapped.frame->exclusive;
  if (!swapped.frame->is_zero()) {
    std::byte bytes[kPageSize];
    swapped.frame->read(0, bytes, kPageSize);
    frame->write(0, bytes, kPageSize);
  }
  table_.set(page, Slot{Slot::Kind::kFrame, swapped.write_protected, std::move(frame)});
  return Access::kDone;
}

void SimAddressSpace::peek(PageIndex page, std::size_t offset, void* to, std::size_t bytes) const {
  const Slot& slot = table_.at(page);
  if (slot.frame != nullptr) {
    slot.frame->read(offset, to, bytes);
  } else {
    std::memset(to, 0, bytes);
  }
}

void SimAddressSpace::poke(PageIndex page, std::size_t offset, const void* from, std::size_t bytes) {
  Slot* slot = table_.edit(page);
  CHECK(slot != nullptr && slot->kind == Slot::Kind::kFrame);
  slot->frame->write(offset, from, bytes);
}

}  // namespace whimbrel::sim
