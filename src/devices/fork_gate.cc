#include "devices/fork_gate.h"

#include "base/check.h"

namespace whimbrel {

void ForkGate::enter() noexcept {
  std::uint32_t state = state_.load(std::memory_order_relaxed);
  for (;;) {
    if ((state & kClosed) != 0) {
      const std::uint32_t seen = changed_.value();
      if ((state_.load(std::memory_order_acquire) & kClosed) != 0) changed_.wait(seen);
      state = state_.load(std::memory_order_relaxed);
      continue;
    }
    if (state_.compare_exchange_weak(state, state + 1, std::memory_order_acquire, std::memory_order_relaxed)) return;
  }
}

void ForkGate::leave() noexcept {
  const std::uint32_t before = state_.fetch_sub(1, std::memory_order_release);
  DCHECK((before & ~kClosed) != 0);
  if (before == (kClosed | 1)) changed_.advance();
}

void ForkGate::close() noexcept {
  for (;;) {
    const std::uint32_t seen = changed_.value();
    if ((state_.fetch_or(kClosed, std::memory_order_acquire) & kClosed) == 0) break;
    changed_.wait(seen);
  }
  for (;;) {
    const std::uint32_t seen = changed_.value();
    if (state_.load(std::memory_order_acquire) == kClosed) return;
    changed_.wait(seen);
  }
}

void ForkGate::open() noexcept {
  const std::uint32_t before = state_.fetch_and(~kClosed, std::memory_order_release);
  CHECK((before & kClosed) != 0, "open() without close()");
  changed_.advance();
}

void ForkGate::open_in_child() noexcept {
  state_.store(0, std::memory_order_release);
  changed_.reset_after_fork();
}

}  // namespace whimbrel
