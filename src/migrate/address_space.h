// AddressSpace: the engine's view of one process's memory: which slots are away or on their way, which device pages
// they stand for, and the one lock that makes each step atomic against the program.
//
// Life of a page (names of the functions that do it):
//   1. migrate_vma_setup   takes RAM pages out of the program into staging frames; touchers wait        (collect.cc)
//   2. the driver          copies frames to its device pages; no lock held
//   3. migrate_vma_pages   makes the destination the page's identity                                     (pages.cc)
//   4. migrate_vma_finalize  the slot now says "on the device"; frames are freed, waiters re-driven       (finalize.cc)
//   5. the program touches it: FaultService → PageMapOps::migrate_to_ram → 1..4 the other way round      (fault.cc)
//   6. munmap, DONTNEED, mremap arrive as messages and change or drop slots at any moment in between     (events.cc)
//
// Locking (whole order in ARCHITECTURE.md): mutex() guards the page table, reverse mappings and the reading of messages.
// It is held from before a message is read until it is applied, and over each of: "query mapping, watch, set entries,
// MOVE" and "check entry, COPY, clear entry". It is never held over a Device call, a callback or a wait. Every page
// operation can answer kEventPending; whoever holds the lock then reads and applies the messages himself
// (pump_locked) and looks everything up again.
#pragma once

#include <array>
#include <cstdint>

#include "base/clock.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "mm/page_map.h"
#include "mm/page_table.h"
#include "migrate/frame_pool.h"
#include "migrate/trace.h"
#include "port/mmu.h"

namespace whimbrel {

// Why slots change, for observers. Values as drivers know them (MN-02).
enum class NotifyEvent : std::uint8_t {
  kUnmap = 0, kClear = 1, kProtectionVma = 2, kProtectionPage = 3, kSoftDirty = 4, kRelease = 5, kMigrate = 6,
  kExclusive = 7,
};

// Told about changes. Calls come without the lock held when `before` is true and possible (the engine's own
// migrations), late and with the lock held for changes that the kernel reports after the fact (kUnmap, kClear of events):
// then implementations must not call back into the space.
class SpaceObserver {
 public:
  virtual ~SpaceObserver() = default;
  virtual void invalidate_start(NotifyEvent event, PageRange range, const void* owner) noexcept = 0;
  virtual void invalidate_end(NotifyEvent event, PageRange range, const void* owner) noexcept = 0;
  // The mapping moved: what was at `from` is at `to` now. After the slots have been re-keyed.
  virtual void remapped(PageRange from, PageIndex to) noexcept { (void)from, (void)to; }
};

class AddressSpace;

struct PendingFault {
  PageIndex page;
  VirtualAddress address;
  bool write = false;
  bool write_protect = false;
  std::uint32_t thread = 0;
};

struct SpaceStats {
  std::atomic<std::uint64_t> collected{0}, restored{0}, moved{0}, inserted{0}, split{0}, split_failed{0};
  std::atomic<std::uint64_t> faults{0}, waits{0}, busy{0}, event_pending{0}, dropped{0}, remapped{0};
  std::atomic<std::uint64_t> replaced{0};  // pages whose slot turned out to be filled or unmapped when they came home
};

// Drops pages of the program while the space's lock is held, without the message about it being applied. The lock is held
// all the time: whoever touches a page that is gone waits for it.
class QuietDiscard {
 public:
  virtual ~QuietDiscard() = default;
  // False: the pages are still there.
  [[nodiscard]] virtual bool discard_locked(AddressSpace& space, PageRange range) noexcept = 0;
};

class AddressSpace {
 public:
  struct Config {
    PageCount staging{8192};          // 32 MiB of addresses
    PageCount landing{2048};          // 8 MiB
    PageCount huge{16 * kPagesPerHuge};  // 32 MiB
    // A range the program is discarding is not collected from for this long after its message was read: the kernel
    // drops the pages some time after that (no more is known), and a page stolen in between would survive.
    std::int64_t quarantine_ns = 200'000'000;
    // Break copy-on-write sharing of pages that refuse to move because of a fork (UA-06). Costs memory.
    bool break_sharing = false;
    // Keep the read-only flavour of pages (after fork, after mprotect) exactly as the kernel does, by write-protecting
    // what comes home with it. Needs an Mmu that watches write protection; for drivers that mirror page tables.
    bool track_protection = false;
    // Mappings that a fork wipes may hold what is away (they are never adopted by the pager): look for them in the child.
    bool details_in_child = false;
    // How to drop a page that refuses to move because a fork shares it; null: not at all. Outlives the space.
    QuietDiscard* discard = nullptr;
  };

