// SimMmu: the port the engine drives, over one simulated process. It refuses what the kernel refuses, in the kernel's
// words, and every call is a place where another thread may go on.
//
// What is modelled and how it is seen through the calls:
//   move    stops at the first page that cannot go; pinned, COW-shared and merged frames are kBusy; a refused or
//   partial
//           move of a huge page splits it; markers are kFault at the source and kExists at the destination; protection
//           does not travel
//   events  a change of a watched range makes every page operation answer kEventPending until its message is read;
//           discard messages come before the pages go, the others after the change
//   faults  a toucher waits until a resolving call or wake(); duplicates after withdraw()
//
// Windows lie above the program's addresses and have memory of their own, contiguous per window, so that a run of pages
// can be reached through the pointer of its first. That memory cannot notice being touched: an empty page counts as
// touched when it holds something, or when its pointer was asked for and it is moved away.
#pragma once

#include <functional>
#include <map>
#include <memory>
#include <vector>

#include "port/mmu.h"
#include "sim/failures.h"
#include "sim/sim_address_space.h"
#include "sim/sim_userfault.h"

namespace whimbrel::sim {

class SimMmu final : public Mmu {
 public:
  struct Options {
    Abilities abilities{.kernel_faults = true,
                        .move = true,
                        .write_protect = true,
                        .poison = true,
                        .thread_id = true,
                        .fork_event = false};
    SimAddressSpace::Options space;
    std::uint64_t ram_limit = 0;          // frames; 0: none
    bool fast_query_knows_flags = false;  // mapping_at_or_above shows what only the slow reading shows
    bool interleave_long_calls = true;    // other threads may fault while a call is between two of its pages
  };

  // Failures may be null: nothing fails by itself.
  explicit SimMmu(const Options& options, Failures* failures = nullptr);
  ~SimMmu() override;

