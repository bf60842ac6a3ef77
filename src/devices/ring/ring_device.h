// RingDevice: page contents behind the device process: an ExtentDevice over a RingStore.
#pragma once

#include "devices/extents/extent_device.h"
#include "devices/ring/ring_store.h"

namespace whimbrel {

class RingDevice final : public ExtentDevice {
 public:
  // Connects. `address` and `target` as of RingStore; text in `message` when the device process says what is wrong.
  // Errors of RingConnection::open(); kInvalid for options out of range, kNoMemory. Destroy with destroy_from().
  [[nodiscard]] static Result<RingDevice*> create(MemorySource& source, const char* address, const RingHello& target,
                                                  const ExtentDevice::Options& options, SpecMessage& message) noexcept;

  RingDevice(MemorySource& source, const char* address, const RingHello& target,
             const ExtentDevice::Options& options) noexcept
      : ExtentDevice(source, store_, options), store_(address, target) {}
  ~RingDevice() override = default;

  [[nodiscard]] RingStore& store() noexcept { return store_; }

 private:
  RingStore store_;
};

}  // namespace whimbrel
