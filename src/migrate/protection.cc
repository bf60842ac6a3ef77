// The readable flavour: which slots lose the right to be written, and when (FK-02, MP-02).
#include "base/check.h"
#include "migrate/address_space.h"

namespace whimbrel {
namespace {

constexpr PageIndex kEnd{std::uint64_t{1} << (kUserAddressBits - kPageShift)};

}  // namespace

void AddressSpace::lower_entries_locked(PageRange range, std::uint64_t bits) noexcept {
  for (PageIndex at = table_.next_used(range.first, range.end()); at < range.end();
       at = table_.next_used(at + PageCount(1), range.end())) {
    const PageIndex base = at.huge_base();
    if (table_.get(at).is_huge() && !range.contains(PageRange{base, PageCount(kPagesPerHuge)})) {
      CHECK(split_slot_locked(base).has_value(), "no memory to split a huge slot");  // MP-06
    }
    const PageEntry entry = table_.get(at);
    if (entry.is_huge()) {
      CHECK(table_.set_huge(base, table_.get(base).without(bits)).has_value());
      at = base + PageCount(kPagesPerHuge - 1);
    } else {
      table_.update(at, entry.without(bits));
    }
  }
}

void AddressSpace::note_protection_lowered(PageRange range) noexcept {
  notify_start(NotifyEvent::kProtectionVma, range, nullptr);
  {
    MutexLock hold(mutex_);
    pump_locked();
    lower_entries_locked(range, PageEntry::kWritable);
  }
  notify_end(NotifyEvent::kProtectionVma, range, nullptr);
}

void AddressSpace::note_shared_by_fork() noexcept {
  MutexLock hold(mutex_);
  constexpr std::uint64_t kLowered = PageEntry::kWritable | PageEntry::kExclusiveMarker;
  if (!config_.track_protection) return lower_entries_locked(PageRange::between(PageIndex(), kEnd), kLowered);
  Mapping mappings[32];
  // The stack of the thread that is doing this: a write to it would wait for ever for the lock that is held here.
  const PageIndex stack = PageIndex::of(VirtualAddress(static_cast<const void*>(mappings)));
  for (PageIndex at; at < kEnd;) {
    const Result<std::size_t> found = config_.details_in_child ? mmu_.detailed_mappings(at, mappings)
                                                               : mapping_above_locked(at, &mappings[0]);
    if (!found || *found == 0) return;
    for (std::size_t i = 0; i < *found; ++i) {
      const Mapping& mapping = mappings[i];
      at = mapping.range.end();
      // FK-12: what a child does not get is shared with nobody.
      if (mapping.has_any(Mapping::kWipeOnFork | Mapping::kDontFork)) continue;
      lower_entries_locked(mapping.range, kLowered);
      if (mapping.range.contains(stack)) continue;
      if (mapping.is_private_anonymous() && mapping.has(Mapping::kWritable)) protect_present_locked(mapping.range);
    }
  }
}

Result<std::size_t> AddressSpace::mapping_above_locked(PageIndex at, Mapping* out) noexcept {
  const Result<Mapping> mapping = mmu_.mapping_at_or_above(at);
  if (!mapping) return std::unexpected(mapping.error());
  *out = *mapping;
  return std::size_t{1};
}

bool AddressSpace::protect_locked(PageRange range) noexcept {
  for (int tries = 0; tries < 1000; ++tries) {
    const Result<void> done = mmu_.write_protect(range, true, Wake::kNo);
    if (done) return true;
    if (done.error().code != Errc::kEventPending) return false;
    pump_locked();
  }
  return false;
}

void AddressSpace::protect_present_locked(PageRange range) noexcept {
  // Only what is there: a protected hole would refuse to be moved into. Mappings not watched refuse, and need nothing.
  PageRun runs[64];
  for (PageIndex from = range.first; from < range.end();) {
    PageIndex scanned = range.end();
    const Result<std::size_t> n = mmu_.scan(PageRange::between(from, range.end()), runs, &scanned);
    if (!n || scanned <= from) return;
    for (std::size_t i = 0; i < *n; ++i) {
      if ((runs[i].kind & PageRun::kPresent) == 0) continue;
      if (!protect_locked(runs[i].range)) return;
    }
    from = scanned;
  }
}

}  // namespace whimbrel
