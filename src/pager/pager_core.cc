#include "pager/pager_core.h"

#include <algorithm>

#include "pager/adoption.h"
#include "pager/evacuation.h"
#include "pager/eviction.h"
#include "pager/eviction_handoff.h"
#include "pager/fetch.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPinStretches = 8192;
constexpr std::size_t kRememberedRefusals = 8192;
constexpr std::size_t kRememberedArrivals = 4096;
constexpr std::size_t kLaneBufferBytes = Lane::kBufferPages * kPageSize;
// Of RAM in all: what copies may take that a page in RAM makes superfluous.
constexpr std::uint64_t kCopiesOfTotal = 16;
constexpr std::uint64_t kLeastCopies = 4096, kMostCopies = std::uint64_t{1} << 22;
constexpr std::int64_t kNoRoomPause = 1'000'000;
constexpr std::uint32_t kLoneFaults = 32;
constexpr std::uint64_t kScatteredBatch = 256;
// How far under the limit the fault thread begins to take, for the others to have time to store.
constexpr std::uint64_t kTakenAhead = 256;
constexpr std::uint64_t kAheadOfLimit = 32;
constexpr std::int64_t kAloneFor = 5'000'000;
constexpr std::int64_t kScatteredFor = 100'000'000;

void raise_peak(PagerStats::Number& peak, std::uint64_t value) {
  std::uint64_t old = peak.load(std::memory_order_relaxed);
  while (old < value && !peak.compare_exchange_weak(old, value, std::memory_order_relaxed)) {
  }
}

std::size_t room_for_copies(const PagerConfig& config) {
  const std::uint64_t bytes = config.ram_bytes != 0 ? config.ram_bytes : config.total_bytes / 4;
  return static_cast<std::size_t>(std::clamp(bytes / kPageSize, kLeastCopies, kMostCopies));
}

// Where RAM in all is limited, a copy that may never be used takes the place of residents.
std::uint64_t most_copies(const BudgetInputs& in) {
  if (in.total_bytes == 0) return kMostCopies;
  const std::uint64_t bytes_each = in.stored_pages == 0 ? kPageSize : in.store_bytes / in.stored_pages + 1;
  return in.total_bytes / kCopiesOfTotal / std::min(bytes_each, kPageSize);
}

bool keeps_copies_on(const DeviceTraits& traits) { return !traits.in_process_memory || traits.unit_pages > 1; }

}  // namespace

PagerCore::PagerCore(AddressSpace& space_in, Device& device_in, const PagerConfig& config_in) noexcept
    : space(space_in),
      device(device_in),
      config(config_in),
      digest(static_cast<std::uint64_t>(space_in.clock().now_ns()) ^ reinterpret_cast<std::uintptr_t>(this)),
      ram_bytes(config_in.ram_bytes),
      total_bytes(config_in.total_bytes),
      regions(space_in.source()),
      pins(space_in.source(), kPinStretches),
      refusals(space_in.source(), kRememberedRefusals),
      sweep(space_in.mmu(), regions, pins, refusals),
      arrivals(space_in.source(), kRememberedArrivals),
      copies(space_in.source(), room_for_copies(config_in)),
      huge_units(space_in.source()),
      fetch_streams(Streams::Ladder{{1, 8, 16, 64, kPagesPerHuge}}),
      hole_streams(Streams::Ladder{{1, 8, 64, kPagesPerHuge, kPagesPerHuge}}) {
  armed.store(config_in.watch_at_once, std::memory_order_relaxed);
  note_traits();
}

void PagerCore::note_traits() noexcept {
  const DeviceTraits traits = device.traits();
  unit_pages.store(traits.unit_pages, std::memory_order_relaxed);
  synchronous.store(traits.synchronous, std::memory_order_relaxed);
  in_process_memory.store(traits.in_process_memory, std::memory_order_relaxed);
  keeps_copies.store(keeps_copies_on(traits), std::memory_order_relaxed);
}

