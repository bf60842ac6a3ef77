// chain:A@SIZE,B@SIZE,C: its messages, and how it is made.
#include "devices/composite/chain_kind.h"

#include "devices/composite/chain_device.h"
#include "devices/composite/part_specs.h"

namespace whimbrel {
namespace {

Result<void> parse_chain(std::string_view text, DeviceKinds kinds, PartSpecs& specs, SpecMessage& message) noexcept {
  if (const auto good = specs.parse("chain", text, kinds, message); !good) return good;
  if (specs.count < 2) {
    message.add("chain: needs two devices or more, the fastest first, e.g. chain:lz4@256M,file:/var/tmp");
    return fail(Errc::kInvalid, 0, "parts of a chain");
  }
  for (std::uint32_t i = 0; i + 1 < specs.count; ++i) {
    const PartSpec& part = specs.parts[i];
    if (part.limited || part.kind->made_of_devices) continue;
    message.add("chain: nothing would ever move on from ").add(part.text()).add(", which has no limit; write ");
    message.add(part.text()).add("@256M or so");
    return fail(Errc::kInvalid, 0, "parts of a chain");
  }
  return {};
}

Result<void> check_chain(std::string_view text, DeviceKinds kinds, SpecMessage& message) noexcept {
  PartSpecs specs;
  if (const auto good = parse_chain(text, kinds, specs, message); !good) return good;
  return specs.check(kinds, message);
}

Result<Device*> make_chain(std::string_view text, const DeviceEnvironment& environment, SpecMessage& message) noexcept {
  PartSpecs specs;
  if (const auto good = parse_chain(text, environment.kinds, specs, message); !good) {
    return std::unexpected(good.error());
  }
  std::array<DeviceHandle, kMostParts> tiers;
  if (const auto made = specs.make(environment, tiers, message); !made) return std::unexpected(made.error());
  const Result<ChainDevice*> device = ChainDevice::create(environment.memory, std::span(tiers.data(), specs.count),
                                                          {.max_pages = environment.max_pages,
                                                           .store_workers = environment.store_threads,
                                                           .load_workers = environment.load_threads,
                                                           .clock = environment.clock});
  if (device) return *device;
  message.add("chain: cannot be set up: ")
      .add(errc_name(device.error().code))
      .add(" (")
      .add(device.error().where)
      .add(")");
  return std::unexpected(device.error());
}

void destroy_chain(MemorySource& memory, Device* device) noexcept {
  destroy_from(memory, static_cast<ChainDevice*>(device));
}

}  // namespace

constinit const DeviceKind kChainDevice = {
    .name = "chain",
    .usage =
        "chain:DEVICE@SIZE,...,DEVICE  devices in a row: what is oldest moves on to the next,\n"
        "        e.g. chain:lz4@256M,zstd@1G,file:/var/tmp@20G",
    .check = check_chain,
    .make = make_chain,
    .destroy = destroy_chain,
    .made_of_devices = true};

}  // namespace whimbrel
