// file:PATH: its options, its messages, and how it is made.
#include "devices/file/file_kind.h"

#include <array>
#include <cstring>

#include "devices/file/file_device.h"
#include "devices/spec_options.h"
#include "devices/text_cut.h"
#include "linux/errno_text.h"

namespace whimbrel {
namespace {

using namespace std::string_view_literals;

constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};
constexpr std::uint64_t kMinSize = std::uint64_t{1} << 20;
constexpr std::array kDirect = {"auto"sv, "on"sv, "off"sv};
constexpr std::array kCompress = {"none"sv, "lz4"sv, "zstd"sv};
constexpr std::array kRing = {"auto"sv, "off"sv};
constexpr std::array kOffOn = {"off"sv, "on"sv};

struct FileArguments {
  char path[FileDevice::kMostPath] = {};
  std::uint64_t size = 0, extent = 64 << 10, depth = 16, direct = 0, compress = 0, ring = 0, force = 0, encrypt = 0;

  Result<void> parse(std::string_view arguments, SpecMessage& message) noexcept {
    const auto [name, rest] = cut(arguments, ',');
    if (name.empty()) {
      message.add("file: names no place; file:PATH, with PATH a new file, a directory or a block device");
      return fail(Errc::kInvalid, 0, "device option");
    }
    if (name.size() >= sizeof path) {
      message.add("file: the path is too long");
      return fail(Errc::kInvalid, 0, "device option");
    }
    std::memcpy(path, name.data(), name.size());
    path[name.size()] = 0;
    using Type = SpecOption::Type;
    const std::array options = {
        SpecOption{.name = "size", .type = Type::kSize, .min = kMinSize, .max = kNoLimit, .value = &size},
        SpecOption{.name = "direct", .type = Type::kChoice, .value = &direct, .choices = kDirect},
        SpecOption{.name = "extent", .type = Type::kUnit, .min = 4 << 10, .max = 256 << 10, .value = &extent},
        SpecOption{.name = "compress", .type = Type::kChoice, .value = &compress, .choices = kCompress},
        SpecOption{.name = "encrypt", .type = Type::kChoice, .value = &encrypt, .choices = kOffOn},
        SpecOption{.name = "depth", .type = Type::kNumber, .min = 1, .max = FileQueue::kMost, .value = &depth},
        SpecOption{.name = "ring", .type = Type::kChoice, .value = &ring, .choices = kRing},
        SpecOption{.name = "force", .type = Type::kChoice, .value = &force, .choices = kOffOn},
    };
    if (const auto good = parse_options("file", rest, options, message); !good) return good;
    if (encrypt != 0 && !ExtentCipher::is_possible()) {
      message.add(
          "file: encrypt=on needs a processor with AES instructions; encrypt the disk or its partition instead");
      return fail(Errc::kNotSupported, 0, "device option");
    }
    if (compress != 0 && extent > kMaxBlobPages * std::uint64_t{4096}) {
      message.add("file: extent is '").add_size(extent).add("', but with compress it can be at most 64K");
      return fail(Errc::kInvalid, 0, "device option");
    }
    return {};
  }

  [[nodiscard]] StoreFileOptions file() const noexcept {
    return {.path = path, .direct = static_cast<DirectIo>(direct), .force = force != 0};
  }
};

// "PATH cannot be made: no space left; name ..."
void explain(const char* path, const Error& error, SpecMessage& message) noexcept {
  if (error.code == Errc::kNoMemory && error.sys == 0) {
    message.add("file: cannot be set up: ").add(errc_name(error.code)).add(" (").add(error.where).add(")");
    return;
  }
  message.add("file: ").add(path).add(" ").add(error.where);
  if (error.code == Errc::kExists) {
    message.add("; name a new file or a directory, or add force=on to overwrite it");
    return;
  }
  if (error.sys != 0 && error.code != Errc::kBusy) message.add(": ").add(sys::errno_text(error.sys));
}

Result<void> check_file(std::string_view text, DeviceKinds, SpecMessage& message) noexcept {
  FileArguments arguments;
  if (const auto good = arguments.parse(text, message); !good) return good;
  const Result<void> possible = check_store_path(arguments.file());
  if (possible) return {};
  explain(arguments.path, possible.error(), message);
  return fail(Errc::kInvalid, possible.error().sys, "device path");
}

Result<Device*> make_file(std::string_view text, const DeviceEnvironment& environment, SpecMessage& message) noexcept {
  FileArguments arguments;
  if (const auto good = arguments.parse(text, message); !good) return std::unexpected(good.error());
  constexpr CodecId kCodecs[] = {CodecId::kRaw, CodecId::kLz4, CodecId::kZstd};
  const Result<FileDevice*> device =
      FileDevice::create(environment.memory, {.path = arguments.path,
                                              .force = arguments.force != 0,
                                              .direct = static_cast<DirectIo>(arguments.direct),
                                              .ring = arguments.ring == 0,
                                              .size_bytes = arguments.size,
                                              .unit_pages = static_cast<std::uint32_t>(arguments.extent / 4096),
                                              .codec = kCodecs[arguments.compress],
                                              .encrypt = arguments.encrypt != 0,
                                              .depth = static_cast<std::uint32_t>(arguments.depth),
                                              .max_pages = environment.max_pages,
                                              .store_workers = environment.store_threads,
                                              .load_workers = environment.load_threads,
                                              .clock = environment.clock});
  if (device) return *device;
  explain(arguments.path, device.error(), message);
  return std::unexpected(device.error());
}

void destroy_file(MemorySource& memory, Device* device) noexcept {
  destroy_from(memory, static_cast<FileDevice*>(device));
}

}  // namespace

constinit const DeviceKind kFileDevice = {
    .name = "file",
    .usage =
        "file:PATH[,size=SIZE,direct=auto|on|off,extent=4K..256K,compress=none|lz4|zstd,encrypt=off|on,"
        "depth=1..64,ring=auto|off,force=off|on]\n        a new file, a nameless one in a directory, or a block device",
    .check = check_file,
    .make = make_file,
    .destroy = destroy_file,
    .starts_with_path = true,
    .limit_option = "size"};

}  // namespace whimbrel
