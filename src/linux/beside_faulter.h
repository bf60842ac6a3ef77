// BesideFaulter: keeps the fault thread and a thread that faults often on one processor.
//
// The scheduler puts a woken thread on an idle processor. For a thread that faults again a few microseconds later that is
// the worst place: each of the two wake-ups of a fault becomes an interrupt to the other processor. So, while one thread
// makes a streak of faults, the fault thread stays on one processor, and while such a fault is being served the waiting
// thread may only run there; it gets its own mask back before it can run.
//
// That last promise needs a fault thread that a woken thread cannot preempt: it runs under SCHED_FIFO, at the lowest
// priority. Where the user may not have that (no CAP_SYS_NICE, no RLIMIT_RTPRIO) nothing is done at all. The program never
// sees a narrowed mask, in itself or in what it starts: it does not run while it has one. Other threads and processes
// asking for the mask of a thread that waits for memory can.
//
// Belongs to the fault thread. KeepsOffFaulter is for a thread that works for it.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/clock.h"
#include "port/wake_placement.h"

namespace whimbrel {

// The processors a thread may run on, as sched_getaffinity(2) has them.
class ProcessorSet {
 public:
  static constexpr std::size_t kMost = 8192;

  // Of a thread (0: the calling one). False: it is gone, or the machine has more than kMost.
  [[nodiscard]] bool read(std::uint32_t thread) noexcept;
  [[nodiscard]] bool write(std::uint32_t thread) const noexcept;
  [[nodiscard]] bool contains(unsigned processor) const noexcept;
  [[nodiscard]] std::size_t count() const noexcept;
  void set_only(unsigned processor) noexcept;
  void set_all() noexcept;
  void remove(unsigned processor) noexcept;
  [[nodiscard]] bool operator==(const ProcessorSet&) const noexcept = default;

 private:
  std::array<std::uint64_t, kMost / 64> words_{};
  std::size_t words_used_ = kMost / 64;  // as many as the kernel has
};

// For a background thread: it keeps off the processor where the fault thread stays, for it would take the program's time there.
class KeepsOffFaulter {
 public:
  // On the background thread. `processor`: where the fault thread stays; -1: nowhere in particular.
  void keep_off(int processor) noexcept;

 private:
  int processor_ = -1;
  ProcessorSet own_;  // the thread's, before anything was done to it
};

class BesideFaulter final : public WakePlacement {
 public:
  explicit BesideFaulter(Clock& clock) noexcept : clock_(&clock) {}

  // Once, on the fault thread (again in a forked child). Without the right to SCHED_FIFO, or with one processor: never
  // does anything.
  void prepare() noexcept;
  [[nodiscard]] bool able() const noexcept { return able_; }

  // Where the fault thread stays for the time being; -1: where the scheduler puts it. From any thread.
  [[nodiscard]] int processor() const noexcept { return where_.load(std::memory_order_relaxed); }

  bool begin(std::uint32_t thread) noexcept override;
  void end() noexcept override;

 private:
  [[nodiscard]] bool is_streak(std::uint32_t thread) noexcept;
  [[nodiscard]] bool stay() noexcept;
  void roam() noexcept;

  Clock* clock_;
  bool able_ = false;
  ProcessorSet own_;         // the fault thread's, before anything was done to it
  ProcessorSet everything_;  // what a thread gets that asks for all processors
  ProcessorSet here_;        // where the fault thread stays
  unsigned processor_ = 0;
  bool stays_ = false;
  std::atomic<int> where_{-1};
  std::uint32_t faults_here_ = 0;

  std::uint32_t last_thread_ = 0;
  std::uint32_t streak_ = 0;
  std::int64_t last_served_ = 0;

  std::uint32_t held_ = 0;  // the thread whose mask is narrowed now; 0: none
  ProcessorSet held_mask_;
};

}  // namespace whimbrel
