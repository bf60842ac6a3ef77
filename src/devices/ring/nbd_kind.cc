// nbd:URI: its options, its messages, and how it is made. The server is spoken to by the device process.
#include "devices/ring/nbd_kind.h"

#include <array>
#include <cstring>

#include "devices/ring/ring_device.h"
#include "devices/spec_options.h"
#include "devices/text_cut.h"
#include "linux/errno_text.h"

namespace whimbrel {
namespace {

using namespace std::string_view_literals;

constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};
constexpr std::uint64_t kMinSize = std::uint64_t{1} << 20;
constexpr std::array kCompress = {"none"sv, "lz4"sv, "zstd"sv};
constexpr std::array kOffOn = {"off"sv, "on"sv};
constexpr std::array kSchemes = {"nbd://"sv, "nbds://"sv, "nbd+unix://"sv, "nbds+unix://"sv, "nbd+vsock://"sv,
                                 "nbds+vsock://"sv};

bool copy(std::string_view text, std::span<char> to) noexcept {
  if (text.size() >= to.size()) return false;
  std::memcpy(to.data(), text.data(), text.size());
  to[text.size()] = 0;
  return true;
}

struct NbdArguments {
  char uri[sizeof(RingHello::target)] = {};
  char certificates[sizeof(RingHello::certificates)] = {};
  std::uint64_t size = 0, extent = 64 << 10, depth = 16, compress = 0, encrypt = 0, connections = 4, timeout = 60,
                force = 0;

  Result<void> parse(std::string_view arguments, SpecMessage& message) noexcept {
    const auto wrong = [&message](std::string_view what, std::string_view text) {
      message.add("nbd: ").add(what).add(text);
      return fail(Errc::kInvalid, 0, "device option");
    };
    const auto [place, rest] = cut(arguments, ',');
    if (place.empty()) return wrong("names no server; nbd:URI, for instance nbd:nbd://HOST/EXPORT", "");
    // nbd://HOST as a device is short for nbd:nbd://HOST.
    const bool is_short = place.starts_with("//");
    std::string_view whole = place;
    if (is_short) whole = {place.data() + 2, place.size() - 2};
    bool known = is_short;
    for (const std::string_view scheme : kSchemes) known = known || place.starts_with(scheme);
    if (!known) {
      message.add("nbd: '").add(place).add("' is no NBD URI; it begins with nbd://HOST, nbds://HOST with TLS, or ");
      message.add("nbd+unix:///?socket=PATH");
      return fail(Errc::kInvalid, 0, "device option");
    }
    const std::size_t ahead = is_short ? 6 : 0;
    if (is_short) std::memcpy(uri, "nbd://", 6);
    if (!copy(whole, std::span<char>(uri).subspan(ahead))) return wrong("the URI is too long", "");
    return parse_rest(rest, message);
  }

  // `certificates` is text, which the others are not: it is taken out before they are read.
  Result<void> parse_rest(std::string_view rest, SpecMessage& message) noexcept {
    std::array<char, 512> others{};
    std::size_t used = 0;
    while (!rest.empty()) {
      const auto [option, next] = cut(rest, ',');
      rest = next;
      if (option.starts_with("certificates=")) {
        const std::string_view value{option.data() + 13, option.size() - 13};
        if (value.empty() || !copy(value, certificates)) {
          message.add("nbd: certificates is a directory with ca-cert.pem, and client-cert.pem and client-key.pem");
          return fail(Errc::kInvalid, 0, "device option");
        }
        continue;
      }
      if (used + option.size() + 1 >= others.size()) return too_long(message);
      if (used != 0) others[used++] = ',';
      std::memcpy(others.data() + used, option.data(), option.size());
      used += option.size();
    }
    using Type = SpecOption::Type;
    const std::array options = {
        SpecOption{.name = "size", .type = Type::kSize, .min = kMinSize, .max = kNoLimit, .value = &size},
        SpecOption{.name = "extent", .type = Type::kUnit, .min = 4 << 10, .max = 256 << 10, .value = &extent},
        SpecOption{.name = "compress", .type = Type::kChoice, .value = &compress, .choices = kCompress},
        SpecOption{.name = "encrypt", .type = Type::kChoice, .value = &encrypt, .choices = kOffOn},
        SpecOption{.name = "depth", .type = Type::kNumber, .min = 1, .max = BlockQueue::kMost, .value = &depth},
        SpecOption{.name = "connections", .type = Type::kNumber, .min = 1, .max = 16, .value = &connections},
        SpecOption{.name = "timeout", .type = Type::kNumber, .min = 1, .max = 86400, .value = &timeout},
        SpecOption{.name = "force", .type = Type::kChoice, .value = &force, .choices = kOffOn},
    };
    if (const auto good = parse_options("nbd", {others.data(), used}, options, message); !good) return good;
    if (encrypt != 0 && !ExtentCipher::is_possible()) {
      message.add("nbd: encrypt=on needs a processor with AES instructions; use a server with TLS and an encrypted disk");
      return fail(Errc::kNotSupported, 0, "device option");
    }
    if (compress != 0 && extent > kMaxBlobPages * std::uint64_t{4096}) {
      message.add("nbd: extent is '").add_size(extent).add("', but with compress it can be at most 64K");
      return fail(Errc::kInvalid, 0, "device option");
    }
    return {};
  }

