// RingQueue: transfers under way on one lane of a ring.
//
// For one thread at a time. Without a connection, or when it has ended, transfers fail with ENODEV.
#pragma once

#include <array>
#include <cstdint>

#include "devices/extents/block_store.h"
#include "devices/ring/ring_connection.h"

namespace whimbrel {

class RingQueue final : public BlockQueue {
 public:
  // `patience_ms`: the longest that the device process takes for a request; it is given up some time after that.
  void set_up(RingConnection& connection, std::uint32_t lane, std::uint32_t depth, const std::uint32_t* volumes,
              std::uint32_t patience_ms) noexcept;

  [[nodiscard]] bool is_full() const noexcept override { return in_flight_ == depth_; }
  [[nodiscard]] std::uint32_t in_flight() const noexcept override { return in_flight_; }
  void add(const BlockTransfer& transfer, std::uint32_t tag) noexcept override;
  [[nodiscard]] Done wait() noexcept override;
  [[nodiscard]] std::byte* buffer(std::uint32_t tag) noexcept override {
    return connection_->is_open() ? connection_->slot(lane_, tag) : nullptr;
  }
  void forget_after_fork() noexcept override;

  // A request without contents, waited for: its value. On a queue with nothing else under way.
  struct Answer {
    int error = 0;
    std::uint64_t value = 0;
  };
  [[nodiscard]] Answer ask(std::uint32_t op, std::uint32_t volume, std::uint64_t offset, std::uint64_t bytes) noexcept;

 private:
  void post(const RingRequest& request) noexcept;
  // False: the connection has ended.
  [[nodiscard]] bool wait_for_completion() noexcept;
  [[nodiscard]] Done fail_one() noexcept;

  RingConnection* connection_ = nullptr;
  const std::uint32_t* volumes_ = nullptr;  // their numbers in the device process
  std::uint32_t lane_ = 0, depth_ = 1;
  std::int64_t patience_ns_ = 0;
  std::uint32_t in_flight_ = 0;
  std::uint32_t posted_ = 0, taken_ = 0;
  std::uint64_t under_way_ = 0;  // a bit for each tag
  std::uint64_t value_ = 0;      // of the last completion
  std::array<BlockTransfer, kMost> transfers_{};  // by tag
};

}  // namespace whimbrel
