#include "pager/pin_table.h"

#include <algorithm>

#include "base/check.h"

namespace whimbrel {

std::size_t PinTable::find(PageIndex page) const noexcept {
  std::size_t low = 0, high = size_;
  while (low < high) {
    const std::size_t middle = (low + high) / 2;
    if (stretches_[middle].range.end() <= page) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

void PinTable::insert(std::size_t at, Stretch stretch) noexcept {
  CHECK(has_room(1));
  for (std::size_t i = size_; i > at; --i) stretches_[i] = stretches_[i - 1];
  stretches_[at] = stretch;
  ++size_;
}

void PinTable::erase(std::size_t at) noexcept {
  for (std::size_t i = at; i + 1 < size_; ++i) stretches_[i] = stretches_[i + 1];
  --size_;
}

void PinTable::cut_at(PageIndex page) noexcept {
  const std::size_t i = find(page);
  if (i == size_ || page <= stretches_[i].range.first) return;
  const Stretch whole = stretches_[i];
  stretches_[i].range = PageRange::between(whole.range.first, page);
  insert(i + 1, {PageRange::between(page, whole.range.end()), whole.count});
}

void PinTable::cut(PageRange range) noexcept {
  cut_at(range.first);
  cut_at(range.end());
}

void PinTable::join() noexcept {
  std::size_t to = 0;
  for (std::size_t i = 0; i < size_; ++i) {
    const Stretch s = stretches_[i];
    if (s.count == 0 || s.range.empty()) continue;
    if (to != 0 && stretches_[to - 1].range.end() == s.range.first && stretches_[to - 1].count == s.count) {
      stretches_[to - 1].range.count += s.range.count;
      continue;
    }
    stretches_[to++] = s;
  }
  size_ = to;
}

bool PinTable::pin(PageRange range, std::uint32_t count) noexcept {
  if (range.empty()) return true;
  // Two cuts, and at most one new stretch in each gap between existing ones plus one at the end.
  std::size_t overlapping = 0;
  for (std::size_t i = find(range.first); i < size_ && stretches_[i].range.first < range.end(); ++i) ++overlapping;
  if (!has_room(2 + overlapping + 1)) return false;
  cut(range);
  PageIndex at = range.first;
  std::size_t i = find(at);
  while (at < range.end()) {
    if (i == size_ || at < stretches_[i].range.first) {
      const PageIndex next = i == size_ ? range.end() : std::min(range.end(), stretches_[i].range.first);
      insert(i, {PageRange::between(at, next), count});
    } else {
      stretches_[i].count += count;
    }
    at = stretches_[i].range.end();
    ++i;
  }
  join();
  return true;
}

bool PinTable::keep(PageRange range) noexcept {
  // Only where it is not kept already: page stretches found again and again must not add up.
  PageIndex at = range.first;
  while (at < range.end()) {
    const std::size_t i = find(at);
    if (i == size_ || at < stretches_[i].range.first) {
      const PageIndex next = i == size_ ? range.end() : std::min(range.end(), stretches_[i].range.first);
      if (!pin(PageRange::between(at, next), kForEver)) return false;
      at = next;
      continue;
    }
    const PageRange part = stretches_[i].range.intersect(PageRange::between(at, range.end()));
    if (stretches_[i].count < kForEver && !pin(part, kForEver)) return false;
    at = part.end();
  }
  return true;
}

void PinTable::unpin(PageRange range) noexcept {
  if (range.empty() || !has_room(2)) return;  // no room to cut: the pages stay pinned, which is safe
  cut(range);
  for (std::size_t i = find(range.first); i < size_ && stretches_[i].range.first < range.end(); ++i) {
    if (stretches_[i].count % kForEver != 0) --stretches_[i].count;
  }
  join();
}

void PinTable::forget(PageRange range) noexcept {
  const std::size_t first = find(range.first);
  if (range.empty() || first == size_ || range.end() <= stretches_[first].range.first) return;
  if (!has_room(2)) {
    // Without room to cut, only whole stretches can go.
    for (std::size_t i = size_; i-- > first;) {
      if (range.contains(stretches_[i].range)) erase(i);
    }
    return;
  }
  cut(range);
  for (std::size_t i = find(range.first); i < size_ && stretches_[i].range.first < range.end(); ++i) {
    stretches_[i].count = 0;
  }
  join();
}

void PinTable::move(PageRange from, PageIndex to) noexcept {
  for (PageIndex at = from.first; at < from.end();) {
    const std::size_t i = find(at);
    if (i == size_ || from.end() <= stretches_[i].range.first) break;
    const Stretch s = stretches_[i];
    const PageRange part = s.range.intersect(from);
    forget(part);
    (void)pin({to + (part.first - from.first), part.count}, s.count);
    at = part.end();
  }
}

bool PinTable::is_pinned(PageIndex page) const noexcept {
  const std::size_t i = find(page);
  return i != size_ && stretches_[i].range.first <= page;
}

PageRange PinTable::first_in(PageRange range) const noexcept {
  const std::size_t i = find(range.first);
  if (i == size_) return {range.end(), PageCount(0)};
  const PageRange part = stretches_[i].range.intersect(range);
  return part.empty() ? PageRange{range.end(), PageCount(0)} : part;
}

}  // namespace whimbrel
