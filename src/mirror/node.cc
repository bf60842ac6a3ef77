#include "mirror/node.h"

#include <cstring>

#include "base/check.h"
#include "mirror/mirror.h"
#include "mirror/session.h"

namespace whimbrel::mirror {

Result<Node*> Node::create(AddressSpace& space, int minor, std::uint64_t private_chunks) noexcept {
  const bool coherent = minor >= 2;
  const std::uint64_t chunks = coherent ? 1 : private_chunks;
  const PageCount pages(chunks * kChunkPages);
  void* memory = space.source().take(sizeof(Node));
  if (memory == nullptr) return fail(Errc::kNoMemory, 0, "mirror node");
  Node* node = ::new (memory) Node(space, minor);
  const Result<PageMap*> map =
      space.add_page_map(coherent ? MemoryType::kCoherent : MemoryType::kPrivate, pages, node, node);
  if (!map) return std::unexpected(map.error());
  node->map_ = *map;
  if (!coherent) {
    const Result<PageRange> window = space.mmu().open_window(pages, WindowKind::kHuge);
    if (!window) return std::unexpected(window.error());
    node->memory_ = *window;
  }
  MutexLock hold(node->mutex_);
  node->chunks_ = SourceArray<Chunk>(space.source(), chunks);
  node->next_free_ = static_cast<std::uint32_t*>(space.source().take(pages.raw() * sizeof(std::uint32_t)));
  node->migrated_by_ = static_cast<std::atomic<Mirror*>*>(space.source().take(pages.raw() * sizeof(void*)));
  if (node->chunks_.empty() || node->next_free_ == nullptr || node->migrated_by_ == nullptr) {
    return fail(Errc::kNoMemory, 0, "mirror node");
  }
  if (!node->add_chunk_locked(false)) return fail(Errc::kNoMemory, 0, "mirror node");
  return node;
}

bool Node::add_chunk_locked(bool huge) noexcept {
  for (std::uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    if (chunks_[chunk].present || chunks_[chunk].removing) continue;
    chunks_[chunk].present = true;
    const std::uint64_t step = huge ? kPagesPerHuge : 1;
    std::uint32_t& list = huge ? free_huge_ : free_base_;
    for (std::uint64_t at = kChunkPages; at != 0; at -= step) {
      const auto page = static_cast<std::uint32_t>(chunk * kChunkPages + at - step);
      next_free_[page] = list;
      list = page;
    }
    return true;
  }
  return false;
}

Result<Pfn> Node::alloc(unsigned order, Mirror* by) noexcept {
  std::uint32_t page = kNone;
  {
    MutexLock hold(mutex_);
    if (order != 0 && coherent()) return fail(Errc::kDeviceFull, 0, "coherent node");  // ABI-14
    std::uint32_t& list = order == 0 ? free_base_ : free_huge_;
    if (list == kNone && !add_chunk_locked(order != 0)) return fail(Errc::kDeviceFull, 0, "mirror node");
    page = list;
    list = next_free_[page];
  }
  const Pfn pfn = map_->first() + PageCount(page);
  if (const Result<Page*> folio = map_->init_folio(pfn, order); !folio) return std::unexpected(folio.error());
  migrated_by_[page].store(by, std::memory_order_release);
  return pfn;
}

Mirror* Node::migrated_by(Pfn pfn) noexcept { return migrated_by_[index(pfn)].load(std::memory_order_acquire); }

void Node::forget(const Mirror* closed) noexcept {
  MutexLock hold(mutex_);
  for (std::uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    if (!chunks_[chunk].present) continue;
    for (std::uint64_t page = chunk * kChunkPages; page < (chunk + 1) * kChunkPages; ++page) {
      Mirror* expected = const_cast<Mirror*>(closed);
      migrated_by_[page].compare_exchange_strong(expected, nullptr);
    }
  }
}

void Node::folio_free(Pfn head, unsigned order) noexcept {
  const auto page = static_cast<std::uint32_t>(index(head));
  migrated_by_[page].store(nullptr, std::memory_order_release);
  MutexLock hold(mutex_);
  if (chunks_[page / kChunkPages].removing) return;
  std::uint32_t& list = order == 0 ? free_base_ : free_huge_;
  next_free_[page] = list;
  list = page;
}

void Node::folio_split(Pfn head, Pfn piece) noexcept {
  migrated_by_[index(piece)].store(migrated_by(head), std::memory_order_release);
}

FaultResult Node::migrate_to_ram(FaultContext& fault) noexcept {
  Mirror* by = migrated_by(space_.head_of(fault.page));
  const bool fail_alloc = by != nullptr && by->take_fail_alloc();
  if (fail_alloc && !fault.huge) return FaultResult::kOom;  // FL-02: the access is tried again
  const PageIndex page = PageIndex::of(fault.address);
  // CF-11: without a huge page only the touched page comes home.
  const bool whole = fault.huge && !fail_alloc;
  const PageRange range = whole ? PageRange{page.huge_base(), PageCount(kPagesPerHuge)} : PageRange{page, PageCount(1)};
  MigrateWord src[kPagesPerHuge], dst[kPagesPerHuge];
  MigrateVma args;
  args.start = range.first.address();
  args.end = range.end().address();
  args.src = src;
  args.dst = dst;
  args.pgmap_owner = this;
  args.flags = select_flag() | (whole ? kSelectCompound : 0);
  args.fault_page = fault.page;
  if (!migrate_vma_setup(space_, args)) return FaultResult::kSigbus;  // CF-08
  bool oom = false;
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    if (!src[i].migrating() || !src[i].valid()) continue;
    const bool huge = src[i].compound();
    const Result<Pfn> to = huge ? space_.alloc_huge_frame() : space_.alloc_frames(PageCount(1));
    if (!to) {
      oom = true;
      continue;
    }
    std::memcpy(space_.bytes(*to), bytes(src[i].pfn()), src[i].pages().bytes());
    dst[i] = MigrateWord::of(*to).with(huge ? MigrateWord::kCompound : 0);
  }
  migrate_vma_pages(space_, args);
  Session::of(space_).forget_everywhere(*this, range);
  migrate_vma_finalize(space_, args);
  return oom ? FaultResult::kOom : FaultResult::kDone;
}

