// GuardedMmu: the Mmu where userfaultfd is not to be had. It knows no memory but arenas that it makes itself (map_arena), and
// answers all questions about mappings and presence from its own books: nothing else of the process is watched, moved or looked
// up. What a touch of an empty slot becomes a message by is a SIGSEGV (guard_signal.h, fault_desk.h).
//
// What the port's words come to here:
//   move out     close the page (no thread can reach it any more), copy it into the window, give its memory back
//   move, copy in  write the contents through the engine's view, then open the page: it is there whole or not at all
//   watch        every arena is watched from the start
//   scan         the arenas' own bitmaps
//   messages     touches from the desk; a removal for each discard() of the program, until it has been read nothing moves
//
// What is lost against userfaultfd: a system call that is given a page that is away fails with EFAULT; memory that hardware or
// the kernel writes to behind the processor's back (direct I/O, registered buffers) must be pinned, for nothing tells that it is
// in use; a forked child has none of it; a thread that has SIGSEGV blocked is ended by its first touch.
//
// Openness is a cache of presence (guarded_arena.h): the number of open runs of pages, over all engines of the process, is held
// below an eighth of vm.max_map_count by closing parts that are present; their next touch opens them again, and the engine
// never hears of it.
//
// Thread-safe as Mmu says; one lock, a leaf. map_arena() and discard() are for threads of the program.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/memory_source.h"
#include "base/mutex.h"
#include "linux/fault_desk.h"
#include "linux/guarded_arena.h"
#include "linux/process_mmu.h"
#include "linux/window_space.h"

namespace whimbrel {

class GuardedMmu final : public ProcessMmu {
 public:
  static constexpr std::size_t kMostArenas = 48;
  struct Options {
    std::uint64_t window_bytes = std::uint64_t{64} << 30;  // address space for windows; costs no memory
    std::uint64_t most_open_runs = 0;                      // of the process; 0: what vm.max_map_count allows
  };
  // The object lives in memory of `memory`, which must outlive it; give it back with destroy().
  [[nodiscard]] static Result<GuardedMmu*> create(MemorySource& memory, const Options& options) noexcept;
  void destroy() noexcept override;
  [[nodiscard]] static const char* name() noexcept { return "guarded arenas"; }

  // `bytes`: a multiple of 2 MiB. Addresses without contents, aligned to 2 MiB, until destroy(). On a thread of the program; the
  // one that reads messages makes it.
  [[nodiscard]] Result<PageRange> map_arena(std::uint64_t bytes) noexcept EXCLUDES(mutex_);
  // The same on a thread that shares the descriptors of those that call the Mmu.
  [[nodiscard]] Result<PageRange> make_arena(std::uint64_t bytes) noexcept EXCLUDES(mutex_);

  // ---- ProcessMmu ----------------------------------------------------------------------------------------
  [[nodiscard]] const char* rung_name() const noexcept override { return name(); }
  [[nodiscard]] PageRange window_range() const noexcept override { return windows_.range(); }
  void wait_also_for(int) noexcept override {}
  void reset_after_fork() noexcept override { mutex_.reset_after_fork(); }
  [[nodiscard]] Result<void> reopen_in_child() noexcept override;