  [[nodiscard]] static Result<AddressSpace*> create(Mmu& mmu, MemorySource& source, Clock& clock,
                                                    const Config& config) noexcept;
  // Nothing may be away any more (bring_all_home) and no thread inside.
  static void destroy(AddressSpace* space) noexcept;

  // ---- devices -------------------------------------------------------------------------------------------
  // Reserves `count` frame numbers for a device and makes them known. kInvalid (DM-10), kNoMemory. The map stays valid
  // until remove_page_map.
  [[nodiscard]] Result<PageMap*> add_page_map(MemoryType type, PageCount count, const void* owner,
                                              PageMapOps* ops) noexcept;
  // kBusy while pages of it are allocated (DM-14: evict first).
  [[nodiscard]] Result<void> remove_page_map(PageMap* map) noexcept;
  [[nodiscard]] PageMap* map_of(Pfn pfn) noexcept;

  // ---- pages ---------------------------------------------------------------------------------------------
  // Metadata of a device page or of a frame of ours; null for anything else.
  [[nodiscard]] Page* page(Pfn pfn) noexcept;
  // Drops one reference to the folio with this head. The last one frees it: frames go back to their pool, device pages
  // to their owner (folio_free). With or without the lock held: folio_free must not call back into the space.
  void put_page(Pfn head) noexcept;
  // A frame to bring contents home in: locked, one reference. Small from the landing pool, huge from the huge pool.
  [[nodiscard]] Result<Pfn> alloc_frames(PageCount count) noexcept;
  [[nodiscard]] Result<Pfn> alloc_huge_frame() noexcept;
  // 512 small frames on an aligned unit of the huge pool: what is to be one huge page in the end, for the program's pages
  // that are away one by one.
  [[nodiscard]] Result<Pfn> alloc_unit_frames() noexcept;
  // Small frames without memory, for contents that are moved in and go on into the program by MOVE. Never written to.
  [[nodiscard]] Result<Pfn> alloc_fresh_frames(PageCount count) noexcept;
  // Unlocks and drops a run of frames whose pages each have one reference left, in one go.
  void free_frames(Pfn first, PageCount count) noexcept;
  // The bytes of a frame of ours, or of a coherent device page that the program does not map.
  [[nodiscard]] std::byte* bytes(Pfn frame) noexcept {
    const PageMap* map = map_of(frame);
    return mmu_.bytes(map == nullptr ? frame.frame() : map->frame_of(frame));
  }

  // ---- messages ------------------------------------------------------------------------------------------
  // Reads and applies everything that is there; faults are queued.
  void pump() noexcept EXCLUDES(mutex_);
  void pump_locked() noexcept REQUIRES(mutex_);
  // After the `tries`-th kEventPending in a row: reads what there is; from the third on, with a pause. Whoever caused the
  // event has been told to go on, but until it has run everything is refused.
  void let_events_pass_locked(int tries) noexcept REQUIRES(mutex_);
  // The same by the thread that serves faults: until take_fault() has told it that there are none, it need not be woken
  // for faults that other threads read while they pump.
  void begin_serving() noexcept EXCLUDES(mutex_);
  // Takes the oldest queued fault. False: none; a later one interrupts the wait for messages if another thread reads it.
  [[nodiscard]] bool take_fault(PendingFault* out) noexcept EXCLUDES(mutex_);
  // Touches that have been read and that nobody has taken yet.
  [[nodiscard]] bool has_queued_faults() noexcept EXCLUDES(mutex_) {
    MutexLock hold(mutex_);
    return fault_count_ != 0;
  }
  // The pages are in place and whoever waited for them has been woken: what is queued about them is over. Served later it
  // would bring home a page that nobody touches, and spoil a migration that has begun since.
  void forget_faults_locked(PageRange pages) noexcept REQUIRES(mutex_);
  // Whether the fault taken last still waits. Only the thread that takes faults may ask.
  [[nodiscard]] bool taken_fault_waits_locked() const noexcept REQUIRES(mutex_) { return taken_waits_; }

