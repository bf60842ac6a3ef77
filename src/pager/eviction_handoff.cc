#include "pager/eviction_handoff.h"

namespace whimbrel {
namespace {

constexpr int kMostLooks = 16;

}  // namespace

bool EvictionHandoff::take(PageCount want) noexcept {
  if (state_.load(std::memory_order_acquire) != State::kFree || !core_.evictions.enter()) return false;
  if (!core_.choose_victim(want, PagerCore::Effort::kFault, kMostLooks, &victim_)) {
    core_.evictions.leave();
    return false;
  }
  state_.store(State::kTaking, std::memory_order_relaxed);
  if (!eviction_.emplace(core_, lane_).take(victim_)) {
    store();  // to remember what was refused
    return false;
  }
  // Either whoever closes the gate sees that this is waiting to be stored, or it is seen here that the gate is closed.
  state_.store(State::kTaken, std::memory_order_seq_cst);
  if (core_.evictions.is_closed()) return finish();
  core_.wake.advance();
  return true;
}

bool EvictionHandoff::finish() noexcept {
  State taken = State::kTaken;
  if (!state_.compare_exchange_strong(taken, State::kStoring, std::memory_order_seq_cst)) return false;
  core_.stats->handed_over.fetch_add(1, std::memory_order_relaxed);
  store();
  return true;
}

void EvictionHandoff::store() noexcept {
  const EvictionOutcome outcome = eviction_->put_away();
  core_.settle(victim_, outcome, lane_, PagerCore::Effort::kFault);
  state_.store(State::kFree, std::memory_order_release);
  core_.evictions.leave();
}

}  // namespace whimbrel
