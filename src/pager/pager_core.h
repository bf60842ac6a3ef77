// PagerCore: what the parts of a pager share. Internal; the parts are classes over it, one per file: Adoption
// (adopt.cc), Eviction (evict.cc), Fetch (fetch.cc), and HoleFill (holes.cc).
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/check.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "migrate/address_space.h"
#include "pager/advice.h"
#include "pager/arrivals.h"
#include "pager/budget.h"
#include "pager/eviction_policy.h"
#include "pager/huge_units.h"
#include "pager/kept_copies.h"
#include "pager/lane.h"
#include "pager/pager.h"
#include "pager/park_gate.h"
#include "pager/pin_table.h"
#include "pager/refusals.h"
#include "pager/region_changes.h"
#include "pager/region_table.h"
#include "pager/release_queue.h"
#include "pager/resident_sweep.h"
#include "pager/second_chance.h"
#include "pager/shared_loads.h"
#include "pager/sharing.h"
#include "pager/spare_unit.h"
#include "pager/streams.h"
#include "port/device.h"

namespace whimbrel {

// A few ranges, in no order.
template <std::size_t kRoom>
class RangeList {
 public:
  // False: full.
  bool add(PageRange range) noexcept {
    if (size_ == kRoom) return false;
    ranges_[size_++] = range;
    return true;
  }
  // False: no such member.
  bool remove(PageRange range) noexcept {
    for (std::size_t i = 0; i < size_; ++i) {
      if (ranges_[i] != range) continue;
      ranges_[i] = ranges_[--size_];
      return true;
    }
    return false;
  }
  void clear() noexcept { size_ = 0; }
  [[nodiscard]] std::size_t size() const noexcept { return size_; }
  [[nodiscard]] const PageRange* begin() const noexcept { return ranges_.data(); }
  [[nodiscard]] const PageRange* end() const noexcept { return ranges_.data() + size_; }
  // Of `range`: the first stretch at or above its start that no member covers; empty when all is covered.
  [[nodiscard]] PageRange first_uncovered(PageRange range) const noexcept;
  // Of `range`: the first stretch that some member covers; empty when none does.
  [[nodiscard]] PageRange first_covered(PageRange range) const noexcept;

 private:
  std::array<PageRange, kRoom> ranges_{};
  std::size_t size_ = 0;
};

class Adoption;
class Evacuation;
class EvictionHandoff;

// What became of one victim.
struct EvictionOutcome {
  PageCount gone;     // on the device now
  PageCount taken;    // setup got hold of
  PageCount refused;  // would not move
  Errc refusal = Errc::kBusy;
  bool device_full = false;
  bool no_such_mapping = false;  // the range is not part of one mapping any more
  // Clumps of the range (bit n: the n-th 64 pages) of which at least one page could be taken.
  std::uint32_t clumps_taken = 0;
  bool huge = false;  // it was one huge page
  PageRange kept;  // found to hold control blocks: bring home what of it is away
};

class PagerCore {
 public:
  static constexpr std::size_t kLanes = 4;  // [0] the fault thread's, the others for whoever works in the background
  static constexpr std::size_t kHandoffLane = kLanes;  // what the fault thread has taken out for another thread to store
  static constexpr std::size_t kZeroPages = 64;

  PagerCore(AddressSpace& space, Device& device, const PagerConfig& config) noexcept;
  ~PagerCore();
  // Takes the memory that can fail to be there.
  [[nodiscard]] Result<void> prepare(Pager& pager) noexcept;

  // In a forked child with one thread: what the parent knew of mappings and heat is void, pins stay.
  void reset_in_child(PagerStats* stats_of_child) noexcept;

  // ---- frames of the device ----
  [[nodiscard]] Pfn pfn_of(DeviceSlot slot) const noexcept {
    return map->first() + PageCount(static_cast<std::uint64_t>(slot));
  }
  [[nodiscard]] DeviceSlot slot_of(Pfn pfn) const noexcept { return DeviceSlot{(pfn - map->first()).raw()}; }
  // A resting slot that stands for a page of our device.
  [[nodiscard]] bool is_away(PageEntry entry) const noexcept {
    return entry.state() == PageState::kDevice && map->contains(entry.pfn());
  }

  // Gives slots back to the device, or keeps them until a fork is over. Never waits for the program.
  void release(Pfn head, unsigned order) noexcept;
  void release_kept() noexcept;
  // In a forked child: what no slot of the page table and no kept copy stands for.
  void reclaim_in_child() noexcept;

