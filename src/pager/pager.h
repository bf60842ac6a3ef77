// Pager: keeps a program within its RAM by moving cold pages to one device and bringing each home when it is touched.
// A driver on top of the migration protocol: it decides; AddressSpace moves; Device keeps.
//
// Life of a page under a pager:
//   1. scan_step() sees its mapping and has it watched: from now on first touches come to serve_hole()   (adopt.cc)
//   2. background_step() or a fault that finds no room evicts it: the policy names a clump, setup takes the pages out,
//      thread control blocks go straight back, the device stores the rest                               (evict.cc)
//   3. the program touches it: migrate_to_ram() makes room and brings it home, with neighbours when it walks (fetch.cc)
//   4. the program unmaps it: folio_free() gives its slot back
//
// Threads: engine threads only (they serve faults and so may not touch memory that can be away), but for the calls
// marked "any thread". migrate_to_ram and serve_hole run on the fault thread; background_step on one other. A thread of
// the program that took a lock of ours could fault while it holds it and wait for ever; so the calls it may make
// (park, unpark, mark_shared_after_fork) take none.
//
// Lock order: AddressSpace::mutex() before Pager's. The pager never calls the space, the device or waits while it holds
// its own.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "base/mutex.h"
#include "migrate/address_space.h"
#include "migrate/fault.h"
#include "pager/advice.h"
#include "pager/footprint.h"
#include "pager/stats.h"
#include "port/device.h"

namespace whimbrel {

class EvictionPolicy;
class EventLog;
class PagerCore;

struct PagerConfig {
  // Bytes of program memory that may be in RAM, uncompressed. 0: no limit of this kind.
  std::uint64_t ram_bytes = 0;
  // Bytes of RAM in all: resident + device contents that lie in this process + staging + engine. 0: no limit.
  std::uint64_t total_bytes = 0;
  PageCount fetch_window{512};     // most pages one fault brings home
  PageCount hole_window{512};      // most pages one fault fills with zeros
  PageCount smallest_mapping{16};  // smaller ones are counted but not managed
  bool adopt = true;               // false: nothing of the program is managed but what manage() names
  // Streams get and keep 2 MiB pages, in mappings that are large enough for some of them (MADV_HUGEPAGE).
  bool huge_pages = true;
  bool watch_at_once = false;      // watch from the start, not only from half the limit on: for requests by address
  // False: stacks are left alone (a kernel access to memory that is away would fail: user-mode-only operation).
  bool stacks = true;
  PagerStats* stats = nullptr;           // where to count; null: a private place
  EventLog* events = nullptr;            // where to record each move; null: nowhere. Outlives the pager
  const Footprint* footprint = nullptr;  // null: what the memory source has handed out, less the device's contents
  EvictionPolicy* policy = nullptr;      // null: second chance. Outlives the pager
};

// Bits of one page for report(). Neither resident nor away nor moving: nothing has been written there yet.
struct PageReport {
  static constexpr std::uint32_t kMapped = 1u << 0, kReadable = 1u << 1, kWritable = 1u << 2, kResident = 1u << 3,
                                 kAway = 1u << 4, kMoving = 1u << 5, kHuge = 1u << 6, kZeroPage = 1u << 7,
                                 kPinned = 1u << 8,
                                 kManaged = 1u << 9;  // may leave
};

// Why pages of an evict_range() are still where they were.
struct EvictionNote {
  PageCount refused;          // the kernel would not give them: pinned by a device, shared after a fork
  PageCount spared;           // pinned, or needed at a fork
  Errc refusal = Errc::kBusy;  // of the last refused one
  bool device_full = false;   // or it failed: the rest was not tried
  bool parked = false;        // a fork is under way: the rest was not tried
};

class Pager final : public PageMapOps, public HolePolicy, public SpaceObserver {
 public:
  // Adds a page map for the device and observes the space. Nothing is watched or moved before the first scan_step().
  // kNoMemory; kInvalid without any limit. `space` and `device` outlive the pager.
  [[nodiscard]] static Result<Pager*> create(AddressSpace& space, Device& device, const PagerConfig& config) noexcept;
  // After bring_all_home() succeeded and with no thread inside. Null is allowed.
  static void destroy(Pager* pager) noexcept;

