#include "devices/ring/ring_queue.h"

#include <bit>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "linux/clock.h"
#include "linux/shared_memory.h"

namespace whimbrel {
namespace {

// About two microseconds: what is done by then was done without anybody's sleeping.
constexpr int kSpins = 100;
// How often a sleeper looks whether there is still somebody to wait for.
constexpr std::int64_t kLook = 200'000'000;
// A device process that is stopped itself may be continued; but nothing waits for ever.
constexpr std::int64_t kGrace = 30'000'000'000;

std::uint32_t load(std::uint32_t& word) noexcept {
  return std::atomic_ref<std::uint32_t>(word).load(std::memory_order_acquire);
}

}  // namespace

void RingQueue::set_up(RingConnection& connection, std::uint32_t lane, std::uint32_t depth,
                       const std::uint32_t* volumes, std::uint32_t patience_ms) noexcept {
  connection_ = &connection;
  lane_ = lane;
  depth_ = depth < kMost ? depth : kMost;
  volumes_ = volumes;
  patience_ns_ = std::int64_t{patience_ms} * 1'000'000 + kGrace;
}

void RingQueue::forget_after_fork() noexcept {
  in_flight_ = posted_ = taken_ = 0;
  under_way_ = 0;
}

void RingQueue::post(const RingRequest& request) noexcept {
  ++in_flight_;
  under_way_ |= std::uint64_t{1} << request.slot;
  if (!connection_->is_open() || connection_->is_given_up()) return;  // wait() finds that out
  RingLane& lane = connection_->lane(lane_);
  lane.requests[posted_ % depth_] = request;
  std::atomic_ref<std::uint32_t>(lane.posted).store(++posted_, std::memory_order_release);
  connection_->notify();
}

void RingQueue::add(const BlockTransfer& transfer, std::uint32_t tag) noexcept {
  CHECK(!is_full() && tag < depth_);
  transfers_[tag] = transfer;
  const bool writing = transfer.kind == BlockTransfer::Kind::kWrite;
  if (writing && connection_->is_open()) {
    std::byte* const slot = connection_->slot(lane_, tag);
    if (transfer.memory != slot) std::memcpy(slot, transfer.memory, transfer.bytes);
  }
  post({.slot = tag,
        .op = static_cast<std::uint32_t>(writing ? kRingWrite : kRingRead),
        .volume = volumes_[transfer.volume],
        .unused = 0,
        .offset = transfer.offset,
        .bytes = transfer.bytes});
}

bool RingQueue::wait_for_completion() noexcept {
  if (!connection_->is_open() || connection_->is_given_up()) return false;
  RingLane& lane = connection_->lane(lane_);
  for (int spin = 0; spin < kSpins; ++spin) {
    if (load(lane.done) != taken_) return true;
    __builtin_ia32_pause();
  }
  const SystemClock clock;
  const std::int64_t end = clock.now_ns() + patience_ns_;
  const std::atomic_ref<std::uint32_t> sleeps(lane.sleeps);
  for (;;) {
    sleeps.store(1, std::memory_order_relaxed);
    std::atomic_thread_fence(std::memory_order_seq_cst);
    if (load(lane.done) != taken_) break;
    sys::wait_shared(&lane.done, taken_, kLook);
    if (load(lane.done) != taken_) break;
    if (!connection_->is_alive()) {
      if (load(lane.done) != taken_) break;  // its last word
      return false;
    }
    // Somebody else may use the slots from now on: no word of it counts any more.
    if (clock.now_ns() > end) connection_->give_up();
  }
  sleeps.store(0, std::memory_order_relaxed);
  return true;
}

// What was under way when the connection ended.
BlockQueue::Done RingQueue::fail_one() noexcept {
  const auto tag = static_cast<std::uint32_t>(std::countr_zero(under_way_));
  under_way_ &= under_way_ - 1;
  --in_flight_;
  return {.tag = tag, .error = ENODEV, .may_still_happen = transfers_[tag].kind == BlockTransfer::Kind::kWrite};
}

BlockQueue::Done RingQueue::wait() noexcept {
  CHECK(in_flight_ != 0);
  if (!wait_for_completion()) return fail_one();
  const RingCompletion completion = connection_->lane(lane_).completions[taken_ % depth_];
  ++taken_;
  const std::uint32_t tag = completion.slot;
  if (tag >= depth_ || (under_way_ >> tag & 1) == 0) {  // that is no device process of ours
    connection_->give_up();
    return fail_one();
  }
  under_way_ &= ~(std::uint64_t{1} << tag);
  --in_flight_;
  value_ = completion.value;
  const BlockTransfer& transfer = transfers_[tag];
  if (completion.error == 0 && transfer.kind == BlockTransfer::Kind::kRead && transfer.memory != nullptr) {
    const std::byte* const slot = connection_->slot(lane_, tag);
    if (transfer.memory != slot) std::memcpy(transfer.memory, slot, transfer.bytes);
  }
  return {.tag = tag, .error = completion.error, .may_still_happen = completion.error == ETIMEDOUT};
}

RingQueue::Answer RingQueue::ask(std::uint32_t op, std::uint32_t volume, std::uint64_t offset,
                                 std::uint64_t bytes) noexcept {
  CHECK(in_flight_ == 0);
  transfers_[0] = {};
  post({.slot = 0, .op = op, .volume = volume, .unused = 0, .offset = offset, .bytes = bytes});
  const Done done = wait();
  return {.error = done.error, .value = value_};
}

}  // namespace whimbrel
