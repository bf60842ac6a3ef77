// IoRing: one io_uring, by its system calls: transfers between a file and memory, started together, done in any order.
//
// For one thread at a time. Nothing is allocated and nothing locked. The rings are shared memory with the kernel: a
// forked child does not get them, and its copy of the object must forget_after_fork().
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"

struct io_uring_sqe;
struct io_uring_cqe;

namespace whimbrel {

struct FileTransfer {
  enum class Kind : std::uint8_t { kRead, kWrite };
  Kind kind = Kind::kRead;
  int fd = -1;
  std::byte* memory = nullptr;
  std::uint32_t bytes = 0;
  std::uint64_t offset = 0;
  int flags = 0;               // RWF_*
  std::uint16_t priority = 0;  // as ioprio_set(2) takes it; 0: the thread's
};

class IoRing {
 public:
  struct Done {
    std::uint64_t tag = 0;
    int result = 0;  // bytes moved, or -errno
  };

  IoRing() = default;
  ~IoRing() { close(); }
  IoRing(const IoRing&) = delete;
  IoRing& operator=(const IoRing&) = delete;

  // Room for `entries` transfers at a time, rounded up to a power of two. kNotPermitted, kNotSupported where io_uring
  // is denied or unknown; kNoMemory.
  [[nodiscard]] Result<void> open(unsigned entries) noexcept;
  // With nothing in flight.
  void close() noexcept;
  void forget_after_fork() noexcept { *this = State(); }
  [[nodiscard]] bool is_open() const noexcept { return state_.fd >= 0; }

  // Puts a transfer into the queue; start() hands it to the kernel. Never more than `entries` between push() and pop().
  void push(const FileTransfer& transfer, std::uint64_t tag) noexcept;
  // Starts what was pushed, then waits until `wait` transfers can be popped. An error: what was pushed and not started
  // stays in the queue, see take_back().
  [[nodiscard]] Result<void> start(unsigned wait) noexcept;
  // The next transfer that is done, if there is one.
  [[nodiscard]] bool pop(Done& done) noexcept;
  // Removes what was pushed and not started: the last so many pushes.
  [[nodiscard]] unsigned take_back() noexcept;

 private:
  struct State {
    int fd = -1;
    std::byte* rings = nullptr;
    std::size_t ring_bytes = 0;
    io_uring_sqe* entries = nullptr;
    std::size_t entry_bytes = 0;
    std::uint32_t* sq_head = nullptr;
    std::uint32_t* sq_tail = nullptr;
    std::uint32_t sq_mask = 0;
    std::uint32_t* cq_head = nullptr;
    std::uint32_t* cq_tail = nullptr;
    std::uint32_t cq_mask = 0;
    io_uring_cqe* done = nullptr;
  };
  IoRing& operator=(const State& state) noexcept {
    state_ = state;
    return *this;
  }
  [[nodiscard]] std::uint32_t not_started() const noexcept;

  State state_;
};

}  // namespace whimbrel
