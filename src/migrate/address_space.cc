#include "migrate/address_space.h"

#include <cstring>

#include "base/check.h"

namespace whimbrel {

AddressSpace::AddressSpace(Mmu& mmu, MemorySource& source, Clock& clock, const Config& config) noexcept
    : mmu_(mmu), source_(source), clock_(clock), config_(config), table_(source) {}

Result<AddressSpace*> AddressSpace::create(Mmu& mmu, MemorySource& source, Clock& clock, const Config& config) noexcept {
  auto* space = static_cast<AddressSpace*>(source.take(sizeof(AddressSpace)));
  if (space == nullptr) return fail(Errc::kNoMemory, 0, "address space");
  ::new (space) AddressSpace(mmu, source, clock, config);
  const PageCount sizes[] = {config.staging, config.landing, config.huge};
  for (std::size_t use = 0; use < space->pools_.size(); ++use) {
    const Result<FramePool*> pool = FramePool::create(mmu, source, static_cast<FrameUse>(use), sizes[use]);
    if (!pool) {
      const Error error = pool.error();
      destroy(space);
      return std::unexpected(error);
    }
    space->pools_[use] = *pool;
  }
  return space;
}

void AddressSpace::destroy(AddressSpace* space) noexcept {
  if (space == nullptr) return;
  MemorySource& source = space->source_;
  for (FramePool* pool : space->pools_) FramePool::destroy(pool);
  for (auto& map : space->maps_) PageMap::destroy(map.load(std::memory_order_relaxed));
  {
    MutexLock hold(space->mutex_);
    for (PageMap* map = space->retired_maps_; map != nullptr;) {
      PageMap* next = map->next_retired();
      PageMap::destroy(map);
      map = next;
    }
  }
  space->~AddressSpace();
  source.give(space, sizeof(AddressSpace));
}

Result<PageMap*> AddressSpace::add_page_map(MemoryType type, PageCount count, const void* owner,
                                            PageMapOps* ops) noexcept {
  const std::uint64_t rounded = (count.raw() + kPagesPerHuge - 1) / kPagesPerHuge * kPagesPerHuge;
  const std::uint64_t first = next_device_pfn_.fetch_add(rounded);
  if (first + rounded > (std::uint64_t{1} << kPfnBits)) return fail(Errc::kNoMemory, 0, "frame numbers used up");
  const Result<PageMap*> map = PageMap::create(source_, Pfn(first), count, type, owner, ops);
  if (!map) return map;
  if (type == MemoryType::kCoherent) {
    const Result<PageRange> window = mmu_.open_window(count, WindowKind::kSmall);
    if (!window) {
      PageMap::destroy(*map);
      return std::unexpected(window.error());
    }
    (*map)->set_window(*window);
  }
  for (auto& slot : maps_) {
    PageMap* expected = nullptr;
    if (slot.compare_exchange_strong(expected, *map, std::memory_order_release)) return map;
  }
  PageMap::destroy(*map);
  return fail(Errc::kNoMemory, 0, "too many devices");
}

Result<void> AddressSpace::remove_page_map(PageMap* map) noexcept {
  if (map->pages_in_use() != 0) return fail(Errc::kBusy, 0, "device pages in use");
  MutexLock hold(mutex_);  // who has found a page of it under the lock goes on finding its neighbours
  for (auto& slot : maps_) {
    if (slot.load(std::memory_order_acquire) != map) continue;
    slot.store(nullptr, std::memory_order_release);
    if (!map->window().empty()) mmu_.close_window(map->window());
    map->retire(retired_maps_);
    retired_maps_ = map;
    return {};
  }
  return fail(Errc::kNotFound, 0, "page map");
}

PageMap* AddressSpace::map_of(Pfn pfn) noexcept {
  if (!pfn.is_device()) return nullptr;
  for (auto& slot : maps_) {
    PageMap* map = slot.load(std::memory_order_acquire);
    if (map != nullptr && map->contains(pfn)) return map;
  }
  return nullptr;
}

Page* AddressSpace::page(Pfn pfn) noexcept {
  if (pfn.is_device()) {
    PageMap* map = map_of(pfn);
    return map == nullptr ? nullptr : map->find(pfn);
  }
  for (FramePool* pool : pools_) {
    Page* page = pool->page(pfn.frame());
    if (page != nullptr) return page;
  }
  return nullptr;
}

Pfn AddressSpace::head_of(Pfn pfn) noexcept {
  const Page* p = page(pfn);
  return p != nullptr && p->is_tail() ? Pfn(pfn.raw() & ~std::uint64_t{kPagesPerHuge - 1}) : pfn;
}

void AddressSpace::put_page(Pfn head) noexcept {
  Page* p = page(head);
  CHECK(p != nullptr && !p->is_tail(), "dropping something that is not a folio head");
  const unsigned order = p->order();
  if (p->put()) free_folio(head, order);
}

void AddressSpace::free_folio(Pfn head, unsigned order) noexcept {
  page(head)->clear_mapping();
  if (PageMap* map = map_of(head); map != nullptr) {
    if (map->type() == MemoryType::kCoherent) {
      // The frame is handed out empty the next time; its bytes may have gone with the program's mapping already.
      CHECK(mmu_.discard({map->frame_of(head), PageCount(std::uint64_t{1} << order)}).has_value());
    }
    map->ops().folio_free(head, order);
    map->note_freed(order);
    return;
  }
  for (FramePool* pool : pools_) {
    if (pool->contains(head.frame())) pool->give(head.frame(), PageCount(std::uint64_t{1} << order));
  }
}

Result<Pfn> AddressSpace::alloc_frames(PageCount count) noexcept {
  const Result<PageIndex> frame = pool(FrameUse::kLanding).take(count);
  if (!frame) return std::unexpected(frame.error());
  return Pfn::of_frame(*frame);
}

Result<Pfn> AddressSpace::alloc_fresh_frames(PageCount count) noexcept {
  const Result<PageIndex> frame = pool(FrameUse::kStaging).take(count);
  if (!frame) return std::unexpected(frame.error());
  return Pfn::of_frame(*frame);
}

Result<Pfn> AddressSpace::alloc_unit_frames() noexcept {
  const Result<PageIndex> frame = pool(FrameUse::kHuge).take(PageCount(kPagesPerHuge));
  if (!frame) return std::unexpected(frame.error());
  return Pfn::of_frame(*frame);
}

Result<Pfn> AddressSpace::alloc_huge_frame() noexcept {
  const Result<PageIndex> frame = pool(FrameUse::kHuge).take_huge();
  if (!frame) return std::unexpected(frame.error());
  return Pfn::of_frame(*frame);
}

void AddressSpace::free_frames(Pfn first, PageCount count) noexcept {
  for (std::uint64_t i = 0; i < count.raw(); ++i) {
    Page* p = page(first + PageCount(i));
    p->clear_mapping();
    p->unlock();
    CHECK(p->put(), "freeing a frame that somebody holds");
  }
  for (FramePool* pool : pools_) {
    if (pool->contains(first.frame())) {
      pool->give(first.frame(), count);
      return;
    }
  }
}

PageEntry AddressSpace::entry(PageIndex page) noexcept {
  MutexLock hold(mutex_);
  return table_.get(page);
}

// ---- splitting ---------------------------------------------------------------------------------------------------

Result<void> AddressSpace::split_slot_locked(PageIndex base) noexcept {
  const PageEntry huge = table_.get(base);
  CHECK(huge.is_huge() && base.is_huge_aligned());
  if (const Result<void> done = table_.split_huge(base); !done) return done;
  Page* head = page(huge.pfn());
  for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
    page(huge.pfn() + PageCount(i))->set_mapping(base + PageCount(i));
    // Each base slot holds a mapping reference of its own; slots on their way hold none (DM-15).
    if (i != 0 && !is_migrating(huge.state())) head->get();
  }
  return {};
}

