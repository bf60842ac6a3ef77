// UserfaultMmu: page tables of the running process, driven through userfaultfd. The Mmu of production.
//
// Life:
//   1. A thread whose descriptor table will be the engine's calls create(). The best rung that works is used, and it
//      has been proved by moving, copying and faulting scratch pages.
//   2. Program ranges are watch()ed; pages move out, come home; one thread reads messages.
//   3. Everything away must be home before destroy(): when the last descriptor closes, pages that are away read as
//      zeros.
// In a forked child: reset_after_fork() at once, then reopen_in_child() on the thread that will own the child's
// descriptors, then watch() again.
//
// Which threads may call (Options::visibility): kPrivate, only threads that share the descriptor table of create(),
// in particular interrupt() too; kShared, any thread of the process. Apart from that everything is thread-safe as
// Mmu says. The only locks are that of the window table and that of a kept descriptor, leaves.
//
// Windows are watched only while pages are being moved into them. So the engine's own discards there make no message,
// an empty window page reads as zeros, and the thread that reads messages may evict. Beyond Mmu's contract: move()
// into a window and discard() of one unlock it when the program's mlockall() has caught it. After such a call free
// window pages may be populated with zeros (move() answers kExists): the owner of the frames discards the slot and
// retries.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/memory_source.h"
#include "base/mutex.h"
#include "linux/descriptors.h"
#include "linux/process_mmu.h"
#include "linux/userfault.h"
#include "linux/window_space.h"

namespace whimbrel {

class UserfaultMmu final : public ProcessMmu {
 public:
  struct Options {
    Visibility visibility = Visibility::kPrivate;
    UserfaultRequest request{};        // write_protect: watch() covers write-protect faults as well
    bool allow_user_mode_only = true;  // as the last rung; system calls on away memory then fail with EFAULT
    bool require_move = true;          // false: a kernel (or filter) without UFFDIO_MOVE is good enough
    std::uint64_t window_bytes = std::uint64_t{64} << 30;  // address space for windows; costs no memory
  };
  // The object lives in memory of `memory`, which must outlive it; give it back with destroy().
  // Errors: that of the first rung, when none works (kNotPermitted, kNotSupported: the probe tells what to do).
  [[nodiscard]] static Result<UserfaultMmu*> create(MemorySource& memory, const Options& options) noexcept;
  // On a thread that may use the descriptors.
  static void destroy(UserfaultMmu* mmu) noexcept;
  void destroy() noexcept override { destroy(this); }

  [[nodiscard]] Rung rung() const noexcept { return rung_; }
  [[nodiscard]] const char* rung_name() const noexcept override { return whimbrel::rung_name(rung_); }
  [[nodiscard]] const Descriptors& descriptors() const noexcept { return fds_; }
  // Where all windows are and will be: the pager must leave these pages alone.
  [[nodiscard]] PageRange window_range() const noexcept override { return windows_.range(); }

  // What the engine itself writes to with its lock held can lie in one mapping with memory of the program: watch() leaves
  // these pages out. At most four ranges, before the first watch().
  void never_watch(PageRange range) noexcept;

  // wait_for_message() also ends, without a message, when this descriptor of the engine is readable. -1: none.
  void wait_also_for(int descriptor) noexcept override { also_.store(descriptor, std::memory_order_relaxed); }

  // In a forked child while it has one thread: frees locks that a thread of the parent may have held.
  void reset_after_fork() noexcept override;
  // In a forked child, after reset_after_fork(): a fresh descriptor set, on the same rung or the next one that works.
  // The parent's descriptors are not used (shared ones are closed). Nothing is watched. Windows keep their contents.
  [[nodiscard]] Result<void> reopen_in_child() noexcept override;