  // ---- what is managed -----------------------------------------------------------------------------------------
  // Never watched and never moved: the engine's own memory, data of libraries that engine threads use. Before the first
  // scan_step() on any thread, later on engine threads. False: no room for another range.
  bool exclude(PageRange range) noexcept;
  // Managed from now on, whatever `adopt` says, as far as it is private, anonymous and writable.
  [[nodiscard]] Result<void> manage(PageRange range) noexcept;
  // The opposite, for exactly a range that was managed: what is away comes home, its pins and advice are forgotten, and the
  // kernel has it again. kNotFound; kDeviceIo, ...: a page could not be loaded, all stays managed.
  [[nodiscard]] Result<void> unmanage(PageRange range) noexcept;
  // How the program is going to touch the range. kNoMemory: too many ranges.
  [[nodiscard]] Result<void> advise(PageRange range, AccessPattern pattern) noexcept;
  // The range has no use soon: it is the first to go when room is needed.
  [[nodiscard]] Result<void> make_cold(PageRange range) noexcept;
  // Pages that may not leave; each pin() of a range is undone by one unpin() of the same range. pin() does not bring
  // home what is away: call bring_home() after it. Touches of holes are still served.
  [[nodiscard]] Result<void> pin(PageRange range) noexcept;
  void unpin(PageRange range) noexcept;

  // ---- work ----------------------------------------------------------------------------------------------------
  // One round of everything that is due: scan, count, evict down to the reserve, device upkeep. Returns how many
  // nanoseconds to wait before the next one (0: at once). The loop of the thread that calls it:
  //   for (;;) { seen = pager.wake_event().value(); ns = pager.background_step(); pager.wake_event().wait(seen, ns); }
  // (the value is read before the step, so that no wake-up is lost).
  [[nodiscard]] std::int64_t background_step() noexcept;
  // Advanced when the background thread should come back early.
  [[nodiscard]] Event& wake_event() noexcept;
  // Lately the program has touched pages here and there, and the fault thread takes the victims.
  [[nodiscard]] bool is_scattered() const noexcept;

  // Where to put the time now and then in the middle of long work, for whoever waits for a sign of life. Null: nowhere.
  // Before the first step, and again in a forked child.
  void set_beat(std::atomic<std::uint64_t>* place) noexcept;

  // The program has just made these mappings: the large ones are registered at once, the rest by the next walk. A hint;
  // for whoever hears of mappings as they are made. `all`: there are no others. Any thread whose stack is not
  // managed; never waits.
  void note_mapped(std::span<const PageRange> ranges, bool all) noexcept;

  // Walks the mappings: registers new ones, forgets old ones, counts when due. Returns whether anything was new.
  bool scan_step() noexcept;
  // Counts the resident pages anew.
  void recount() noexcept;
  // Moves about `want` pages to the device; returns how many went.
  PageCount evict(PageCount want) noexcept;
  // Moves these pages to the device, as far as they can go (advice, tests).
  PageCount evict_range(PageRange range, EvictionNote* note = nullptr) noexcept;
  // Brings home what of the range is away. kDeviceIo, kCorrupt, ...: some pages could not be loaded and stay.
  // `home`: how many came.
  [[nodiscard]] Result<void> bring_home(PageRange range, PageCount* home = nullptr) noexcept;
  // The program's discard of the range has returned: what is written there from now on may leave at once.
  void note_discarded(PageRange range) noexcept;
  // Pages of the range that are on the device.
  [[nodiscard]] PageCount away_in(PageRange range) noexcept;
  // PageReport bits for each page of the range, as far as `out` reaches.
  void report(PageRange range, std::span<std::uint32_t> out) noexcept;
  // Everything, whatever the limits. Nothing is evicted any more afterwards.
  [[nodiscard]] Result<void> bring_all_home() noexcept;