Result<void> AddressSpace::split_folio_locked(Pfn head_pfn, Pfn keep, bool lock_all) noexcept {
  Page* head = page(head_pfn);
  CHECK(head->is_locked() && head->order() == kHugeOrder, "splitting needs a locked large folio");
  std::uint32_t mapped = 0;
  for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
    const Page* piece = page(head_pfn + PageCount(i));
    if (!piece->is_mapped()) continue;
    if (!is_migrating(table_.get(piece->mapped_at()).state())) ++mapped;
  }
  // SPF-01: exactly one reference beside the mappings, the caller's.
  if (head->refs() != mapped + 1) {
    stats_.split_failed.fetch_add(1, std::memory_order_relaxed);
    return fail(Errc::kAgain, 0, "folio is referenced");
  }
  PageMap* map = map_of(head_pfn);
  std::uint32_t head_refs = 0;
  for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
    const Pfn pfn = head_pfn + PageCount(i);
    Page* piece = page(pfn);
    const bool has_mapping_ref = piece->is_mapped() && !is_migrating(table_.get(piece->mapped_at()).state());
    // Who waited for the lock of the whole gets a lock of his own now; nobody will unlock the old one for him.
    if (has_mapping_ref) wake_waiters_locked(piece->mapped_at());
    const bool kept = lock_all || pfn == keep;
    const std::uint32_t refs = (has_mapping_ref ? 1u : 0u) + (kept ? 1u : 0u);
    if (i == 0) {
      head_refs = refs;
      continue;
    }
    piece->split_off(refs == 0 ? 1 : refs, kept);
    if (map != nullptr) map->ops().folio_split(head_pfn, pfn);
    if (refs == 0) put_page(pfn);  // nothing maps it any more
  }
  const bool head_kept = lock_all || keep == head_pfn;
  head->split_off(head_refs == 0 ? 1 : head_refs, head_kept);
  if (head_refs == 0) put_page(head_pfn);
  stats_.split.fetch_add(1, std::memory_order_relaxed);
  return {};
}

