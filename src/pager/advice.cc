#include "pager/advice.h"

namespace whimbrel {

Result<void> Advice::set(PageRange range, AccessPattern pattern) noexcept {
  MutexLock hold(mutex_);
  std::size_t used = 0;
  bool room = true;
  const auto keep = [&](PageRange part, AccessPattern what) {
    if (part.empty() || what == AccessPattern::kNormal) return;
    if (used == kMost) {
      room = false;
      return;
    }
    next_[used++] = {part, what};
  };
  const std::size_t count = count_.load(std::memory_order_relaxed);
  for (std::size_t i = 0; i < count; ++i) {
    const Entry& old = entries_[i];
    if (!old.range.overlaps(range)) {
      keep(old.range, old.pattern);
      continue;
    }
    if (old.range.first < range.first) keep(PageRange::between(old.range.first, range.first), old.pattern);
    if (range.end() < old.range.end()) keep(PageRange::between(range.end(), old.range.end()), old.pattern);
  }
  keep(range, pattern);
  if (!room) return fail(Errc::kNoMemory, 0, "too many advised ranges");
  entries_ = next_;
  count_.store(used, std::memory_order_relaxed);
  return {};
}

PageRange Advice::shape_advised(PageIndex page, PageRange window, PageCount most) noexcept {
  MutexLock hold(mutex_);
  const std::size_t count = count_.load(std::memory_order_relaxed);
  for (std::size_t i = 0; i < count; ++i) {
    const Entry& entry = entries_[i];
    if (!entry.range.contains(page)) continue;
    if (entry.pattern == AccessPattern::kRandom || most.raw() == 0) return {page, PageCount(1)};
    return PageRange{page, most}.intersect(entry.range);
  }
  return window;
}

}  // namespace whimbrel
