// Arrivals: what came in lately, oldest first. After a fork most residents are shared and cannot move; what came in since
// belongs to this process alone. Victims taken from here need no search of the page table among thousands of shared pages,
// and a child that reads everything once (a snapshot being saved) pushes out just what it has finished with.
//
// A ring; what does not fit is forgotten, oldest first, and found again by a sweep. Not thread-safe.
#pragma once

#include <cstddef>

#include "base/memory_source.h"
#include "mm/address.h"

namespace whimbrel {

class Arrivals {
 public:
  Arrivals(MemorySource& source, std::size_t room) noexcept : ring_(source, room) {}
  [[nodiscard]] bool usable() const noexcept { return !ring_.empty(); }
  [[nodiscard]] bool empty() const noexcept { return count_ == 0; }

  // Pages that continue the last ones, up to `most` in one aligned 2 MiB, become one victim with them.
  void push(PageRange pages, PageCount most) noexcept {
    if (pages.empty()) return;
    if (count_ != 0) {
      PageRange& last = at(count_ - 1);
      const bool fits = last.count + pages.count <= most && last.first.huge_base() == pages.first.huge_base();
      if (last.contains(pages)) return;
      if (last.end() == pages.first && fits) {
        last.count += pages.count;
        return;
      }
    }
    if (count_ == ring_.size()) (void)pop();
    at(count_++) = pages;
  }
  // The oldest. There is one.
  [[nodiscard]] PageRange pop() noexcept {
    const PageRange oldest = at(0);
    head_ = (head_ + 1) % ring_.size();
    --count_;
    return oldest;
  }
  void clear() noexcept { count_ = 0; }

 private:
  [[nodiscard]] PageRange& at(std::size_t i) noexcept { return ring_[(head_ + i) % ring_.size()]; }

  SourceArray<PageRange> ring_;
  std::size_t head_ = 0;
  std::size_t count_ = 0;
};

}  // namespace whimbrel
