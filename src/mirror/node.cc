#include "mirror/node.h"

#include <sys/mman.h>

#include <bit>
#include <cstring>

#include "base/check.h"
#include "linux/sys.h"
#include "migrate/exclusive.h"
#include "mirror/mirror.h"
#include "mirror/protection_lift.h"
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
  const bool room = node->free_base_.open(space.source(), pages.raw()) &&
                    node->free_huge_.open(space.source(), pages.raw() / kPagesPerHuge);
  const std::uint64_t units = pages.raw() / kPagesPerHuge;
  node->moved_memory_ = static_cast<std::atomic<bool>*>(space.source().take(units));
  node->shared_in_ = static_cast<std::atomic<std::uint32_t>*>(space.source().take(pages.raw() * sizeof(std::uint32_t)));
  if (node->chunks_.empty() || !room || node->shared_in_ == nullptr ||
      node->moved_memory_ == nullptr) {
    return fail(Errc::kNoMemory, 0, "mirror node");
  }
  if (!node->add_chunk_locked(false)) return fail(Errc::kNoMemory, 0, "mirror node");
  return node;
}

bool Node::FreeSet::open(MemorySource& source, std::uint64_t count) noexcept {
  words_ = SourceArray<std::uint64_t>(source, (count + 63) / 64);
  return !words_.empty();
}

void Node::FreeSet::add(std::uint64_t at) noexcept {
  words_[at / 64] |= std::uint64_t{1} << (at % 64);
  if (at / 64 < lowest_) lowest_ = at / 64;
  ++count_;
}

std::uint32_t Node::FreeSet::take() noexcept {
  if (count_ == 0) return kNone;
  while (words_[lowest_] == 0) ++lowest_;
  const auto bit = static_cast<std::uint32_t>(std::countr_zero(words_[lowest_]));
  words_[lowest_] &= words_[lowest_] - 1;
  --count_;
  return static_cast<std::uint32_t>(lowest_ * 64) + bit;
}

void Node::FreeSet::clear() noexcept {
  for (std::uint64_t i = 0; i < words_.size(); ++i) words_[i] = 0;
  lowest_ = count_ = 0;
}

bool Node::add_chunk_locked(bool huge) noexcept {
  for (std::uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    if (chunks_[chunk].present || chunks_[chunk].removing) continue;
    chunks_[chunk].present = true;
    const std::uint64_t pieces = huge ? kChunkPages / kPagesPerHuge : kChunkPages;
    FreeSet& free = huge ? free_huge_ : free_base_;
    for (std::uint64_t at = chunk * pieces; at < (chunk + 1) * pieces; ++at) free.add(at);
    const std::uint64_t bit = std::uint64_t{1} << chunk;
    if (huge) huge_chunks_.fetch_or(bit, std::memory_order_release);
    else huge_chunks_.fetch_and(~bit, std::memory_order_release);
    // A base page that is written first must not become a piece of a huge page. Refused: it may, and is copied then.
    const PageRange memory{memory_.first + PageCount(chunk * kChunkPages), PageCount(kChunkPages)};
    if (!coherent() && !sys::madvise(reinterpret_cast<void*>(memory.first.address().raw()), memory.count.bytes(),
                                     huge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE)) {
      huge_chunks_.fetch_or(bit, std::memory_order_release);
    }
    return true;
  }
  return false;
}

Result<Pfn> Node::alloc(unsigned order, OpenFlags* by) noexcept {
  std::uint32_t page = kNone;
  {
    MutexLock hold(mutex_);
    if (order != 0 && coherent()) return fail(Errc::kDeviceFull, 0, "coherent node");  // ABI-14
    FreeSet& free = order == 0 ? free_base_ : free_huge_;
    page = free.take();
    if (page == kNone && add_chunk_locked(order != 0)) page = free.take();
    if (page == kNone) return fail(Errc::kDeviceFull, 0, "mirror node");
    if (order != 0) page *= static_cast<std::uint32_t>(kPagesPerHuge);
  }
  const Pfn pfn = map_->first() + PageCount(page);
  const Result<Page*> folio = map_->init_folio(pfn, order);
  if (!folio) return std::unexpected(folio.error());
  (*folio)->set_owner_bits(Session::of(space_).family().number_of(by));
  return pfn;
}