  static Result<void> too_long(SpecMessage& message) noexcept {
    message.add("nbd: the options are too long");
    return fail(Errc::kInvalid, 0, "device option");
  }

  [[nodiscard]] RingHello hello() const noexcept {
    RingHello out{};
    out.connections = static_cast<std::uint32_t>(connections);
    out.timeout_ms = static_cast<std::uint32_t>(timeout * 1000);
    out.force = static_cast<std::uint32_t>(force);
    std::memcpy(out.kind, "nbd", 4);
    std::memcpy(out.target, uri, sizeof out.target);
    std::memcpy(out.certificates, certificates, sizeof out.certificates);
    return out;
  }
};

// What is wrong, in words, unless the device process has said it.
void explain(std::string_view said, const Error& error, SpecMessage& message) noexcept {
  message.add("nbd: ");
  if (!said.empty()) {
    message.add(said);
    return;
  }
  message.add(error.where == nullptr || *error.where == 0 ? errc_name(error.code) : error.where);
  if (error.sys != 0) message.add(": ").add(sys::errno_text(error.sys));
}

Result<void> check_nbd(std::string_view text, DeviceKinds, SpecMessage& message) noexcept {
  return NbdArguments{}.parse(text, message);
}

Result<void> try_nbd(std::string_view text, const char* device_process, SpecMessage& message) noexcept {
  NbdArguments arguments;
  if (const auto good = arguments.parse(text, message); !good) return good;
  SpecMessage said;
  const Result<RingWelcome> answer = RingConnection::probe(device_process, arguments.hello(), said);
  if (answer) return {};
  explain(said.text(), answer.error(), message);
  return std::unexpected(answer.error());
}

Result<Device*> make_nbd(std::string_view text, const DeviceEnvironment& environment, SpecMessage& message) noexcept {
  NbdArguments arguments;
  if (const auto good = arguments.parse(text, message); !good) return std::unexpected(good.error());
  if (environment.device_process == nullptr || *environment.device_process == 0) {
    message.add("nbd: needs the device process, which `whimbrel run` starts; sessions have none yet");
    return fail(Errc::kNotFound, 0, "no device process");
  }
  constexpr CodecId kCodecs[] = {CodecId::kRaw, CodecId::kLz4, CodecId::kZstd};
  SpecMessage said;
  const Result<RingDevice*> device =
      RingDevice::create(environment.memory, environment.device_process, arguments.hello(),
                         {.size_bytes = arguments.size,
                          .unit_pages = static_cast<std::uint32_t>(arguments.extent / 4096),
                          .codec = kCodecs[arguments.compress],
                          .encrypt = arguments.encrypt != 0,
                          .depth = static_cast<std::uint32_t>(arguments.depth),
                          .max_pages = environment.max_pages,
                          .store_workers = environment.store_threads,
                          .load_workers = environment.load_threads,
                          .clock = environment.clock},
                         said);
  if (device) return *device;
  explain(said.text(), device.error(), message);
  return std::unexpected(device.error());
}

void destroy_nbd(MemorySource& memory, Device* device) noexcept {
  destroy_from(memory, static_cast<RingDevice*>(device));
}

}  // namespace

constinit const DeviceKind kNbdDevice = {
    .name = "nbd",
    .usage =
        "nbd:URI[,size=SIZE,connections=1..16,timeout=SECONDS,certificates=DIRECTORY,extent=4K..256K,"
        "compress=none|lz4|zstd,encrypt=off|on,depth=1..64,force=off|on]\n"
        "        a server on the network: nbd://HOST/EXPORT, nbds:// with TLS, nbd+unix:///?socket=PATH",
    .check = check_nbd,
    .make = make_nbd,
    .destroy = destroy_nbd,
    .limit_option = "size",
    .try_out = try_nbd};

}  // namespace whimbrel
