// Footprint: how much RAM the engine itself uses. Asked of whoever put the engine together, since only he knows which
// memory serves what.
#pragma once

#include <cstdint>

namespace whimbrel {

class Footprint {
 public:
  virtual ~Footprint() = default;
  // Bytes of RAM held by engine tables, stacks and buffers: without the contents of the device and without staging
  // frames, which the pager counts by itself. Called on engine threads, often; must not block.
  [[nodiscard]] virtual std::uint64_t own_bytes() const noexcept = 0;
};

}  // namespace whimbrel
