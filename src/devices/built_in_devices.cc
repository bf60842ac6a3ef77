// The kinds of device there are. Here those that keep contents in the process's own memory: what their options are and
// how they are made.
#include <array>

#include "devices/composite/chain_kind.h"
#include "devices/composite/mirror_kind.h"
#include "devices/compressed_device.h"
#include "devices/device_spec.h"
#include "devices/file/file_kind.h"
#include "devices/ram_device.h"
#include "devices/ring/nbd_kind.h"
#include "devices/spec_options.h"

namespace whimbrel {
namespace {

constexpr std::uint64_t kPageBytes = 4096;
constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};
constexpr std::uint64_t kMinCapacity = std::uint64_t{1} << 20;

template <class T>
void destroy(MemorySource& memory, Device* device) noexcept {
  destroy_from(memory, static_cast<T*>(device));
}

// The device, or the error with a message that says which device could not be made.
template <class T>
Result<Device*> made(const Result<T*>& device, std::string_view name, SpecMessage& message) noexcept {
  if (device) return *device;
  message.add(name).add(": cannot be set up: ").add(errc_name(device.error().code)).add(" (").add(device.error().where);
  message.add(")");
  return std::unexpected(device.error());
}

// --- ram ------------------------------------------------------------------------------------------------------------

struct RamArguments {
  std::uint64_t unit = 64 << 10, capacity = 0;

  Result<void> parse(std::string_view arguments, SpecMessage& message) noexcept {
    const std::array options = {
        SpecOption{"unit", SpecOption::Type::kUnit, kPageBytes, 512 * kPageBytes, &unit},
        SpecOption{"capacity", SpecOption::Type::kSize, kMinCapacity, kNoLimit, &capacity},
    };
    return parse_options("ram", arguments, options, message);
  }
};

Result<void> check_ram(std::string_view arguments, DeviceKinds, SpecMessage& message) noexcept {
  return RamArguments{}.parse(arguments, message);
}

Result<Device*> make_ram(std::string_view text, const DeviceEnvironment& environment, SpecMessage& message) noexcept {
  RamArguments arguments;
  if (const auto good = arguments.parse(text, message); !good) return std::unexpected(good.error());
  // A reservation of one page takes a whole unit's number, so there must be more units than a full device needs.
  constexpr std::uint64_t kUnits = std::uint64_t{1} << 20;
  return made(RamDevice::create(environment.memory,
                                {.max_units = environment.max_pages < kUnits ? environment.max_pages : kUnits,
                                 .unit_pages = static_cast<std::uint32_t>(arguments.unit / kPageBytes),
                                 .capacity_bytes = arguments.capacity,
                                 .clock = environment.clock}),
              "ram", message);
}

// --- lz4 and zstd ---------------------------------------------------------------------------------------------------

struct CompressedArguments {
  // zstd gains a sixth by units of four pages. LZ4 gains a tenth, less than the pages that came home alone and keep
  // their unit alive cost; and a lone page comes home faster.
  std::uint64_t level = 1, unit = 0, capacity = 0;

  Result<void> parse(CodecId codec, std::string_view arguments, SpecMessage& message) noexcept {
    unit = codec == CodecId::kLz4 ? kPageBytes : 4 * kPageBytes;
    const std::array options = {
        SpecOption{"unit", SpecOption::Type::kUnit, kPageBytes, kMaxBlobPages * kPageBytes, &unit},
        SpecOption{"capacity", SpecOption::Type::kSize, kMinCapacity, kNoLimit, &capacity},
        SpecOption{"level", SpecOption::Type::kNumber, kMinZstdLevel, kMaxZstdLevel, &level},
    };
    // lz4 has no level: its faster ones lose more than they gain.
    const std::span<const SpecOption> taken(options.data(), codec == CodecId::kZstd ? 3 : 2);
    return parse_options(codec_name(codec), arguments, taken, message);
  }
};

template <CodecId kCodec>
Result<void> check_compressed(std::string_view arguments, DeviceKinds, SpecMessage& message) noexcept {
  return CompressedArguments{}.parse(kCodec, arguments, message);
}

template <CodecId kCodec>
Result<Device*> make_compressed(std::string_view text, const DeviceEnvironment& environment,
                                SpecMessage& message) noexcept {
  CompressedArguments arguments;
  if (const auto good = arguments.parse(kCodec, text, message); !good) return std::unexpected(good.error());
  return made(CompressedDevice::create(environment.memory,
                                       {.codec = kCodec,
                                        .level = static_cast<int>(arguments.level),
                                        .unit_pages = static_cast<std::uint32_t>(arguments.unit / kPageBytes),
                                        .capacity_bytes = arguments.capacity,
                                        .max_pages = environment.max_pages,
                                        .store_contexts = environment.store_threads,
                                        .load_contexts = environment.load_threads,
                                        .clock = environment.clock}),
              codec_name(kCodec), message);
}

constexpr DeviceKind kRam = {.name = "ram",
                             .usage = "ram[:unit=4K..2M,capacity=SIZE]  as it is, in memory: saves nothing",
                             .check = check_ram,
                             .make = make_ram,
                             .destroy = destroy<RamDevice>,
                             .limit_option = "capacity"};
constexpr DeviceKind kLz4 = {.name = "lz4",
                             .usage = "lz4[:unit=4K..64K,capacity=SIZE]  compressed memory, fast",
                             .check = check_compressed<CodecId::kLz4>,
                             .make = make_compressed<CodecId::kLz4>,
                             .destroy = destroy<CompressedDevice>,
                             .limit_option = "capacity"};
constexpr DeviceKind kZstd = {.name = "zstd",
                              .usage = "zstd[:level=1..19,unit=4K..64K,capacity=SIZE]  compressed memory, dense",
                              .check = check_compressed<CodecId::kZstd>,
                              .make = make_compressed<CodecId::kZstd>,
                              .destroy = destroy<CompressedDevice>,
                              .limit_option = "capacity"};
constexpr std::array kKinds = {&kRam, &kLz4, &kZstd, &kFileDevice, &kNbdDevice, &kChainDevice, &kMirrorDevice};

}  // namespace

DeviceKinds built_in_devices() noexcept { return kKinds; }

}  // namespace whimbrel
