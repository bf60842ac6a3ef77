// Device specifications: `ram`, `lz4`, `zstd:level=3,unit=16K,capacity=2G`.
//
//   NAME[:ARGUMENTS]      what the arguments mean is the business of the kind of device that has the name
//
// A kind of device is one constant DeviceKind. To add one, write it beside the device and put it in the list of kinds
// that the caller passes (built_in_devices() for our own); nothing else has to know it. A device made of devices gets
// the whole list and makes its parts by make_device().
//
// Nothing here allocates, except for the device itself, from the environment's memory.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>
#include <utility>

#include "base/clock.h"
#include "base/error.h"
#include "base/memory_source.h"
#include "devices/spec_message.h"
#include "port/device.h"

namespace whimbrel {

struct DeviceKind;
using DeviceKinds = std::span<const DeviceKind* const>;

// Where a device is made. References outlive it.
struct DeviceEnvironment {
  MemorySource& memory;
  DeviceKinds kinds;
  const char* device_process = nullptr;  // its address, for devices that it stands behind; null: there is none
  const Clock* clock = nullptr;          // for the times in DeviceStats; null: they stay 0
  std::uint64_t max_pages = 1ull << 28;  // the most slots that can ever be wanted
  std::uint32_t store_threads = 2;       // that are to work at a time, each with buffers of its own
  std::uint32_t load_threads = 4;
};

struct DeviceKind {
  std::string_view name;
  const char* usage;  // one line for help: "zstd[:level=1..19,...]  what it is"
  // Looks the arguments over and makes nothing. kInvalid with a message.
  Result<void> (*check)(std::string_view arguments, DeviceKinds kinds, SpecMessage& message) noexcept;
  // kInvalid, kNoMemory, kNotFound, kNotPermitted, kNotSupported, always with a message.
  Result<Device*> (*make)(std::string_view arguments, const DeviceEnvironment& environment,
                          SpecMessage& message) noexcept;
  void (*destroy)(MemorySource& memory, Device* device) noexcept;
  // The arguments begin with a path: whoever hands the specification to a process elsewhere makes that absolute.
  bool starts_with_path = false;
  // The arguments are devices themselves (composite/part_specs.h).
  bool made_of_devices = false;
  // The option that limits how much the device holds; empty: it has none.
  std::string_view limit_option = {};
  // Only devices behind the device process have it: whether one could be made, by asking there. Errors as of make().
  Result<void> (*try_out)(std::string_view arguments, const char* device_process, SpecMessage& message) noexcept = nullptr;
};

// Owns a device that was made by its kind.
class DeviceHandle {
 public:
  DeviceHandle() = default;
  DeviceHandle(MemorySource& memory, const DeviceKind& kind, Device* device) noexcept
      : memory_(&memory), kind_(&kind), device_(device) {}
  DeviceHandle(DeviceHandle&& other) noexcept { swap(other); }
  DeviceHandle& operator=(DeviceHandle&& other) noexcept {
    swap(other);
    return *this;
  }
  ~DeviceHandle() {
    if (device_ != nullptr) kind_->destroy(*memory_, device_);
  }
  [[nodiscard]] Device* get() const noexcept { return device_; }
  Device* operator->() const noexcept { return device_; }
  Device& operator*() const noexcept { return *device_; }
  explicit operator bool() const noexcept { return device_ != nullptr; }

 private:
  void swap(DeviceHandle& other) noexcept {
    std::swap(memory_, other.memory_);
    std::swap(kind_, other.kind_);
    std::swap(device_, other.device_);
  }
  MemorySource* memory_ = nullptr;
  const DeviceKind* kind_ = nullptr;
  Device* device_ = nullptr;
};

// ram, lz4, zstd, file, nbd, chain and mirror.
[[nodiscard]] DeviceKinds built_in_devices() noexcept;

// Whether the text is a good specification. kInvalid with a message that says what is wrong and what is allowed.
[[nodiscard]] Result<void> check_device_spec(std::string_view text, DeviceKinds kinds, SpecMessage& message) noexcept;

// Whether a device of this specification, or a part of it, needs the device process. Of a good specification.
[[nodiscard]] bool needs_device_process(std::string_view text, DeviceKinds kinds) noexcept;
// Tries out everything in the specification that stands behind the device process. Errors with a message.
[[nodiscard]] Result<void> try_device_spec(std::string_view text, DeviceKinds kinds, const char* device_process,
                                           SpecMessage& message) noexcept;

// Makes the device. Errors as of DeviceKind::make(), always with a message.
[[nodiscard]] Result<DeviceHandle> make_device(std::string_view text, const DeviceEnvironment& environment,
                                               SpecMessage& message) noexcept;

}  // namespace whimbrel