  // ---- Mmu -----------------------------------------------------------------------------------------------
  [[nodiscard]] Result<Mapping> mapping_at_or_above(PageIndex page) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] Result<Mapping> detailed_mapping_at_or_above(PageIndex page) noexcept override {
    return mapping_at_or_above(page);
  }
  [[nodiscard]] Result<std::size_t> scan(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept override
      EXCLUDES(mutex_);
  [[nodiscard]] Result<bool> is_shared(PageIndex) noexcept override { return false; }
  [[nodiscard]] Result<void> watch(PageRange range) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] Result<void> unwatch(PageRange range) noexcept override;
  [[nodiscard]] Progress move(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] Progress copy(PageIndex to, const std::byte* from, PageCount count, Wake wake,
                              bool write_protected = false) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] Progress zero(PageIndex to, PageCount count, Wake wake) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] Result<void> write_protect(PageRange range, bool protect, Wake wake) noexcept override;
  [[nodiscard]] Result<void> raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept override;
  // Ends whoever waits there, as SIGBUS does where it is not handled; the slots stay as they are.
  [[nodiscard]] Result<void> poison(PageRange range) noexcept override;
  void wake(PageRange range) noexcept override { desk_.wake(range); }
  // Of an arena: as MADV_DONTNEED of the program does, back when the engine has read the message. Of a window: at once.
  [[nodiscard]] Result<void> discard(PageRange range) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] Result<void> discard_many(std::span<const PageRange> ranges) noexcept override;
  // There is nothing that could be populated without the engine.
  [[nodiscard]] Result<void> populate(PageRange range, bool write) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] Result<PageRange> open_window(PageCount count, WindowKind kind) noexcept override {
    return windows_.open(count, kind);
  }
  void close_window(PageRange window) noexcept override { windows_.close(window); }
  [[nodiscard]] std::byte* bytes(PageIndex window_page) noexcept override {
    return reinterpret_cast<std::byte*>(window_page.address().raw());
  }
  [[nodiscard]] Result<void> read_program(PageIndex page, std::byte* to) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] bool wait_for_message(std::int64_t nanoseconds) noexcept override;
  void interrupt() noexcept override;
  [[nodiscard]] bool has_unread() noexcept override;
  [[nodiscard]] std::size_t read_messages(std::span<Message> out) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] Abilities abilities() const noexcept override {
    return {.kernel_faults = false, .move = true, .write_protect = false, .poison = false, .thread_id = true, .fork_event = false};
  }

  // Open runs of pages of this engine, for tests and reports.
  [[nodiscard]] std::size_t open_runs() noexcept EXCLUDES(mutex_);

 private:
  // Discards of the program that the engine has not heard of.
  static constexpr std::size_t kMostRemovals = 32;

  explicit GuardedMmu(MemorySource& memory) noexcept : memory_(memory) {}
  ~GuardedMmu() override;
  GuardedMmu(const GuardedMmu&) = delete;
  GuardedMmu& operator=(const GuardedMmu&) = delete;

  void make_wanted_arena() noexcept EXCLUDES(mutex_);
  [[nodiscard]] GuardedArena* arena_of_locked(PageRange range) noexcept REQUIRES(mutex_);
  [[nodiscard]] Progress move_out_locked(PageIndex to, PageIndex from, PageCount count) noexcept REQUIRES(mutex_);
  [[nodiscard]] Progress fill_locked(PageIndex to, const std::byte* from, PageCount count) noexcept REQUIRES(mutex_);
  [[nodiscard]] bool is_answered_locked(const FaultDesk::Touch& touch) noexcept REQUIRES(mutex_);

  // Openness (guarded_mmu_open.cc). None of these fails: what cannot be opened now is opened at its next touch.
  void open_locked(GuardedArena& arena, PageRange range) noexcept REQUIRES(mutex_);
  [[nodiscard]] bool close_locked(GuardedArena& arena, PageRange range) noexcept REQUIRES(mutex_);
  void limit_open_runs_locked(PageIndex keep) noexcept REQUIRES(mutex_);
  [[nodiscard]] bool close_scattered_locked(PageIndex keep) noexcept REQUIRES(mutex_);
  void count_runs_locked(std::size_t before, const GuardedArena& arena) noexcept REQUIRES(mutex_);

  MemorySource& memory_;
  WindowSpace windows_;
  std::uint64_t most_open_runs_ = 0;
  FaultDesk desk_;
  std::atomic<bool> interrupted_{false};

  Mutex mutex_;
  // In the order of their addresses.
  std::array<GuardedArena*, kMostArenas> arenas_ GUARDED_BY(mutex_) = {};
  std::size_t arena_count_ GUARDED_BY(mutex_) = 0;
  std::array<PageRange, kMostRemovals> removals_ GUARDED_BY(mutex_) = {};
  std::atomic<std::uint32_t> removal_count_{0};  // changes under the mutex
  std::uint64_t removals_made_ GUARDED_BY(mutex_) = 0, removals_read_ GUARDED_BY(mutex_) = 0;
  Event removals_event_;
  // An arena that a thread of the program asks for: one at a time. Its size, 0 when nobody asks; the answer belongs to the asker.
  Mutex asking_;
  std::atomic<std::uint64_t> wanted_bytes_{0};
  Result<PageRange> wanted_;
  Event wanted_event_;
  PageIndex hand_ GUARDED_BY(mutex_);  // where the next part to be closed is looked for
};

// Tries all of it out on scratch memory: a helper thread's touch arrives, what was written before the page was opened is what it
// reads, and a page that has been moved out is out of reach. Installs the SIGSEGV handler, which stays.
[[nodiscard]] Result<void> prove_guarded_arenas(MemorySource& memory) noexcept;

}  // namespace whimbrel
