// ParkGate: keeps sections of engine work from running, or waits until none runs, without a lock.
//
// Engine threads enter() and leave() around a section; a thread of the program closes the gate before a fork. It may
// take no lock that an engine thread could need, since its own stack can be away and come home only through them. So
// the gate is two counters: whoever closes announces himself first and then waits; whoever enters counts himself first
// and then looks.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/check.h"
#include "base/mutex.h"

namespace whimbrel {

class ParkGate {
 public:
  // False: closed; do not run the section and do not leave(). An enter() nested in a section of the same gate can fail.
  [[nodiscard]] bool enter() noexcept {
    inside_.fetch_add(1, std::memory_order_seq_cst);
    if (closed_.load(std::memory_order_seq_cst) == 0) return true;
    leave();
    return false;
  }
  void leave() noexcept {
    const std::uint32_t before = inside_.fetch_sub(1, std::memory_order_seq_cst);
    CHECK(before != 0, "leaving a gate that was not entered");
    if (before == 1 && closed_.load(std::memory_order_seq_cst) != 0) quiet_.advance();
  }

  // Returns when nobody is inside, and nobody comes in before open(). Closings nest.
  void close() noexcept {
    bar();
    wait_until_quiet();
  }
  // The two halves of close().
  void bar() noexcept { closed_.fetch_add(1, std::memory_order_seq_cst); }
  void wait_until_quiet() noexcept {
    for (;;) {
      const std::uint32_t seen = quiet_.value();
      if (inside_.load(std::memory_order_seq_cst) == 0) return;
      quiet_.wait(seen);
    }
  }
  void open() noexcept {
    const std::uint32_t before = closed_.fetch_sub(1, std::memory_order_seq_cst);
    CHECK(before != 0, "opening a gate that is not closed");
  }
  [[nodiscard]] bool is_closed() const noexcept { return closed_.load(std::memory_order_seq_cst) != 0; }

  // In a forked child, which has one thread and inherited a closed gate: open, nobody inside.
  void reset_in_child() noexcept {
    inside_.store(0, std::memory_order_relaxed);
    closed_.store(0, std::memory_order_relaxed);
    quiet_.reset_after_fork();
  }

 private:
  std::atomic<std::uint32_t> inside_{0};
  std::atomic<std::uint32_t> closed_{0};
  Event quiet_;
};

// Enters for its lifetime, if the gate is open.
class GateSection {
 public:
  explicit GateSection(ParkGate& gate) noexcept : gate_(gate), entered_(gate.enter()) {}
  ~GateSection() {
    if (entered_) gate_.leave();
  }
  GateSection(const GateSection&) = delete;
  GateSection& operator=(const GateSection&) = delete;
  [[nodiscard]] explicit operator bool() const noexcept { return entered_; }

 private:
  ParkGate& gate_;
  const bool entered_;
};

}  // namespace whimbrel
