// MemoryGauge: what the kernel says about the size of this process, for a few microseconds a look.
//
// Opened and read on one engine thread. Stays good when the program's main thread exits, and when the program changes
// its credentials.
#pragma once

#include <cstdint>

#include "base/error.h"

namespace whimbrel {

class MemoryGauge {
 public:
  struct Reading {
    std::uint64_t mapped_bytes = 0;     // addresses; grows with every new mapping
    std::uint64_t anonymous_bytes = 0;  // resident private memory, the engine's own included
  };

  // In the descriptor table of the calling thread.
  [[nodiscard]] Result<void> open() noexcept;
  [[nodiscard]] Result<Reading> read() const noexcept;
  // In a forked child: the descriptor was the parent's.
  void forget() noexcept { fd_ = -1; }

 private:
  int fd_ = -1;
};

}  // namespace whimbrel
