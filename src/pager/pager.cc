#include "pager/pager.h"

#include <algorithm>

#include "pager/adoption.h"
#include "pager/evacuation.h"
#include "pager/eviction.h"
#include "pager/eviction_handoff.h"
#include "pager/fetch.h"
#include "pager/pager_core.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kLongestEvictPause = 200 * kMillisecond;
constexpr std::int64_t kMaintainPause = 5 * kMillisecond;
// Pages one background_step() evicts at most before it looks at everything else again: the time in which a program can fill
// a mapping that nobody watches yet.
constexpr std::uint64_t kBatch = 256;
// What fits this often into the limit can wait for the next walk.
constexpr std::uint64_t kWorthAtOnce = 1024;
constexpr std::size_t kMaintainBytes = 256 * 1024;
constexpr PageRange kEverything{PageIndex(0), PageCount(std::uint64_t{1} << (kUserAddressBits - kPageShift))};

}  // namespace

Result<Pager*> Pager::create(AddressSpace& space, Device& device, const PagerConfig& config) noexcept {
  if (config.ram_bytes == 0 && config.total_bytes == 0) return fail(Errc::kInvalid, 0, "no limit");
  MemorySource& source = space.source();
  PagerCore* core = make_from<PagerCore>(source, space, device, config);
  if (core == nullptr) return fail(Errc::kNoMemory, 0, "pager");
  core->adoption = make_from<Adoption>(source, *core);
  void* memory = source.take(sizeof(Pager));
  Pager* pager = memory == nullptr ? nullptr : ::new (memory) Pager(*core);
  Result<void> prepared = fail(Errc::kNoMemory, 0, "pager");
  if (core->adoption != nullptr && pager != nullptr) prepared = core->prepare(*pager);
  if (!prepared) {
    if (core->map != nullptr) (void)space.remove_page_map(core->map);
    if (pager != nullptr) {
      pager->~Pager();
      source.give(pager, sizeof(Pager));
    }
    destroy_from(source, core->adoption);
    destroy_from(source, core);
    return std::unexpected(prepared.error());
  }
  core->refresh_limit();
  return pager;
}

void Pager::destroy(Pager* pager) noexcept {
  if (pager == nullptr) return;
  PagerCore* core = &pager->core_;
  MemorySource& source = core->space.source();
  (void)core->drop_copies(true);
  core->spare_unit.drop();
  core->release_kept();
  CHECK(core->space.remove_page_map(core->map).has_value(), "destroying a pager with pages away");
  pager->~Pager();
  source.give(pager, sizeof(Pager));
  destroy_from(source, core->adoption);
  destroy_from(source, core);
}

// ---- what is managed -----------------------------------------------------------------------------------------------

bool Pager::exclude(PageRange range) noexcept {
  GateSection change(core_.tables);
  MutexLock hold(core_.mutex);
  if (!change) return false;
  core_.regions.cut(range);
  return core_.excluded.add(range);
}

Result<void> Pager::manage(PageRange range) noexcept {
  {
    GateSection change(core_.tables);
    MutexLock hold(core_.mutex);
    if (!change) return fail(Errc::kAgain, 0, "parked for a fork");
    if (!core_.managed.add(range)) return fail(Errc::kNoMemory, 0, "too many managed ranges");
  }
  (void)core_.adoption->scan(true);
  return {};
}

Result<void> Pager::pin(PageRange range) noexcept {
  GateSection change(core_.tables);
  MutexLock hold(core_.mutex);
  if (!change) return fail(Errc::kAgain, 0, "parked for a fork");
  if (!core_.pins.pin(range)) return fail(Errc::kNoMemory, 0, "too many pinned ranges");
  return {};
}

void Pager::unpin(PageRange range) noexcept {
  GateSection change(core_.tables);
  MutexLock hold(core_.mutex);
  if (change) core_.pins.unpin(range);
}

// ---- work ----------------------------------------------------------------------------------------------------------

