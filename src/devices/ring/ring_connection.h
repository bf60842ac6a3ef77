// RingConnection: one process's connection to the device process: a socket and the memory of a ring (ring_protocol.h).
//
// Thread-safe once it is open; open(), close() and the fork calls come one at a time.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "devices/ring/ring_protocol.h"
#include "devices/spec_message.h"

namespace whimbrel {

class RingConnection {
 public:
  static constexpr std::size_t kMostAddress = 160;

  RingConnection() = default;
  RingConnection(const RingConnection&) = delete;
  RingConnection& operator=(const RingConnection&) = delete;
  ~RingConnection() { close(); }

  // `address`: of the device process, "USER:NAME:TOKEN" with 32 hexadecimal digits of token. The token and the magic
  // number of the hello are filled in here. An error has text in `message` when it comes from the device process.
  // kNotFound: no device process; kNotPermitted: somebody else has its name; else what the errno of the welcome means.
  [[nodiscard]] Result<void> open(const char* address, const RingHello& hello, SpecMessage& message) noexcept;
  // Only asks whether the target can be used.
  [[nodiscard]] static Result<RingWelcome> probe(const char* address, const RingHello& hello,
                                                 SpecMessage& message) noexcept;
  void close() noexcept;
  // The socket as well: in the process that the connection was not made for.
  [[nodiscard]] bool is_open() const noexcept { return memory_ != nullptr; }
  [[nodiscard]] const RingWelcome& welcome() const noexcept { return welcome_; }

  [[nodiscard]] RingLane& lane(std::uint32_t number) const noexcept {
    return *reinterpret_cast<RingLane*>(memory_ + (1 + std::size_t{number}) * WHIMBREL_RING_PAGE);
  }
  [[nodiscard]] std::byte* slot(std::uint32_t lane, std::uint32_t number) const noexcept {
    return memory_ + (1 + std::size_t{lanes_}) * WHIMBREL_RING_PAGE +
           (std::size_t{lane} * depth_ + number) * slot_bytes_;
  }
  // After requests were posted: the device process takes notice.
  void notify() noexcept;
  // Looks at the socket; once the other end is gone it stays gone.
  [[nodiscard]] bool is_alive() noexcept;
  [[nodiscard]] bool is_given_up() const noexcept { return gone_.load(std::memory_order_acquire); }
  // Nothing in the ring is to be believed any more.
  void give_up() noexcept { gone_.store(true, std::memory_order_release); }

  // ---- fork ----
  [[nodiscard]] int socket() const noexcept { return socket_; }
  [[nodiscard]] bool owns(int descriptor) const noexcept;
  // The memory is not copied to children from now on.
  void keep_from_children() noexcept;
  // In a child: its parent's memory was not copied, and its socket is in another table.
  void forget() noexcept;
  // Takes over everything the other one has.
  void take(RingConnection& other) noexcept;

 private:
  [[nodiscard]] static Result<int> say_hello(const char* address, const RingHello& hello, RingWelcome& welcome,
                                             int* memory, SpecMessage& message) noexcept;

  int socket_ = -1;
  std::uint64_t inode_ = 0;  // of the socket
  std::byte* memory_ = nullptr;
  std::size_t bytes_ = 0;
  std::uint32_t lanes_ = 0, depth_ = 0, slot_bytes_ = 0;
  RingWelcome welcome_{};
  std::atomic<bool> gone_{false};
};

}  // namespace whimbrel