  // ---- another device --------------------------------------------------------------------------------------------
  // Nothing is stored between the two, so that the device can be exchanged inside (devices/switch_device.h). What lies on other
  // slots than [first, first + slots) moves there with the background steps to come; `unit_pages`: in which units it lies.
  // Not while a fork is being prepared; on the thread of background_step().
  void hold_stores() noexcept;
  void resume_stores(DeviceSlot first, std::uint64_t slots, std::uint32_t unit_pages) noexcept;
  // As it was before.
  void resume_stores() noexcept;
  // The devices that were leaving are empty and gone.
  void note_evacuated() noexcept;

  // ---- budget --------------------------------------------------------------------------------------------------
  // Effective at once for faults, within a background_step() for what is resident. Any thread.
  void set_limits(std::uint64_t ram_bytes, std::uint64_t total_bytes) noexcept;
  [[nodiscard]] PageCount resident() const noexcept;        // any thread
  [[nodiscard]] PageCount resident_limit() const noexcept;  // any thread; all ones: none
  [[nodiscard]] PagerStats& stats() noexcept;

  // Things worth telling a person, each once.
  enum class Notice : std::uint32_t {
    kDeviceFull = 1u << 0,       // the device has no place: the RAM limit cannot be held
    kDeviceError = 1u << 1,      // the device failed to store: pages stay in RAM
    kLoadError = 1u << 2,        // contents could not be loaded: an access got SIGBUS
    kCannotFit = 1u << 3,        // total_bytes is too small even with everything compressed: see bytes_that_would_do()
    kTooManyMappings = 1u << 4,  // the kernel refuses to watch more mappings: the rest stays unmanaged
    kNothingMoves = 1u << 5,     // over the limit, and all that is left is pinned, shared or locked
  };
  // The bits raised since the last call. Any thread.
  [[nodiscard]] std::uint32_t take_notices() noexcept;
  // An estimate for kCannotFit, in bytes. Any thread.
  [[nodiscard]] std::uint64_t bytes_that_would_do() const noexcept;

  // ---- fork ----------------------------------------------------------------------------------------------------
  // Returns with no eviction under way and none beginning before unpark(); faults are served all the time, without
  // touching what a forked child relies on. Calls nest. Any thread; takes no lock.
  void park() noexcept;
  void unpark() noexcept;
  // In the parent: what is resident is shared with the child now and will not move until it is written. Any thread.
  void mark_shared_after_fork() noexcept;
  // In the child, before it has a second thread and before unpark(): AddressSpace::recover_in_child() has run and, if
  // they are elsewhere now, `stats` says where to count (null: as before). Ends the parking that the fork came in.
  void reset_in_child(PagerStats* stats) noexcept;

  // ---- what the space calls ------------------------------------------------------------------------------------
  FaultResult migrate_to_ram(FaultContext& fault) noexcept override;
  void folio_free(Pfn head, unsigned order) noexcept override;
  bool serves_inline() const noexcept override { return true; }
  bool serve_hole(AddressSpace& space, const PendingFault& fault, const Mapping& mapping) noexcept override;
  void invalidate_start(NotifyEvent event, PageRange range, const void* owner) noexcept override;
  void invalidate_end(NotifyEvent event, PageRange range, const void* owner) noexcept override;
  void remapped(PageRange from, PageIndex to) noexcept override;

  Pager(const Pager&) = delete;
  Pager& operator=(const Pager&) = delete;

 private:
  explicit Pager(PagerCore& core) noexcept : core_(core) {}
  ~Pager() override = default;

  PagerCore& core_;
};

}  // namespace whimbrel
