#include "devices/composite/composite_unit.h"

namespace whimbrel {

void AgeLists::remove_locked(CompositeUnit& entry) noexcept {
  if (entry.list == 0) return;
  Ends& ends = ends_[entry.list - 1];
  (entry.older != 0 ? at(entry.older).newer : ends.oldest) = entry.newer;
  (entry.newer != 0 ? at(entry.newer).older : ends.newest) = entry.older;
  entry.older = entry.newer = 0;
  entry.list = 0;
}

void AgeLists::add_newest(std::uint32_t list, std::uint64_t unit) noexcept {
  const auto link = static_cast<std::uint32_t>(unit + 1);
  MutexLock lock(mutex_);
  CompositeUnit& entry = at(link);
  remove_locked(entry);
  Ends& ends = ends_[list];
  entry.list = static_cast<std::uint8_t>(list + 1);
  entry.older = ends.newest;
  (ends.newest != 0 ? at(ends.newest).newer : ends.oldest) = link;
  ends.newest = link;
}

void AgeLists::add_oldest(std::uint32_t list, std::uint64_t unit) noexcept {
  const auto link = static_cast<std::uint32_t>(unit + 1);
  MutexLock lock(mutex_);
  CompositeUnit& entry = at(link);
  remove_locked(entry);
  Ends& ends = ends_[list];
  entry.list = static_cast<std::uint8_t>(list + 1);
  entry.newer = ends.oldest;
  (ends.oldest != 0 ? at(ends.oldest).older : ends.newest) = link;
  ends.oldest = link;
}

void AgeLists::remove(std::uint64_t unit) noexcept {
  MutexLock lock(mutex_);
  remove_locked(at(static_cast<std::uint32_t>(unit + 1)));
}

bool AgeLists::take_oldest(std::uint32_t list, std::uint64_t* unit) noexcept {
  MutexLock lock(mutex_);
  const std::uint32_t link = ends_[list].oldest;
  if (link == 0) return false;
  remove_locked(at(link));
  *unit = link - 1;
  return true;
}

}  // namespace whimbrel