PagerCore::~PagerCore() {
  MemorySource& source = space.source();
  for (Lane* lane : lanes) {
    if (lane != nullptr && lane->buffer != nullptr) source.give(lane->buffer, kLaneBufferBytes);
    destroy_from(source, lane);
  }
  destroy_from(source, handoff);
  destroy_from(source, evacuation);
  destroy_from(source, own_policy);
  destroy_from(source, own_stats);
  if (zeros != nullptr) source.give(zeros, kZeroPages * kPageSize);
}

Result<void> PagerCore::prepare(Pager& pager) noexcept {
  const DeviceTraits traits = device.traits();
  if (traits.unit_pages == 0 || traits.unit_pages > Lane::kPages || traits.slots == 0) {
    return fail(Errc::kInvalid, 0, "device traits");
  }
  MemorySource& source = space.source();
  owner = &pager;
  for (Lane*& lane : lanes) {
    lane = make_from<Lane>(source);
    if (lane != nullptr) lane->buffer = static_cast<std::byte*>(source.take(kLaneBufferBytes));
  }
  zeros = static_cast<std::byte*>(source.take(kZeroPages * kPageSize));
  evacuation = make_from<Evacuation>(source, *this);
  if (lanes[kHandoffLane] != nullptr) handoff = make_from<EvictionHandoff>(source, *this, *lanes[kHandoffLane]);
  // Enough for residents that lie four to a clump.
  const std::uint64_t bytes = config.ram_bytes != 0 ? config.ram_bytes : config.total_bytes;
  const std::size_t clumps = std::clamp<std::uint64_t>(bytes / kPageSize / 4, 4096, 131072);
  own_policy = make_from<SecondChance>(source, source, clumps);
  own_stats = make_from<PagerStats>(source);
  const bool complete = std::all_of(lanes.begin(), lanes.end(), [](Lane* l) { return l != nullptr && l->buffer != nullptr; }) &&
                        zeros != nullptr && handoff != nullptr && evacuation != nullptr && own_policy != nullptr && own_policy->usable() && own_stats != nullptr;
  MutexLock hold(mutex);
  if (!complete || !pins.usable() || !refusals.usable() || !arrivals.usable() || !copies.usable() || !huge_units.usable()) return fail(Errc::kNoMemory, 0, "pager");
  policy = config.policy != nullptr ? config.policy : own_policy;
  stats = config.stats != nullptr ? config.stats : own_stats;
  for (const FrameUse use : {FrameUse::kStaging, FrameUse::kLanding, FrameUse::kHuge}) {
    if (!excluded.add(space.pool(use).window())) return fail(Errc::kNoMemory, 0, "pager");
  }
  const Result<PageMap*> made = space.add_page_map(MemoryType::kPrivate, PageCount(traits.slots), &pager, &pager);
  if (!made) return std::unexpected(made.error());
  map = *made;
  if (!space.add_observer(&pager)) return fail(Errc::kNoMemory, 0, "too many observers");
  return {};
}

void PagerCore::reset_in_child(PagerStats* stats_of_child) noexcept {
  mutex.reset_after_fork();
  for (Lane* lane : lanes) lane->mutex.reset_after_fork();
  evictions.reset_in_child();
  tables.reset_in_child();
  wake.reset_after_fork();
  if (stats_of_child != nullptr) stats = stats_of_child;
  adoption->reset_in_child();
  advice.reset_after_fork();
  {
    MutexLock hold(mutex);
    regions.clear();
    refusals.clear();
    arrivals.clear();
    changes.clear();
    huge_units.clear();
    unmapping = {};
    policy->reset();
  }
  reclaim_in_child();
  fetch_streams.reset();
  hole_streams.reset();
  // Nothing is watched but what is away; the first steps count anew and decide whether more has to be.
  armed.store(config.watch_at_once, std::memory_order_relaxed);
  urgent.store(true, std::memory_order_relaxed);
  events_lost.store(false, std::memory_order_relaxed);
  background_sleeps.store(false, std::memory_order_relaxed);
  sharing.reset_in_child();
  shared_loads.reset_in_child();
  evacuation->reset_in_child();
  spare_unit.reset_in_child();
  no_room_until.store(0, std::memory_order_relaxed);
  evict_pause = next_evict = next_step = 0;
}