  // ---- Mmu -------------------------------------------------------------------------------------------------
  [[nodiscard]] Result<Mapping> mapping_at_or_above(PageIndex page) noexcept override;
  [[nodiscard]] Result<Mapping> detailed_mapping_at_or_above(PageIndex page) noexcept override;
  [[nodiscard]] Result<std::size_t> scan(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept override;
  [[nodiscard]] Result<void> watch(PageRange range) noexcept override;
  [[nodiscard]] Result<void> unwatch(PageRange range) noexcept override;
  [[nodiscard]] Progress move(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept override;
  [[nodiscard]] Progress copy(PageIndex to, const std::byte* from, PageCount count, Wake wake,
                              bool write_protected = false) noexcept override;
  [[nodiscard]] Progress zero(PageIndex to, PageCount count, Wake wake) noexcept override;
  [[nodiscard]] Result<void> write_protect(PageRange range, bool protect, Wake wake) noexcept override;
  [[nodiscard]] Result<void> poison(PageRange range) noexcept override;
  void wake(PageRange range) noexcept override;
  [[nodiscard]] Result<void> raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept override;
  [[nodiscard]] Result<void> discard(PageRange range) noexcept override;
  [[nodiscard]] Result<void> advise_huge(PageRange range) noexcept override;
  [[nodiscard]] Result<void> discard_many(std::span<const PageRange> ranges) noexcept override;
  [[nodiscard]] Result<void> populate(PageRange range, bool write) noexcept override;
  [[nodiscard]] Result<PageRange> open_window(PageCount count, WindowKind kind) noexcept override;
  void close_window(PageRange window) noexcept override;
  [[nodiscard]] std::byte* bytes(PageIndex window_page) noexcept override;
  [[nodiscard]] Result<void> read_program(PageIndex page, std::byte* to) noexcept override;
  [[nodiscard]] bool wait_for_message(std::int64_t nanoseconds) noexcept override;
  void interrupt() noexcept override;
  [[nodiscard]] bool has_unread() noexcept override { return userfault_.readable(); }
  [[nodiscard]] std::size_t read_messages(std::span<Message> out) noexcept override;
  [[nodiscard]] Abilities abilities() const noexcept override { return options_.abilities; }

  // ---- the world's side --------------------------------------------------------------------------------------
  [[nodiscard]] SimAddressSpace& space() { return *space_; }
  [[nodiscard]] SimUserfault& userfault() { return userfault_; }
  [[nodiscard]] const Ram& ram() const { return ram_; }
  void set_ram_limit(std::uint64_t frames) { ram_.limit = frames; }
  // From now on the address space is exiting: everything answers kGone, everybody who waits goes on.
  void exit_space();
  // The last descriptor was closed: nothing is watched any more, waiters go on, empty slots read as zeros.
  void lose_descriptor();
  // Simulated DMA: the frame of a present page cannot move while pinned. False: nothing there.
  [[nodiscard]] bool pin(PageIndex page);
  void unpin(PageIndex page);
  // A plain reference to the frame, as a pipe has after vmsplice: does not hinder anything.
  [[nodiscard]] FramePtr hold(PageIndex page) const { return space_->slot(page).frame; }
  // Clean pages that MADV_FREE left may vanish at any time, also from windows.
  void reclaim(PageRange range);
  // Another process with copies of everything, as fork makes. Its Mmu watches nothing and has the same windows.
  [[nodiscard]] std::unique_ptr<SimAddressSpace> fork() { return space_->fork(); }

  // madvise() that drops pages: asks the reader first where the range is watched, then calls `drop` for what is there.
  // Needs a fiber when the range is watched.
  [[nodiscard]] Result<void> discard_pages(PageRange range, const std::function<void(PageRange)>& drop);
  // As discard_pages' drop must do it: program pages and windows alike.
  void zap(PageRange range);
  // Changes of the address space wait here while a page operation is between two pages (the kernel's lock).
  void lock_for_change();
  [[nodiscard]] std::uint64_t calls() const { return calls_; }

 private:
  struct Window {
    PageRange range;
    WindowKind kind;
    std::byte* memory;
    std::vector<bool> asked;  // bytes() was called for the page
  };
  class PageOperation;

  void enter();
  void leave();
  // The call's own refusal, if there is one: injected, exiting, or an unread event.
  [[nodiscard]] std::optional<Error> refusal(std::span<const Errc> possible, const char* where, bool page_operation);
  [[nodiscard]] Result<Mapping> query(PageIndex page, bool detailed);
  [[nodiscard]] Progress over_pages(PageRange destination, Wake wake, std::span<const Errc> possible, const char* where,
                                    const std::function<Result<std::uint64_t>(std::uint64_t, std::uint64_t)>& one);
  [[nodiscard]] std::optional<Error> move_preconditions(PageIndex to, PageIndex from, PageCount count);
  [[nodiscard]] Result<std::uint64_t> move_next(PageIndex to, PageIndex from, std::uint64_t left);
  [[nodiscard]] Result<std::uint64_t> move_huge(PageIndex to, PageIndex from);
  [[nodiscard]] std::optional<Error> fill_preconditions(PageRange range, bool write_protected, const char* where);
  [[nodiscard]] Result<std::uint64_t> fill_slot(PageIndex page, Slot slot, const char* where);
  void put(PageIndex page, Slot slot);
  [[nodiscard]] Window* window_of(PageIndex page);
  [[nodiscard]] std::byte* memory_of(PageIndex page);  // of a window page, else null
  void settle_window(PageIndex page, bool is_source);
  [[nodiscard]] Result<void> read_program_checked(PageIndex page, std::byte* to);

  Options options_;
  Failures* failures_;
  Ram ram_;
  Ram swap_;
  std::unique_ptr<SimAddressSpace> space_;
  SimUserfault userfault_;
  std::map<PageIndex, Window> windows_;
  PageIndex next_window_;
  bool exiting_ = false;
  bool interrupted_ = false;
  int page_operations_ = 0;
  std::uint64_t calls_ = 0;
};

}  // namespace whimbrel::sim
