#include "runtime/hint_queue.h"

#include <algorithm>

namespace whimbrel {
namespace {

constexpr std::int64_t kLookAgain = 100'000'000;  // whether the engine is still there

constexpr HintQueue::Ticket ticket_of(std::size_t slot, std::uint32_t generation) {
  return (std::uint64_t{generation} << 8) | (slot + 1);
}

}  // namespace

HintQueue::Order* HintQueue::find_locked(Ticket ticket) noexcept {
  const std::size_t slot = (ticket & 0xff) - 1;
  if (slot >= kOrders || orders_[slot].generation != static_cast<std::uint32_t>(ticket >> 8)) return nullptr;
  return orders_[slot].state.load(std::memory_order_relaxed) == State::kFree ? nullptr : &orders_[slot];
}

Result<HintQueue::Ticket> HintQueue::submit(HintKind kind, PageRange range, bool kept) noexcept {
  for (;;) {
    const std::uint32_t seen = freed_.value();
    if (closed_.load(std::memory_order_acquire)) return fail(Errc::kGone, 0, "the engine has stopped");
    {
      MutexLock hold(mutex_);
      const auto held = std::count_if(orders_.begin(), orders_.end(), [](const Order& order) {
        return order.state.load(std::memory_order_relaxed) != State::kFree && order.kept;
      });
      if (kept && held >= static_cast<std::ptrdiff_t>(kMostKept)) return fail(Errc::kAgain, 0, "too many requests");
      const auto free = std::find_if(orders_.begin(), orders_.end(), [](const Order& order) {
        return order.state.load(std::memory_order_acquire) == State::kFree;
      });
      if (free != orders_.end()) {
        const auto slot = static_cast<std::size_t>(free - orders_.begin());
        ++free->generation;
        free->forgotten = free->pinned = false;
        free->kept = kept;
        free->kind = kind;
        free->range = free->rest = range;
        free->slice_moved = free->slice_tries = 0;
        free->result = HintResult();
        free->state.store(State::kQueued, std::memory_order_release);
        waiting_[(head_ + count_++) % kOrders] = static_cast<std::uint8_t>(slot);
        if (wake_ != nullptr) wake_->advance();
        return ticket_of(slot, free->generation);
      }
    }
    freed_.wait(seen, kLookAgain);
  }
}

Result<HintResult> HintQueue::wait(Ticket ticket, std::int64_t nanoseconds, std::span<std::uint32_t> report) noexcept {
  for (bool last = false;; last = nanoseconds >= 0) {
    Order* order = nullptr;
    {
      MutexLock hold(mutex_);
      order = find_locked(ticket);
    }
    if (order == nullptr) return fail(Errc::kGone, 0, "no such order: made before a fork, or taken already");
    const std::uint32_t seen = order->done.value();
    if (order->state.load(std::memory_order_acquire) == State::kDone) {
      const HintResult result = order->result;
      std::copy_n(order->report.begin(), std::min(report.size(), order->report.size()), report.begin());
      MutexLock hold(mutex_);
      order->state.store(State::kFree, std::memory_order_release);
      freed_.advance();
      return result;
    }
    if (closed_.load(std::memory_order_acquire)) return fail(Errc::kGone, 0, "the engine has stopped");
    if (last) return fail(Errc::kAgain, 0, "not done yet");
    order->done.wait(seen, nanoseconds >= 0 ? nanoseconds : kLookAgain);
  }
}

bool HintQueue::is_done(Ticket ticket) noexcept {
  MutexLock hold(mutex_);
  const Order* order = find_locked(ticket);
  return order == nullptr || order->state.load(std::memory_order_acquire) == State::kDone;
}

void HintQueue::forget(Ticket ticket) noexcept {
  MutexLock hold(mutex_);
  Order* order = find_locked(ticket);
  if (order == nullptr) return;
  order->forgotten = true;
  if (order->state.load(std::memory_order_acquire) != State::kDone) return;
  order->state.store(State::kFree, std::memory_order_release);
  freed_.advance();
}

void HintQueue::close() noexcept {
  closed_.store(true, std::memory_order_release);
  for (Order& order : orders_) order.done.advance();
  freed_.advance();
}

void HintQueue::finish(Order& order) noexcept {
  MutexLock hold(mutex_);
  order.state.store(order.forgotten ? State::kFree : State::kDone, std::memory_order_release);
  if (order.forgotten) freed_.advance();
  order.done.advance();
}

HintQueue::More HintQueue::run_slice(Pager& pager) noexcept {
  std::uint8_t slot = 0;
  {
    MutexLock hold(mutex_);
    if (count_ == 0) return More::kNothing;
    slot = waiting_[head_];
    head_ = (head_ + 1) % kOrders;
    --count_;
  }
  Order& order = orders_[slot];
  const Step step = work(order, pager);
  if (step == Step::kFinished) finish(order);
  MutexLock hold(mutex_);
  if (step != Step::kFinished) waiting_[(head_ + count_++) % kOrders] = slot;
  if (count_ == 0) return More::kNothing;
  return step == Step::kLater ? More::kLater : More::kAtOnce;
}

void HintQueue::reset_in_child() noexcept {
  mutex_.reset_after_fork();
  freed_.reset_after_fork();
  MutexLock hold(mutex_);
  head_ = count_ = 0;
  for (Order& order : orders_) {
    ++order.generation;
    order.state.store(State::kFree, std::memory_order_relaxed);
    order.done.reset_after_fork();
  }
}

}  // namespace whimbrel