bool PagerCore::assign_destinations(Lane& lane) noexcept {
  bool all = true;
  for (std::size_t k = 0; k < lane.op_count; ++k) {
    const DeviceOp& op = lane.ops[k];
    if (!op.result) {
      device.release(op.first, op.pages);
      const Errc code = op.result.error().code;
      const bool full = code == Errc::kDeviceFull || code == Errc::kNoMemory;
      (full ? stats->device_full : stats->device_errors).fetch_add(1, std::memory_order_relaxed);
      raise(full ? Pager::Notice::kDeviceFull : Pager::Notice::kDeviceError);
      all = false;
      continue;
    }
    for (std::uint32_t j = 0; j < op.pages; ++j) {
      const DeviceSlot slot = op.first + j;
      if (!map->init_folio(pfn_of(slot), 0)) {  // no memory for its metadata
        device.release(slot, 1);
        continue;
      }
      lane.dst[lane.op_entry[k] + j] = MigrateWord::of(pfn_of(slot));
    }
  }
  return all;
}

bool PagerCore::drop_copies(bool all) noexcept {
  Pfn pfns[64];
  bool any = false;
  for (bool first = true;; first = false) {
    std::size_t n = 0;
    {
      const GateSection change(tables);
      MutexLock hold(mutex);
      if (!change) return any;
      if (all && first) copies.drop_all();
      n = copies.take_dropped(pfns);
    }
    if (n == 0) {
      if (any) note_copies();
      return any;
    }
    any = true;
    for (std::size_t i = 0; i < n; ++i) space.put_page(pfns[i]);
  }
}

bool PagerCore::make_huge(Pfn unit, Lane& lane) noexcept {
  // One touch makes the kernel provide a huge page; where it has none to give, 511 more would cost 511 faults.
  volatile std::byte* first_byte = space.bytes(unit);
  *first_byte = std::byte{0};
  const PageRange frames{unit.frame(), PageCount(kPagesPerHuge)};
  const Result<std::size_t> runs = space.mmu().scan(frames, lane.runs, nullptr);
  return runs && *runs == 1 && lane.runs[0].range == frames;
}

PageRange PagerCore::watchable_around(PageIndex page) noexcept {
  MutexLock hold(mutex);
  const Region* region = regions.find(page);
  return region == nullptr ? PageRange{} : region->range;
}

// ---- budget --------------------------------------------------------------------------------------------------------

BudgetInputs PagerCore::budget_inputs() noexcept {
  BudgetInputs in;
  in.ram_bytes = ram_bytes.load(std::memory_order_relaxed);
  in.total_bytes = total_bytes.load(std::memory_order_relaxed);
  in.resident_pages = resident.value();
  const DeviceStats device_stats = device.stats();
  in.store_bytes = in_process_memory.load(std::memory_order_relaxed) ? device_stats.held_bytes : 0;
  in.stored_pages = device_stats.stored_pages;
  // Frames stolen and not yet stored still count as resident; what is extra are the buffers for the way home, which
  // keep their memory.
  in.staging_bytes = landing_peak.load(std::memory_order_relaxed) * kPageSize;
  if (config.footprint != nullptr) {
    in.own_bytes = config.footprint->own_bytes();
  } else {
    const std::uint64_t taken = space.source().bytes_in_use();
    in.own_bytes = taken > in.store_bytes ? taken - in.store_bytes : 0;
  }
  return in;
}

void PagerCore::refresh_limit() noexcept {
  BudgetInputs in = budget_inputs();
  BudgetSplit split = split_budget(in);
  if (!split.fits && drop_copies(true)) {
    in = budget_inputs();
    split = split_budget(in);
  }
  if (!split.fits) {
    raise_peak(stats->total_would_do, split.would_do_bytes);
    raise(Pager::Notice::kCannotFit);
  }
  if (limit_pages.exchange(split.limit_pages, std::memory_order_relaxed) != split.limit_pages) {
    GateSection change(tables);
    MutexLock hold(mutex);
    if (change) {
      policy->set_capacity(PageCount(split.limit_pages));
      copies.set_most(most_copies(in));
    }
  }
  stats->resident_limit_pages.store(split.limit_pages == kNoLimit ? 0 : split.limit_pages, std::memory_order_relaxed);
  const std::uint64_t total = in.resident_pages * kPageSize + in.store_bytes + in.staging_bytes + in.own_bytes;
  stats->total_bytes.store(total, std::memory_order_relaxed);
  raise_peak(stats->peak_total_bytes, total);
}

