// Whole-table passes: putting a forked child's copy of the engine right, and checking that nothing has gone wrong.
#include "base/check.h"
#include "migrate/address_space.h"

namespace whimbrel {
namespace {

// Is the page present in the kernel? One bit from a one-page scan; for short passes only.
bool is_present(Mmu& mmu, PageIndex page) {
  PageRun run[1];
  const Result<std::size_t> found = mmu.scan({page, PageCount(1)}, run, nullptr);
  return found && *found == 1 && (run[0].kind & PageRun::kPresent) != 0;
}

// Which mappings this process got empty (MADV_WIPEONFORK): only the slow query tells, so it is made for many at a time.
class WipedMappings {
 public:
  explicit WipedMappings(Mmu& mmu) noexcept : mmu_(mmu) {}

  // `mapping` lies above all that were asked about before.
  [[nodiscard]] bool contains(const Mapping& mapping) noexcept {
    if (!mapping.has(Mapping::kFlagsUnknown)) return mapping.has(Mapping::kWipeOnFork);
    for (int readings = 0; readings < 2; ++readings) {
      while (at_ < count_ && details_[at_].range.end() <= mapping.range.first) ++at_;
      if (at_ < count_) break;
      const Result<std::size_t> found = mmu_.detailed_mappings(mapping.range.first, details_);
      // Not to be told apart: what must be wiped may not be found, so better stop here than go on.
      CHECK(found.has_value(), "the flags of the child's mappings cannot be read");
      count_ = *found;
      at_ = 0;
    }
    return at_ < count_ && details_[at_].range.contains(mapping.range.first) && details_[at_].has(Mapping::kWipeOnFork);
  }