  // ---- state ---------------------------------------------------------------------------------------------
  [[nodiscard]] Mutex& mutex() noexcept RETURN_CAPABILITY(mutex_) { return mutex_; }
  // For the analysis, inside callbacks that run under the lock.
  void lock_is_held() const noexcept ASSERT_CAPABILITY(mutex_) {}
  [[nodiscard]] PageTable& table() noexcept REQUIRES(mutex_) { return table_; }
  [[nodiscard]] PageEntry entry(PageIndex page) noexcept EXCLUDES(mutex_);
  // The program's discard of this range is known to be complete: pages there may be collected again.
  void end_quarantine(PageRange range) noexcept EXCLUDES(mutex_);
  [[nodiscard]] bool is_quarantined_locked(PageRange range) noexcept REQUIRES(mutex_);
  // The head of the folio that this page belongs to. Heads of large folios are 512-aligned.
  [[nodiscard]] Pfn head_of(Pfn pfn) noexcept;
  // A huge slot becomes 512 base slots of the same state and flavour; the folio stays large (UN-04).
  [[nodiscard]] Result<void> split_slot_locked(PageIndex base) noexcept REQUIRES(mutex_);
  // A large folio whose head the caller has locked becomes 512 folios. The lock and the caller's reference go to the
  // piece `keep` (SPL-04), or, with lock_all, every piece ends up locked with the caller's kind of reference (SUF-02).
  // Pieces that nothing maps are freed (SPF-03). Calls folio_split of the owner: like folio_free, that must not call back
  // into the space. kAgain: somebody else holds a reference.
  [[nodiscard]] Result<void> split_folio_locked(Pfn head, Pfn keep, bool lock_all) noexcept REQUIRES(mutex_);
  // The program lowers the protection of a range (mprotect): device pages become the readable flavour, for good (MP-02).
  // To be called by whoever intercepts the call; the kernel sends no message.
  void note_protection_lowered(PageRange range) noexcept EXCLUDES(mutex_);
  // The program is about to MADV_FREE a range, or has done so: the message that this makes looks like that of DONTNEED,
  // but drops nothing (MA-02). To be called by whoever intercepts the call.
  void begin_lazy_free(PageRange range) noexcept EXCLUDES(mutex_);
  void end_lazy_free(PageRange range) noexcept EXCLUDES(mutex_);
  // Messages about discards in a range are to be ignored: it is the engine's own doing, which keeps the entries.
  void ignore_removal_locked(PageRange range) noexcept REQUIRES(mutex_);
  void heed_removal_locked(PageRange range) noexcept REQUIRES(mutex_);
  // The program has replaced what was in a range by something that no message tells of (guard markers, UN-09).
  void note_dropped(PageRange range) noexcept EXCLUDES(mutex_);
  // A fork has shared every page: readable flavour, in the parent after it and in the child after recover_in_child()
  // (FK-02). With track_protection pages in RAM are write-protected, so that their first write is seen.
  void note_shared_by_fork() noexcept EXCLUDES(mutex_);

  // Is a present page of this kind writable now, as far as it can be told? (UA-05)
  [[nodiscard]] bool is_writable(std::uint32_t run_kind, const Mapping& mapping) const noexcept {
    if (!mapping.has(Mapping::kWritable) || (run_kind & PageRun::kZero) != 0) return false;
    return !config_.track_protection || (run_kind & PageRun::kWritten) != 0;
  }
  // Write-protects what is present in a watched range. False: refused, or the range is gone.
  [[nodiscard]] bool protect_locked(PageRange range) noexcept REQUIRES(mutex_);
  // Takes a coherent page out of the program into its frame and freezes the slot. False: it stays (pinned, shared).
  [[nodiscard]] bool take_coherent_locked(PageIndex at, std::uint64_t writable_bit) noexcept REQUIRES(mutex_);
  // Re-drives whoever waits for this slot, if anybody does.
  void wake_waiters_locked(PageIndex page) noexcept REQUIRES(mutex_);
  // The same for every slot that maps the folio: the lock of a large one is waited for at any of its base slots.
  void wake_folio_waiters_locked(Pfn head) noexcept REQUIRES(mutex_);

