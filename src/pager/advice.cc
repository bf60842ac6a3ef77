#include "pager/advice.h"

namespace whimbrel {

// False: full.
bool Advice::keep_locked(PageRange part, AccessPattern pattern, std::size_t* used) noexcept {
  if (part.empty() || pattern == AccessPattern::kNormal) return true;
  if (*used == kMost) return false;
  next_[(*used)++] = {part, pattern};
  return true;
}

Result<void> Advice::set(PageRange range, AccessPattern pattern) noexcept {
  MutexLock hold(mutex_);
  std::size_t used = 0;
  bool room = true;
  const std::size_t count = count_.load(std::memory_order_relaxed);
  for (std::size_t i = 0; i < count; ++i) {
    const Entry& old = entries_[i];
    if (!old.range.overlaps(range)) {
      room = keep_locked(old.range, old.pattern, &used) && room;
      continue;
    }
    room = keep_locked(PageRange::between(old.range.first, range.first), old.pattern, &used) && room;
    room = keep_locked(PageRange::between(range.end(), old.range.end()), old.pattern, &used) && room;
  }
  room = keep_locked(range, pattern, &used) && room;
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