 private:
  Mmu& mmu_;
  Mapping details_[64];
  std::size_t count_ = 0, at_ = 0;
};

constexpr PageRange kEverything{PageIndex(0), PageCount(std::uint64_t{1} << (kUserAddressBits - kPageShift))};

}  // namespace

void AddressSpace::recover_slot_locked(PageIndex at, PageEntry e) noexcept {
  switch (e.state()) {
    case PageState::kMigratingHome: {
      // The parent's thread was at it. COPY comes before the entry is cleared: present means it was done.
      const PageMap* map = map_of(e.pfn());
      const bool there = is_present(mmu_, at);
      CHECK(there || map == nullptr || map->type() == MemoryType::kPrivate, "a coherent page was taken at the moment of fork");
      const PageEvent event = there ? PageEvent::kRestore : PageEvent::kReturnToDevice;
      if (e.is_huge()) {
        CHECK(table_.set_huge(at.huge_base(), table_.get(at.huge_base()).after(event)).has_value());
      } else {
        table_.update(at, e.after(event));
      }
      break;
    }
    case PageState::kMigratingOut:
    case PageState::kCommitted:
    case PageState::kExclusive:
      // Evictions are parked before a fork: here nobody would finish them.
      CHECK(false, "a page was on its way out at the moment of fork");
      break;
    case PageState::kRam:
    case PageState::kDevice:
    case PageState::kCoherent:
    case PageState::kPoisoned: break;
  }
  Page* p = page(e.pfn());
  if (p == nullptr) return;
  const PageEntry now = table_.get(at);
  if (!now.is_ram()) {
    p->set_mapping(now.is_huge() ? at.huge_base() : at);
    return;
  }
  // Home already: nothing maps it any more. The last reference stays, for its owner is not ready to be told of a free page.
  p->clear_mapping();
  if (Page* head = page(head_of(e.pfn())); head->refs() > 1) CHECK(!head->put());
}

void AddressSpace::reset_references_locked() noexcept {
  table_.for_each(kEverything, [&](PageRange, PageEntry e) {
    lock_is_held();
    if (Page* head = page(head_of(e.pfn())); head != nullptr) head->reset_after_fork(head->order(), 0);
    return true;
  });
  table_.for_each(kEverything, [&](PageRange, PageEntry e) {
    lock_is_held();
    if (Page* head = page(head_of(e.pfn())); head != nullptr) head->adopt_mapping();
    return true;
  });
}

std::uint64_t AddressSpace::recover_range_locked(PageRange range) noexcept {
  for (PageIndex at = table_.next_used(range.first, range.end()); at < range.end();
       at = table_.next_used(at + PageCount(1), range.end())) {
    const PageEntry e = table_.get(at);
    recover_slot_locked(at, e);
    if (e.is_huge()) at = at.huge_base() + PageCount(kPagesPerHuge - 1);
  }
  // Present in the kernel but away in the table: somebody read zeros.
  std::uint64_t touched = 0;
  PageRun runs[256];
  PageIndex at = range.first;
  while (at < range.end()) {
    PageIndex scanned = range.end();
    const Result<std::size_t> n = mmu_.scan(PageRange::between(at, range.end()), runs, &scanned);
    if (!n || scanned <= at) break;
    for (std::size_t i = 0; i < *n; ++i) {
      if ((runs[i].kind & PageRun::kPresent) == 0) continue;
      table_.for_each(runs[i].range, [&](PageRange where, PageEntry e) {
        if (e.state() != PageState::kCoherent) touched += where.count.raw();
        return true;
      });
    }
    at = scanned;
  }
  return touched;
}

std::uint64_t AddressSpace::recover_in_child() noexcept {
  mutex_.reset_after_fork();
  for (auto& slot : maps_) {
    if (PageMap* map = slot.load(std::memory_order_relaxed); map != nullptr) map->reset_after_fork();
  }
  MutexLock hold(mutex_);
  fault_count_ = 0;  // their touchers are threads of the parent
  serving_ = false;
  quarantine_ = {};
  // Locks and holders' references were the parent's; only the slots' references are ours. For all slots at once: those of one
  // large folio may lie in several mappings, and its head's own slot may be gone.
  reset_references_locked();
  std::uint64_t touched = 0;
  WipedMappings wiped(mmu_);
  PageIndex at = table_.next_used(kEverything.first, kEverything.end());
  while (at < kEverything.end()) {
    // What is away lies in mappings; those the child does not have (DONTFORK) take their entries with them.
    const Result<Mapping> mapping =
        config_.details_in_child ? mmu_.detailed_mapping_at_or_above(at) : mmu_.mapping_at_or_above(at);
    if (mapping && mapping->range.contains(at) && mapping->has(Mapping::kWipeOnFork)) {
      drop_range_locked(PageRange::between(at, mapping->range.end()), NotifyEvent::kRelease);
      at = table_.next_used(mapping->range.end(), kEverything.end());
      continue;
    }
    const PageIndex mapped_from = mapping ? mapping->range.first : kEverything.end();
    if (at < mapped_from) {
      drop_range_locked(PageRange::between(at, mapped_from), NotifyEvent::kRelease);
      at = table_.next_used(mapped_from, kEverything.end());
      continue;
    }
    if (wiped.contains(*mapping)) {
      // What the parent had here is a secret: the child finds zeros, wherever the pages were.
      drop_range_locked(PageRange::between(at, mapping->range.end()), NotifyEvent::kRelease);
      at = table_.next_used(mapping->range.end(), kEverything.end());
      continue;
    }
    CHECK(mmu_.watch(mapping->range).has_value(), "the child cannot watch memory that is away");
    touched += recover_range_locked(PageRange::between(at, mapping->range.end()));
    at = table_.next_used(mapping->range.end(), kEverything.end());
  }
  for (FramePool* pool : pools_) pool->reset_after_fork();
  return touched;
}

void AddressSpace::check_invariants() noexcept {
  MutexLock hold(mutex_);
  std::uint64_t used = 0;
  table_.for_each(kEverything, [&](PageRange where, PageEntry e) {
    lock_is_held();
    used += where.count.raw();
    if (e.state() == PageState::kPoisoned) return true;
    const Page* p = page(e.pfn());
    CHECK(p != nullptr, "a slot stands for no page");
    CHECK(p->is_mapped() && p->mapped_at() == where.first, "reverse mapping and slot disagree");
    const Page* head = page(head_of(e.pfn()));
    CHECK(head->refs() != 0, "a slot stands for a free page");
    CHECK(e.pfn().is_device() == (e.state() == PageState::kDevice || e.state() == PageState::kMigratingHome) ||
              e.state() == PageState::kMigratingHome || e.state() == PageState::kCoherent ||
              e.state() == PageState::kExclusive,
          "state and frame number disagree");
    return true;
  });
  CHECK(used == table_.used_pages(), "page table count");
}

}  // namespace whimbrel
