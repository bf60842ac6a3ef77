// Evacuation: what lies on devices that are leaving moves onto the one in use, while the program goes on.
//
// By frame, not by address: migrate_device_range() takes hold of a stretch of device pages wherever they are mapped, their
// contents are read and stored anew, and the slots say the new place (spec RNG, DPG, FIN; a page that moves from device to
// device). Who touches such a page meanwhile waits until it is settled. What cannot be moved now (its contents cannot be read,
// no room, locked) stays where it is, and is tried again.
//
// On the background thread, a bounded piece at a time, inside the gate `evictions`: a fork waits for a piece of it.
#pragma once

#include <cstdint>

#include "pager/pager_core.h"

namespace whimbrel {

class Evacuation {
 public:
  explicit Evacuation(PagerCore& core) noexcept : core_(core) {}

  // What lies anywhere else is to go to these slots, those of the device in use. With the gates closed. `unit_pages`: no unit
  // elsewhere is smaller.
  void begin(DeviceSlot first, std::uint64_t slots, std::uint32_t unit_pages) noexcept;
  // Nothing is left elsewhere.
  void end() noexcept;
  [[nodiscard]] bool is_under_way() const noexcept { return unit_pages_ != 0; }
  // A piece of the work, if there is any. Nanoseconds until the next one is due.
  [[nodiscard]] std::int64_t step() noexcept;
  // Pages that have moved, since the start.
  [[nodiscard]] std::uint64_t moved() const noexcept { return moved_; }
  void reset_in_child() noexcept { next_ = 0; }

 private:
  static constexpr std::size_t kGroup = Lane::kBufferPages;

  [[nodiscard]] PageCount move_group(Pfn first, PageCount pages, Lane& lane) noexcept;
  void choose(std::size_t pages, Lane& lane) noexcept;
  void read(Pfn first, std::size_t pages, Lane& lane) noexcept;
  void store(std::size_t pages, Lane& lane) noexcept;
  [[nodiscard]] bool give_up_copies() noexcept;
  [[nodiscard]] bool is_used(Pfn first, PageCount pages) const noexcept;

  PagerCore& core_;
  std::uint32_t unit_pages_ = 0;  // 0: nothing is leaving
  Pfn used_first_, used_end_;     // of the device in use
  Pfn at_;                        // where this pass is
  std::uint64_t moved_in_pass_ = 0, moved_ = 0;
  std::int64_t next_ = 0, pause_ = 0;
  bool copies_given_up_ = false;
};

}  // namespace whimbrel
