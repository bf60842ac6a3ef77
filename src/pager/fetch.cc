#include "pager/fetch.h"

#include <algorithm>

#include "pager/eviction_handoff.h"

namespace whimbrel {
namespace {

constexpr std::uint64_t kWindow = 64;
constexpr std::int64_t kPause = 50'000;

}  // namespace

Fetch::Outcome Fetch::run(PageRange range, Pfn fault_page, PageIndex fault_at) noexcept {
  outcome_ = Outcome();
  kept_ = false;
  args_ = MigrateVma();
  args_.fault_page = fault_page;
  fault_entry_ = fault_page == Pfn() ? Lane::kPages : (fault_at - range.first).raw();
  const std::int64_t begun = lane_.cause == MoveCause::kFault ? lane_.begun_ns : core_.log_clock();
  const bool collected = collect(range);
  if (unit_ != Pfn()) assign_unit();
  if (!collected) return outcome_;
  if (lane_.frames[0] == Pfn()) assign_frames();
  build_loads();
  const bool keep = may_keep_copies();
  core_.shared_loads.transfer(lane_, keep);
  give_up_failed_loads();
  migrate_vma_pages(core_.space, args_);
  for (std::size_t i = 0; i < args_.npages; ++i) {
    if (!came_home(i)) continue;
    outcome_.home += PageCount(1);
    if (i == fault_entry_) outcome_.fault_home = true;
  }
  if (keep && outcome_.home.raw() != 0) keep_copies();
  migrate_vma_finalize(core_.space, args_);
  core_.log_moves(lane_, first_, args_.npages, Place::kDevice, Place::kRam, begun, fault_entry_,
                  [this](std::size_t i) { return came_home(i); });
  forget_copies_of_those_still_away();
  return outcome_;
}

bool Fetch::collect(PageRange range) noexcept {
  CHECK(!range.empty() && range.count.raw() <= Lane::kPages);
  lane_.clear();
  first_ = range.first;
  args_.start = range.first.address();
  args_.end = range.end().address();
  args_.src = lane_.src.data();
  args_.dst = lane_.dst.data();
  args_.pgmap_owner = core_.owner;
  args_.flags = kSelectDevicePrivate;
  args_.skip_holes = true;
  outcome_.no_mapping = !migrate_vma_setup(core_.space, args_);
  return !outcome_.no_mapping;
}

bool Fetch::take_unit() noexcept {
  unit_ = core_.spare_unit.take(lane_);
  return unit_ != Pfn();
}

void Fetch::assign_unit() noexcept {
  std::size_t coming = 0;
  while (coming < args_.npages && lane_.src[coming].valid() && lane_.src[coming].migrating()) ++coming;
  if (coming == kPagesPerHuge && first_.is_huge_aligned() && !outcome_.no_mapping) {
    for (std::size_t i = 0; i < coming; ++i) lane_.frames[i] = unit_ + PageCount(i);
    core_.stats->huge_home.fetch_add(1, std::memory_order_relaxed);
  } else {
    core_.space.free_frames(unit_, PageCount(kPagesPerHuge));
  }
  unit_ = Pfn();
}

void Fetch::assign_frames() noexcept {
  std::uint64_t want = 0;
  for (std::size_t i = 0; i < args_.npages; ++i) {
    if (lane_.src[i].valid() && lane_.src[i].migrating()) ++want;
  }
  if (want == 0) return;
  Result<Pfn> frames = core_.space.alloc_frames(PageCount(want));
  bool only_fault = false;
  if (!frames) {
    // Little room: at least the page somebody waits for.
    only_fault = true;
    frames = core_.space.alloc_frames(PageCount(1));
    if (!frames) {
      outcome_.no_memory = true;
      return;
    }
  }
  const std::uint64_t in_use = core_.space.pool(FrameUse::kLanding).in_use();
  if (in_use > core_.landing_peak.load(std::memory_order_relaxed)) {
    core_.landing_peak.store(in_use,
                             std::memory_order_relaxed);  // two threads at once may lose one: by a window at most
  }
  Pfn next = *frames;
  bool used = false;
  for (std::size_t i = 0; i < args_.npages; ++i) {
    if (!lane_.src[i].valid() || !lane_.src[i].migrating()) continue;
    if (only_fault && (used || (fault_entry_ != Lane::kPages && i != fault_entry_))) continue;
    lane_.frames[i] = next;
    next = next + PageCount(1);
    used = true;
  }
  if (!used) core_.space.free_frames(*frames, PageCount(1));
}

void Fetch::build_loads() noexcept {
  for (std::size_t i = 0; i < args_.npages;) {
    if (lane_.frames[i] == Pfn()) {
      ++i;
      continue;
    }
    const DeviceSlot slot = core_.slot_of(lane_.src[i].pfn());
    const std::uint64_t unit = static_cast<std::uint64_t>(slot) / core_.unit_pages.load(std::memory_order_relaxed);
    std::size_t n = 1;
    while (i + n < args_.npages && lane_.frames[i + n] == lane_.frames[i] + PageCount(n) &&
           lane_.src[i + n].pfn() == lane_.src[i].pfn() + PageCount(n) &&
           static_cast<std::uint64_t>(slot + n) / core_.unit_pages.load(std::memory_order_relaxed) == unit) {
      ++n;
    }
    lane_.op_entry[lane_.op_count] = static_cast<std::uint16_t>(i);
    lane_.ops[lane_.op_count++] = {
        DeviceOp::Kind::kLoad, slot, static_cast<std::uint32_t>(n), core_.space.bytes(lane_.frames[i]), {}};
    for (std::size_t j = i; j < i + n; ++j) lane_.dst[j] = MigrateWord::of(lane_.frames[j]);
    i += n;
  }
}

void Fetch::give_up_failed_loads() noexcept {
  for (std::size_t k = 0; k < lane_.op_count; ++k) {
    const DeviceOp& op = lane_.ops[k];
    if (op.result) continue;
    outcome_.error = op.result.error();
    const std::size_t first = lane_.op_entry[k];
    core_.space.free_frames(lane_.frames[first], PageCount(op.pages));
    for (std::size_t i = first; i < first + op.pages; ++i) {
      lane_.dst[i] = MigrateWord();
      if (i == fault_entry_) outcome_.fault_failed = true;
    }
    outcome_.failed += PageCount(op.pages);
    core_.stats->load_errors.fetch_add(1, std::memory_order_relaxed);
    core_.raise(Pager::Notice::kLoadError);
  }
}

bool Fetch::may_keep_copies() noexcept {
  if (!core_.keeps_copies.load(std::memory_order_relaxed) || core_.stopped.load(std::memory_order_relaxed)) return false;
  MutexLock hold(core_.mutex);
  return core_.copies.pays();
}

void Fetch::keep_copies() noexcept {
  if (core_.stopped.load(std::memory_order_relaxed)) return;
  Pfn given_up[Lane::kPages];
  std::size_t n = 0;
  {
    const GateSection change(core_.tables);
    if (!change) return;
    for (std::size_t i = 0; i < args_.npages; ++i) {
      const Pfn pfn = lane_.src[i].pfn();
      if (!came_home(i) || core_.is_leaving(pfn)) continue;
      core_.map->find(pfn)->get();
      MutexLock hold(core_.mutex);
      given_up[n] = core_.copies.keep(first_ + PageCount(i), pfn, lane_.digests[i]);
      if (given_up[n] != Pfn()) ++n;
    }
  }
  kept_ = true;
  core_.note_copies();
  while (n != 0) core_.space.put_page(given_up[--n]);
}

void Fetch::forget_copies_of_those_still_away() noexcept {
  if (!kept_) return;
  for (std::size_t i = 0; i < args_.npages; ++i) {
    if (!came_home(i) || !core_.map->find(lane_.src[i].pfn())->is_mapped()) continue;
    // Rare: no memory to put it into the program. Or it has left again already, and its copy with it.
    KeptCopy copy;
    {
      const GateSection change(core_.tables);
      MutexLock hold(core_.mutex);
      if (change) copy = core_.copies.take(first_ + PageCount(i));
    }
    if (copy) core_.space.put_page(copy.pfn);
  }
}

PageRange Fetch::next_window(PageRange range) noexcept {
  PageRange window;
  {
    MutexLock hold(core_.space.mutex());
    const PageTable& table = core_.space.table();
    PageIndex at = table.next_used(range.first, range.end());
    while (at < range.end()) {
      const PageEntry entry = table.get(at);
      // Pages on their way count too: they may be about to become ours.
      if (core_.is_away(entry) || is_migrating(entry.state())) break;
      at = table.next_used(at + PageCount(1), range.end());
    }
    if (range.end() <= at) return {};
    window = PageRange::between(at, std::min(at + PageCount(kWindow), range.end()));
  }
  const Result<Mapping> mapping = core_.space.mmu().mapping_at_or_above(window.first);
  if (mapping && mapping->range.contains(window.first)) return window.intersect(mapping->range);
  return {window.first, PageCount(1)};  // unmapped; a message about it is under way
}

Result<void> Fetch::all_of(PageRange range, int patience, PageCount* home) noexcept {
  const auto count = [this, home](const Outcome& outcome) {
    core_.resident.add(outcome.home.raw());
    core_.stats->pages_home.fetch_add(outcome.home.raw(), std::memory_order_relaxed);
    if (home != nullptr) *home += outcome.home;
  };
  Result<void> result{};
  int tries = patience;
  while (!range.empty()) {
    core_.space.pump();
    const PageRange window = next_window(range);
    if (window.empty()) return result;
    range = PageRange::between(window.first, range.end());
    const Outcome outcome = run(window, Pfn(), PageIndex());
    count(outcome);
    if (outcome.home.raw() != 0) {
      tries = patience;
      continue;
    }
    if (outcome.failed.raw() != 0) {
      // Page by page: a unit that cannot be read must not keep its neighbours.
      result = std::unexpected(outcome.error);
      if (window.count.raw() > 1) {
        for (PageIndex at = window.first; at < window.end(); ++at) {
          count(run({at, PageCount(1)}, Pfn(), PageIndex()));
        }
      }
      range = PageRange::between(window.end(), range.end());
      continue;
    }
    // Locked by a fault, or on its way: whoever has it will be done soon.
    if (core_.handoff->finish()) continue;
    if (--tries <= 0) return fail(Errc::kBusy, 0, "bring home");
    core_.space.clock().sleep_ns(kPause);
  }
  return result;
}

}  // namespace whimbrel
