// Session: the engine behind the mirror devices of one process, and the list of its opens.
//
// Made at the first open of a node; lives as long as the process. Descriptors are visible to every thread of the
// process, since commands run on the threads that make them. session.cc: opens and threads; session_faults.cc: holes and
// zero pages; session_fork.cc: fork and what follows from it.
#pragma once

#include <array>
#include <atomic>

#include "linux/clock.h"
#include "linux/reservation.h"
#include "linux/userfault_mmu.h"
#include "migrate/fault.h"
#include "mirror/discarder.h"
#include "mirror/family.h"
#include "mirror/file_copies.h"
#include "mirror/gate.h"
#include "mirror/mirror.h"

namespace whimbrel::mirror {

class Session final : public HolePolicy, public SpaceObserver {
 public:
  // The process's session; made on the first call. An error is permanent only for this call.
  [[nodiscard]] static Result<Session*> get() noexcept;
  // The session of this process if there is one.
  [[nodiscard]] static Session* existing() noexcept;
  [[nodiscard]] static Session& of(AddressSpace& space) noexcept;

  [[nodiscard]] AddressSpace& space() noexcept { return *space_; }
  [[nodiscard]] NotifierRegistry& notifiers() noexcept { return notifiers_; }
  [[nodiscard]] MemorySource& source() noexcept { return source_; }
  [[nodiscard]] Family& family() noexcept { return *family_; }
  // Everything that works on the program's memory goes through here, so that a fork finds nothing half done.
  [[nodiscard]] Discarder& discarder() noexcept { return discarder_; }
  [[nodiscard]] FileCopies& file_copies() noexcept { return file_copies_; }
  // No thread of the program but the caller's exists right now.
  [[nodiscard]] bool is_alone() const noexcept;
  [[nodiscard]] Gate& gate() noexcept { return gate_; }
  [[nodiscard]] bool owns_descriptor(int fd) const noexcept;
  // A thread of the devices' own: no signals, its stack where no page is ever away.
  [[nodiscard]] Result<void> start_thread(void (*body)(void*), void* argument) noexcept;
  [[nodiscard]] Node& node(int minor) noexcept { return *nodes_[static_cast<std::size_t>(minor)]; }

  // A new open of a node. The caller closes it exactly once.
  [[nodiscard]] Result<Mirror*> open(int minor) noexcept;
  // Unsubscribes, evicts the whole node (CL-01), ends the open.
  void close(Mirror* mirror) noexcept;

  // Entries of pages of `node` in `range` are void in every open of it.
  void forget_everywhere(Node& node, PageRange range) noexcept;
  // TO_DEV through one open made the others' entries of that node stale (CL-06).
  void forget_elsewhere(const Mirror& but, PageRange range) noexcept;

  // Memory of the program that device commands may be about: its holes are ours to fill from now on, as the kernel with
  // devices would fill them. Silently nothing where that is impossible.
  // `exactly`: not the rest of the mappings, which the kernel may have joined with what libc has mapped for itself.
  void watch(PageRange range, bool exactly = false) noexcept;
  // The program is about to change a range that may cut mappings in two. A border inside a 2 MiB unit that lay in one
  // mapping costs the devices all they know of that unit (UN-04).
  void note_borders(PageRange changed) noexcept;
  void note_borders(PageRange mapping, PageRange changed) noexcept;
  // A fresh mapping of a node (MM-01): filled with read-only zeros; commands that migrate refuse it.
  void add_node_mapping(PageRange range) noexcept;
  [[nodiscard]] bool is_node_mapping(PageIndex page) noexcept;
  // What stands for the huge zero page in the range becomes what the kernel would see there: holes inside the range,
  // zero pages around it.
  void dissolve_zero_units(PageRange range) noexcept;
  // The program is about to drop the range: where that cuts such a unit, zero pages stay around it.
  void cut_zero_units(PageRange dropped) noexcept;
  // Pages of a file are about to be tried for migration: the kernel takes them out of every mapping for a moment, and says
  // so of the others as well.
  void announce_file_pages(PageRange range) noexcept;
  // Pages that a fork left shared become this process's own, of the readable flavour.
  void unshare(PageRange range) noexcept;
  // Base slots of a huge page that became exclusive: the kernel gives the exclusivity up when it splits the page for a
  // migration of the rest.
  void note_exclusive_unit(PageIndex base) noexcept EXCLUDES(mutex_);
  void revoke_split_exclusives(PageRange range) noexcept;
  // The program registers the range with a userfaultfd of its own: ours goes, if nothing is away there.
  void yield_to_application(PageRange range) noexcept;
  // A fault of a thread that found no memory: the thread's access is tried again, but a device that faulted on its own
  // account is told (HR-07).
  void note_failed_fault(std::uint32_t thread) noexcept { failed_thread_.store(thread, std::memory_order_release); }
  [[nodiscard]] bool take_failed_fault(std::uint32_t thread) noexcept {
    return failed_thread_.compare_exchange_strong(thread, 0);
  }
  // What other processes of the family have done to pages that this one shares.
  void follow_family() noexcept;
  // Pages of coherent nodes in the range become RAM.
  void bring_coherent_home(PageRange range) noexcept;
  // This process has evicted a whole node: the others are to do the same.
  void note_evicted(int minor) noexcept;

