// Threads made by the clone system call itself, unknown to libc: they keep libc in its single-thread mode and do not
// keep the process alive once the program's last own thread has left.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/error.h"

namespace whimbrel {

struct RawClone {
  void (*body)(void*) = nullptr;
  void* argument = nullptr;
  void* stack_end = nullptr;  // one past the highest byte; grows down
  void* tls = nullptr;        // thread pointer; null: the thread shares the caller's (body must not use thread-locals)
  bool own_descriptors = false;  // start with a copy of the caller's descriptor table instead of sharing it
  // Receives the thread id before the thread runs, and 0, with a futex wake-up, once it has left and its stack may be
  // reused.
  std::atomic<std::uint32_t>* thread_id = nullptr;
};

// Starts a thread with all signals blocked. Errors: kNoMemory, kAgain (too many threads), kNotPermitted.
[[nodiscard]] Result<void> raw_clone(const RawClone& thread) noexcept;

// Waits until *thread_id is 0. False: not within `nanoseconds` (negative: no limit).
bool wait_raw_thread(std::atomic<std::uint32_t>& thread_id, std::int64_t nanoseconds = -1) noexcept;

}  // namespace whimbrel
