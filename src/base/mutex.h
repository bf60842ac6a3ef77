// Mutex and Event on a futex: 4 bytes each, no libc, no allocation, usable from threads that libc does not know.
//
// Built on std::atomic, so ThreadSanitizer sees the ordering they give. In a forked child `reset_after_fork()` puts
// them back to free: the threads that held them do not exist there.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/thread_annotations.h"

namespace whimbrel {

// Takes the kernel's place where a thread would sleep or wake sleepers, so that a simulation can run the engine's
// threads as steps of its own. Consulted only where a futex call would be made; nothing is paid for it otherwise.
class BlockingHook {
 public:
  virtual ~BlockingHook() = default;
  // Sleeps as FUTEX_WAIT does (spurious returns allowed). False: the caller is no thread of the simulation and sleeps
  // for real.
  virtual bool wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected,
                    std::int64_t nanoseconds) noexcept = 0;
  // False: also wake real sleepers.
  virtual bool wake(const std::atomic<std::uint32_t>& word, int count) noexcept = 0;
};
// Null: none. Only while no thread waits in a Mutex or Event.
void set_blocking_hook(BlockingHook* hook) noexcept;

class CAPABILITY("mutex") Mutex {
 public:
  constexpr Mutex() noexcept = default;
  Mutex(const Mutex&) = delete;
  Mutex& operator=(const Mutex&) = delete;

  void lock() noexcept ACQUIRE();
  [[nodiscard]] bool try_lock() noexcept TRY_ACQUIRE(true);
  void unlock() noexcept RELEASE();
  void assert_held() const noexcept ASSERT_CAPABILITY(this) {}
  void reset_after_fork() noexcept { word_.store(0, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint32_t> word_{0};  // 0 free, 1 held, 2 held and somebody sleeps
};

class SCOPED_CAPABILITY MutexLock {
 public:
  explicit MutexLock(Mutex& mutex) noexcept ACQUIRE(mutex) : mutex_(mutex) { mutex_.lock(); }
  ~MutexLock() RELEASE() { mutex_.unlock(); }
  MutexLock(const MutexLock&) = delete;
  MutexLock& operator=(const MutexLock&) = delete;

 private:
  Mutex& mutex_;
};

// A counter one can sleep on: remember value(), check the condition, then wait(value). advance() wakes everybody.
// No wake-up is lost, since wait() returns at once when the counter has moved on.
class Event {
 public:
  [[nodiscard]] std::uint32_t value() const noexcept { return count_.load(std::memory_order_acquire); }
  void advance() noexcept;
  // Sleeps until the counter differs from `seen` or `nanoseconds` have passed (negative: no limit). Spurious returns
  // are possible.
  void wait(std::uint32_t seen, std::int64_t nanoseconds = -1) noexcept;
  void reset_after_fork() noexcept { count_.store(0, std::memory_order_relaxed); }

 private:
  std::atomic<std::uint32_t> count_{0};
};

}  // namespace whimbrel
