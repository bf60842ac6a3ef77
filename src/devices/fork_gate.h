// ForkGate: lets a fork wait until nobody is inside a device.
//
// Every operation of a device that changes something runs between enter() and leave(). prepare_fork() closes the gate,
// which waits for those inside and holds those who arrive: at that instant all its data is consistent, so the copy that
// the child gets can be used as it is. Operations are short (one unit), so the wait is short too. Loads pass by the
// gate: while it is closed the forking thread may still need them. So a lock that loads take may be held in the copy.
//
// Thread-safe. Never nested: whoever is inside must not enter() again, or a close in between would wait for ever.
#pragma once

#include <atomic>
#include <cstdint>

#include "base/mutex.h"

namespace whimbrel {

class ForkGate {
 public:
  void enter() noexcept;
  void leave() noexcept;
  // Whether somebody waits for those inside: whoever has much to do there had better come out in between.
  [[nodiscard]] bool is_closing() const noexcept { return (state_.load(std::memory_order_relaxed) & kClosed) != 0; }
  // Waits for those inside; arriving threads wait until open(). Concurrent closers take turns.
  void close() noexcept;
  void open() noexcept;
  // In the forked child: the threads that waited at the gate do not exist there.
  void open_in_child() noexcept;

 private:
  static constexpr std::uint32_t kClosed = 1u << 31;

  std::atomic<std::uint32_t> state_{0};  // kClosed | number of threads inside
  Event changed_;
};

// Inside the gate for the length of a scope.
class GatePass {
 public:
  explicit GatePass(ForkGate& gate) noexcept : gate_(gate) { gate_.enter(); }
  ~GatePass() { gate_.leave(); }
  GatePass(const GatePass&) = delete;
  GatePass& operator=(const GatePass&) = delete;

 private:
  ForkGate& gate_;
};

}  // namespace whimbrel