  [[nodiscard]] Mmu& mmu() noexcept { return mmu_; }
  [[nodiscard]] MemorySource& source() noexcept { return source_; }
  [[nodiscard]] Clock& clock() noexcept { return clock_; }
  [[nodiscard]] const Config& config() const noexcept { return config_; }
  [[nodiscard]] SpaceStats& stats() noexcept { return stats_; }
  [[nodiscard]] TraceRing& trace() noexcept { return trace_; }
  [[nodiscard]] FramePool& pool(FrameUse use) noexcept { return *pools_[static_cast<std::size_t>(use)]; }

  // Observers are few and added before migrations start. False: no room.
  bool add_observer(SpaceObserver* observer) noexcept;
  void notify_start(NotifyEvent event, PageRange range, const void* owner) noexcept;
  void notify_end(NotifyEvent event, PageRange range, const void* owner) noexcept;

  // ---- fork ----------------------------------------------------------------------------------------------
  // In the child, before any other thread exists: the mmu has been reopened by the caller. Locks become free, slots
  // that were coming home are on their device again or already home, frames are free, slots in mappings the child does
  // not have are forgotten, and everything that is away is watched again. Returns the number of slots that are present
  // although they are away: somebody touched them before us and saw zeros; the caller must not go on (0 is right).
  [[nodiscard]] std::uint64_t recover_in_child() noexcept;

  // Every page in one place, references and lock bits consistent. Stops the process when not. For tests.
  void check_invariants() noexcept EXCLUDES(mutex_);

 private:
  AddressSpace(Mmu& mmu, MemorySource& source, Clock& clock, const Config& config) noexcept;

  void apply_locked(const Message& message) noexcept REQUIRES(mutex_);
  void drop_range_locked(PageRange range, NotifyEvent why) noexcept REQUIRES(mutex_);
  void remap_range_locked(PageRange from, PageIndex to) noexcept REQUIRES(mutex_);
  void lower_entries_locked(PageRange range, std::uint64_t bits) noexcept REQUIRES(mutex_);
  void protect_present_locked(PageRange range) noexcept REQUIRES(mutex_);
  [[nodiscard]] Result<std::size_t> mapping_above_locked(PageIndex at, Mapping* out) noexcept REQUIRES(mutex_);
  void quarantine_locked(PageRange range) noexcept REQUIRES(mutex_);
  void queue_fault_locked(const Message& message) noexcept REQUIRES(mutex_);
  void free_folio(Pfn head, unsigned order) noexcept;
  void reset_references_locked() noexcept REQUIRES(mutex_);
  void recover_slot_locked(PageIndex at, PageEntry entry) noexcept REQUIRES(mutex_);
  [[nodiscard]] std::uint64_t recover_range_locked(PageRange range) noexcept REQUIRES(mutex_);

  struct Quarantine {
    PageRange range;
    std::int64_t until_ns = 0;
  };
  static constexpr std::size_t kMaxMaps = 64;
  static constexpr std::size_t kMaxObservers = 4;
  static constexpr std::size_t kFaultQueue = 1024;

  // Constant after construction.
  Mmu& mmu_;
  MemorySource& source_;
  Clock& clock_;
  const Config config_;
  std::array<FramePool*, 3> pools_{};

  SpaceStats stats_;
  TraceRing trace_;
  std::array<std::atomic<PageMap*>, kMaxMaps> maps_{};
  std::atomic<std::uint64_t> next_device_pfn_{kFirstDevicePfn.raw()};
  std::array<SpaceObserver*, kMaxObservers> observers_{};
  std::size_t observer_count_ = 0;

  Mutex mutex_;
  PageTable table_ GUARDED_BY(mutex_);
  PageMap* retired_maps_ GUARDED_BY(mutex_) = nullptr;
  std::array<Quarantine, 64> quarantine_ GUARDED_BY(mutex_){};
  std::size_t quarantine_next_ GUARDED_BY(mutex_) = 0;
  std::array<PageRange, 8> lazy_free_ GUARDED_BY(mutex_){};
  std::array<PendingFault, kFaultQueue> faults_ GUARDED_BY(mutex_){};
  std::size_t fault_head_ GUARDED_BY(mutex_) = 0;
  std::size_t fault_count_ GUARDED_BY(mutex_) = 0;
  PageIndex taken_ GUARDED_BY(mutex_);  // the fault that the server is at
  bool taken_waits_ GUARDED_BY(mutex_) = false;
  bool serving_ GUARDED_BY(mutex_) = false;  // the server is at work, or has been told to be
};

}  // namespace whimbrel
