// migrate_device_coherent_folio: one page of a coherent device goes to RAM, whoever maps it (COH-01..COH-03).
#include <cstring>

#include "base/check.h"
#include "migrate/migrate_vma.h"

namespace whimbrel {

Result<void> migrate_device_coherent_folio(AddressSpace& space, Pfn folio) noexcept {
  const PageMap* map = space.map_of(folio);
  CHECK(map != nullptr && map->type() == MemoryType::kCoherent, "not a coherent page");
  MigrateWord src(folio.raw());
  migrate_device_pfns(space, &src, 1);
  space.put_page(folio);  // the caller's reference: the protocol holds its own now, or nothing moves
  if (!src.migrating()) return fail(Errc::kBusy, 0, "migrate_device_coherent_folio");
  MigrateWord dst;
  if (const Result<Pfn> frame = space.alloc_frames(PageCount(1)); frame) dst = MigrateWord::of(*frame);
  migrate_device_pages(space, &src, &dst, 1);
  const bool moves = src.migrating();
  if (moves) std::memcpy(space.bytes(dst.pfn()), space.bytes(folio), kPageSize);
  migrate_device_finalize(space, &src, &dst, 1);
  return moves ? Result<void>{} : fail(Errc::kBusy, 0, "migrate_device_coherent_folio");  // COH-03
}

}  // namespace whimbrel