bool AddressSpace::take_coherent_locked(PageIndex at, std::uint64_t writable_bit) noexcept {
  for (int tries = 0; tries < 16; ++tries) {
    const PageEntry entry = table_.get(at);
    if (entry.state() != PageState::kCoherent) return false;
    const PageIndex frame = map_of(entry.pfn())->frame_of(entry.pfn());
    table_.update(at, entry.without(PageEntry::kWritable).with(writable_bit).after(PageEvent::kCollectHome));
    const Progress moved = mmu_.move(frame, at, PageCount(1), Wake::kNo);
    if (!moved.failed) return true;
    table_.update(at, table_.get(at).after(PageEvent::kMapCoherent));
    if (moved.error.code == Errc::kBusy && config_.discard != nullptr && mmu_.is_shared(at).value_or(false)) {
      // Shared by a fork: the frame becomes a copy, and the other process keeps the page. Protected first, so that
      // nothing is written to it after the copy.
      if (!mmu_.write_protect({at, PageCount(1)}, true, Wake::kNo)) return false;
      std::memcpy(mmu_.bytes(frame), reinterpret_cast<const void*>(at.address().raw()), kPageSize);
      table_.update(at, table_.get(at).without(PageEntry::kWritable).with(writable_bit).after(PageEvent::kCollectHome));
      if (config_.discard->discard_locked(*this, {at, PageCount(1)})) return true;
      table_.update(at, table_.get(at).after(PageEvent::kMapCoherent));
      CHECK(mmu_.discard({frame, PageCount(1)}).has_value());
      return false;
    }
    if (moved.error.code == Errc::kBusy && config_.break_sharing && tries == 0) {
      // A copy of its own for this process. Not with the lock held: the fault that this makes may be ours to serve.
      mutex_.unlock();
      (void)mmu_.populate({at, PageCount(1)}, true);
      mutex_.lock();
      continue;
    }
    if (moved.error.code != Errc::kAgain) return false;
  }
  return false;
}

void AddressSpace::wake_waiters_locked(PageIndex at) noexcept {
  const PageEntry e = table_.get(at);
  if (!e.has(PageEntry::kWaited)) return;
  if (e.is_huge()) {
    const PageIndex base = at.huge_base();
    CHECK(table_.set_huge(base, table_.get(base).without(PageEntry::kWaited)).has_value());
    mmu_.wake({base, PageCount(kPagesPerHuge)});
    return;
  }
  table_.update(at, e.without(PageEntry::kWaited));
  mmu_.wake({at, PageCount(1)});
}

void AddressSpace::wake_folio_waiters_locked(Pfn head) noexcept {
  const Page* first = page(head);
  if (first == nullptr || first->is_tail()) return;
  const std::uint64_t n = std::uint64_t{1} << first->order();
  for (std::uint64_t i = 0; i < n; ++i) {
    const Page* piece = page(head + PageCount(i));
    if (!piece->is_mapped()) continue;
    wake_waiters_locked(piece->mapped_at());
    if (i == 0 && table_.get(piece->mapped_at()).is_huge()) return;  // one slot for all
  }
}

// ---- observers ---------------------------------------------------------------------------------------------------

bool AddressSpace::add_observer(SpaceObserver* observer) noexcept {
  if (observer_count_ == kMaxObservers) return false;
  observers_[observer_count_++] = observer;
  return true;
}

void AddressSpace::notify_start(NotifyEvent event, PageRange range, const void* owner) noexcept {
  for (std::size_t i = 0; i < observer_count_; ++i) observers_[i]->invalidate_start(event, range, owner);
}

void AddressSpace::notify_end(NotifyEvent event, PageRange range, const void* owner) noexcept {
  for (std::size_t i = 0; i < observer_count_; ++i) observers_[i]->invalidate_end(event, range, owner);
}

}  // namespace whimbrel
