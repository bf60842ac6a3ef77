#include "migrate/insert.h"

#include <cstring>

#include "base/check.h"

namespace whimbrel {
namespace {

bool all_zero(const std::byte* page) {
  static_assert(kPageSize % sizeof(std::uint64_t) == 0);
  std::uint64_t any = 0;
  for (std::size_t i = 0; i < kPageSize; i += sizeof any) {
    std::uint64_t word;
    std::memcpy(&word, page + i, sizeof word);
    any |= word;
  }
  return any == 0;
}

}  // namespace

bool HoleInserter::ready_locked(PageRange range, bool* writable) noexcept {
  space_.pump_locked();
  const Result<Mapping> mapping = space_.mmu().mapping_at_or_above(range.first);
  if (!mapping || !mapping->range.contains(range) || !mapping->is_private_anonymous()) return false;
  if (space_.is_quarantined_locked(range)) return false;
  *writable = mapping->has(Mapping::kWritable) && !read_only_;
  return space_.mmu().watch(mapping->range) && space_.table().prepare(range);
}

bool HoleInserter::remove_zero_page_locked(PageIndex at) noexcept {
  const Result<PageIndex> scratch = space_.pool(FrameUse::kStaging).take(PageCount(1));
  if (!scratch) return false;
  const Progress out = space_.mmu().move(*scratch, at, PageCount(1), Wake::kNo);
  bool removed = !out.failed;
  if (removed && !all_zero(space_.mmu().bytes(*scratch))) {
    // A write came between scan and MOVE: the CPU's page stays (INS-06).
    const Progress back = space_.mmu().move(at, *scratch, PageCount(1), Wake::kYes);
    CHECK(!back.failed || !space_.mmu().copy(at, space_.mmu().bytes(*scratch), PageCount(1), Wake::kYes).failed,
          "a page could not be put back");
    removed = false;
  }
  space_.free_frames(Pfn::of_frame(*scratch), PageCount(1));
  return removed;
}

bool HoleInserter::map_if_coherent_locked(PageIndex at, Pfn dst) noexcept {
  const PageMap* map = space_.map_of(dst);
  if (map->type() != MemoryType::kCoherent) return true;
  for (int tries = 0; tries < 16; ++tries) {
    const Progress moved = space_.mmu().move(at, map->frame_of(dst), PageCount(1), Wake::kYes);
    if (!moved.failed) return true;
    if (moved.error.code == Errc::kNotFound) {  // a frame nobody has written yet: zeros
      if (!space_.mmu().copy(at, space_.bytes(dst), PageCount(1), Wake::kYes).failed) return true;
    }
    if (moved.error.code != Errc::kAgain) return false;
  }
  return false;
}

void HoleInserter::put_in_place_locked(PageIndex at, Pfn dst, bool writable) noexcept {
  const std::uint64_t bits = PageEntry::kExclusiveMarker | (writable ? PageEntry::kWritable : 0);
  const bool coherent = space_.map_of(dst)->type() == MemoryType::kCoherent;
  const PageEvent event = coherent ? PageEvent::kPopulateCoherent : PageEvent::kPopulate;
  space_.table().update(at, PageEntry(*next(PageState::kRam, event), dst, bits));
  Page* page = space_.page(dst);
  page->set_mapping(at);
  page->get();  // the mapping's reference
  space_.stats().inserted.fetch_add(1, std::memory_order_relaxed);
  space_.trace().add(TraceStep::kInserted, at, dst.raw());
}

void HoleInserter::base_pages_locked(PageIndex first, MigrateWord* src, const MigrateWord* dst,
                                     std::uint64_t n) noexcept {
  const PageRange range{first, PageCount(n)};
  bool writable = false;
  if (!ready_locked(range, &writable)) {
    for (std::uint64_t i = 0; i < n; ++i) src[i] = src[i].without(MigrateWord::kMigrate);
    return;
  }
  PageRun runs[kPagesPerHuge];
  PageIndex scanned = range.first;
  std::size_t count = 0, r = 0;
  for (std::uint64_t i = 0; i < n; ++i) {
    const PageIndex at = first + PageCount(i);
    if (at >= scanned) {
      const Result<std::size_t> found = space_.mmu().scan(PageRange::between(at, range.end()), runs, &scanned);
      count = found ? *found : 0;
      r = 0;
      if (!found || scanned <= at) scanned = at;  // nothing known: refused below
    }
    while (r < count && runs[r].range.end() <= at) ++r;
    const bool present = r < count && runs[r].range.contains(at);
    const bool zero = present && (runs[r].kind & PageRun::kZero) != 0;
    const bool usable = dst[i].valid() && !dst[i].compound() && dst[i].pfn().is_device() && at < scanned &&
                        space_.table().get(at).is_ram() && (!present || (zero && remove_zero_page_locked(at))) &&
                        map_if_coherent_locked(at, dst[i].pfn());
    if (!usable) {
      src[i] = src[i].without(MigrateWord::kMigrate);
      continue;
    }
    put_in_place_locked(at, dst[i].pfn(), writable);
    src[i] = MigrateWord(MigrateWord::kMigrate);
  }
}

bool HoleInserter::huge_page_locked(PageIndex base, Pfn dst) noexcept {
  const PageRange unit{base, PageCount(kPagesPerHuge)};
  bool writable = false;
  if (!base.is_huge_aligned() || !dst.is_device() || !ready_locked(unit, &writable)) return false;
  PageRun run[1];
  const Result<std::size_t> found = space_.mmu().scan(unit, run, nullptr);
  if (!found || *found != 0) return false;
  if (space_.table().next_used(unit.first, unit.end()) != unit.end()) return false;
  const std::uint64_t bits = PageEntry::kExclusiveMarker | (writable ? PageEntry::kWritable : 0);
  if (!space_.table().set_huge(base, PageEntry(PageState::kDevice, dst, bits))) return false;
  Page* page = space_.page(dst);
  page->set_mapping(base);
  page->get();
  space_.stats().inserted.fetch_add(kPagesPerHuge, std::memory_order_relaxed);
  return true;
}

}  // namespace whimbrel
