// EvictionHandoff: an eviction in two hands. The fault thread takes the pages out, the background thread stores them.
//
// Where a program touches pages here and there, its victims lie scattered too, and each costs a flush of its own. On
// the processor of the fault thread, whose faulter waits, such a flush is cheap; from another one it interrupts the
// program. So the fault thread takes. Compressing is dearer than all the rest of a fault, and needs nobody's processor
// in particular: the background thread does that meanwhile, on another. One victim at a time is under way, so the other
// processor is quiet again when the next one is taken.
//
// Pages under way count as resident. They are in the gate `evictions` from the choice to the end; who closes it must
// see to it that nothing is left for a thread that will not come (PagerCore::finish_evictions).
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "pager/eviction.h"

namespace whimbrel {

class EvictionHandoff {
 public:
  // The lane is nobody else's.
  EvictionHandoff(PagerCore& core, Lane& lane) noexcept : core_(core), lane_(lane) {}

  // Takes out one victim of about `want` pages. False: the last one has not been stored yet, or nothing could be taken.
  // On the fault thread.
  bool take(PageCount want) noexcept;
  // Stores what has been taken, unless another thread is doing so. Whether there was any. Any thread, no lock held.
  bool finish() noexcept;

 private:
  enum class State : std::uint32_t { kFree, kTaking, kTaken, kStoring };

  void store() noexcept;

  PagerCore& core_;
  Lane& lane_;
  std::optional<Eviction> eviction_;
  PageRange victim_;
  std::atomic<State> state_{State::kFree};
};

}  // namespace whimbrel
