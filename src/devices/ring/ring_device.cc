#include "devices/ring/ring_device.h"

namespace whimbrel {

Result<RingDevice*> RingDevice::create(MemorySource& source, const char* address, const RingHello& target,
                                       const ExtentDevice::Options& options, SpecMessage& message) noexcept {
  if (const Result<void> good = check(options); !good) return std::unexpected(good.error());
  auto* device = make_from<RingDevice>(source, source, address, target, options);
  if (device == nullptr) return fail(Errc::kNoMemory, 0, "RingDevice");
  if (const Result<void> ready = device->init(); !ready) {
    message.add(device->store_.message().text());
    destroy_from(source, device);
    return std::unexpected(ready.error());
  }
  return device;
}

}  // namespace whimbrel
