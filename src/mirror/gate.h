// Gate: keeps a fork and the work on the devices apart. Many may be inside; a fork closes the gate, waits until all are
// out, and opens it again, in the child too.
//
// A thread that is inside may enter again (a signal handler that uses a device). Waiting is bounded: a command that
// cannot end (RELEASE of a pinned page) must not stop the program from forking.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/mutex.h"

namespace whimbrel::mirror {

class Gate {
 public:
  void enter() noexcept {
    if (depth()++ != 0) return;
    for (;;) {
      const std::uint32_t seen = changed_.value();
      if (!closed_.load()) {
        inside_.fetch_add(1);
        if (!closed_.load()) return;
        leave_one();
      }
      changed_.wait(seen);
    }
  }
  void leave() noexcept {
    if (--depth() == 0) leave_one();
  }
  void close(std::int64_t patience_ns) noexcept {
    closed_.store(true);
    const std::uint32_t own = depth() != 0 ? 1 : 0;
    for (; inside_.load() > own && patience_ns > 0; patience_ns -= kStep) {
      const std::uint32_t seen = changed_.value();
      if (inside_.load() > own) changed_.wait(seen, kStep);
    }
  }
  void open() noexcept {
    closed_.store(false);
    changed_.advance();
  }
  void reset_after_fork() noexcept {
    inside_.store(depth() != 0 ? 1 : 0);
    changed_.reset_after_fork();
    closed_.store(false);
  }

 private:
  static constexpr std::int64_t kStep = 1'000'000;
  static int& depth() noexcept {
    static thread_local int depth = 0;
    return depth;
  }
  void leave_one() noexcept {
    inside_.fetch_sub(1);
    if (closed_.load()) changed_.advance();
  }
  std::atomic<bool> closed_{false};
  std::atomic<std::uint32_t> inside_{0};
  Event changed_;
};

class GatePass {
 public:
  explicit GatePass(Gate& gate) noexcept : gate_(gate) { gate_.enter(); }
  ~GatePass() { gate_.leave(); }
  GatePass(const GatePass&) = delete;
  GatePass& operator=(const GatePass&) = delete;

 private:
  Gate& gate_;
};

}  // namespace whimbrel::mirror
