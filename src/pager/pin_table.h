// PinTable: which pages may not leave, with a count per stretch of pages.
//
// Sorted stretches that do not overlap; neighbours with equal counts are one. Few hundred at most: one per thread, one
// per arena, and what the program asks for.
//
// Not thread-safe.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/memory_source.h"
#include "mm/address.h"

namespace whimbrel {

class PinTable {
 public:
  // A count no unpin() takes away: pages that libc needs at a fork.
  static constexpr std::uint32_t kForEver = 1u << 30;

  PinTable(MemorySource& source, std::size_t most_stretches) noexcept : stretches_(source, most_stretches) {}
  [[nodiscard]] bool usable() const noexcept { return !stretches_.empty(); }

  // Adds `count` to every page of the range. False: no room; nothing changed.
  bool pin(PageRange range, std::uint32_t count = 1) noexcept;
  // Keeps a range for ever; harmless when repeated.
  bool keep(PageRange range) noexcept;
  // Takes one off every page of the range that has one (kept ones stay kept).
  void unpin(PageRange range) noexcept;
  // The range does not exist any more: no pins, no keeping.
  void forget(PageRange range) noexcept;
  // What was at `from` is at `to`.
  void move(PageRange from, PageIndex to) noexcept;

  [[nodiscard]] bool is_pinned(PageIndex page) const noexcept;
  // The first pinned stretch that overlaps `range`, cut to it; empty when there is none.
  [[nodiscard]] PageRange first_in(PageRange range) const noexcept;
  [[nodiscard]] std::size_t stretches() const noexcept { return size_; }

 private:
  struct Stretch {
    PageRange range;
    std::uint32_t count = 0;
  };
  // Index of the first stretch that ends behind `page`.
  [[nodiscard]] std::size_t find(PageIndex page) const noexcept;
  [[nodiscard]] bool has_room(std::size_t more) const noexcept { return size_ + more <= stretches_.size(); }
  void insert(std::size_t at, Stretch stretch) noexcept;
  void erase(std::size_t at) noexcept;
  // Makes stretch borders at both ends of the range. Needs room for two.
  void cut(PageRange range) noexcept;
  void cut_at(PageIndex page) noexcept;
  void join() noexcept;

  SourceArray<Stretch> stretches_;
  std::size_t size_ = 0;
};

}  // namespace whimbrel
