// EvictionPolicy: the port behind which it is decided which pages leave next.
//
// A policy is told what comes and goes and is asked for victims. It sees memory only through ResidentView, so it runs
// as well on a recorded list of events: no clock, no system calls, no threads of its own. Choices are made in clumps,
// since taking 64 neighbours costs less than taking 32 one by one, and a huge page whole or not at all.
//
// Called with the pager's lock held; must not call anything that blocks but the view.
#pragma once

#include <cstdint>

#include "mm/address.h"

namespace whimbrel {

inline constexpr std::uint64_t kClumpPages = 64;

// Resident pages that can be taken together: inside one aligned stretch of 64 pages of one mapping, or a whole huge
// page.
struct Clump {
  PageRange range;            // first to last resident page
  std::uint32_t present = 0;  // of them resident
  std::uint32_t runs = 0;     // in how many stretches without holes
  bool huge = false;
  std::uint64_t mapping = 0;  // equal for clumps of one mapping
};

// What is resident and may be taken: no pinned pages, nothing that refused lately.
class ResidentView {
 public:
  virtual ~ResidentView() = default;
  // The first clump at or above `from`. False: none up to the end of the address space.
  [[nodiscard]] virtual bool next(PageIndex from, Clump* out) noexcept = 0;
};

enum class Arrival : std::uint8_t {
  kFresh,    // never away
  kTouched,  // came home because the program touched it
  kAhead,    // came home with a touched page
};

enum class Departure : std::uint8_t {
  kEvicted,
  kDropped,  // the program unmapped or discarded it
};

class EvictionPolicy {
 public:
  virtual ~EvictionPolicy() = default;

  virtual void arrived(PageRange pages, Arrival how) noexcept = 0;
  // `count`: how many of the range's pages really left (evictions skip holes).
  virtual void left(PageRange pages, PageCount count, Departure how) noexcept = 0;
  // About how many pages fit: a page that returns before that many others have left was missed.
  virtual void set_capacity(PageCount resident_limit) noexcept = 0;

  enum class Choice : std::uint8_t {
    kVictim,     // *victim is to be tried
    kLookAgain,  // nothing found within the time one call may take; ask again
    kCameRound,  // the same, and everything has been looked at once since the last time it was
    kNothing,    // nothing anywhere
  };
  // A range within one mapping and within one aligned 2 MiB, holding about `want` resident pages or a whole huge page.
  [[nodiscard]] virtual Choice choose(ResidentView& view, PageCount want, PageRange* victim) noexcept = 0;

  // Everything known is void (a forked child starts anew).
  virtual void reset() noexcept = 0;
};

}  // namespace whimbrel