void PagerCore::note_copies() noexcept {
  MutexLock hold(mutex);
  stats->kept_copies.store(copies.size(), std::memory_order_relaxed);
}

void PagerCore::note_resident() noexcept {
  const std::uint64_t now = resident.value();
  stats->resident_pages.store(now, std::memory_order_relaxed);
  raise_peak(stats->peak_resident_pages, now);
}

void PagerCore::note_scattered() noexcept {
  if (++lone_faults < kLoneFaults) return;
  lone_faults = kLoneFaults / 2;  // the time is asked now and then only
  scattered_until.store(space.clock().now_ns() + kScatteredFor, std::memory_order_relaxed);
}

void PagerCore::raise(Pager::Notice notice) noexcept {
  const auto bit = static_cast<std::uint32_t>(notice);
  if ((raised.fetch_or(bit, std::memory_order_acq_rel) & bit) != 0) return;
  fresh_notices.fetch_or(bit, std::memory_order_acq_rel);
  kick();
}

void PagerCore::kick() noexcept {
  if (background_sleeps.exchange(false, std::memory_order_acq_rel)) wake.advance();
}

void PagerCore::make_room(std::uint64_t pages, Lane& lane) noexcept {
  const std::uint64_t most = limit();
  if (most == kNoLimit) return;
  const std::uint64_t now = resident.value();
  if (now + pages + reserve_under(most) / 2 <= most) return;
  const std::int64_t time = space.clock().now_ns();
  const bool scattered = time < scattered_until.load(std::memory_order_relaxed);
  if (!scattered) kick();
  // Not what may be shared: it needs more than a MOVE, and a background thread that waits for none of its own pages.
  if (scattered && now + pages + std::min(kTakenAhead, most / kAheadOfLimit) > most && !sharing.possible() &&
      std::max(no_room_until.load(std::memory_order_relaxed), alone_until) <= time) {
    (void)handoff->take(PageCount(kClumpPages));
  }
  if (now + pages <= most) return;
  // The other hand is late: the machine is busy. Then two at it are slower than one, each flush of one interrupting the other.
  if (scattered) alone_until = time + kAloneFor;
  if (handoff->finish() && resident.value() + pages <= most) return;
  const CauseScope pressure(lane, MoveCause::kPressure);
  const bool search = no_room_until.load(std::memory_order_relaxed) <= time;
  if (search || sharing.possible()) {
    stats->back_pressure.fetch_add(1, std::memory_order_relaxed);
    const std::uint64_t batch = scattered ? kScatteredBatch : kClumpPages;
    (void)evict_some(PageCount(std::max(now + pages - most, batch)), lane, search ? Effort::kFault : Effort::kArrivals);
    if (resident.value() + pages <= limit()) return;
  }
  // Nothing that could go, or not enough: waiting would not help the program, and trying at each fault would hurt it.
  stats->over_limit.fetch_add(1, std::memory_order_relaxed);
  if (!search) return;
  const std::int64_t end = sharing.possible() ? space.clock().now_ns() : time;  // no more than half of the time for it
  no_room_until.store(end + std::max(kNoRoomPause, end - time), std::memory_order_relaxed);
  urgent.store(true, std::memory_order_relaxed);
  kick();
}

// ---- eviction ------------------------------------------------------------------------------------------------------

