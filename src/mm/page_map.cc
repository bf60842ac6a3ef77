#include "mm/page_map.h"

#include <algorithm>

namespace whimbrel {

PageMap::PageMap(MemorySource& source, Pfn first, PageCount count, MemoryType type, const void* owner,
                 PageMapOps* ops) noexcept
    : source_(source), first_(first), count_(count), type_(type), owner_(owner), ops_(ops),
      chunks_(source, (count.raw() + kChunkPages - 1) / kChunkPages) {}

Result<PageMap*> PageMap::create(MemorySource& source, Pfn first, PageCount count, MemoryType type, const void* owner,
                                 PageMapOps* ops) noexcept {
  if (count.raw() == 0 || owner == nullptr || ops == nullptr) return fail(Errc::kInvalid, 0, "page map");
  void* memory = source.take(sizeof(PageMap));
  if (memory == nullptr) return fail(Errc::kNoMemory, 0, "page map");
  auto* map = ::new (memory) PageMap(source, first, count, type, owner, ops);
  if (map->chunks_.empty()) {
    destroy(map);
    return fail(Errc::kNoMemory, 0, "page map");
  }
  return map;
}

void PageMap::destroy(PageMap* map) noexcept {
  if (map == nullptr) return;
  MemorySource& source = map->source_;
  for (std::size_t i = 0; i < map->chunks_.size(); ++i) {
    Page* chunk = map->chunk(i).load(std::memory_order_relaxed);
    if (chunk != nullptr) source.give(chunk, kChunkPages * sizeof(Page));
  }
  map->~PageMap();
  source.give(map, sizeof(PageMap));
}

Page* PageMap::find(Pfn pfn) noexcept {
  if (!contains(pfn)) return nullptr;
  const std::uint64_t i = (pfn - first_).raw();
  Page* first = chunk(i / kChunkPages).load(std::memory_order_acquire);
  return first == nullptr ? nullptr : first + i % kChunkPages;
}

Pfn PageMap::next_known(Pfn from) noexcept {
  if (!contains(from)) return first_ + count_;
  std::uint64_t at = (from - first_).raw();
  while (at < count_.raw() && chunk(at / kChunkPages).load(std::memory_order_acquire) == nullptr) {
    at = (at / kChunkPages + 1) * kChunkPages;
  }
  return first_ + PageCount(std::min(at, count_.raw()));
}

Result<Page*> PageMap::init_folio(Pfn head, unsigned order) noexcept {
  const std::uint64_t pages = std::uint64_t{1} << order;
  CHECK(contains(head) && contains(head + PageCount(pages - 1)));
  const std::uint64_t first = (head - first_).raw();
  for (std::uint64_t i = first / kChunkPages; i <= (first + pages - 1) / kChunkPages; ++i) {
    if (chunk(i).load(std::memory_order_acquire) != nullptr) continue;
    MutexLock hold(mutex_);
    if (chunk(i).load(std::memory_order_relaxed) != nullptr) continue;
    void* memory = source_.take(kChunkPages * sizeof(Page));
    if (memory == nullptr) return fail(Errc::kNoMemory, 0, "page metadata");
    chunk(i).store(static_cast<Page*>(memory), std::memory_order_release);
    chunk_count_.fetch_add(1, std::memory_order_relaxed);
  }
  for (std::uint64_t i = 1; i < pages; ++i) find(head + PageCount(i))->init_tail();
  Page* page = find(head);
  page->init_head(order);
  in_use_.fetch_add(pages, std::memory_order_acq_rel);
  return page;
}

std::size_t PageMap::metadata_bytes() const noexcept {
  return sizeof(PageMap) + chunks_.size() * sizeof(chunks_[0]) +
         chunk_count_.load(std::memory_order_relaxed) * kChunkPages * sizeof(Page);
}

}  // namespace whimbrel