void Node::evict_chunk(std::uint64_t chunk) noexcept {
  MigrateWord src[kPagesPerHuge], dst[kPagesPerHuge];
  for (std::uint64_t at = 0; at < kChunkPages; at += kPagesPerHuge) {
    const Pfn first = map_->first() + PageCount(chunk * kChunkPages + at);
    migrate_device_range(space_, src, first, kPagesPerHuge);
    for (std::uint64_t i = 0; i < kPagesPerHuge; ++i) {
      dst[i] = MigrateWord();
      if (!src[i].migrating() || !src[i].valid()) continue;
      const bool huge = src[i].compound();
      const Result<Pfn> to = huge ? space_.alloc_huge_frame() : space_.alloc_frames(PageCount(1));
      if (!to) continue;
      std::memcpy(space_.bytes(*to), bytes(src[i].pfn()), src[i].pages().bytes());
      dst[i] = MigrateWord::of(*to).with(huge ? MigrateWord::kCompound : 0);
      const Page* page = space_.page(src[i].pfn());
      if (page->is_mapped()) Session::of(space_).forget_everywhere(*this, {page->mapped_at(), src[i].pages()});
    }
    migrate_device_pages(space_, src, dst, kPagesPerHuge);
    migrate_device_finalize(space_, src, dst, kPagesPerHuge);
  }
}

void Node::evict(bool destroy) noexcept {
  for (std::uint64_t chunk = 0; chunk < map_->count().raw() / kChunkPages; ++chunk) {
    {
      MutexLock hold(mutex_);
      if (!chunks_[chunk].present) continue;
      if (destroy) chunks_[chunk].removing = true;
    }
    evict_chunk(chunk);
  }
  if (!destroy) return;
  for (int tries = 0; map_->pages_in_use() != 0; ++tries) {  // RL-01: until all are free
    for (std::uint64_t chunk = 0; chunk < map_->count().raw() / kChunkPages; ++chunk) evict_chunk(chunk);
    if (tries > 10) space_.clock().sleep_ns(1'000'000);
  }
  MutexLock hold(mutex_);
  free_base_ = free_huge_ = kNone;
  for (Chunk& chunk : chunks_) chunk = {};
  if (!coherent()) (void)space_.mmu().discard(memory_);
}

}  // namespace whimbrel::mirror
