// Device memory: memremap_pages and what it registers (DM-09..DM-14).
#include <cerrno>

#include "capi/convert.h"
#include "capi/page_map.h"

using namespace whimbrel;
using capi::complain;
using capi::DriverPageMap;

namespace whimbrel::capi {

DriverPageMap::~DriverPageMap() {
  for (auto& chunk : chunks_) {
    if (Word* words = chunk.load(std::memory_order_relaxed); words != nullptr) source_.give(words, kChunk * sizeof(Word));
  }
}

DriverPageMap* page_map_of(AddressSpace& space, Pfn pfn) noexcept {
  PageMap* map = space.map_of(pfn);
  return map == nullptr ? nullptr : static_cast<DriverPageMap*>(&map->ops());  // the only ops there are in this engine
}

void* DriverPageMap::data(Pfn pfn) noexcept {
  const std::uint64_t i = (pfn - map_->first()).raw();
  const Word* chunk = chunks_[i / kChunk].load(std::memory_order_acquire);
  return chunk == nullptr ? nullptr : chunk[i % kChunk].load(std::memory_order_acquire);
}

bool DriverPageMap::set_data(Pfn pfn, void* data) noexcept {
  const std::uint64_t i = (pfn - map_->first()).raw();
  Word* chunk = chunks_[i / kChunk].load(std::memory_order_acquire);
  if (chunk == nullptr) {
    if (data == nullptr) return true;
    auto* fresh = static_cast<Word*>(source_.take(kChunk * sizeof(Word)));  // zeroed: null pointers
    if (fresh == nullptr) return false;
    if (chunks_[i / kChunk].compare_exchange_strong(chunk, fresh, std::memory_order_acq_rel)) {
      chunk = fresh;
    } else {
      source_.give(fresh, kChunk * sizeof(Word));
    }
  }
  chunk[i % kChunk].store(data, std::memory_order_release);
  return true;
}

FaultResult DriverPageMap::migrate_to_ram(FaultContext& fault) noexcept {
  vm_area_struct vma{};
  const PageIndex at = PageIndex::of(fault.address);
  const Result<Mapping> mapping = fault.space.mmu().mapping_at_or_above(at);
  if (!mapping || !mapping->range.contains(at)) return FaultResult::kDone;  // unmapped meanwhile: looked at again
  vma.vm_start = mapping->range.first.address().raw();
  vma.vm_end = mapping->range.end().address().raw();
  vma.vm_flags = (mapping->has(Mapping::kReadable) ? VM_READ : 0) | (mapping->has(Mapping::kWritable) ? VM_WRITE : 0) |
                 (mapping->has(Mapping::kExecutable) ? VM_EXEC : 0) | WHIMBREL_VM_ANON;
  vma.vm_mm = &running();
  vm_fault vmf{};
  vmf.vma = &vma;
  vmf.flags = fault.write ? FAULT_FLAG_WRITE : 0;
  vmf.address = fault.address.raw();
  vmf.pte = fault.huge ? nullptr : &vmf;  // CF-04: only whether it is null says anything
  vmf.page = page_of(fault.page);
  vmf.thread = static_cast<int>(fault.thread);
  const vm_fault_t result = pgmap_.ops->migrate_to_ram(&vmf);
  if ((result & VM_FAULT_SIGBUS) != 0) return FaultResult::kSigbus;
  return (result & VM_FAULT_OOM) != 0 ? FaultResult::kOom : FaultResult::kDone;
}

void DriverPageMap::folio_free(Pfn head, unsigned order) noexcept {
  pgmap_.ops->folio_free(folio_of(head));
  for (std::uint64_t i = 0; i < std::uint64_t{1} << order; ++i) (void)set_data(head + PageCount(i), nullptr);
}

void DriverPageMap::folio_split(Pfn head, Pfn piece) noexcept {
  if (pgmap_.ops->folio_split == nullptr || map_->type() != MemoryType::kPrivate) return;
  pgmap_.ops->folio_split(folio_of(head), folio_of(piece));
  if (piece - head == PageCount(kPagesPerHuge - 1)) pgmap_.ops->folio_split(folio_of(head), nullptr);  // SPF-05
}

}  // namespace whimbrel::capi

namespace {

// DM-10, in its order.
const char* rejected(const dev_pagemap* pgmap) {
  if (pgmap == nullptr || pgmap->nr_range != 1) return "memremap_pages: nr_range must be 1";
  if (pgmap->range.end < pgmap->range.start || range_len(&pgmap->range) < kPageSize) return "memremap_pages: empty range";
  if (range_len(&pgmap->range) % kPageSize != 0) return "memremap_pages: the range is not a multiple of 4096 bytes";
  if (pgmap->vmemmap_shift != 0) return "memremap_pages: vmemmap_shift must be 0";
  const bool is_private = pgmap->type == MEMORY_DEVICE_PRIVATE;
  if (!is_private && pgmap->type != MEMORY_DEVICE_COHERENT) return "memremap_pages: type is neither private nor coherent";
  if (pgmap->ops == nullptr || pgmap->ops->folio_free == nullptr) return "memremap_pages: no folio_free";
  if (is_private && pgmap->ops->migrate_to_ram == nullptr) return "memremap_pages: private memory without migrate_to_ram";
  if (pgmap->owner == nullptr) return "memremap_pages: no owner";
  if (pgmap->whimbrel_private != nullptr) return "memremap_pages: this page map is in use, or was not zeroed";
  return nullptr;
}

}  // namespace

