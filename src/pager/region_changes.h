// RegionChanges: what the program did to its mappings while a walk over them was under way. The picture that the walk has put
// together is corrected by them before it is used. In order: what has moved may be unmapped a moment later.
//
// Not thread-safe.
#pragma once

#include <array>
#include <cstddef>

#include "pager/region_table.h"

namespace whimbrel {

class RegionChanges {
 public:
  // Nothing is known of the range any more.
  void cut(PageRange range) noexcept { add({range, Region()}); }
  // This region has come to where it is now with its pages and its registration.
  void put(const Region& region) noexcept { add({region.range, region}); }
  void clear() noexcept {
    size_ = 0;
    lost_ = false;
  }
  void apply_to(RegionTable& regions) const noexcept {
    if (lost_) regions.doubt_all();
    for (std::size_t i = 0; i < size_; ++i) {
      if (changes_[i].region.range.empty()) {
        regions.cut(changes_[i].range);
      } else {
        (void)regions.put(changes_[i].region);  // no memory: unknown until the next walk
      }
    }
  }

 private:
  struct Change {
    PageRange range;
    Region region;  // empty: the range is cut
  };
  void add(const Change& change) noexcept {
    if (size_ == changes_.size()) {
      lost_ = true;  // whatever the walk has found is to be looked at again
    } else {
      changes_[size_++] = change;
    }
  }

  std::array<Change, 64> changes_{};
  std::size_t size_ = 0;
  bool lost_ = false;
};

}  // namespace whimbrel
