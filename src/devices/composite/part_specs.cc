#include "devices/composite/part_specs.h"

#include <cstring>

#include "devices/size_text.h"
#include "devices/text_cut.h"

namespace whimbrel {
namespace {

// The text up to the next comma outside of brackets.
std::string_view next_piece(std::string_view text) noexcept {
  int depth = 0;
  for (std::size_t i = 0; i < text.size(); ++i) {
    if (text[i] == '[') ++depth;
    if (text[i] == ']') --depth;
    if (text[i] == ',' && depth <= 0) return {text.data(), i};
  }
  return text;
}

const DeviceKind* kind_of(std::string_view piece, DeviceKinds kinds) noexcept {
  if (piece.starts_with('[')) piece.remove_prefix(1);
  for (const DeviceKind* kind : kinds) {
    if (!piece.starts_with(kind->name)) continue;
    const std::size_t after = kind->name.size();
    if (piece.size() == after || piece[after] == ':' || piece[after] == '@') return kind;
  }
  return nullptr;
}

// Takes `@SIZE` off the end; the text of the size, empty when there is none.
std::string_view take_limit(std::string_view* piece) noexcept {
  const std::size_t at = piece->rfind('@');
  if (at == std::string_view::npos) return {};
  const std::string_view size{piece->data() + at + 1, piece->size() - at - 1};
  if (!parse_size(size)) return {};
  *piece = {piece->data(), at};
  return size;
}

bool append(PartSpec& part, std::string_view text) noexcept {
  if (text.size() > part.buffer.size() - part.size) return false;
  std::memcpy(part.buffer.data() + part.size, text.data(), text.size());
  part.size += text.size();
  return true;
}

bool has_option(std::string_view text, std::string_view name) noexcept {
  for (std::size_t at = text.find(name); at != std::string_view::npos; at = text.find(name, at + 1)) {
    const bool begins = at > 0 && (text[at - 1] == ',' || text[at - 1] == ':');
    if (begins && at + name.size() < text.size() && text[at + name.size()] == '=') return true;
  }
  return false;
}

}  // namespace

Result<void> PartSpecs::parse(std::string_view device, std::string_view arguments, DeviceKinds kinds,
                              SpecMessage& message) noexcept {
  const auto wrong = [&](std::string_view what, std::string_view text, std::string_view advice) {
    message.add(device).add(": ").add(what).add(text).add(advice);
    return fail(Errc::kInvalid, 0, "parts of a device");
  };
  count = 0;
  std::string_view limit;
  const auto end_part = [&]() -> Result<void> {
    if (count == 0) return {};
    PartSpec& part = parts[count - 1];
    const std::string_view option = part.kind->limit_option;
    if (!limit.empty()) {
      if (option.empty()) return wrong("@", limit, " has no meaning there; limit the devices that it is made of");
      const bool fits = append(part, part.text().find(':') == std::string_view::npos ? ":" : ",") &&
                        append(part, option) && append(part, "=") && append(part, limit);
      if (!fits) return wrong("too long: ", part.text(), "");
    }
    part.limited = !option.empty() && has_option(part.text(), option);
    limit = {};
    return {};
  };
  while (!arguments.empty()) {
    std::string_view piece = next_piece(arguments);
    arguments.remove_prefix(piece.size() < arguments.size() ? piece.size() + 1 : piece.size());
    const DeviceKind* kind = kind_of(piece, kinds);
    if (kind == nullptr && count == 0)
      return wrong("there is no device '", cut(cut(piece, ':').before, '@').before, "'");
    if (kind != nullptr) {
      if (const auto good = end_part(); !good) return good;
      if (count == parts.size()) return wrong("too many devices; at most six", "", "");
      parts[count].kind = kind;
      parts[count].size = 0;
      ++count;
    }
    PartSpec& part = parts[count - 1];
    if (const std::string_view size = take_limit(&piece); !size.empty()) {
      if (!limit.empty() || !take_limit(&piece).empty()) return wrong("two limits for ", piece, "");
      limit = size;
    }
    if (piece.starts_with('[')) {
      if (!piece.ends_with(']')) return wrong("no ] for the [ of ", piece, "");
      piece = {piece.data() + 1, piece.size() - 2};
    }
    if (!(kind != nullptr || append(part, ",")) || !append(part, piece)) return wrong("too long: ", piece, "");
  }
  return end_part();
}

Result<void> PartSpecs::check(DeviceKinds kinds, SpecMessage& message) const noexcept {
  for (std::uint32_t i = 0; i < count; ++i) {
    if (const auto good = check_device_spec(parts[i].text(), kinds, message); !good) return good;
  }
  return {};
}

Result<void> PartSpecs::make(const DeviceEnvironment& environment, std::span<DeviceHandle> devices,
                             SpecMessage& message) const noexcept {
  for (std::uint32_t i = 0; i < count; ++i) {
    Result<DeviceHandle> device = make_device(parts[i].text(), environment, message);
    if (!device) {
      while (i-- > 0) devices[i] = DeviceHandle();
      return std::unexpected(device.error());
    }
    devices[i] = std::move(*device);
  }
  return {};
}

}  // namespace whimbrel
