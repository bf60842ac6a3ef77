// Between the interface's names and the engine's: pages and frame numbers, words, ranges.
#pragma once

#include "base/check.h"
#include "mm/migrate_word.h"
#include "whimbrel/hmm.h"

namespace whimbrel::capi {

[[nodiscard]] inline Pfn pfn_of(const page* page) noexcept { return Pfn(page_to_pfn(page)); }
[[nodiscard]] inline Pfn pfn_of(const folio* folio) noexcept { return Pfn(folio_pfn(folio)); }
[[nodiscard]] inline page* page_of(Pfn pfn) noexcept { return pfn_to_page(pfn.raw()); }
[[nodiscard]] inline folio* folio_of(Pfn head) noexcept { return reinterpret_cast<folio*>(page_of(head)); }

// The drivers' arrays are the engine's, word for word (DM-01).
static_assert(sizeof(MigrateWord) == sizeof(unsigned long) && alignof(MigrateWord) == alignof(unsigned long));
static_assert(MIGRATE_PFN_VALID == MigrateWord::kValid && MIGRATE_PFN_MIGRATE == MigrateWord::kMigrate &&
              MIGRATE_PFN_WRITE == MigrateWord::kWrite && MIGRATE_PFN_COMPOUND == MigrateWord::kCompound &&
              MIGRATE_PFN_SHIFT == MigrateWord::kShift);
[[nodiscard]] inline MigrateWord* words(unsigned long* array) noexcept { return reinterpret_cast<MigrateWord*>(array); }

[[nodiscard]] inline PageRange bytes_touched(const void* start, std::uint64_t bytes) noexcept {
  const auto at = reinterpret_cast<std::uintptr_t>(start);
  return PageRange::touching(VirtualAddress(at), VirtualAddress(at + bytes));
}

}  // namespace whimbrel::capi
