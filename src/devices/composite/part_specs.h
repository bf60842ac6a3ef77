// The specifications within a specification: `lz4@256M,zstd:level=3,unit=16K@1G,file:/path@20G`.
//
// Parts are separated by commas, as options are; a part begins where the name of a kind of device does. `@SIZE` limits
// what a part may hold; it stands for the part's own option (capacity or size). A part that is itself made of devices
// is put into brackets: `lz4@256M,[mirror:file:/a,file:/b]`. What follows an @ and is not a size belongs to the part:
// names of files and hosts may contain one.
#pragma once

#include <array>
#include <cstdint>
#include <span>
#include <string_view>

#include "devices/composite/part_batch.h"
#include "devices/device_spec.h"

namespace whimbrel {

struct PartSpec {
  std::array<char, 1280> buffer{};
  std::size_t size = 0;
  const DeviceKind* kind = nullptr;
  bool limited = false;  // by @SIZE or by its own option

  [[nodiscard]] std::string_view text() const noexcept { return {buffer.data(), size}; }
};

struct PartSpecs {
  std::array<PartSpec, kMostParts> parts;
  std::uint32_t count = 0;

  // kInvalid with a message that begins with `device`.
  [[nodiscard]] Result<void> parse(std::string_view device, std::string_view arguments, DeviceKinds kinds,
                                   SpecMessage& message) noexcept;
  // Looks all parts over.
  [[nodiscard]] Result<void> check(DeviceKinds kinds, SpecMessage& message) const noexcept;
  // Makes all parts; when one cannot be made none is.
  [[nodiscard]] Result<void> make(const DeviceEnvironment& environment, std::span<DeviceHandle> devices,
                                  SpecMessage& message) const noexcept;
};

}  // namespace whimbrel
