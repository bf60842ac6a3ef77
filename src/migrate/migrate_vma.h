// The range protocol (PR-01): setup, pages, finalize; and the frame-range protocol (PR-02). Names, order and words are
// the kernel's; the requirement ids say which rule a function keeps.
//
// Between setup and finalize the driver copies data as it likes. finalize must follow every setup that succeeded,
// exactly once (PR-04). Nothing here promises that a page moves: look at src[i].migrating() after each step (PR-08).
#pragma once

#include <cstdint>

#include "migrate/address_space.h"
#include "mm/migrate_word.h"

namespace whimbrel {

// Selection flags (DM-07).
inline constexpr std::uint64_t kSelectSystem = 1;
inline constexpr std::uint64_t kSelectDevicePrivate = 2;
inline constexpr std::uint64_t kSelectDeviceCoherent = 4;
inline constexpr std::uint64_t kSelectCompound = 8;

// The argument block (DM-08), without its C layout: that is hmm.h's business.
struct MigrateVma {
  VirtualAddress start, end;        // rounded down to pages by setup; end rewritten to what was walked
  MigrateWord* src = nullptr;       // caller's arrays, (end - start) / 4096 words each
  MigrateWord* dst = nullptr;
  std::uint64_t cpages = 0;         // entries still migrating; a compound unit counts 1
  std::uint64_t npages = 0;         // entries written
  const void* pgmap_owner = nullptr;
  std::uint64_t flags = 0;
  Pfn fault_page;                   // 0: none. Otherwise locked and referenced by the fault path
  // Engine-only additions (zero for drivers).
  bool read_only = false;           // the slots are not writable, whatever the mapping says at this moment
  bool skip_holes = false;          // do not report empty slots: an evictor has no use for them
  std::uint64_t busy_limit = 0;     // after so many busy pages in a row the rest of their stretch is left; 0: never
  PageRange watch_within;           // the part of the mapping that may be watched; empty: all of it
  std::uint64_t refused = 0;        // out: RAM pages that could not be taken (pinned, shared, special)
  Errc refusal = Errc::kBusy;       // out: why the last of them was refused
};

// kInvalid as SET-02; kNotFound never: an unmapped range is kInvalid too.
[[nodiscard]] Result<void> migrate_vma_setup(AddressSpace& space, MigrateVma& args) noexcept;
void migrate_vma_pages(AddressSpace& space, MigrateVma& args) noexcept;
void migrate_vma_finalize(AddressSpace& space, MigrateVma& args) noexcept;

// Frame-range protocol: src receives words for npages frame numbers from `first` (RNG-01), or for the raw numbers it
// holds on input (PFN-01).
void migrate_device_range(AddressSpace& space, MigrateWord* src, Pfn first, std::uint64_t npages) noexcept;
void migrate_device_pfns(AddressSpace& space, MigrateWord* src, std::uint64_t npages) noexcept;
void migrate_device_pages(AddressSpace& space, MigrateWord* src, MigrateWord* dst, std::uint64_t npages) noexcept;
void migrate_device_finalize(AddressSpace& space, MigrateWord* src, MigrateWord* dst, std::uint64_t npages) noexcept;

// Moves one coherent page to RAM; consumes the caller's reference in every outcome (COH-01). kBusy: it stays where it is.
[[nodiscard]] Result<void> migrate_device_coherent_folio(AddressSpace& space, Pfn folio) noexcept;

}  // namespace whimbrel
