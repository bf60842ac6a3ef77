// mirror:A,B: its messages, and how it is made.
#include "devices/composite/mirror_kind.h"

#include "devices/composite/mirror_device.h"
#include "devices/composite/part_specs.h"

namespace whimbrel {
namespace {

Result<void> parse_mirror(std::string_view text, DeviceKinds kinds, PartSpecs& specs, SpecMessage& message) noexcept {
  if (const auto good = specs.parse("mirror", text, kinds, message); !good) return good;
  if (specs.count == 2) return {};
  message.add("mirror: is made of two devices, e.g. mirror:file:/disk1,file:/disk2");
  return fail(Errc::kInvalid, 0, "legs of a mirror");
}

Result<void> check_mirror(std::string_view text, DeviceKinds kinds, SpecMessage& message) noexcept {
  PartSpecs specs;
  if (const auto good = parse_mirror(text, kinds, specs, message); !good) return good;
  return specs.check(kinds, message);
}

Result<Device*> make_mirror(std::string_view text, const DeviceEnvironment& environment,
                            SpecMessage& message) noexcept {
  PartSpecs specs;
  if (const auto good = parse_mirror(text, environment.kinds, specs, message); !good) {
    return std::unexpected(good.error());
  }
  std::array<DeviceHandle, 2> legs;
  if (const auto made = specs.make(environment, legs, message); !made) return std::unexpected(made.error());
  const Result<MirrorDevice*> device = MirrorDevice::create(environment.memory, legs,
                                                            {.max_pages = environment.max_pages,
                                                             .store_workers = environment.store_threads,
                                                             .load_workers = environment.load_threads,
                                                             .clock = environment.clock});
  if (device) return *device;
  message.add("mirror: cannot be set up: ").add(errc_name(device.error().code)).add(" (").add(device.error().where);
  message.add(")");
  return std::unexpected(device.error());
}

void destroy_mirror(MemorySource& memory, Device* device) noexcept {
  destroy_from(memory, static_cast<MirrorDevice*>(device));
}

}  // namespace

constinit const DeviceKind kMirrorDevice = {
    .name = "mirror",
    .usage = "mirror:DEVICE,DEVICE  two devices with the same pages: one may fail",
    .check = check_mirror,
    .make = make_mirror,
    .destroy = destroy_mirror,
    .made_of_devices = true};

}  // namespace whimbrel
