// A ring of the engine's last steps: what was collected, moved, inserted, restored, dropped, and why. For tests, tools and
// post-mortems; writing to it is a few stores and takes no lock beyond the space's own. Each step is a static probe as well
// (migrate/probes.h).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "migrate/probes.h"
#include "mm/address.h"

namespace whimbrel {

enum class TraceStep : std::uint8_t {
  kNone,
  kMessageRemove, kMessageUnmap, kMessageRemap,  // read from the kernel; `other` of a remap: where it went
  kCollected,    // RAM pages frozen in frames (other: first frame)
  kRefused,      // a page that could not be taken (other: kind of error)
  kCollectedHome,  // a device page frozen for its way home (other: its frame number)
  kInserted,     // a hole became a device page
  kSettled,      // a slot says "device" (other: frame number)
  kInstalled,    // bytes are in the program again (other: frame they came from)
  kReplaced,     // the slot was filled or unmapped before its page came home
  kDropped,      // a slot of ours went with its mapping (other: frame number)
  kRemapped,     // a slot was re-keyed (other: new page)
  kHoleFilled,   // zeros
  kFault,        // a touch was looked at (other: state of the slot)
};
[[nodiscard]] const char* trace_step_name(TraceStep step) noexcept;

struct TraceEntry {
  std::uint64_t sequence = 0;  // 0: never written
  TraceStep step = TraceStep::kNone;
  PageRange range;
  std::uint64_t other = 0;
};

class TraceRing {
 public:
  static constexpr std::size_t kEntries = 1u << 14;

  void add(TraceStep step, PageRange range, std::uint64_t other = 0) noexcept {
    const std::uint64_t sequence = next_.fetch_add(1, std::memory_order_relaxed) + 1;
    entries_[sequence % kEntries] = {sequence, step, range, other};
    const std::uint64_t address = range.first.address().raw(), pages = range.count.raw();
    if (step == TraceStep::kCollected || step == TraceStep::kCollectedHome) {
      WHIMBREL_PROBE_SET_MIGRATION_PTE(address, other, pages);
    } else if (step == TraceStep::kSettled || step == TraceStep::kInstalled) {
      WHIMBREL_PROBE_REMOVE_MIGRATION_PTE(address, other, pages);
    } else {
      WHIMBREL_PROBE_STEP(static_cast<int>(step), address, other, pages);
    }
  }
  void add(TraceStep step, PageIndex page, std::uint64_t other = 0) noexcept { add(step, {page, PageCount(1)}, other); }

  // Calls visit(entry) for what is still there, oldest first. While nobody writes.
  template <class Visit>
  void for_each(Visit&& visit) const {
    const std::uint64_t last = next_.load(std::memory_order_acquire);
    const std::uint64_t first = last > kEntries ? last - kEntries + 1 : 1;
    for (std::uint64_t sequence = first; sequence <= last; ++sequence) {
      const TraceEntry& entry = entries_[sequence % kEntries];
      if (entry.sequence == sequence) visit(entry);
    }
  }

 private:
  std::atomic<std::uint64_t> next_{0};
  std::array<TraceEntry, kEntries> entries_{};
};

}  // namespace whimbrel
