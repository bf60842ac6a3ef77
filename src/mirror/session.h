// Session: the engine behind the mirror devices of one process, and the list of its opens.
//
// Made at the first open of a node; lives as long as the process. Descriptors are visible to every thread of the
// process, since commands run on the threads that make them.
#pragma once

#include <array>
#include <atomic>

#include "linux/clock.h"
#include "linux/reservation.h"
#include "linux/userfault_mmu.h"
#include "migrate/fault.h"
#include "mirror/mirror.h"

namespace whimbrel::mirror {

class Session final : public HolePolicy {
 public:
  // The process's session; made on the first call. An error is permanent only for this call.
  [[nodiscard]] static Result<Session*> get() noexcept;
  // The session of this process if there is one.
  [[nodiscard]] static Session* existing() noexcept;
  [[nodiscard]] static Session& of(AddressSpace& space) noexcept;

  [[nodiscard]] AddressSpace& space() noexcept { return *space_; }
  [[nodiscard]] NotifierRegistry& notifiers() noexcept { return notifiers_; }
  [[nodiscard]] MemorySource& source() noexcept { return source_; }
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
  void watch(PageRange range) noexcept;
  // A range that is a mapping of a node (MM-01): commands that migrate refuse it.
  void add_node_mapping(PageRange range) noexcept;
  [[nodiscard]] bool is_node_mapping(PageIndex page) noexcept;

  // fork, in the order they are called: before it, in the parent after it, in the child after it.
  void before_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;

  // Untouched memory that we watch: reads get the zero page, writes a page of zeros, areas that want huge pages whole
  // units, as the kernel does it.
  [[nodiscard]] bool serve_hole(AddressSpace& space, const PendingFault& fault, const Mapping& mapping) noexcept override;
  [[nodiscard]] bool serve_write_protect(AddressSpace& space, const PendingFault& fault) noexcept override;

 private:
  Session() noexcept = default;
  [[nodiscard]] Result<void> start() noexcept;
  [[nodiscard]] Result<void> start_thread() noexcept;
  [[nodiscard]] static bool wants_huge(AddressSpace& space, PageIndex page) noexcept;
  [[nodiscard]] static bool install_huge_zeros_locked(AddressSpace& space, PageRange unit, bool writable) noexcept
      REQUIRES(space.mutex());
  static void thread_body(void* session) noexcept;

  static constexpr std::size_t kMaxOpens = 256;

  SystemClock clock_;
  Reservation source_;
  UserfaultMmu* mmu_ = nullptr;
  AddressSpace* space_ = nullptr;
  NotifierRegistry notifiers_;
  std::array<Node*, kNodes> nodes_{};
  FaultService* service_ = nullptr;

  Mutex mutex_;
  std::array<Mirror*, kMaxOpens> opens_ GUARDED_BY(mutex_){};
  std::array<PageRange, 1024> watched_ GUARDED_BY(mutex_){};  // for a forked child; the oldest are overwritten
  std::size_t watched_next_ GUARDED_BY(mutex_) = 0;
  std::array<PageRange, 16> node_mappings_ GUARDED_BY(mutex_){};
  std::size_t node_mapping_next_ GUARDED_BY(mutex_) = 0;
};

}  // namespace whimbrel::mirror