void Node::forget(const OpenFlags* closed) noexcept {
  if (map_->pages_in_use() == 0) return;
  const std::uint16_t number = Session::of(space_).family().number_of(closed);
  MutexLock hold(mutex_);
  for (std::uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    if (!chunks_[chunk].present) continue;
    for (std::uint64_t page = chunk * kChunkPages; page < (chunk + 1) * kChunkPages; ++page) {
      Page* known = map_->find(map_->first() + PageCount(page));
      if (known != nullptr && known->owner_bits() == number) known->set_owner_bits(0);
    }
  }
}

void Node::folio_free(Pfn head, unsigned order) noexcept {
  const auto page = static_cast<std::uint32_t>(index(head));
  for (std::uint64_t i = 0; i < (std::uint64_t{1} << order); ++i) {
    std::atomic<std::uint32_t>& shared = shared_in_[page + i];
    if (shared.load(std::memory_order_relaxed) != 0) shared.store(0, std::memory_order_relaxed);
  }
  MutexLock hold(mutex_);
  if (chunks_[page / kChunkPages].removing) return;
  if (order == 0)
    free_base_.add(page);
  else
    free_huge_.add(page / kPagesPerHuge);
}

void Node::folio_split(Pfn head, Pfn piece) noexcept {
  map_->find(piece)->set_owner_bits(map_->find(head)->owner_bits());
}

FaultResult Node::migrate_to_ram(FaultContext& fault) noexcept {
  OpenFlags* by = Session::of(space_).family().flags_of(map_->find(space_.head_of(fault.page))->owner_bits());
  const bool fail_alloc = by != nullptr && take_fail_alloc(*by);
  if (fail_alloc && !fault.huge) {  // FL-02: the access is tried again
    Session::of(space_).note_failed_fault(fault.thread);
    return FaultResult::kOom;
  }
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
  // CF-12: no device reads or writes the pages any more when their contents begin to move.
  Session::of(space_).forget_everywhere(*this, range);
  bool oom = false;
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    if (!src[i].migrating() || !src[i].valid()) continue;
    const bool huge = src[i].compound();
    const Result<Pfn> to = huge ? space_.alloc_huge_frame() : space_.alloc_frames(PageCount(1));
    if (!to) {
      oom = true;
      continue;
    }
    dst[i] = MigrateWord::of(*to).with(huge ? MigrateWord::kCompound : 0);
    take_out(*to, src[i].pfn(), src[i].pages());
  }
  migrate_vma_pages(space_, args);
  undo_take_out(src, dst, args.npages);
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    if (src[i].migrating() && src[i].valid()) tell_family(src[i].pfn(), src[i].pages());
  }
  const LockLift unlocked(space_, whole ? range : PageRange{});
  const ProtectionLift lift(space_, whole ? range : PageRange{});
  args.read_only = lift.lifted();
  if (whole) drop_page_table(range);
  migrate_vma_finalize(space_, args);
  return oom ? FaultResult::kOom : FaultResult::kDone;
}

std::uint64_t Node::run_length(Pfn first, Pfn end) noexcept {
  const Page* page = map_->find(first);
  if (page->order() != 0) return std::uint64_t{1} << page->order();
  std::uint64_t n = 1;
  for (; first + PageCount(n) < end && n < kPagesPerHuge; ++n) {
    const Page* next = map_->find(first + PageCount(n));
    if (next == nullptr || next->is_tail() || next->order() != 0 || !next->is_mapped()) break;
    if (next->mapped_at() != page->mapped_at() + PageCount(n)) break;
  }
  return n;
}

