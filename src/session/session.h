// Session: what stands behind whimbrel_session: an engine of its own, and the ledger of its memory.
//
// Life: open() maps the object into pages of its own (engine threads use the engine in it), starts the engine and joins
// the list of sessions; close() takes all of it apart. A forked child has a copy that works on (session_fork.cc).
//
// Locks: the list's lock, then a session's; both are held over a fork. Engine threads take neither, so a thread of the
// program may wait for the engine while it holds them.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/mutex.h"
#include "device_process/launch.h"
#include "runtime/engine.h"
#include "session/ledger.h"
#include "whimbrel/whimbrel.h"

struct whimbrel_session {
 public:
  static constexpr std::size_t kMostSessions = 16;
  // Less and the engine would spend its life making room for single pages.
  static constexpr std::uint64_t kSmallestBudget = std::uint64_t{2} << 20;

  // Complains by itself: negative errno.
  [[nodiscard]] static int open(const whimbrel_session_options& options, whimbrel_session** out) noexcept;
  [[nodiscard]] static int close(whimbrel_session* session) noexcept;

  // ---- memory (memory.cc): negative errno ----
  [[nodiscard]] int allocate(std::size_t bytes, void** out) noexcept EXCLUDES(mutex_);
  void free(void* memory) noexcept EXCLUDES(mutex_);
  [[nodiscard]] std::size_t size_of(const void* memory) noexcept EXCLUDES(mutex_);
  [[nodiscard]] int adopt(whimbrel::PageRange range) noexcept EXCLUDES(mutex_);
  [[nodiscard]] int release(whimbrel::PageRange range) noexcept EXCLUDES(mutex_);
  [[nodiscard]] int discard(whimbrel::PageRange range) noexcept;
  [[nodiscard]] bool owns(whimbrel::PageRange range) noexcept EXCLUDES(mutex_);

  // ---- hints ----
  // Has the engine do it and waits.
  [[nodiscard]] whimbrel::Result<whimbrel::HintResult> ask(whimbrel::HintKind kind, whimbrel::PageRange range,
                                                           std::span<std::uint32_t> report = {}) noexcept;
  [[nodiscard]] int pin(whimbrel::PageRange range, whimbrel::HintResult* result) noexcept EXCLUDES(mutex_);
  [[nodiscard]] int unpin(whimbrel::PageRange range) noexcept EXCLUDES(mutex_);
  void note_advice() noexcept { advised_.store(true, std::memory_order_relaxed); }

  // ---- numbers ----
  void fill_stats(whimbrel_session_stats* stats) noexcept EXCLUDES(mutex_);
  [[nodiscard]] int set_budget(std::uint64_t ram, std::uint64_t total) noexcept;
  [[nodiscard]] int set_device(const char* device) noexcept EXCLUDES(mutex_);

  [[nodiscard]] whimbrel::Engine& engine() noexcept { return engine_; }
  // By which means its memory is managed. Static text.
  [[nodiscard]] const char* rung() noexcept { return engine_.rung_name(); }

  // ---- fork (session_fork.cc) ----
  static void before_fork() noexcept;
  static void after_fork_in_parent() noexcept;
  static void after_fork_in_child() noexcept;

 private:
  whimbrel_session() noexcept = default;
  ~whimbrel_session() = default;
  static void destroy(whimbrel_session* session) noexcept;
  [[nodiscard]] whimbrel::Result<whimbrel::PageRange> map_arena(std::uint64_t bytes) noexcept;
  static void unmap_arena(whimbrel::PageRange arena) noexcept;
  // A forked child of a session on guarded arenas has neither memory nor engine.
  [[nodiscard]] bool was_left_by_fork() noexcept { return engine_.guarded() != nullptr && engine_.has_ended(); }
  [[nodiscard]] int new_arena_locked(whimbrel::PageCount least) noexcept REQUIRES(mutex_);
  [[nodiscard]] bool is_manageable(whimbrel::PageRange range) noexcept;

  whimbrel::device_process::DeviceProcess device_process_;  // where the device needs one; ends with the session
  whimbrel::Engine engine_;
  std::atomic<std::uint64_t> ram_bytes_{0}, total_bytes_{0};
  std::atomic<bool> advised_{false};  // some range has been given advice
  std::atomic<bool> told_of_handler_{false};

  whimbrel::Mutex mutex_;
  whimbrel::session::Ledger ledger_ GUARDED_BY(mutex_);
};

namespace whimbrel::session {

// The open ones. The list's lock is held over a fork.
struct SessionList {
  Mutex mutex;
  whimbrel_session* open[whimbrel_session::kMostSessions] GUARDED_BY(mutex) = {};
  bool has_fork_handlers GUARDED_BY(mutex) = false;
};
[[nodiscard]] SessionList& session_list() noexcept;

}  // namespace whimbrel::session
