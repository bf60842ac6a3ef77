#include "mm/page_table.h"

#include "base/check.h"

namespace whimbrel {

PageTable::~PageTable() {
  for (Middle* middle : top_) {
    if (middle == nullptr) continue;
    for (Leaf* leaf : middle->leaves) {
      if (leaf == nullptr) continue;
      for (Slot& slot : leaf->slots) release_block(slot);
      source_.give(leaf, sizeof(Leaf));
    }
    source_.give(middle, sizeof(Middle));
  }
}

const PageTable::Slot* PageTable::find(PageIndex page) const noexcept {
  const std::uint64_t unit = page.raw() >> kHugeOrder;
  const std::uint64_t top = unit >> (kLeafBits + kMidBits);
  if (top >= (1u << kTopBits)) return nullptr;
  const Middle* middle = top_[top];
  if (middle == nullptr) return nullptr;
  const Leaf* leaf = middle->leaves[(unit >> kLeafBits) & ((1u << kMidBits) - 1)];
  return leaf == nullptr ? nullptr : &leaf->slots[unit & ((1u << kLeafBits) - 1)];
}

PageTable::Slot* PageTable::find(PageIndex page) noexcept {
  return const_cast<Slot*>(static_cast<const PageTable*>(this)->find(page));
}

PageTable::Slot* PageTable::find_or_make(PageIndex page) noexcept {
  const std::uint64_t unit = page.raw() >> kHugeOrder;
  const std::uint64_t top = unit >> (kLeafBits + kMidBits);
  if (top >= (1u << kTopBits)) return nullptr;
  Middle*& middle = top_[top];
  if (middle == nullptr) {
    middle = static_cast<Middle*>(source_.take(sizeof(Middle)));
    if (middle == nullptr) return nullptr;
    metadata_bytes_ += sizeof(Middle);
  }
  Leaf*& leaf = middle->leaves[(unit >> kLeafBits) & ((1u << kMidBits) - 1)];
  if (leaf == nullptr) {
    leaf = static_cast<Leaf*>(source_.take(sizeof(Leaf)));
    if (leaf == nullptr) return nullptr;
    metadata_bytes_ += sizeof(Leaf);
  }
  return &leaf->slots[unit & ((1u << kLeafBits) - 1)];
}

PageTable::Block* PageTable::block_of(Slot& slot) noexcept {
  if (slot.block == nullptr) {
    slot.block = static_cast<Block*>(source_.take(sizeof(Block)));
    if (slot.block != nullptr) metadata_bytes_ += sizeof(Block);
  }
  return slot.block;
}

void PageTable::release_block(Slot& slot) noexcept {
  if (slot.block == nullptr) return;
  source_.give(slot.block, sizeof(Block));
  metadata_bytes_ -= sizeof(Block);
  slot.block = nullptr;
}

PageEntry PageTable::get(PageIndex page) const noexcept {
  const Slot* slot = find(page);
  if (slot == nullptr) return PageEntry();
  if (!slot->huge.is_ram()) {
    return slot->huge.with_pfn(slot->huge.pfn() + PageCount(page.index_in_huge())).with(PageEntry::kHuge);
  }
  return slot->block == nullptr ? PageEntry() : slot->block->entries[page.index_in_huge()];
}

Result<void> PageTable::set(PageIndex page, PageEntry entry) noexcept {
  Slot* slot = entry.is_ram() ? find(page) : find_or_make(page);
  if (slot == nullptr) return entry.is_ram() ? Result<void>{} : fail(Errc::kNoMemory, 0, "page table");
  CHECK(slot->huge.is_ram(), "base entry under a huge one");
  if (entry.is_ram() && slot->block == nullptr) return {};
  if (block_of(*slot) == nullptr) return fail(Errc::kNoMemory, 0, "page table");
  update(page, entry);
  return {};
}

void PageTable::update(PageIndex page, PageEntry entry) noexcept {
  Slot* slot = find(page);
  CHECK(slot != nullptr && slot->huge.is_ram(), "page table block missing");
  if (slot->block == nullptr) {
    CHECK(entry.is_ram(), "page table block missing");
    return;
  }
  PageEntry& old = slot->block->entries[page.index_in_huge()];
  const int change = static_cast<int>(!entry.is_ram()) - static_cast<int>(!old.is_ram());
  slot->used = static_cast<std::uint32_t>(static_cast<int>(slot->used) + change);
  used_ = static_cast<std::uint64_t>(static_cast<std::int64_t>(used_) + change);
  old = entry;
}

Result<void> PageTable::prepare(PageRange range) noexcept {
  for (PageIndex unit = range.first.huge_base(); unit < range.end(); unit = unit + PageCount(kPagesPerHuge)) {
    Slot* slot = find_or_make(unit);
    if (slot == nullptr) return fail(Errc::kNoMemory, 0, "page table");
    if (slot->huge.is_ram() && block_of(*slot) == nullptr) return fail(Errc::kNoMemory, 0, "page table");
  }
  return {};
}

Result<void> PageTable::set_huge(PageIndex base, PageEntry entry) noexcept {
  CHECK(base.is_huge_aligned());
  Slot* slot = find_or_make(base);
  if (slot == nullptr) return fail(Errc::kNoMemory, 0, "page table");
  CHECK(slot->used == 0, "huge entry over base entries");
  const bool was = !slot->huge.is_ram();
  const bool is = !entry.is_ram();
  if (is && !was) used_ += kPagesPerHuge;
  if (!is && was) used_ -= kPagesPerHuge;
  slot->huge = is ? entry.with(PageEntry::kHuge) : PageEntry();
  if (is) release_block(*slot);
  return {};
}

Result<void> PageTable::split_huge(PageIndex base) noexcept {
  Slot* slot = find(base.huge_base());
  if (slot == nullptr || slot->huge.is_ram()) return {};
  Block* block = block_of(*slot);
  if (block == nullptr) return fail(Errc::kNoMemory, 0, "page table");
  const PageEntry head = slot->huge.without(PageEntry::kHuge);
  for (std::size_t i = 0; i < kPagesPerHuge; ++i) block->entries[i] = head.with_pfn(head.pfn() + PageCount(i));
  slot->used = kPagesPerHuge;
  slot->huge = PageEntry();
  return {};
}

void PageTable::trim(PageRange range) noexcept {
  constexpr std::uint64_t kLeafPages = std::uint64_t{1} << (kLeafBits + kHugeOrder);
  constexpr std::uint64_t kMiddlePages = kLeafPages << kMidBits;
  // The range may be the whole address space: what does not exist is stepped over in the largest pieces.
  for (PageIndex unit = range.first.huge_base(); unit < range.end();) {
    const std::uint64_t top = unit.raw() / kMiddlePages;
    if (top >= (1u << kTopBits)) return;
    Slot* slot = find(unit);
    if (slot == nullptr) {
      const std::uint64_t step = top_[top] == nullptr ? kMiddlePages : kLeafPages;
      unit = PageIndex((unit.raw() / step + 1) * step);
      continue;
    }
    if (slot->used == 0) release_block(*slot);
    unit = unit + PageCount(kPagesPerHuge);
  }
}

PageIndex PageTable::next_used(PageIndex from, PageIndex end) const noexcept {
  constexpr std::uint64_t kLeafPages = std::uint64_t{1} << (kLeafBits + kHugeOrder);
  constexpr std::uint64_t kMiddlePages = kLeafPages << kMidBits;
  while (from < end) {
    const std::uint64_t unit = from.raw() >> kHugeOrder;
    const std::uint64_t top = unit >> (kLeafBits + kMidBits);
    if (top >= (1u << kTopBits)) return end;
    if (top_[top] == nullptr) {
      from = PageIndex((from.raw() / kMiddlePages + 1) * kMiddlePages);
      continue;
    }
    const Slot* slot = find(from);
    if (slot == nullptr) {
      from = PageIndex((from.raw() / kLeafPages + 1) * kLeafPages);
      continue;
    }
    if (!slot->huge.is_ram()) return from;
    if (slot->used == 0) {
      from = from.huge_base() + PageCount(kPagesPerHuge);
      continue;
    }
    for (std::uint64_t i = from.index_in_huge(); i < kPagesPerHuge; ++i) {
      const PageIndex page = from.huge_base() + PageCount(i);
      if (page >= end) return end;
      if (!slot->block->entries[i].is_ram()) return page;
    }
    from = from.huge_base() + PageCount(kPagesPerHuge);
  }
  return end;
}

}  // namespace whimbrel