PageCount PagerCore::evict_some(PageCount want, Lane& lane, Effort effort) noexcept {
  const int most_barren = is_hurried(effort) ? 8 : 64;
  const int most_looks = is_hurried(effort) ? 256 : 1024;
  // A lap looks at all memory there is. Where few pages can go because the others are shared, each lap finds a few, and
  // somebody may be waiting.
  const int most_laps = !sharing.possible() ? most_looks : is_hurried(effort) ? 6 : 16;
  PageCount gone;
  int barren = 0, looks = 0, laps = 0;
  while (gone < want && barren < most_barren && looks < most_looks && laps < most_laps &&
         !stopped.load(std::memory_order_relaxed)) {
    GateSection section(evictions);
    if (!section) break;
    PageRange victim;
    EvictionPolicy::Choice choice = EvictionPolicy::Choice::kNothing;
    {
      MutexLock hold(mutex);
      choice = choose_locked(want - gone, effort, &victim);
    }
    if (choice == EvictionPolicy::Choice::kNothing) break;
    if (choice != EvictionPolicy::Choice::kVictim) {
      ++looks;
      if (choice == EvictionPolicy::Choice::kCameRound) ++laps;
      continue;
    }
    const EvictionOutcome outcome = evict_victim(victim, lane, effort);
    gone += outcome.gone;
    if (outcome.gone.raw() == 0) ++barren;
    if (outcome.device_full) break;
  }
  return gone;
}

bool PagerCore::choose_victim(PageCount want, Effort effort, int looks, PageRange* victim) noexcept {
  MutexLock hold(mutex);
  for (; looks != 0; --looks) {
    const EvictionPolicy::Choice choice = choose_locked(want, effort, victim);
    if (choice == EvictionPolicy::Choice::kVictim) return true;
    if (choice == EvictionPolicy::Choice::kNothing) return false;
  }
  return false;
}

void PagerCore::finish_evictions() noexcept {
  evictions.bar();
  (void)handoff->finish();  // it may have been waiting for this very thread
  evictions.wait_until_quiet();
  evictions.open();
}

EvictionPolicy::Choice PagerCore::choose_locked(PageCount want, Effort effort, PageRange* victim) noexcept {
  *victim = arrival_locked();
  if (!victim->empty()) return EvictionPolicy::Choice::kVictim;
  if (effort == Effort::kArrivals) return EvictionPolicy::Choice::kNothing;
  sweep.begin(space.clock().now_ns(), effort == Effort::kCopyShared);
  const EvictionPolicy::Choice choice = policy->choose(sweep, want, victim);
  const bool all_seen = effort == (sharing.possible() ? Effort::kCopyShared : Effort::kBackground);
  if (choice == EvictionPolicy::Choice::kNothing && !sweep.saw_refused() && all_seen && resident.value() > limit()) {
    raise(Pager::Notice::kNothingMoves);
  }
  return choice;
}

PageRange PagerCore::arrival_locked() noexcept {
  while (sharing.possible() && !arrivals.empty()) {
    PageRange range = arrivals.pop();
    const Region* region = regions.find(range.first);
    if (region == nullptr || !region->may_evict()) continue;
    range = range.intersect(region->range);
    const PageRange pinned = pins.first_in(range);
    if (pinned.first == range.first) range = PageRange::between(pinned.end(), range.end());
    else if (!pinned.empty()) range = PageRange::between(range.first, pinned.first);
    if (!range.empty()) return range;
  }
  return {};
}

EvictionOutcome PagerCore::evict_victim(PageRange victim, Lane& lane, Effort effort) noexcept {
  PageCount gone_before;
  if (effort == Effort::kCopyShared) (void)unshare(victim, lane, true);
  EvictionOutcome outcome = Eviction(*this, lane).run(victim);
  if (outcome.no_such_mapping) {
    // The program has changed its mapping since the last scan. The part that still is one mapping can go at once.
    urgent.store(true, std::memory_order_relaxed);
    const Result<Mapping> mapping = space.mmu().mapping_at_or_above(victim.first);
    const PageRange part = mapping ? victim.intersect(mapping->range) : PageRange{};
    if (!part.empty() && part != victim) {
      victim = part;
      outcome = Eviction(*this, lane).run(victim);
    }
  }
  if (outcome.refused.raw() != 0 && outcome.refusal == Errc::kBusy && sharing.possible()) {
    sharing.hurry();
    if (is_hurried(effort)) {
      kick();
    } else if (sharing.told_apart() || resident.value() > limit()) {
      settle(victim, outcome, lane, effort);
      gone_before = outcome.gone;
      outcome = EvictionOutcome();
      if (unshare(victim, lane, effort == Effort::kCopyShared)) outcome = Eviction(*this, lane).run(victim);
    }
  }
  settle(victim, outcome, lane, effort);
  outcome.gone += gone_before;
  return outcome;
}

