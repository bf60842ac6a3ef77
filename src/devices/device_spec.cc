#include "devices/device_spec.h"

#include "devices/composite/part_specs.h"
#include "devices/text_cut.h"

namespace whimbrel {
namespace {

struct Split {
  const DeviceKind* kind;
  std::string_view arguments;
};

void list_kinds(DeviceKinds kinds, SpecMessage& message) noexcept {
  for (std::size_t i = 0; i < kinds.size(); ++i) {
    if (i > 0) message.add(i + 1 < kinds.size() ? ", " : " and ");
    message.add(kinds[i]->name);
  }
}

Result<Split> split(std::string_view text, DeviceKinds kinds, SpecMessage& message) noexcept {
  const auto [name, arguments] = cut(text, ':');
  for (const DeviceKind* kind : kinds) {
    if (kind->name == name) return Split{kind, arguments};
  }
  if (text.empty()) {
    message.add("the device is empty; name one of ");
  } else {
    message.add("there is no device '").add(name).add("'; there are ");
  }
  list_kinds(kinds, message);
  return fail(Errc::kInvalid, 0, "device name");
}

}  // namespace

Result<void> check_device_spec(std::string_view text, DeviceKinds kinds, SpecMessage& message) noexcept {
  message.clear();
  const Result<Split> parts = split(text, kinds, message);
  if (!parts) return std::unexpected(parts.error());
  return parts->kind->check(parts->arguments, kinds, message);
}

bool needs_device_process(std::string_view text, DeviceKinds kinds) noexcept {
  SpecMessage unused;
  const Result<Split> parts = split(text, kinds, unused);
  if (!parts) return false;
  if (!parts->kind->made_of_devices) return parts->kind->try_out != nullptr;
  PartSpecs inner;
  if (!inner.parse(parts->kind->name, parts->arguments, kinds, unused)) return false;
  for (std::uint32_t i = 0; i < inner.count; ++i) {
    if (needs_device_process(inner.parts[i].text(), kinds)) return true;
  }
  return false;
}

Result<void> try_device_spec(std::string_view text, DeviceKinds kinds, const char* device_process,
                             SpecMessage& message) noexcept {
  message.clear();
  const Result<Split> parts = split(text, kinds, message);
  if (!parts) return std::unexpected(parts.error());
  if (parts->kind->try_out != nullptr) return parts->kind->try_out(parts->arguments, device_process, message);
  if (!parts->kind->made_of_devices) return {};
  PartSpecs inner;
  if (const auto good = inner.parse(parts->kind->name, parts->arguments, kinds, message); !good) return good;
  for (std::uint32_t i = 0; i < inner.count; ++i) {
    const Result<void> good = try_device_spec(inner.parts[i].text(), kinds, device_process, message);
    if (!good) return good;
  }
  return {};
}

Result<DeviceHandle> make_device(std::string_view text, const DeviceEnvironment& environment,
                                 SpecMessage& message) noexcept {
  message.clear();
  const Result<Split> parts = split(text, environment.kinds, message);
  if (!parts) return std::unexpected(parts.error());
  const Result<Device*> device = parts->kind->make(parts->arguments, environment, message);
  if (!device) return std::unexpected(device.error());
  return DeviceHandle(environment.memory, *parts->kind, *device);
}

}  // namespace whimbrel
