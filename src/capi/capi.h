// What stands behind the C interface: one engine in a program that uses it knowingly.
//
// Life: whimbrel_start() makes the process's mm_struct: reservation, userfaultfd, address space, one thread that reads
// messages, a few that run the drivers' migrate_to_ram. whimbrel_stop() takes all of it apart again. Descriptors are
// visible to every thread of the process, since drivers call from threads of their own.
//
// Locks: mutex_ guards the list of registered ranges, queue_mutex_ the queue of faults; both are leaves, taken with
// nothing else and never while memory of the program is touched.
#pragma once

#include <pthread.h>

#include <array>
#include <atomic>
#include <cstdint>

#include "base/mutex.h"
#include "linux/clock.h"
#include "linux/reservation.h"
#include "linux/userfault_mmu.h"
#include "migrate/fault.h"
#include "migrate/interval_notifier.h"
#include "pager/park_gate.h"
#include "capi/complain.h"
#include "capi/flights.h"
#include "whimbrel/hmm.h"

struct mm_struct final : public whimbrel::HolePolicy, public whimbrel::ServiceQueue {
 public:
  static constexpr unsigned kMostThreads = 16;

  [[nodiscard]] static whimbrel::Result<mm_struct*> create(const whimbrel_options& options) noexcept;
  static void destroy(mm_struct* mm) noexcept;

  [[nodiscard]] whimbrel::AddressSpace& space() noexcept { return *space_; }
  [[nodiscard]] whimbrel::NotifierRegistry& notifiers() noexcept { return notifiers_; }
  [[nodiscard]] whimbrel::capi::Flights& flights() noexcept { return flights_; }
  // Entered by everything that takes pages out of the program, from setup to finalize; closed by a fork.
  [[nodiscard]] whimbrel::ParkGate& outbound() noexcept { return outbound_; }

  // ---- registered ranges ----
  // kInvalid, kNoMemory.
  [[nodiscard]] whimbrel::Result<void> add_range(whimbrel::PageRange range) noexcept EXCLUDES(mutex_);
  [[nodiscard]] bool remove_range(whimbrel::PageRange range) noexcept EXCLUDES(mutex_);
  // The registered range that contains `range`; empty: none does.
  [[nodiscard]] whimbrel::PageRange registered(whimbrel::PageRange range) noexcept EXCLUDES(mutex_);
  [[nodiscard]] bool touches_registered(whimbrel::PageRange range) noexcept EXCLUDES(mutex_);

  // Brings home what is away in the range; how often it had to touch something. Negative errno.
  [[nodiscard]] long bring_home(whimbrel::PageRange range) noexcept;
  // Leaves the range to the kernel.
  void unwatch(whimbrel::PageRange range) noexcept;

  // ---- fork (fork.cc) ----
  void prepare_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;

  // ---- the engine's view (holes.cc, mm.cc) ----
  [[nodiscard]] bool serve_hole(whimbrel::AddressSpace& space, const whimbrel::PendingFault& fault,
                                const whimbrel::Mapping& mapping) noexcept override;
  [[nodiscard]] bool push(const whimbrel::PendingFault& fault) noexcept override EXCLUDES(queue_mutex_);

  std::atomic<unsigned> page_maps{0};      // of drivers, now
  std::atomic<unsigned> subscriptions{0};  // notifiers, now

 private:
  mm_struct() noexcept = default;
  ~mm_struct() = default;
  [[nodiscard]] whimbrel::Result<void> open(const whimbrel_options& options) noexcept;
  [[nodiscard]] whimbrel::Result<void> start_threads(unsigned count) noexcept;
  void stop_threads() noexcept;
  [[nodiscard]] whimbrel::Result<void> start_thread(void* (*body)(void*)) noexcept;
  static void* fault_thread(void* mm) noexcept;
  static void* service_thread(void* mm) noexcept;
  [[nodiscard]] bool pop(whimbrel::PendingFault* out) noexcept EXCLUDES(queue_mutex_);

  static constexpr std::size_t kMostRanges = 64;
  static constexpr std::size_t kQueue = 1024;

  whimbrel::SystemClock clock_;
  whimbrel::Reservation source_;
  whimbrel::UserfaultMmu* mmu_ = nullptr;
  whimbrel::AddressSpace* space_ = nullptr;
  whimbrel::FaultService* service_ = nullptr;
  whimbrel::NotifierRegistry notifiers_;
  whimbrel::capi::Flights flights_;
  whimbrel::ParkGate outbound_;
  bool all_home_ = true;  // of the fork under way

  std::array<pthread_t, kMostThreads + 1> threads_{};
  std::size_t thread_count_ = 0;
  std::atomic<bool> stopping_{false};

  whimbrel::Mutex mutex_;
  std::array<whimbrel::PageRange, kMostRanges> ranges_ GUARDED_BY(mutex_){};

  whimbrel::Mutex queue_mutex_;
  whimbrel::Event queued_;
  std::array<whimbrel::PendingFault, kQueue> queue_ GUARDED_BY(queue_mutex_){};
  std::size_t queue_head_ GUARDED_BY(queue_mutex_) = 0;
  std::size_t queue_count_ GUARDED_BY(queue_mutex_) = 0;
};

namespace whimbrel::capi {

// The engine that runs; null: none.
[[nodiscard]] mm_struct* current() noexcept;
void set_current(mm_struct* mm) noexcept;
// The same where the caller holds a page or is inside a callback, so that there must be one. Stops the process otherwise.
[[nodiscard]] mm_struct& running() noexcept;

}  // namespace whimbrel::capi
