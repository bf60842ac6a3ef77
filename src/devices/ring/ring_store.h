// RingStore: the blocks of a device behind the device process.
//
// Each process of a program has a connection, a ring and a volume of its own there. A forked child gets its connection
// made before the fork when it inherits something; one that inherits nothing connects when it first stores.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/mutex.h"
#include "devices/extents/block_store.h"
#include "devices/ring/ring_connection.h"
#include "devices/ring/ring_queue.h"

namespace whimbrel {

class RingStore final : public BlockStore {
 public:
  // What to open; the shape of the ring is filled in by start(). All is copied.
  RingStore(const char* address, const RingHello& target) noexcept;

  [[nodiscard]] const Words& words() const noexcept override;
  [[nodiscard]] const char* explain(int error, const char* usual) const noexcept override;
  [[nodiscard]] Result<void> start(MemorySource& source, const Plan& plan) noexcept override;
  [[nodiscard]] BlockQueue& queue(std::uint32_t number) noexcept override { return queues_[number]; }
  [[nodiscard]] Result<void> open(int volume) noexcept override;
  void close(int volume) noexcept override;
  [[nodiscard]] bool is_open(int volume) const noexcept override { return (open_ >> volume & 1) != 0; }
  [[nodiscard]] bool can_be_made_again() const noexcept override { return true; }
  [[nodiscard]] std::uint64_t fixed_bytes(int) const noexcept override { return 0; }
  [[nodiscard]] Result<void> punch(int volume, std::uint64_t offset, std::uint64_t bytes) noexcept override;
  [[nodiscard]] bool is_sole_user(int volume) noexcept override;
  [[nodiscard]] Inherited prepare_fork(std::uint32_t wanted, int own) noexcept override;
  void after_fork_in_parent() noexcept override;
  void after_fork_in_child() noexcept override;
  [[nodiscard]] std::span<const int> carried() const noexcept override;
  void drop_carried() noexcept override;

  // What the device process said when it could not be used; empty: nothing.
  [[nodiscard]] const SpecMessage& message() const noexcept { return message_; }
  [[nodiscard]] RingConnection& connection() noexcept { return connection_; }
  // The way there and back, without a transfer: an errno. For measurements.
  [[nodiscard]] int ping() noexcept EXCLUDES(asking_);

 private:
  [[nodiscard]] RingQueue::Answer ask(std::uint32_t op, int volume, std::uint64_t offset, std::uint64_t bytes) noexcept
      EXCLUDES(asking_);

  char address_[RingConnection::kMostAddress] = {};
  RingHello hello_;
  SpecMessage message_;
  RingConnection connection_;
  SourceArray<RingQueue> queues_;  // the last one for what is no transfer
  Mutex asking_;                   // who has that one
  std::array<std::uint32_t, kMostVolumes> volumes_{};
  std::atomic<std::uint32_t> open_{0};  // a bit for each volume

  // While a fork is prepared, and in the child until it has settled.
  RingConnection for_child_;
  std::uint32_t handed_on_ = 0;
  int carried_ = -1;
};

}  // namespace whimbrel
