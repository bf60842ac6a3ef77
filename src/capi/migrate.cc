// The protocol, by virtual range and by frame range: argument blocks in the kernel's layout, and what guards the engine
// against misuse of them (PR-04, SET-02).
#include <cerrno>
#include <cstddef>

#include "capi/capi.h"
#include "capi/convert.h"
#include "linux/sys.h"
#include "migrate/migrate_vma.h"

using namespace whimbrel;
using capi::complain;
using capi::Flight;
using capi::words;

// DM-08, offset by offset.
static_assert(offsetof(migrate_vma, vma) == 0 && offsetof(migrate_vma, dst) == 8 && offsetof(migrate_vma, src) == 16 &&
              offsetof(migrate_vma, cpages) == 24 && offsetof(migrate_vma, npages) == 32 &&
              offsetof(migrate_vma, start) == 40 && offsetof(migrate_vma, end) == 48 &&
              offsetof(migrate_vma, pgmap_owner) == 56 && offsetof(migrate_vma, flags) == 64 &&
              offsetof(migrate_vma, fault_page) == 72);

namespace {

MigrateVma engine_args(const migrate_vma& args) {
  MigrateVma to;
  to.start = VirtualAddress(args.start);
  to.end = VirtualAddress(args.end);
  to.src = words(args.src);
  to.dst = words(args.dst);
  to.cpages = args.cpages;
  to.npages = args.npages;
  to.pgmap_owner = args.pgmap_owner;
  to.flags = args.flags;
  if (args.fault_page != nullptr) to.fault_page = capi::pfn_of(args.fault_page);
  return to;
}

// Releases what the driver had meant as destinations: the pages step was left out, so nothing moved (PR-04).
void drop_destinations(AddressSpace& space, MigrateWord* dst, std::uint64_t n) {
  for (std::uint64_t i = 0; i < n; ++i) {
    if (!dst[i].valid()) continue;
    const Pfn pfn = dst[i].pfn();
    space.page(pfn)->unlock();
    space.put_page(pfn);
    dst[i] = MigrateWord();
  }
}

void end_flight(mm_struct& mm, Flight* flight) {
  const bool outbound = flight->outbound_thread.load(std::memory_order_relaxed) != 0;
  mm.flights().end(flight);
  if (outbound) mm.outbound().leave();
}

// Nothing can be migrated now, which is a legal answer (SET-04).
void nothing_to_do(migrate_vma& args, std::uint64_t pages) {
  for (std::uint64_t i = 0; i < pages; ++i) args.src[i] = args.dst[i] = 0;
  args.cpages = 0;
  args.npages = pages;
}

}  // namespace

int migrate_vma_setup(migrate_vma* args) {
  const auto pages = static_cast<std::int64_t>(args->end - args->start) >> kPageShift;  // SET-01: before the rounding
  MigrateVma m = engine_args(*args);
  args->start &= ~(kPageSize - 1);
  args->end &= ~(kPageSize - 1);
  const PageRange range{PageIndex(args->start >> kPageShift), PageCount((args->end - args->start) >> kPageShift)};
  // SET-02, in its order; what the engine itself looks at is left to it.
  mm_struct* mm = capi::current();
  const vm_area_struct* vma = args->vma;
  if (vma == nullptr) return complain(EINVAL, "migrate_vma_setup: no vma", "whimbrel_find_vma()");
  if (mm == nullptr || vma->vm_mm != mm) return complain(EINVAL, "migrate_vma_setup: the vma is of no running engine");
  if (pages <= 0) return complain(EINVAL, "migrate_vma_setup: empty range");
  if (args->start < vma->vm_start || args->start >= vma->vm_end || args->end <= vma->vm_start || args->end > vma->vm_end) {
    return complain(EINVAL, "migrate_vma_setup: the range is not inside the vma");
  }
  if (args->src == nullptr || args->dst == nullptr) return complain(EINVAL, "migrate_vma_setup: no src, or no dst");
  const auto bytes = static_cast<std::uint64_t>(pages) * sizeof(unsigned long);
  if (mm->touches_registered(capi::bytes_touched(args->src, bytes)) ||
      mm->touches_registered(capi::bytes_touched(args->dst, bytes)) ||
      mm->touches_registered(capi::bytes_touched(args, sizeof *args))) {
    return complain(EINVAL, "migrate_vma_setup: arguments lie in registered memory", "keep them where nothing migrates");
  }
  m.watch_within = mm->registered(range);
  const bool outbound = (args->flags & MIGRATE_VMA_SELECT_SYSTEM) != 0;
  if (m.watch_within.empty()) {
    // What has moved out of a registered range (mremap) may come home, and nothing may leave there.
    if (outbound) {
      return complain(EINVAL, "migrate_vma_setup: not inside one registered range", "whimbrel_register_range()");
    }
    m.watch_within = range;
    m.skip_holes = true;
  }
  const bool gated = outbound || args->fault_page == nullptr;
  const bool entered = gated && mm->outbound().enter();
  Flight* flight = gated && !entered ? nullptr : mm->flights().begin(args->src);
  if (flight == nullptr) {  // a fork is under way, or there are too many migrations
    if (entered) mm->outbound().leave();
    nothing_to_do(*args, static_cast<std::uint64_t>(pages));
    if (Flight* rest = mm->flights().begin(args->src); rest != nullptr) rest->paged = true;
    return 0;
  }
  if (entered) flight->outbound_thread.store(sys::gettid(), std::memory_order_release);
  const Result<void> done = migrate_vma_setup(mm->space(), m);
  if (!done) {
    end_flight(*mm, flight);
    return complain(done.error(), "migrate_vma_setup");
  }
  args->cpages = m.cpages;
  args->npages = m.npages;
  args->end = m.end.raw();
  return 0;
}

