// RegionTable: the pager's picture of the program's private memory: mappings, or parts of mappings where something in
// them is excluded, in ascending order.
//
// The picture is a cache: the kernel's own tables decide at every eviction. What a message says is unmapped is cut out;
// a region that turned out not to be what it was is stale until the next scan has looked at it.
//
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/memory_source.h"
#include "mm/address.h"
#include "pager/eligibility.h"

namespace whimbrel {

struct Region {
  PageRange range;
  Eligibility kind = Eligibility::kForeign;
  bool watched = false;   // first touches come as messages
  bool verified = false;  // the slow query has confirmed the flags
  bool stale = false;
  bool refused = false;         // the kernel will not watch it: fixed until it changes
  bool starts_mapping = false;  // the first page is the first page of its mapping
  bool huge_by_us = false;      // the advice to use huge pages is ours: for streams only
  std::uint32_t flags = 0;      // Mapping::Flag, as far as known
  std::uint64_t resident = 0;   // at the last count

  [[nodiscard]] bool takes_huge() const noexcept {
    return !stale && (flags & (Mapping::kHugeAdvised | Mapping::kNoHuge)) == Mapping::kHugeAdvised;
  }
  [[nodiscard]] bool may_evict() const noexcept {
    return kind == Eligibility::kManaged && watched && verified && !stale && !refused;
  }
};

class RegionTable {
 public:
  explicit RegionTable(MemorySource& source) noexcept : source_(source) {}

  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const Region& operator[](std::size_t i) const noexcept { return regions_[i]; }
  [[nodiscard]] Region& operator[](std::size_t i) noexcept { return regions_[i]; }
  // Index of the first region that ends above `page`; size() when there is none.
  [[nodiscard]] std::size_t at_or_above(PageIndex page) const noexcept;
  [[nodiscard]] const Region* find(PageIndex page) const noexcept;

  // The range is not mapped any more, or is something else now: what is left of its regions stays as it was.
  void cut(PageRange range) noexcept;
  // Marks every region that overlaps the range stale.
  void doubt(PageRange range) noexcept;
  void doubt_all() noexcept;
  void clear() noexcept { size_ = 0; }

  // Adds a region above all others. False: no memory.
  [[nodiscard]] bool append(const Region& region) noexcept;
  // Puts a region in the place of whatever was there. False: no memory; nothing is known of its range then.
  [[nodiscard]] bool put(const Region& region) noexcept;
  void swap(RegionTable& other) noexcept;

 private:
  [[nodiscard]] bool grow() noexcept;
  void insert(std::size_t at, const Region& region) noexcept;

  MemorySource& source_;
  SourceArray<Region> regions_;
  std::size_t size_ = 0;
};

}  // namespace whimbrel