// Where huge pages are not wanted, the fault that brought us here has made a page table for the unit: then a huge page
// can come home only in pieces. Discarding the empty unit takes the table away.
void Node::drop_page_table(PageRange unit) noexcept {
  if (Session::of(space_).wants_huge(unit.first)) return;
  MutexLock hold(space_.mutex());
  PageRun run[1];
  const Result<std::size_t> found = space_.mmu().scan(unit, run, nullptr);
  const bool ours = space_.table().get(unit.first).is_huge();
  if (found && *found == 0 && ours) (void)Session::of(space_).discarder().discard_locked(space_, unit);
}

void Node::evict_chunk(std::uint64_t chunk) noexcept {
  const Pfn end = map_->first() + PageCount((chunk + 1) * kChunkPages);
  for (Pfn at = map_->first() + PageCount(chunk * kChunkPages); at < end;) {
    const Page* page = map_->find(at);
    if (page == nullptr || page->is_tail() || page->refs() == 0) {
      at = at + PageCount(1);
      continue;
    }
    const std::uint64_t n = run_length(at, end);
    evict_run(at, n);
    at = at + PageCount(n);
  }
}

void Node::evict_run(Pfn first, std::uint64_t pages) noexcept {
  // A read-only mapping takes no page that moves.
  const Page* page = map_->find(first);
  const bool moves = coherent() || page->order() != 0 || PageCount(pages) >= kWorthMoving;
  const PageRange home = moves && page->is_mapped() ? PageRange{page->mapped_at(), PageCount(pages)} : PageRange{};
  const LockLift unlocked(space_, home);
  const ProtectionLift lift(space_, home);
  if (coherent()) {
    for (std::uint64_t i = 0; i < pages; ++i) {  // EX-08
      const Page* piece = map_->find(first + PageCount(i));
      if (piece->is_mapped() && space_.entry(piece->mapped_at()).state() == PageState::kExclusive) {
        (void)revoke_exclusive(space_, piece->mapped_at());
      }
    }
  }
  MigrateWord src[kPagesPerHuge], dst[kPagesPerHuge];
  migrate_device_range(space_, src, first, pages);
  for (std::uint64_t i = 0; i < pages; ++i) dst[i] = MigrateWord();
  for (std::uint64_t i = 0; i < pages;) i += take_home(src + i, dst + i, pages - i);
  migrate_device_pages(space_, src, dst, pages);
  undo_take_out(src, dst, pages);
  migrate_device_finalize(space_, src, dst, pages);
}

void Node::forget_mappings(Pfn first, std::uint64_t pages) noexcept {
  Session& session = Session::of(space_);
  const Page* head = map_->find(first);
  const bool whole = head->is_mapped() && [&] {
    MutexLock hold(space_.mutex());
    return space_.table().get(head->mapped_at()).is_huge();
  }();
  if (whole) return session.forget_everywhere(*this, {head->mapped_at(), PageCount(pages)});
  for (std::uint64_t i = 0; i < pages; ++i) {
    const Page* page = map_->find(first + PageCount(i));
    if (page->is_mapped()) session.forget_everywhere(*this, {page->mapped_at(), PageCount(1)});
  }
}

// ---- processes that share pages of the node
// ----------------------------------------------------------------------------

void Node::note_shared(std::uint32_t generation) noexcept {
  MutexLock hold(mutex_);
  for (std::uint64_t chunk = 0; chunk < chunks_.size(); ++chunk) {
    if (!chunks_[chunk].present) continue;
    for (std::uint64_t page = chunk * kChunkPages; page < (chunk + 1) * kChunkPages; ++page) {
      const Pfn pfn = map_->first() + PageCount(page);
      const Page* known = map_->find(pfn);
      if (known == nullptr || (!known->is_tail() && known->refs() == 0)) continue;
      std::uint32_t none = 0;
      shared_in_[page].compare_exchange_strong(none, generation);
    }
  }
}

void Node::tell_family(Pfn first, PageCount count) noexcept {
  Family& family = Session::of(space_).family();
  for (std::uint64_t i = 0; i < count.raw();) {
    const std::uint32_t generation = shared_in_[index(first) + i].load(std::memory_order_acquire);
    std::uint64_t n = 1;
    while (i + n < count.raw() && shared_in_[index(first) + i + n].load(std::memory_order_acquire) == generation) ++n;
    if (generation != 0) family.add_home({generation, first + PageCount(i), PageCount(n)});
    i += n;
  }
}