  // Makes what the lane's operations have stored the destinations of its entries; gives back the rest. False: something could
  // not be stored, which has been counted and told.
  bool assign_destinations(Lane& lane) noexcept;

  // Gives up the copies that are of no use any more; `all`: every one, for the room that they take on the device. Whether
  // there was any. Not with a lock held.
  bool drop_copies(bool all) noexcept;

  // The region of `page`: beside it in the same mapping there can be something that is excluded. Empty: not known.
  [[nodiscard]] PageRange watchable_around(PageIndex page) noexcept;

  // ---- budget ----
  [[nodiscard]] std::uint64_t limit() const noexcept { return limit_pages.load(std::memory_order_relaxed); }
  // Splits the budget anew from what the device and the engine hold now.
  void refresh_limit() noexcept;
  // What kind of device it is now. While nothing is stored.
  void note_traits() noexcept;
  void note_resident() noexcept;
  void note_copies() noexcept;
  // Bounded work to get `pages` more in under the limit. On the thread that owns `lane`.
  void make_room(std::uint64_t pages, Lane& lane) noexcept;
  // Whether the limit leaves room for units of 2 MiB that somebody may only touch a part of.
  [[nodiscard]] bool has_room_for_huge() const noexcept { return limit() >= 16 * kPagesPerHuge; }
  [[nodiscard]] bool has_room(std::uint64_t pages) const noexcept { return resident.value() + pages <= limit(); }
  // Has the kernel put one huge page under a fresh unit of frames. False: it has none to give, now.
  [[nodiscard]] bool make_huge(Pfn unit, Lane& lane) noexcept;
  // A fault of a program that touches pages here and there, and goes on on the processor of the fault thread. Its victims
  // lie as scattered as its touches: one flush for each. From another processor each of them interrupts the program, from
  // this one they cost a fifth. So for a while the fault thread takes the victims, and the background only stores them.
  void note_scattered() noexcept;
  [[nodiscard]] bool is_scattered() const noexcept {
    return space.clock().now_ns() < scattered_until.load(std::memory_order_relaxed);
  }
  void raise(Pager::Notice notice) noexcept;
  void kick() noexcept;
  // Background thread: it is at work.
  void beat() noexcept {
    if (beat_at != nullptr) beat_at->store(static_cast<std::uint64_t>(space.clock().now_ns()), std::memory_order_relaxed);
  }

  // ---- what is told of it all (pager/event_ring.h) ----
  [[nodiscard]] std::int64_t log_clock() const noexcept { return config.events == nullptr ? 0 : space.clock().now_ns(); }
  // Pages of a migration for which `moved(i)` holds, a record for each run of neighbours; entry `alone` gets one of its own
  // with the lane's cause, and then the others came with it.
  template <class Moved>
  void log_moves(const Lane& lane, PageIndex first, std::size_t pages, Place from, Place to, std::int64_t begun_ns,
                 std::size_t alone, Moved&& moved) noexcept;
  void log(EventKind kind, PageRange range, std::uint64_t detail = 0) noexcept {
    if (config.events != nullptr) config.events->add(kind, MoveCause::kUser, Place::kNone, Place::kNone, range, detail, space.clock().now_ns());
  }

  // ---- eviction ----
  enum class Effort : std::uint8_t {
    kArrivals,    // somebody waits, and a search has just been in vain: only what needs none
    kFault,       // somebody waits: give up soon, never wait for the program
    kBackground,  // may claim pages that another process has left
    kCopyShared,  // the same, and makes copies of pages that other processes map as well, so that they can move
  };
  [[nodiscard]] static constexpr bool is_hurried(Effort effort) noexcept { return effort <= Effort::kFault; }
  PageCount evict_some(PageCount want, Lane& lane, Effort effort) noexcept;
  // Returns when nobody is in the middle of an eviction that began before the call. Any thread but the fault thread.
  void finish_evictions() noexcept;
  // What to try next. False: nothing was found in `looks` tries. The eviction gate has been entered.
  [[nodiscard]] bool choose_victim(PageCount want, Effort effort, int looks, PageRange* victim) noexcept;
  // One victim, with all that is to be remembered about it. The eviction gate has been entered.
  EvictionOutcome evict_victim(PageRange victim, Lane& lane, Effort effort) noexcept;
  // Remembers what became of a victim. The eviction gate has been entered.
  void settle(PageRange victim, const EvictionOutcome& outcome, Lane& lane, Effort effort) noexcept;