  // A fork may be copying this process right now: what a device page holds must stay where it is.
  [[nodiscard]] bool is_forking() const noexcept { return park_wanted_.load(); }
  // fork, in the order they are called: before it, in the parent after it, in the child after it.
  void before_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;

  // Does the program want huge pages here (MADV_HUGEPAGE)? The kernel tells only in a listing that takes as long as there
  // is memory, so the last answer is kept until the program changes a mapping or an advice.
  [[nodiscard]] bool wants_huge(PageIndex page) noexcept EXCLUDES(mutex_);
  void mappings_change() noexcept { mapping_changes_.fetch_add(1, std::memory_order_acq_rel); }

  // Untouched memory that we watch: reads get the zero page, writes a page of zeros, areas that want huge pages whole
  // units, as the kernel does it.
  [[nodiscard]] bool serve_hole(AddressSpace& space, const PendingFault& fault, const Mapping& mapping) noexcept override;
  [[nodiscard]] bool serve_write_protect(AddressSpace& space, const PendingFault& fault) noexcept override;

  // Node mappings follow the program's munmap and mremap.
  void invalidate_start(NotifyEvent event, PageRange range, const void* owner) noexcept override;
  void invalidate_end(NotifyEvent, PageRange, const void*) noexcept override {}
  void remapped(PageRange from, PageIndex to) noexcept override;

 private:
  Session() noexcept = default;
  [[nodiscard]] Result<void> start() noexcept;
  void exclude_own_data() noexcept;
  [[nodiscard]] Result<void> start_fault_thread() noexcept;
  void park_fault_thread() noexcept;
  void park() noexcept;
  void unshare_unit_locked(PageRange unit) noexcept REQUIRES(space_->mutex());
  void own_run(PageRange run) noexcept;
  void note_zero_unit(PageIndex base) noexcept EXCLUDES(mutex_);
  [[nodiscard]] bool take_zero_unit(PageIndex base) noexcept EXCLUDES(mutex_);
  void dissolve_zero_unit(PageRange unit, PageRange hole) noexcept;
  void dissolve_unit_locked(PageRange unit, PageRange hole) noexcept REQUIRES(space_->mutex());
  [[nodiscard]] bool install_huge_zeros_locked(AddressSpace& space, PageRange unit, bool writable) noexcept
      REQUIRES(space.mutex());
  static void fault_thread(void* session) noexcept;

  static constexpr std::size_t kMaxOpens = 256;

  SystemClock clock_;
  Reservation source_;
  UserfaultMmu* mmu_ = nullptr;
  AddressSpace* space_ = nullptr;
  NotifierRegistry notifiers_;
  std::array<Node*, kNodes> nodes_{};
  FaultService* service_ = nullptr;
  Family* family_ = nullptr;
  Discarder discarder_;
  FileCopies file_copies_;
  std::atomic<unsigned> threads_{0};  // of the devices' own
  std::atomic<std::uint32_t> failed_thread_{0};
  std::atomic<bool> forked_{false};  // this process has a child or is one: pages may be shared
  Gate gate_;
  // The fault thread between two faults, for a fork: wanted by the forking thread, answered by `parked_`.
  std::atomic<bool> park_wanted_{false}, parked_{false};
  Event park_changed_;

  Mutex mutex_;
  std::array<Mirror*, kMaxOpens> opens_ GUARDED_BY(mutex_){};
  std::array<PageRange, 1024> watched_ GUARDED_BY(mutex_){};  // for a forked child; the oldest are overwritten
  std::size_t watched_next_ GUARDED_BY(mutex_) = 0;
  std::array<PageRange, 64> node_mappings_ GUARDED_BY(mutex_){};
  std::array<PageIndex, 256> zero_units_ GUARDED_BY(mutex_){};  // 0: free; what stands for the huge zero page
  std::array<PageIndex, 64> exclusive_units_ GUARDED_BY(mutex_){};
  struct {
    PageRange mapping;
    std::uint64_t changes = 0;
    bool huge = false;
  } advice_ GUARDED_BY(mutex_);
  std::atomic<std::uint64_t> mapping_changes_{1};
  std::uint64_t home_seen_ = 0;  // of the family's record; by whoever holds following_
  std::array<std::uint64_t, kNodes> evictions_seen_{};
  Mutex following_;
};

}  // namespace whimbrel::mirror