void Node::follow_home(const HomeRecord& record) noexcept {
  const Pfn end = record.first + record.count;
  for (Pfn at = record.first; at < end;) {
    const Page* page = map_->find(at);
    const Pfn head = space_.head_of(at);
    const Page* folio = map_->find(head);
    const bool ours = page != nullptr && folio->refs() != 0 &&
                      shared_in_[index(at)].load(std::memory_order_acquire) == record.generation;
    if (!ours) {
      at = at + PageCount(1);
      continue;
    }
    const std::uint64_t n = head == at ? run_length(at, end) : 0;
    if (n != 0 && at + PageCount(n) <= end) {
      evict_run(at, n);
      at = at + PageCount(n);
      continue;
    }
    // A unit that is whole here and was split there: only the pages that came home there do so here.
    const PageCount part = end - at;
    if (const PageRange range = mapped_range(at, part); !range.empty()) bring_home(range);
    return;
  }
}

PageRange Node::mapped_range(Pfn first, PageCount count) noexcept {
  MutexLock hold(space_.mutex());
  const Page* head = map_->find(space_.head_of(first));
  if (!head->is_mapped()) return {};
  if (!space_.table().get(head->mapped_at()).is_huge()) {
    const Page* page = map_->find(first);
    return page->is_mapped() ? PageRange{page->mapped_at(), PageCount(1)} : PageRange{};
  }
  return {head->mapped_at() + (first - space_.head_of(first)), count};
}

void Node::bring_home(PageRange range) noexcept {
  MigrateWord src[kPagesPerHuge], dst[kPagesPerHuge];
  MigrateVma args;
  args.start = range.first.address();
  args.end = range.end().address();
  args.src = src;
  args.dst = dst;
  args.pgmap_owner = this;
  args.flags = select_flag();
  const LockLift unlocked(space_, coherent() ? range : PageRange{});
  const ProtectionLift lift(space_, coherent() ? range : PageRange{});
  args.read_only = lift.lifted();
  if (!migrate_vma_setup(space_, args)) return;
  Session::of(space_).forget_everywhere(*this, range);
  for (std::uint64_t i = 0; i < args.npages; ++i) {
    if (!src[i].migrating() || !src[i].valid()) continue;
    const Result<Pfn> to = space_.alloc_frames(PageCount(1));
    if (!to) continue;
    dst[i] = MigrateWord::of(*to);
    take_out(*to, src[i].pfn(), PageCount(1));
  }
  migrate_vma_pages(space_, args);
  migrate_vma_finalize(space_, args);
}

void Node::evict(bool destroy) noexcept {
  for (std::uint64_t chunk = 0; chunk < map_->count().raw() / kChunkPages; ++chunk) {
    {
      MutexLock hold(mutex_);
      if (!chunks_[chunk].present) continue;
      if (destroy) chunks_[chunk].removing = true;
    }
    if (map_->pages_in_use() != 0) evict_chunk(chunk);
  }
  if (!destroy) return;
  for (int tries = 0; map_->pages_in_use() != 0; ++tries) {  // RL-01: until all are free
    for (std::uint64_t chunk = 0; chunk < map_->count().raw() / kChunkPages; ++chunk) evict_chunk(chunk);
    if (tries > 10) space_.clock().sleep_ns(1'000'000);
  }
  MutexLock hold(mutex_);
  free_base_.clear();
  free_huge_.clear();
  for (Chunk& chunk : chunks_) chunk = {};
  if (coherent()) return;
  (void)space_.mmu().discard(memory_);
  for (std::uint64_t unit = 0; unit < memory_.count.raw() / kPagesPerHuge; ++unit) {
    moved_memory_[unit].store(false, std::memory_order_relaxed);
  }
}

}  // namespace whimbrel::mirror
