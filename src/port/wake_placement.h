// WakePlacement: where a thread that waited for a page goes on. A fault costs two switches between the toucher and the
// fault thread; between two processors each of them is an interrupt, which can cost more than all the rest.
#pragma once

#include <cstdint>

namespace whimbrel {

class WakePlacement {
 public:
  virtual ~WakePlacement() = default;
  // Around the serving of one fault of `thread` (0: not known), on the fault thread. begin() says whether the toucher is
  // certain to go on beside the fault thread, on the same processor.
  virtual bool begin(std::uint32_t thread) noexcept = 0;
  virtual void end() noexcept = 0;
};

}  // namespace whimbrel
