#include "devices/ring/ring_store.h"

#include <cerrno>
#include <cstring>

#include "linux/descriptors.h"
#include "linux/sys.h"

namespace whimbrel {

RingStore::RingStore(const char* address, const RingHello& target) noexcept : hello_(target) {
  if (address == nullptr) return;
  const std::size_t length = std::strlen(address);
  if (length < sizeof address_) std::memcpy(address_, address, length);
}

const BlockStore::Words& RingStore::words() const noexcept {
  static constexpr Words kWords = {.name = "nbd",
                                   .writing = "writing to the server",
                                   .reading = "reading from the server",
                                   .ends_early = "the server's export ends early",
                                   .damaged = "the server does not hold what was stored",
                                   .not_handed_on = "pages on the server cannot be handed to a forked process",
                                   .not_inherited = "a forked process has no connection to the device process"};
  return kWords;
}

const char* RingStore::explain(int error, const char* usual) const noexcept {
  switch (error) {
    case ENODEV: return "the device process has ended";
    case ENOTCONN: return "there is no connection to the server";
    case ENODATA: return "the server came back without what was stored";
    default: return usual;
  }
}

Result<void> RingStore::start(MemorySource& source, const Plan& plan) noexcept {
  hello_.lanes = plan.queues + 1;
  hello_.depth = plan.depth;
  hello_.slot_bytes = plan.transfer_bytes;
  if (hello_.lanes > WHIMBREL_RING_MOST_LANES) return fail(Errc::kInvalid, 0, "too many lanes");
  queues_ = SourceArray<RingQueue>(source, hello_.lanes);
  if (queues_.empty()) return fail(Errc::kNoMemory, 0, "queues of the ring");
  for (std::uint32_t i = 0; i < hello_.lanes; ++i) {
    queues_[i].set_up(connection_, i, plan.depth, volumes_.data(), hello_.timeout_ms);
  }
  return open(0);
}

Result<void> RingStore::open(int volume) noexcept {
  if (!connection_.is_open()) {
    hello_.parent = 0;
    message_.clear();
    if (const Result<void> done = connection_.open(address_, hello_, message_); !done) return done;
    connection_.keep_from_children();
  }
  volumes_[volume] = connection_.welcome().volume;
  open_.fetch_or(1u << volume, std::memory_order_acq_rel);
  return {};
}

RingQueue::Answer RingStore::ask(std::uint32_t op, int volume, std::uint64_t offset, std::uint64_t bytes) noexcept {
  MutexLock lock(asking_);
  return queues_[queues_.size() - 1].ask(op, volumes_[volume], offset, bytes);
}

int RingStore::ping() noexcept { return ask(kRingNothing, 0, 0, 0).error; }

void RingStore::close(int volume) noexcept {
  if (!is_open(volume)) return;
  open_.fetch_and(~(1u << volume), std::memory_order_acq_rel);
  // A connection keeps its own volume, for when it is opened again.
  if (volumes_[volume] != connection_.welcome().volume) (void)ask(kRingDrop, volume, 0, 0);
}

Result<void> RingStore::punch(int volume, std::uint64_t offset, std::uint64_t bytes) noexcept {
  const RingQueue::Answer answer = ask(kRingTrim, volume, offset, bytes);
  if (answer.error == 0) return {};
  if (answer.error == EOPNOTSUPP) return fail(Errc::kNotSupported, EOPNOTSUPP, "trim");
  return fail(answer.error == ETIMEDOUT || answer.error == ENODEV ? Errc::kAgain : Errc::kDeviceIo, answer.error, "trim");
}

bool RingStore::is_sole_user(int volume) noexcept {
  const RingQueue::Answer answer = ask(kRingUsers, volume, 0, 0);
  return answer.error == 0 && answer.value == 1;
}

// --- fork -----------------------------------------------------------------------------------------------------------

BlockStore::Inherited RingStore::prepare_fork(std::uint32_t wanted, int /*own*/) noexcept {
  Inherited out;
  handed_on_ = 0;
  carried_ = -1;
  if (wanted == 0) return out;
  const DescriptorRoom room(3);  // the program may have used up its own
  RingHello hello = hello_;
  hello.parent = connection_.welcome().connection;
  SpecMessage unused;
  const Result<void> made = for_child_.open(address_, hello, unused);
  if (!made) {
    out.error = made.error().sys != 0 ? made.error().sys : ENODEV;
    return out;
  }
  out.volumes = handed_on_ = wanted;
  carried_ = for_child_.socket();
  return out;
}

void RingStore::after_fork_in_parent() noexcept {
  for_child_.close();
  carried_ = -1;
}

void RingStore::after_fork_in_child() noexcept {
  asking_.reset_after_fork();
  queues_[queues_.size() - 1].forget_after_fork();
  connection_.forget();
  connection_.give_up();
  open_.store(0, std::memory_order_release);
  if (!for_child_.is_open()) return;
  connection_.take(for_child_);
  connection_.keep_from_children();
  open_.store(handed_on_, std::memory_order_release);
}

std::span<const int> RingStore::carried() const noexcept {
  return {&carried_, static_cast<std::size_t>(carried_ >= 0 ? 1 : 0)};
}

// The first engine thread has a copy of it by now, under the same number.
void RingStore::drop_carried() noexcept {
  if (connection_.owns(carried_)) sys::close(carried_);
  carried_ = -1;
}

}  // namespace whimbrel