void* memremap_pages(dev_pagemap* pgmap, int nid) {
  if (const char* why = rejected(pgmap); why != nullptr) return ERR_PTR(complain(EINVAL, why));
  if (nid != NUMA_NO_NODE) return ERR_PTR(complain(EOPNOTSUPP, "memremap_pages: memory of one node", "NUMA_NO_NODE"));
  mm_struct* mm = capi::current();
  if (mm == nullptr) return ERR_PTR(complain(ENODEV, "memremap_pages: no engine runs", "whimbrel_start()"));
  AddressSpace& space = mm->space();
  const PageCount count(range_len(&pgmap->range) / kPageSize);
  auto* mine = make_from<DriverPageMap>(space.source(), *pgmap, space.source(), count);
  if (mine == nullptr || !mine->usable()) {
    destroy_from(space.source(), mine);
    return ERR_PTR(complain(ENOMEM, "memremap_pages: no memory for page data"));
  }
  const Result<PageMap*> map = space.add_page_map(static_cast<MemoryType>(pgmap->type), count, pgmap->owner, mine);
  if (!map) {
    destroy_from(space.source(), mine);
    return ERR_PTR(complain(map.error(), "memremap_pages"));
  }
  mine->set_map(*map);
  pgmap->range.start = (*map)->first().raw() * kPageSize;
  pgmap->range.end = pgmap->range.start + count.bytes() - 1;
  pgmap->whimbrel_private = mine;
  mm->page_maps.fetch_add(1);
  return (*map)->window().empty() ? nullptr : space.mmu().bytes((*map)->window().first);
}

void memunmap_pages(dev_pagemap* pgmap) {
  auto* mine = static_cast<DriverPageMap*>(pgmap->whimbrel_private);
  mm_struct* mm = capi::current();
  if (mine == nullptr || mm == nullptr) return;  // never remapped, or in a forked child
  mine->close();
  while (!mm->space().remove_page_map(&mine->map())) mm->space().clock().sleep_ns(200'000);  // DM-14
  // `mine` stays until the engine stops: a fault or a finalize on another thread may still be on its way out of it.
  pgmap->whimbrel_private = nullptr;
  mm->page_maps.fetch_sub(1);
}

unsigned long whimbrel_pages_in_use(const dev_pagemap* pgmap) {
  auto* mine = static_cast<DriverPageMap*>(pgmap->whimbrel_private);
  return mine == nullptr || capi::current() == nullptr ? 0 : mine->map().pages_in_use();
}

int zone_device_folio_init(folio* folio, dev_pagemap* pgmap, unsigned int order) {
  auto* mine = static_cast<DriverPageMap*>(pgmap->whimbrel_private);
  if (mine == nullptr || capi::current() == nullptr || mine->is_closed()) {
    return complain(ENODEV, "zone_device_folio_init: the page map is not there, or being removed");
  }
  const Pfn head = capi::pfn_of(folio);
  const PageCount pages(std::uint64_t{1} << (order & 15));
  if (order != 0 && (order != kHugeOrder || head.raw() % kPagesPerHuge != 0)) {
    return complain(EINVAL, "zone_device_folio_init: order 0, or 9 with an aligned head");
  }
  if (!mine->map().contains(head) || !mine->map().contains(head + PageCount(pages.raw() - 1))) {
    return complain(ENODEV, "zone_device_folio_init: the page is not of this page map");
  }
  const Result<Page*> page = mine->map().init_folio(head, order);
  return page ? 0 : complain(page.error(), "zone_device_folio_init");
}

void* zone_device_data(const page* page) {
  mm_struct* mm = capi::current();
  DriverPageMap* map = mm == nullptr ? nullptr : capi::page_map_of(mm->space(), capi::pfn_of(page));
  return map == nullptr ? nullptr : map->data(capi::pfn_of(page));
}

int whimbrel_set_zone_device_data(page* page, void* data) {
  DriverPageMap* map = capi::page_map_of(capi::running().space(), capi::pfn_of(page));
  if (map == nullptr) return complain(EINVAL, "whimbrel_set_zone_device_data: not a device page");
  return map->set_data(capi::pfn_of(page), data) ? 0 : complain(ENOMEM, "whimbrel_set_zone_device_data");
}

dev_pagemap* page_pgmap(const page* page) {
  mm_struct* mm = capi::current();
  DriverPageMap* map = mm == nullptr ? nullptr : capi::page_map_of(mm->space(), capi::pfn_of(page));
  return map == nullptr ? nullptr : &map->pgmap();
}
