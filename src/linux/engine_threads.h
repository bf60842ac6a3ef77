// Threads of the engine inside a process that belongs to a program.
//
// The first thread gets a descriptor table of its own: what it opens, the program can neither see nor close, and a
// forked child does not inherit. Further threads are started by engine threads and share that table. All signals are
// blocked in them; a fault of their own ends the process.
//
// Two flavours behind one interface:
//   RawEngineThreads   by the clone system call, unknown to libc. For programs that know nothing of us: libc stays in
//                      its single-thread mode, the process ends with the program's last own thread. Their code must
//                      not use what needs a libc thread (malloc, stdio, errno-setting calls, locale, dlopen).
//   LibcEngineThreads  by pthread_create. For sanitizer builds and for programs that link the engine knowingly.
//   Credentials follow
//                      the program's setuid(); the process lives on while they run.
//
// An object must not be on a page that can be away. Thread-safe except where said. In a forked child the threads do
// not exist: call forget_after_fork() before anything else.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "linux/descriptors.h"

namespace whimbrel {

// Instrumented code finds its sanitizer's state through libc's thread, so raw threads cannot run it.
#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
inline constexpr bool kRawThreadsUsable = false;
#elif defined(__has_feature)
#if __has_feature(thread_sanitizer) || __has_feature(address_sanitizer)
inline constexpr bool kRawThreadsUsable = false;
#else
inline constexpr bool kRawThreadsUsable = true;
#endif
#else
inline constexpr bool kRawThreadsUsable = true;
#endif

struct EngineThreadOptions {
  std::size_t stack_bytes = 256 * 1024;
  // Numbers that stay open in the first thread's table, [first, end); e.g. Descriptors::span() of shared descriptors.
  // All others are closed there before its body runs: otherwise pipes of the program would never see their end.
  // (LibcEngineThreads leaves 0, 1 and 2 open as well.)
  Descriptors::Span keep{0, 0};
};

class EngineThreads {
 public:
  static constexpr int kMost = 16;  // threads at a time
  using Body = void (*)(void* argument);

  EngineThreads() = default;
  EngineThreads(const EngineThreads&) = delete;
  EngineThreads& operator=(const EngineThreads&) = delete;
  // Every thread must have been joined.
  virtual ~EngineThreads() = default;

  // Starts a thread with an own descriptor table and returns its number, 0 <= n < kMost. From any thread.
  // kNoMemory, kAgain: no memory, or too many threads.
  [[nodiscard]] virtual Result<int> start_first(Body body, void* argument) noexcept = 0;
  // Starts a thread that shares its caller's descriptor table: call it on an engine thread.
  [[nodiscard]] virtual Result<int> start_another(Body body, void* argument) noexcept = 0;
  // Waits for the end of thread `n` and frees its stack. Not from that thread itself. Every thread is joined once.
  virtual void join(int n) noexcept = 0;
  // Kernel thread id, 0 once the thread has left.
  [[nodiscard]] virtual std::uint32_t thread_id(int n) const noexcept = 0;
  // More numbers that stay open in the table of each first thread started from now on.
  virtual void keep_also(std::span<const int> numbers) noexcept { (void)numbers; }
  // In a forked child: gives back the copies of the stacks; all numbers are free again.
  virtual void forget_after_fork() noexcept = 0;
};

}  // namespace whimbrel