bool PagerCore::unshare(PageRange victim, Lane& lane, bool copy) noexcept {
  // Pages that a fork has shared move once this process has a copy of its own. Never with a lock held and never on the
  // fault thread: a page that goes away in between would be waited for.
  Mmu& mmu = space.mmu();
  const Result<std::size_t> found = mmu.scan(victim, lane.runs, nullptr);
  if (!found) return false;
  bool any = false;
  for (std::size_t i = 0; i < *found; ++i) {
    if (!ResidentSweep::is_movable(lane.runs[i])) continue;
    if (!copy && (lane.runs[i].kind & PageRun::kShared) != 0) continue;
    if (!mmu.populate(lane.runs[i].range, true)) continue;
    stats->unshared_pages.fetch_add(lane.runs[i].range.count.raw(), std::memory_order_relaxed);
    any = true;
  }
  return any;
}

void PagerCore::settle(PageRange victim, const EvictionOutcome& outcome, Lane& lane, Effort effort) noexcept {
  resident.remove(outcome.gone.raw());
  stats->pages_out.fetch_add(outcome.gone.raw(), std::memory_order_relaxed);
  stats->refused_pages.fetch_add(outcome.refused.raw(), std::memory_order_relaxed);
  note_resident();
  {
    GateSection change(tables);
    MutexLock hold(mutex);
    if (change) {
      policy->left(victim, outcome.gone, Departure::kEvicted);
      if (outcome.gone.raw() != 0) huge_units.left(victim, outcome.huge && outcome.gone == victim.count);
      if (outcome.no_such_mapping) regions.cut(victim);  // the next scan finds out what is there now
      note_refusals_locked(victim, outcome);
    }
  }
  if (outcome.device_full) no_room_until.store(space.clock().now_ns() + 100 * kNoRoomPause, std::memory_order_relaxed);
  // What was cut out is counted again when it is found again.
  if (outcome.no_such_mapping) dropped_pages.fetch_add(victim.count.raw(), std::memory_order_relaxed);
  if (!outcome.kept.empty()) {
    // Pages around a control block that had left before it was found.
    const CauseScope must_be_home(lane, MoveCause::kEvacuation);
    (void)Fetch(*this, lane).all_of(outcome.kept, is_hurried(effort) ? Fetch::kHurried : Fetch::kPatient);
  }
  if (total_bytes.load(std::memory_order_relaxed) != 0) refresh_limit();
}

void PagerCore::note_refusals_locked(PageRange victim, const EvictionOutcome& outcome) noexcept {
  const std::int64_t now = space.clock().now_ns();
  const std::uint64_t first_clump = victim.first.raw() / kClumpPages;
  for (std::uint64_t clump = first_clump; clump * kClumpPages < victim.end().raw(); ++clump) {
    const PageIndex at(clump * kClumpPages);
    const bool taken = (outcome.clumps_taken & (1u << (clump - first_clump))) != 0;
    if (taken && !outcome.device_full && outcome.gone.raw() != 0) {
      refusals.moved(at);
    } else if (!taken && (outcome.refused.raw() != 0 || outcome.no_such_mapping)) {
      refusals.refused(at, now);
    }
  }
  // Refused for what the mapping is, not for what the page is doing: have its flags looked at again.
  if (outcome.refused.raw() != 0 && outcome.refusal == Errc::kInvalid) regions.doubt(victim);
}

// ---- lanes ---------------------------------------------------------------------------------------------------------

Lane& LaneLease::pick(PagerCore& core, Who who) noexcept {
  if (who == Who::kFaultThread) {
    core.lanes[0]->mutex.lock();
    return *core.lanes[0];
  }
  for (std::size_t i = 1; i < PagerCore::kLanes; ++i) {
    if (core.lanes[i]->mutex.try_lock()) return *core.lanes[i];
  }
  core.lanes[1]->mutex.lock();
  return *core.lanes[1];
}

}  // namespace whimbrel