std::int64_t Pager::background_step() noexcept {
  PagerCore& core = core_;
  core.background_sleeps.store(false, std::memory_order_relaxed);
  const bool helped = core.shared_loads.help();
  if ((core.handoff->finish() || helped) && core.is_scattered() && !core.urgent.load(std::memory_order_relaxed)) {
    // The fault thread wakes this one for each victim; everything else has its own time.
    const std::int64_t rest = core.next_step - core.space.clock().now_ns();
    if (rest > 0) {
      core.background_sleeps.store(true, std::memory_order_release);
      return rest;
    }
  }
  core.spare_unit.step();
  core.release_kept();
  (void)core.drop_copies(false);
  const std::int64_t look_again = core.adoption->step();  // first: in a forked child nothing is known yet
  const std::int64_t due = std::min(look_again, core.sharing.step());
  core.refresh_limit();
  core.note_resident();

  const std::uint64_t most = core.limit();
  std::int64_t time = core.space.clock().now_ns();
  std::int64_t wait = due - time;
  if (most != kNoLimit && !core.stopped.load(std::memory_order_relaxed)) {
    const std::uint64_t reserve = reserve_under(most);
    const std::uint64_t resident_now = core.resident.value();
    const std::uint64_t target = most - std::min(reserve, most);
    if (resident_now <= most + reserve / 2 && core.is_scattered()) {
      wait = std::min(wait, core.scattered_until.load(std::memory_order_relaxed) - time);
    } else if (resident_now + reserve / 2 > most && core.next_evict <= time) {
      LaneLease lane(core, LaneLease::Who::kOther, MoveCause::kEviction);
      const std::uint64_t want = std::min(resident_now - target, kBatch);
      PageCount gone = core.evict_some(PageCount(want), *lane, PagerCore::Effort::kBackground);
      if (gone.raw() * 4 < want && core.sharing.possible()) {
        gone += core.evict_some(PageCount(want) - gone, *lane, PagerCore::Effort::kCopyShared);
      }
      time = core.space.clock().now_ns();
      if (gone.raw() * 4 >= want) {
        core.evict_pause = 0;
        core.no_room_until.store(0, std::memory_order_relaxed);
        wait = core.resident.value() > target ? 0 : due - time;
      } else {
        core.evict_pause = std::clamp(core.evict_pause * 2, kMillisecond, kLongestEvictPause);
        core.next_evict = time + core.evict_pause;
        wait = std::min(due - time, core.evict_pause);
      }
    } else if (resident_now + reserve / 2 > most) {
      wait = std::min(wait, core.next_evict - time);
    }
  }
  if (core.evacuation->is_under_way()) wait = std::min(wait, core.evacuation->step());
  if (wait > kMillisecond && core.device.maintain(kMaintainBytes)) wait = std::min(wait, kMaintainPause);
  core.next_step = core.space.clock().now_ns() + wait;
  core.background_sleeps.store(true, std::memory_order_release);
  return std::max<std::int64_t>(wait, 0);
}

void Pager::set_beat(std::atomic<std::uint64_t>* place) noexcept { core_.beat_at = place; }

bool Pager::is_scattered() const noexcept { return core_.is_scattered(); }

Event& Pager::wake_event() noexcept { return core_.wake; }

void Pager::note_mapped(std::span<const PageRange> ranges, bool all) noexcept {
  const std::uint64_t worth = std::max(core_.config.smallest_mapping.raw(), core_.limit() / kWorthAtOnce);
  bool settled = all;
  for (const PageRange& range : ranges) {
    if (range.count.raw() >= worth) settled = core_.adoption->adopt_now(range) && settled;
  }
  if (settled) return;
  core_.urgent.store(true, std::memory_order_relaxed);
  core_.kick();
}

bool Pager::scan_step() noexcept { return core_.adoption->scan(); }

void Pager::recount() noexcept { core_.adoption->recount(); }

PageCount Pager::evict(PageCount want) noexcept {
  LaneLease lane(core_, LaneLease::Who::kOther, MoveCause::kPressure);
  return core_.evict_some(want, *lane, PagerCore::Effort::kBackground);
}

PageCount Pager::evict_range(PageRange range, EvictionNote* note) noexcept {
  LaneLease lane(core_, LaneLease::Who::kOther, MoveCause::kUser);
  PageCount gone;
  for (PageIndex at = range.first; at < range.end();) {
    const PageIndex unit_end = at.huge_base() + PageCount(kPagesPerHuge);
    PageRange part = PageRange::between(at, std::min(unit_end, range.end()));
    at = part.end();
    GateSection section(core_.evictions);
    if (!section) {
      if (note != nullptr) note->parked = true;
      return gone;
    }
    {
      MutexLock hold(core_.mutex);
      const Region* region = core_.regions.find(part.first);
      if (region == nullptr || !region->may_evict()) continue;
      part = part.intersect(region->range);
      at = part.end();  // what follows in the unit is another mapping
    }
    const EvictionOutcome outcome = core_.evict_victim(part, *lane, PagerCore::Effort::kBackground);
    gone += outcome.gone;
    if (note == nullptr) continue;
    note->refused += outcome.refused;
    if (outcome.refused.raw() != 0) note->refusal = outcome.refusal;
    note->device_full = outcome.device_full;
    if (outcome.device_full) return gone;
    if (outcome.taken.raw() > outcome.gone.raw()) note->spared += outcome.taken - outcome.gone;
  }
  return gone;
}

Result<void> Pager::bring_home(PageRange range, PageCount* home) noexcept {
  const bool all = core_.stopped.load(std::memory_order_relaxed);
  LaneLease lane(core_, LaneLease::Who::kOther, all ? MoveCause::kEvacuation : MoveCause::kUser);
  return Fetch(core_, *lane).all_of(range, Fetch::kPatient, home);
}

Result<void> Pager::bring_all_home() noexcept {
  core_.stopped.store(true, std::memory_order_seq_cst);
  // Whoever is in the middle of an eviction finishes it.
  core_.finish_evictions();
  core_.spare_unit.drop();
  const Result<void> home = bring_home(kEverything);
  (void)core_.drop_copies(true);
  return home;
}

