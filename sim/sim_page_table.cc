#include "sim/sim_page_table.h"

#include <algorithm>
#include <vector>

#include "base/check.h"

namespace whimbrel::sim {
namespace {

const Slot kEmptySlot;

}  // namespace

SimPageTable::~SimPageTable() {
  for (auto& [base, block] : blocks_) {
    for (Slot& slot : block->slots) {
      if (slot.frame != nullptr) --slot.frame->maps;
    }
  }
}

SimPageTable::Block* SimPageTable::block(PageIndex page) {
  const auto it = blocks_.find(page.huge_base().raw());
  return it == blocks_.end() ? nullptr : it->second.get();
}

const Slot& SimPageTable::at(PageIndex page) const {
  const auto it = blocks_.find(page.huge_base().raw());
  return it == blocks_.end() ? kEmptySlot : it->second->slots[page.index_in_huge()];
}

bool SimPageTable::is_huge(PageIndex page) const {
  const auto it = blocks_.find(page.huge_base().raw());
  return it != blocks_.end() && it->second->huge;
}

bool SimPageTable::block_is_empty(PageIndex page) const {
  const auto it = blocks_.find(page.huge_base().raw());
  return it == blocks_.end() || it->second->filled == 0;
}

void SimPageTable::set(PageIndex page, Slot slot) {
  auto& block = blocks_[page.huge_base().raw()];
  if (block == nullptr) block = std::make_unique<Block>();
  CHECK(!block->huge, "split the huge mapping first");
  Slot& old = block->slots[page.index_in_huge()];
  if (slot.frame != nullptr) ++slot.frame->maps;
  if (old.frame != nullptr) --old.frame->maps;
  if (!old.is_empty()) --block->filled;
  if (!slot.is_empty()) ++block->filled;
  old = std::move(slot);
}

Slot SimPageTable::take(PageIndex page) {
  Block* in = block(page);
  if (in == nullptr) return {};
  Slot& slot = in->slots[page.index_in_huge()];
  if (slot.is_empty()) return {};
  CHECK(!in->huge, "split the huge mapping first");
  Slot taken = std::move(slot);
  slot = Slot{};
  --in->filled;
  if (taken.frame != nullptr) --taken.frame->maps;
  return taken;
}

Slot* SimPageTable::edit(PageIndex page) {
  Block* in = block(page);
  if (in == nullptr) return nullptr;
  Slot& slot = in->slots[page.index_in_huge()];
  return slot.is_empty() ? nullptr : &slot;
}

void SimPageTable::make_huge(PageIndex base) {
  Block* unit = block(base);
  CHECK(unit != nullptr && base.is_huge_aligned() && unit->filled == kPagesPerHuge);
  auto folio = std::make_shared<LargeFolio>();
  for (Slot& slot : unit->slots) {
    CHECK(slot.kind == Slot::Kind::kFrame);
    slot.frame->folio = folio;
  }
  unit->huge = true;
}

void SimPageTable::split_huge(PageIndex page) {
  if (Block* unit = block(page); unit != nullptr) unit->huge = false;
}

void SimPageTable::move_huge(PageIndex to, PageIndex from) {
  CHECK(is_huge(from) && block_is_empty(to) && to.is_huge_aligned() && from.is_huge_aligned());
  blocks_[to.raw()] = std::move(blocks_[from.raw()]);
  blocks_.erase(from.raw());
}

void SimPageTable::for_each(PageRange range, const std::function<void(PageIndex, const Slot&)>& visit) const {
  // Ranges are often far larger than what is there.
  std::vector<std::uint64_t> bases;
  if (range.count.raw() / kPagesPerHuge < blocks_.size()) {
    for (PageIndex base = range.first.huge_base(); base < range.end(); base = base + PageCount(kPagesPerHuge)) {
      if (blocks_.contains(base.raw())) bases.push_back(base.raw());
    }
  } else {
    for (const auto& [base, block] : blocks_) {
      if (range.overlaps({PageIndex(base), PageCount(kPagesPerHuge)})) bases.push_back(base);
    }
    std::sort(bases.begin(), bases.end());
  }
  for (const std::uint64_t base : bases) {
    const Block& in = *blocks_.at(base);
    if (in.filled == 0) continue;
    const PageRange part = range.intersect({PageIndex(base), PageCount(kPagesPerHuge)});
    for (PageIndex page = part.first; page < part.end(); ++page) {
      if (const Slot& slot = in.slots[page.index_in_huge()]; !slot.is_empty()) visit(page, slot);
    }
  }
}

void SimPageTable::check(const std::function<bool(PageIndex)>& is_mapped) const {
  for (const auto& [base, block] : blocks_) {
    std::size_t filled = 0;
    for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
      const Slot& slot = block->slots[i];
      if (slot.is_empty()) continue;
      ++filled;
      CHECK(is_mapped(PageIndex(base + i)), "a page outside every mapping");
      const bool needs_frame = slot.kind == Slot::Kind::kFrame || slot.kind == Slot::Kind::kSwapped;
      CHECK(needs_frame == (slot.frame != nullptr));
      if (slot.frame != nullptr) CHECK(slot.frame->maps >= 1 && (slot.frame->maps == 1 || !slot.frame->exclusive));
      if (block->huge) CHECK(slot.kind == Slot::Kind::kFrame);
    }
    CHECK(filled == block->filled && (!block->huge || filled == kPagesPerHuge));
  }
}

}  // namespace whimbrel::sim
