// RingClient: the device process's end of one engine's ring (devices/ring/ring_protocol.h).
//
// For one thread. Nothing that the other end writes is believed: requests are copied, then checked.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <string>
#include <vector>

#include "devices/ring/ring_protocol.h"

namespace whimbrel::device_process {

class RingClient {
 public:
  // Owns the socket. The ring is made by make_ring().
  explicit RingClient(int socket) : socket_(socket) {}
  ~RingClient();
  RingClient(const RingClient&) = delete;
  RingClient& operator=(const RingClient&) = delete;

  // A ring of that shape; the descriptor that the engine is to have, or -1 and `problem`. The caller closes it.
  [[nodiscard]] int make_ring(const RingHello& shape, std::string* problem);
  [[nodiscard]] int socket() const { return socket_; }
  // Answers the hello; `memory`: a descriptor to go with it, or -1.
  void answer(const RingWelcome& welcome, int memory) const;

  [[nodiscard]] std::uint32_t lanes() const { return lanes_; }
  // The next request of a lane.
  [[nodiscard]] std::optional<RingRequest> take(std::uint32_t lane);
  [[nodiscard]] bool has_request() const;
  [[nodiscard]] std::byte* slot(std::uint32_t lane, std::uint32_t number) const {
    return data_ + (std::size_t{lane} * depth_ + number) * slot_bytes_;
  }
  [[nodiscard]] std::uint32_t slot_bytes() const { return slot_bytes_; }
  void complete(std::uint32_t lane, std::uint32_t slot, int error, std::uint64_t value);
  void set_asleep(bool asleep);
  // Takes what came over the socket. False: the other end is gone, or does not keep to the rules.
  [[nodiscard]] bool hear_bells();
  [[nodiscard]] bool breaks_rules() const { return breaks_rules_; }

  // ---- for the export ----
  std::uint64_t id = 0;                // RingWelcome::connection
  std::uint32_t own_volume = 0;        // that it may write to
  std::vector<std::uint32_t> volumes;  // that it may read, its own among them
  std::size_t outstanding = 0;         // requests under way
  bool leaving = false;                // gone, but something of its is still under way

 private:
  [[nodiscard]] RingLane& lane(std::uint32_t number) const {
    return *reinterpret_cast<RingLane*>(memory_ + (1 + std::size_t{number}) * WHIMBREL_RING_PAGE);
  }

  int socket_;
  std::byte* memory_ = nullptr;
  std::byte* data_ = nullptr;
  std::size_t bytes_ = 0;
  std::uint32_t lanes_ = 0, depth_ = 0, slot_bytes_ = 0;
  std::vector<std::uint32_t> taken_, done_;  // by lane: our own counts
  bool breaks_rules_ = false;
};

}  // namespace whimbrel::device_process