  // ---- Mmu -----------------------------------------------------------------------------------------------
  [[nodiscard]] Result<Mapping> mapping_at_or_above(PageIndex page) noexcept override;
  [[nodiscard]] Result<Mapping> detailed_mapping_at_or_above(PageIndex page) noexcept override;
  [[nodiscard]] Result<std::size_t> detailed_mappings(PageIndex from, std::span<Mapping> out) noexcept override;
  [[nodiscard]] Result<void> walk_detailed_mappings(PageIndex from, std::span<Mapping> room, MappingSink& sink) noexcept override;
  [[nodiscard]] Result<std::size_t> scan(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept override;
  bool report_sharing(bool on) noexcept override {
    report_sharing_.store(on, std::memory_order_relaxed);
    return fds_.has(Descriptors::kPagemap);
  }
  [[nodiscard]] Result<bool> is_shared(PageIndex page) noexcept override;
  [[nodiscard]] Result<void> watch(PageRange range) noexcept override;
  [[nodiscard]] Result<void> unwatch(PageRange range) noexcept override;
  [[nodiscard]] Progress move(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept override;
  [[nodiscard]] Progress copy(PageIndex to, const std::byte* from, PageCount count, Wake wake,
                              bool write_protected = false) noexcept override;
  [[nodiscard]] Progress zero(PageIndex to, PageCount count, Wake wake) noexcept override;
  [[nodiscard]] Result<void> write_protect(PageRange range, bool protect, Wake wake) noexcept override;
  [[nodiscard]] Result<void> raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept override;
  [[nodiscard]] Result<void> poison(PageRange range) noexcept override;
  void wake(PageRange range) noexcept override;
  [[nodiscard]] Result<void> discard(PageRange range) noexcept override;
  [[nodiscard]] Result<void> discard_many(std::span<const PageRange> ranges) noexcept override;
  [[nodiscard]] Result<void> advise_huge(PageRange range) noexcept override;
  [[nodiscard]] Result<void> populate(PageRange range, bool write) noexcept override;
  [[nodiscard]] Result<PageRange> open_window(PageCount count, WindowKind kind) noexcept override;
  void close_window(PageRange window) noexcept override;
  [[nodiscard]] Result<void> begin_moves_into(PageRange part) noexcept override;
  void end_moves_into(PageRange part) noexcept override;
  [[nodiscard]] std::byte* bytes(PageIndex window_page) noexcept override;
  void read_window(PageRange pages, std::byte* to) noexcept override;
  [[nodiscard]] Result<void> read_program(PageIndex page, std::byte* to) noexcept override;
  [[nodiscard]] bool wait_for_message(std::int64_t nanoseconds) noexcept override;
  void interrupt() noexcept override;
  [[nodiscard]] bool has_unread() noexcept override;
  // A fork message (only with Options::request.fork_event) carries the child's new descriptor number in `thread`; it
  // belongs to the reader.
  [[nodiscard]] std::size_t read_messages(std::span<Message> out) noexcept override;
  [[nodiscard]] Abilities abilities() const noexcept override { return abilities_; }

 private:
  explicit UserfaultMmu(MemorySource& memory, const Options& options) noexcept : memory_(memory), options_(options) {}
  ~UserfaultMmu() override;
  UserfaultMmu(const UserfaultMmu&) = delete;
  UserfaultMmu& operator=(const UserfaultMmu&) = delete;

  [[nodiscard]] Result<void> open() noexcept;
  [[nodiscard]] Result<void> adopt(Rung rung, const Userfault& userfault) noexcept;
  [[nodiscard]] int userfault() const noexcept { return fds_[Descriptors::kUserfault]; }

  // Page operations (userfault_mmu_pages.cc).
  [[nodiscard]] Result<void> register_range(PageRange range, std::uint64_t mode) noexcept;
  [[nodiscard]] Result<void> unregister_range(PageRange range) noexcept;
  [[nodiscard]] Progress move_watched(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept;
  // A page that the kernel refuses to move has been moved by it already.
  [[nodiscard]] static bool has_moved(PageIndex to, PageIndex from) noexcept;
  // The Error for a refused page operation: tells an unread address-space event from other reasons to try again.
  [[nodiscard]] Error page_error(int sys_errno, const char* where) noexcept;
  [[nodiscard]] bool event_pending() noexcept;

  // Mappings and presence (userfault_mmu_mappings.cc, userfault_mmu_scan.cc).
  [[nodiscard]] Result<Mapping> query_mapping(PageIndex page) noexcept;
  [[nodiscard]] Result<Mapping> read_mapping(PageIndex page) noexcept;
  [[nodiscard]] Result<std::size_t> scan_by_ioctl(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept;
  [[nodiscard]] Result<std::size_t> scan_by_words(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept;
  [[nodiscard]] Result<std::size_t> scan_by_mincore(PageRange range, std::span<PageRun> out,
                                                    PageIndex* scanned) noexcept;
  void silence_bell() noexcept;

  MemorySource& memory_;
  const Options options_;
  std::atomic<int> also_{-1};
  Rung rung_ = Rung::kSystemCall;
  Abilities abilities_{};
  bool async_write_protect_ = false;
  Descriptors fds_;
  WindowSpace windows_;
  std::atomic<bool> interrupted_{false};
  Mutex smaps_mutex_;  // one reader of Descriptors::kSmaps at a time: they share a position
  PageRange never_watched_[4];
  std::atomic<bool> report_sharing_{false};
  PageRange watched_part_;  // between begin_moves_into() and end_moves_into(); guarded by the caller's lock
  // What the running kernel turned out not to know; found out by the first call that needs it.
  std::atomic<bool> no_procmap_query_{false};
  std::atomic<bool> no_pagemap_scan_{false};
  std::atomic<bool> no_guard_category_{false};
  std::atomic<bool> no_process_madvise_{false};
};

}  // namespace whimbrel