  // Constant after prepare().
  AddressSpace& space;
  Device& device;
  const PagerConfig config;
  const PageDigester digest;
  PageMap* map = nullptr;
  Pager* owner = nullptr;  // the tag of our page map and our migrations
  EvictionPolicy* policy = nullptr;
  SecondChance* own_policy = nullptr;
  std::byte* zeros = nullptr;  // kZeroPages pages that are never written
  std::array<Lane*, kLanes + 1> lanes{};
  Adoption* adoption = nullptr;
  EvictionHandoff* handoff = nullptr;
  Evacuation* evacuation = nullptr;

  // Of the device, as of the last note_traits().
  std::atomic<std::uint32_t> unit_pages{1};
  std::atomic<bool> synchronous{true}, in_process_memory{true};
  // Whether the device keeps what comes home. Where it takes no memory of this machine, or where the unit's other pages keep
  // it alive anyway. A page stored by itself in compressed memory costs its bytes, and storing it again is quick: measured,
  // lz4 and single zstd pages gained nothing and took a fifth more RAM in all.
  std::atomic<bool> keeps_copies{false};
  // Frames of the device in use while there are others that pages are leaving (pager/evacuation.h); 0: there are none.
  std::atomic<std::uint64_t> used_first{0}, used_end{0};
  [[nodiscard]] bool is_leaving(Pfn pfn) const noexcept {
    const std::uint64_t end = used_end.load(std::memory_order_relaxed);
    return end != 0 && (pfn.raw() < used_first.load(std::memory_order_relaxed) || end <= pfn.raw());
  }

  PagerStats* stats = nullptr;
  PagerStats* own_stats = nullptr;
  std::atomic<std::uint64_t>* beat_at = nullptr;

  // Limits and counts.
  std::atomic<std::uint64_t> ram_bytes;
  std::atomic<std::uint64_t> total_bytes;
  std::atomic<std::uint64_t> limit_pages{kNoLimit};
  ResidentCount resident;
  std::atomic<std::uint64_t> fixed_pages{0};   // of the resident ones, as of the last count
  std::atomic<std::uint64_t> landing_peak{0};  // most landing frames in use at once: so many have memory
  std::atomic<std::int64_t> no_room_until{0};  // making room failed: do not try before
  // Until then the fault thread makes room by itself: see note_scattered().
  std::atomic<std::int64_t> scattered_until{0};
  std::atomic<bool> armed{false};              // new mappings are registered at sight
  std::atomic<bool> background_sleeps{false};
  std::atomic<bool> urgent{false};              // the background thread should look at everything again
  std::atomic<bool> stopped{false};             // bring_all_home: nothing leaves any more
  std::atomic<std::uint64_t> dropped_pages{0};  // addresses the program discarded since the last count
  std::atomic<bool> events_lost{false};         // messages came while the tables were not to be touched
  std::atomic<std::uint32_t> raised{0};         // notices raised ever
  std::atomic<std::uint32_t> fresh_notices{0};
  Event wake;
  std::int64_t evict_pause = 0;  // background thread: grows while nothing moves
  std::int64_t next_evict = 0;
  std::int64_t next_step = 0;  // background thread: when it has to look at everything again

  Sharing sharing{*this};
  Advice advice;

  // What a forked child relies on: closed, in this order, before a fork.
  ParkGate evictions;  // around each victim, from the choice to the end of its migration
  ParkGate tables;     // around each change of what the mutex guards
  ReleaseQueue freed;  // while they are closed

  // Taken after AddressSpace::mutex(); never held over a call that waits.
  Mutex mutex;
  RegionTable regions GUARDED_BY(mutex);
  PinTable pins GUARDED_BY(mutex);
  RefusalTable refusals GUARDED_BY(mutex);
  ResidentSweep sweep GUARDED_BY(mutex);
  Arrivals arrivals GUARDED_BY(mutex);  // while pages may be shared; those from before the last fork refuse
  KeptCopies copies GUARDED_BY(mutex);
  HugeUnits huge_units GUARDED_BY(mutex);
  RangeList<512> excluded GUARDED_BY(mutex);
  RangeList<256> managed GUARDED_BY(mutex);
  // Changes that came in while a scan was under way, which must doubt its result.
  RegionChanges changes GUARDED_BY(mutex);
  // What is being unmapped, and its region: it may turn out to have moved.
  PageRange unmapping GUARDED_BY(mutex);
  Region unmapped GUARDED_BY(mutex);

