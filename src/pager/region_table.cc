#include "pager/region_table.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace whimbrel {

std::size_t RegionTable::at_or_above(PageIndex page) const noexcept {
  std::size_t low = 0, high = size_;
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    if (regions_[middle].range.end() <= page) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

const Region* RegionTable::find(PageIndex page) const noexcept {
  const std::size_t i = at_or_above(page);
  return i != size_ && regions_[i].range.contains(page) ? &regions_[i] : nullptr;
}

void RegionTable::cut(PageRange range) noexcept {
  if (range.empty()) return;
  std::size_t i = at_or_above(range.first);
  if (i < size_ && regions_[i].range.first < range.first && range.end() < regions_[i].range.end()) {
    if (size_ == regions_.size() && !grow()) {
      regions_[i].stale = true;
      return;
    }
    Region above = regions_[i];
    above.range = PageRange::between(range.end(), above.range.end());
    above.starts_mapping = false;
    regions_[i].range = PageRange::between(regions_[i].range.first, range.first);
    insert(i + 1, above);
    return;
  }
  std::size_t to = i;
  for (; i < size_; ++i) {
    Region region = regions_[i];
    if (region.range.first < range.first) {
      region.range = PageRange::between(region.range.first, range.first);
    } else if (region.range.first < range.end()) {
      region.range = PageRange::between(std::min(range.end(), region.range.end()), region.range.end());
      region.starts_mapping = false;
    } else if (to == i) {
      return;  // nothing was removed: the rest stays where it is
    }
    if (!region.range.empty()) regions_[to++] = region;
  }
  size_ = to;
}

void RegionTable::insert(std::size_t at, const Region& region) noexcept {
  CHECK(size_ < regions_.size());
  for (std::size_t i = size_; i > at; --i) regions_[i] = regions_[i - 1];
  regions_[at] = region;
  ++size_;
}

void RegionTable::doubt(PageRange range) noexcept {
  for (std::size_t i = at_or_above(range.first); i < size_ && regions_[i].range.first < range.end(); ++i) {
    regions_[i].stale = true;
  }
}

void RegionTable::doubt_all() noexcept {
  for (std::size_t i = 0; i < size_; ++i) regions_[i].stale = true;
}

bool RegionTable::grow() noexcept {
  SourceArray<Region> bigger(source_, regions_.empty() ? kPageSize / sizeof(Region) : regions_.size() * 2);
  if (bigger.empty()) return false;
  for (std::size_t i = 0; i < size_; ++i) bigger[i] = regions_[i];
  regions_ = std::move(bigger);
  return true;
}

bool RegionTable::append(const Region& region) noexcept {
  CHECK(size_ == 0 || regions_[size_ - 1].range.end() <= region.range.first, "regions out of order");
  if (size_ == regions_.size() && !grow()) return false;
  regions_[size_++] = region;
  return true;
}

bool RegionTable::put(const Region& region) noexcept {
  cut(region.range);
  if (size_ == regions_.size() && !grow()) return false;
  insert(at_or_above(region.range.first), region);
  return true;
}

void RegionTable::swap(RegionTable& other) noexcept {
  std::swap(regions_, other.regions_);
  std::swap(size_, other.size_);
}

}  // namespace whimbrel
