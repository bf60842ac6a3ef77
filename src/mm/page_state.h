// What the engine knows about one slot that the kernel cannot know, and the only legal ways it may change.
//
//                 collect                    commit                  finish
//   kRam ───────────────────► kMigratingOut ────────► kCommitted ────────────► kDevice
//    ▲ ▲ └──────populate──────────────────────────────────────────────────────►┤ │ │
//    │ └────── restore ──────────┘ (also from kCommitted when the device let go) │ │
//    │                                                                           │ │ collect_home
//    │ restore (home)                    restore (away again)                    │ ▼
//    └───────────────── kMigratingHome ◄───────────────────────────────── ┄┄┄┄┄┄┄┘
//   kRam ──make_exclusive──► kExclusive ──restore──► kRam        kDevice ──lose──► kPoisoned ──drop──► kRam
//   kCommitted, kMigratingHome ──map_coherent──► kCoherent ──collect_home──► kMigratingHome     kRam ──populate_coherent──► kCoherent
//   A coherent page becomes exclusive from kMigratingHome and goes back to kCoherent by map_coherent.
//   drop (munmap, DONTNEED): any resting state ──► kRam. A migrating state is dropped too: whoever finalizes finds the
//   slot no longer his and frees the page.
//
// kRam means "ask the kernel": none, zero page, present, huge and swapped memory are all its business (DM-15).
#pragma once

#include <cstdint>
#include <expected>

#include "base/error.h"

namespace whimbrel {

enum class PageState : std::uint8_t {
  kRam = 0,        // nothing of ours
  kMigratingOut,   // frozen: bytes lie in a frame of ours; a toucher waits (DM-18 MIGRATING_OUT)
  kCommitted,      // as above, and the identity of the page is now its destination
  kDevice,         // lies on a device; a toucher brings it home
  kMigratingHome,  // frozen while it comes home, or moves from device to device; a toucher waits
  kExclusive,      // in a frame of ours, reserved for a device; a toucher revokes
  kPoisoned,       // its contents are lost; a toucher gets SIGBUS
  kCoherent,       // present in the program, but the frame belongs to a coherent device (DM-09)
};

enum class PageEvent : std::uint8_t {
  kCollect,        // setup froze a RAM page
  kCommit,         // the pages step succeeded for a page that was collected from RAM
  kFinish,         // finalize put a committed page on its device
  kPopulate,       // the pages step filled a hole directly
  kCollectHome,    // setup froze a device page
  kRestore,        // finalize put the page where the program can use it, or back where it was (see next())
  kReturnToDevice, // finalize of a failed return trip
  kMakeExclusive,
  kMapCoherent,    // finalize mapped the frame of a coherent device
  kPopulateCoherent,  // the pages step filled a hole with one
  kLose,           // the device says the contents cannot be had any more
  kDrop,           // the program unmapped or discarded the slot
};

// The state after `event`, or kInvalid when that step does not exist.
[[nodiscard]] constexpr Result<PageState> next(PageState state, PageEvent event) {
  using S = PageState;
  using E = PageEvent;
  switch (event) {
    case E::kCollect: if (state == S::kRam) return S::kMigratingOut; break;
    case E::kCommit: if (state == S::kMigratingOut) return S::kCommitted; break;
    case E::kFinish: if (state == S::kCommitted || state == S::kMigratingHome) return S::kDevice; break;
    case E::kPopulate: if (state == S::kRam) return S::kDevice; break;
    case E::kCollectHome: if (state == S::kDevice || state == S::kCoherent) return S::kMigratingHome; break;
    case E::kMapCoherent:
      if (state == S::kCommitted || state == S::kMigratingHome || state == S::kExclusive) return S::kCoherent;
      break;
    case E::kPopulateCoherent: if (state == S::kRam) return S::kCoherent; break;
    case E::kRestore:
      if (state == S::kMigratingOut || state == S::kCommitted || state == S::kMigratingHome || state == S::kExclusive) {
        return S::kRam;
      }
      break;
    case E::kReturnToDevice: if (state == S::kMigratingHome) return S::kDevice; break;
    case E::kMakeExclusive: if (state == S::kMigratingOut || state == S::kMigratingHome) return S::kExclusive; break;
    case E::kLose: if (state == S::kDevice || state == S::kMigratingHome) return S::kPoisoned; break;
    case E::kDrop: return S::kRam;
  }
  return fail(Errc::kInvalid, 0, "page state transition");
}

static_assert(!next(PageState::kRam, PageEvent::kCommit));        // no shortcuts
static_assert(!next(PageState::kMigratingOut, PageEvent::kFinish));
static_assert(!next(PageState::kDevice, PageEvent::kRestore));    // only by way of kMigratingHome

[[nodiscard]] constexpr bool is_migrating(PageState s) {
  return s == PageState::kMigratingOut || s == PageState::kCommitted || s == PageState::kMigratingHome;
}

}  // namespace whimbrel