void migrate_vma_pages(migrate_vma* migrate) {
  mm_struct* mm = capi::current();
  Flight* flight = mm == nullptr ? nullptr : mm->flights().find(migrate->src);
  if (flight == nullptr) {
    (void)complain(EINVAL, "migrate_vma_pages: no setup that succeeded");
    return;
  }
  flight->paged = true;
  MigrateVma m = engine_args(*migrate);
  migrate_vma_pages(mm->space(), m);
}

void migrate_vma_finalize(migrate_vma* migrate) {
  mm_struct* mm = capi::current();
  Flight* flight = mm == nullptr ? nullptr : mm->flights().find(migrate->src);
  if (flight == nullptr) {
    (void)complain(EINVAL, "migrate_vma_finalize: no setup that succeeded, or finalized already");
    return;
  }
  MigrateVma m = engine_args(*migrate);
  if (!flight->paged) {
    drop_destinations(mm->space(), m.dst, m.npages);
    migrate_vma_pages(mm->space(), m);  // without destinations: everything is to be restored
  }
  migrate_vma_finalize(mm->space(), m);
  end_flight(*mm, flight);
}

// ---- by frame range -------------------------------------------------------------------------------------------------------

int migrate_device_range(unsigned long* src_pfns, unsigned long start, unsigned long npages) {
  mm_struct& mm = capi::running();
  (void)mm.flights().begin(src_pfns);
  migrate_device_range(mm.space(), words(src_pfns), Pfn(start), npages);
  return 0;
}

int migrate_device_pfns(unsigned long* src_pfns, unsigned long npages) {
  mm_struct& mm = capi::running();
  (void)mm.flights().begin(src_pfns);
  migrate_device_pfns(mm.space(), words(src_pfns), npages);
  return 0;
}

void migrate_device_pages(unsigned long* src_pfns, unsigned long* dst_pfns, unsigned long npages) {
  mm_struct& mm = capi::running();
  if (Flight* flight = mm.flights().find(src_pfns); flight != nullptr) flight->paged = true;
  migrate_device_pages(mm.space(), words(src_pfns), words(dst_pfns), npages);
}

void migrate_device_finalize(unsigned long* src_pfns, unsigned long* dst_pfns, unsigned long npages) {
  mm_struct& mm = capi::running();
  Flight* flight = mm.flights().find(src_pfns);
  if (flight != nullptr && !flight->paged) {
    drop_destinations(mm.space(), words(dst_pfns), npages);
    migrate_device_pages(mm.space(), words(src_pfns), words(dst_pfns), npages);
  }
  migrate_device_finalize(mm.space(), words(src_pfns), words(dst_pfns), npages);
  if (flight != nullptr) end_flight(mm, flight);
}

int migrate_device_coherent_folio(folio* folio) {
  mm_struct& mm = capi::running();
  if (!is_device_coherent_page(&folio->page)) {
    return complain(EINVAL, "migrate_device_coherent_folio: not a coherent page");
  }
  const Result<void> done = migrate_device_coherent_folio(mm.space(), capi::pfn_of(folio));
  return done ? 0 : complain(done.error(), "migrate_device_coherent_folio");
}