  SharedLoads shared_loads{*this};
  SpareUnit spare_unit{*this};

  // Only the fault thread (lane 0).
  Streams fetch_streams;
  Streams hole_streams;
  std::int64_t alone_until = 0;  // hands no victims over until then
  std::uint32_t lone_faults = 0;  // in a row that continued no stream, beside their faulter

 private:
  // Folios that the device has given and not got back.
  template <class F>
  void for_each_folio(F f) noexcept;
  [[nodiscard]] bool stands_for_something(Pfn head, unsigned order) noexcept;
  void give_back(Pfn head, unsigned order) noexcept;
  [[nodiscard]] BudgetInputs budget_inputs() noexcept;
  // What to try next, with the mutex held: what came in since a fork, else what the policy says.
  EvictionPolicy::Choice choose_locked(PageCount want, Effort effort, PageRange* victim) noexcept REQUIRES(mutex);
  [[nodiscard]] PageRange arrival_locked() noexcept REQUIRES(mutex);
  // Gives this process pages of its own where it has none, or (unless `copy`) where that costs nothing.
  [[nodiscard]] bool unshare(PageRange victim, Lane& lane, bool copy) noexcept;
  void note_refusals_locked(PageRange victim, const EvictionOutcome& outcome) noexcept REQUIRES(mutex);
};

template <class Moved>
void PagerCore::log_moves(const Lane& lane, PageIndex first, std::size_t pages, Place from, Place to, std::int64_t begun_ns,
                          std::size_t alone, Moved&& moved) noexcept {
  if (config.events == nullptr) return;
  const std::int64_t now = space.clock().now_ns();
  for (std::size_t i = 0; i < pages;) {
    if (!moved(i)) {
      ++i;
      continue;
    }
    const std::size_t start = i++;
    while (start != alone && i < pages && i != alone && moved(i)) ++i;
    const MoveCause cause = alone < pages && start != alone ? MoveCause::kPrefetch : lane.cause;
    config.events->moved(cause, from, to, {first + PageCount(start), PageCount(i - start)}, begun_ns, now);
  }
}

// Borrows a lane for its lifetime.
class LaneLease {
 public:
  enum class Who : std::uint8_t { kFaultThread, kOther };
  LaneLease(PagerCore& core, Who who, MoveCause cause) noexcept : lane_(pick(core, who)) { lane_.cause = cause; }
  ~LaneLease() { lane_.mutex.unlock(); }
  LaneLease(const LaneLease&) = delete;
  LaneLease& operator=(const LaneLease&) = delete;
  [[nodiscard]] Lane& operator*() noexcept { return lane_; }

 private:
  static Lane& pick(PagerCore& core, Who who) noexcept NO_THREAD_SAFETY_ANALYSIS;
  Lane& lane_;
};

// What is done with a lane for its lifetime has another cause.
class CauseScope {
 public:
  CauseScope(Lane& lane, MoveCause cause) noexcept : lane_(lane), before_(lane.cause) { lane_.cause = cause; }
  ~CauseScope() { lane_.cause = before_; }
  CauseScope(const CauseScope&) = delete;
  CauseScope& operator=(const CauseScope&) = delete;

 private:
  Lane& lane_;
  const MoveCause before_;
};

template <std::size_t kRoom>
PageRange RangeList<kRoom>::first_uncovered(PageRange range) const noexcept {
  PageIndex at = range.first;
  PageIndex end = range.end();
  for (bool moved = true; moved && at < end;) {
    moved = false;
    for (const PageRange& member : *this) {
      if (member.contains(at)) {
        at = member.end();
        moved = true;
      }
    }
  }
  for (const PageRange& member : *this) {
    if (!member.empty() && at < member.first && member.first < end) end = member.first;
  }
  return PageRange::between(at, end);
}

template <std::size_t kRoom>
PageRange RangeList<kRoom>::first_covered(PageRange range) const noexcept {
  PageRange first{range.end(), PageCount(0)};
  for (const PageRange& member : *this) {
    const PageRange part = member.intersect(range);
    if (!part.empty() && part.first < first.first) first = part;
  }
  return first;
}

}  // namespace whimbrel