// ---- another device ------------------------------------------------------------------------------------------------

void Pager::hold_stores() noexcept {
  core_.evictions.bar();
  (void)core_.handoff->finish();  // it may have been waiting for this very thread
  core_.evictions.wait_until_quiet();
  core_.tables.close();
}

void Pager::resume_stores(DeviceSlot first, std::uint64_t slots, std::uint32_t unit_pages) noexcept {
  core_.note_traits();
  core_.evacuation->begin(first, slots, unit_pages);
  resume_stores();
}

void Pager::resume_stores() noexcept {
  core_.tables.open();
  core_.evictions.open();
  core_.wake.advance();
}

void Pager::note_evacuated() noexcept {
  core_.evacuation->end();
  core_.note_traits();
}

// ---- budget --------------------------------------------------------------------------------------------------------

void Pager::set_limits(std::uint64_t ram_bytes, std::uint64_t total_bytes) noexcept {
  core_.ram_bytes.store(ram_bytes, std::memory_order_relaxed);
  core_.total_bytes.store(total_bytes, std::memory_order_relaxed);
  core_.urgent.store(true, std::memory_order_relaxed);
  core_.wake.advance();
}

PageCount Pager::resident() const noexcept { return PageCount(core_.resident.value()); }

PageCount Pager::resident_limit() const noexcept { return PageCount(core_.limit()); }

PagerStats& Pager::stats() noexcept { return *core_.stats; }

std::uint32_t Pager::take_notices() noexcept { return core_.fresh_notices.exchange(0, std::memory_order_acq_rel); }

std::uint64_t Pager::bytes_that_would_do() const noexcept { return core_.stats->total_would_do.load(std::memory_order_relaxed); }

// ---- fork ----------------------------------------------------------------------------------------------------------

void Pager::park() noexcept {
  core_.evictions.close();
  core_.tables.close();
  core_.stats->forks.fetch_add(1, std::memory_order_relaxed);
}

void Pager::unpark() noexcept {
  core_.tables.open();
  core_.evictions.open();
  core_.wake.advance();
}

void Pager::mark_shared_after_fork() noexcept { core_.sharing.note_fork(); }

void Pager::reset_in_child(PagerStats* stats) noexcept { core_.reset_in_child(stats); }

// ---- what the space reports ----------------------------------------------------------------------------------------

void Pager::invalidate_start(NotifyEvent event, PageRange range, const void* owner) noexcept {
  if (owner == this || (event != NotifyEvent::kUnmap && event != NotifyEvent::kClear)) return;
  core_.dropped_pages.fetch_add(range.count.raw(), std::memory_order_relaxed);
  GateSection change(core_.tables);
  if (!change) {
    core_.events_lost.store(true, std::memory_order_release);
    return;
  }
  MutexLock hold(core_.mutex);
  core_.policy->left(range, range.count, Departure::kDropped);
  core_.copies.drop(range);
  if (event != NotifyEvent::kUnmap) return;  // discarded pages: the mapping is what it was
  const std::size_t i = core_.regions.at_or_above(range.first);
  if (core_.unmapping.empty()) {
    core_.unmapping = range;
    core_.unmapped = i != core_.regions.size() ? core_.regions[i] : Region();
  }  // else what lies where it moves to
  core_.regions.cut(range);
  core_.changes.cut(range);
}

void Pager::invalidate_end(NotifyEvent event, PageRange range, const void* owner) noexcept {
  if (owner == this) return;
  // After remapped(): who reads of a range that has moved does not take it for dropped.
  if (event == NotifyEvent::kUnmap || event == NotifyEvent::kClear) core_.log(EventKind::kDrop, range);
  if (event != NotifyEvent::kUnmap) return;
  GateSection change(core_.tables);
  MutexLock hold(core_.mutex);
  if (core_.unmapping == range) core_.unmapping = {};
  if (!change) return;  // pins of memory that is gone do no harm
  core_.pins.forget(range);
}

void Pager::remapped(PageRange from, PageIndex to) noexcept {
  // Comes between start and end of a kUnmap of `from`: the pins are still there.
  const PageRange there{to, from.count};
  core_.log(EventKind::kRemap, from, to.raw());
  core_.dropped_pages.fetch_add(from.count.raw(), std::memory_order_relaxed);
  GateSection change(core_.tables);
  if (!change) {
    core_.events_lost.store(true, std::memory_order_release);
    return;
  }
  MutexLock hold(core_.mutex);
  core_.pins.move(from, to);
  core_.copies.drop(from);
  // The mapping may have grown since the walk that found it.
  Region region = core_.unmapped;
  if (core_.unmapping != from || !region.range.overlaps(from) || !region.watched) {
    core_.regions.cut(there);
    core_.changes.cut(there);
    return;
  }
  // Registered there as it was here, and its pages are counted: it must not be unknown until the next walk, in which time
  // nobody would count or evict what it holds.
  region.range = there;
  region.resident = 0;
  (void)core_.regions.put(region);
  core_.changes.put(region);
}

}  // namespace whimbrel
