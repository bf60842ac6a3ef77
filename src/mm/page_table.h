// The engine's page table: page index → PageEntry, for the slots that are not plain RAM.
//
// A directory over the whole user address space, cut into blocks of 512 pages (2 MiB). A block is one of: absent (all
// plain RAM, costs nothing), huge (one entry for the unit) or a table of 512 entries (4 KiB). Memory that was never
// migrated costs nothing; a block that becomes all plain RAM again is given back.
//
// Not thread-safe: guarded by the address space's lock. Never allocates but from its MemorySource; set() can therefore
// fail with kNoMemory, and only when it needs a new block.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/memory_source.h"
#include "mm/page_entry.h"

namespace whimbrel {

class PageTable {
 public:
  explicit PageTable(MemorySource& source) noexcept : source_(source) {}
  ~PageTable();
  PageTable(const PageTable&) = delete;
  PageTable& operator=(const PageTable&) = delete;

  // The entry of `page`. Inside a huge unit: that unit's entry, with its frame number advanced to this page and kHuge set.
  [[nodiscard]] PageEntry get(PageIndex page) const noexcept;
  // Replaces the entry of a base page. A huge unit in the way must have been split before (CHECK).
  [[nodiscard]] Result<void> set(PageIndex page, PageEntry entry) noexcept;
  // As set(), for a slot whose block certainly exists (an entry that is not kRam is there, or prepare() was called).
  void update(PageIndex page, PageEntry entry) noexcept;
  // Makes sure that update() can be used anywhere in `range`.
  [[nodiscard]] Result<void> prepare(PageRange range) noexcept;
  // Installs one entry for the 2 MiB unit that starts at `base` (huge-aligned). All its slots must be kRam or the unit
  // huge already.
  [[nodiscard]] Result<void> set_huge(PageIndex base, PageEntry entry) noexcept;
  // Turns a huge unit into 512 base entries with the same state and flags, frame numbers counted up.
  [[nodiscard]] Result<void> split_huge(PageIndex base) noexcept;
  // Gives back the blocks of `range` that hold nothing any more.
  void trim(PageRange range) noexcept;

  // Calls visit(PageRange, PageEntry) for every slot of `range` that is not kRam, ascending: once per base page, and
  // once per huge unit (with the part of it inside `range`; the entry's frame number is that of the part's first page).
  // visit must not add or remove blocks. Returns early when visit returns false.
  template <class Visit>
  void for_each(PageRange range, Visit&& visit) const;
  // The first page >= from and < end that is not kRam; `end` when there is none. Skips absent blocks quickly.
  [[nodiscard]] PageIndex next_used(PageIndex from, PageIndex end) const noexcept;

  // Slots that are not kRam, in base pages.
  [[nodiscard]] std::uint64_t used_pages() const noexcept { return used_; }
  [[nodiscard]] std::size_t metadata_bytes() const noexcept { return metadata_bytes_; }

 private:
  struct Block {
    PageEntry entries[kPagesPerHuge];
  };
  // A slot of the directory: null, a Block*, or a huge entry tagged in bit 0 (entries keep the state in bits 0..3, so
  // the entry is kept in a word of its own).
  struct Slot {
    Block* block = nullptr;
    PageEntry huge;
    std::uint32_t used = 0;  // entries of the block that are not kRam
  };
  static constexpr unsigned kLeafBits = 7;   // slots in a leaf: 128 (256 MiB of addresses, 3 KiB)
  static constexpr unsigned kMidBits = 10;   // leaves in a middle node: 1024 (256 GiB)
  static constexpr unsigned kTopBits = kUserAddressBits - kPageShift - kHugeOrder - kLeafBits - kMidBits;  // 9
  struct Leaf {
    Slot slots[1u << kLeafBits];
  };
  struct Middle {
    Leaf* leaves[1u << kMidBits];
  };

  [[nodiscard]] const Slot* find(PageIndex page) const noexcept;
  [[nodiscard]] Slot* find(PageIndex page) noexcept;
  [[nodiscard]] Slot* find_or_make(PageIndex page) noexcept;
  [[nodiscard]] Block* block_of(Slot& slot) noexcept;
  void release_block(Slot& slot) noexcept;

  MemorySource& source_;
  Middle* top_[1u << kTopBits] = {};
  std::uint64_t used_ = 0;
  std::size_t metadata_bytes_ = 0;
};

template <class Visit>
void PageTable::for_each(PageRange range, Visit&& visit) const {
  PageIndex at = next_used(range.first, range.end());
  while (at < range.end()) {
    const PageEntry entry = get(at);
    PageIndex next = at + PageCount(1);
    if (entry.is_huge()) {
      next = at.huge_base() + PageCount(kPagesPerHuge);
      if (range.end() < next) next = range.end();
    }
    if (!visit(PageRange::between(at, next), entry)) return;
    at = next_used(next, range.end());
  }
}

}  // namespace whimbrel
