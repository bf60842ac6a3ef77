// Populating holes: device pages for slots where nothing was (INS, IHP). Internal to the pages step.
#pragma once

#include "migrate/migrate_vma.h"

namespace whimbrel {

class HoleInserter {
 public:
  // `read_only`: the mapping forbids writing, whatever it says at this moment.
  explicit HoleInserter(AddressSpace& space, bool read_only = false) noexcept : space_(space), read_only_(read_only) {}
  // For the analysis, which does not see that both speak of the same lock: the caller holds it.
  void lock_is_held() const noexcept ASSERT_CAPABILITY(space_.mutex()) {}

  // n holes from `first`, each with its destination. A hole that a CPU touched meanwhile keeps the CPU's page: MIGRATE
  // is cleared in its src word (INS-06). Success: src is exactly MIGRATE (INS-07).
  void base_pages_locked(PageIndex first, MigrateWord* src, const MigrateWord* dst, std::uint64_t n) noexcept
      REQUIRES(space_.mutex());
  // One 2 MiB unit. False: not one empty unit any more.
  [[nodiscard]] bool huge_page_locked(PageIndex base, Pfn dst) noexcept REQUIRES(space_.mutex());

 private:
  // Makes sure that a touch of the range comes to us, and that it is private anonymous memory. False: refuse all.
  [[nodiscard]] bool ready_locked(PageRange range, bool* writable) noexcept REQUIRES(space_.mutex());
  // Takes the shared zero page out of a slot; false when a CPU write won (UA-07).
  [[nodiscard]] bool remove_zero_page_locked(PageIndex at) noexcept REQUIRES(space_.mutex());
  // A coherent page is mapped at once; a private one needs nothing. False: a CPU touch won.
  [[nodiscard]] bool map_if_coherent_locked(PageIndex at, Pfn dst) noexcept REQUIRES(space_.mutex());
  void put_in_place_locked(PageIndex at, Pfn dst, bool writable) noexcept REQUIRES(space_.mutex());

  AddressSpace& space_;
  const bool read_only_;
};

}  // namespace whimbrel
