// Sizes and device specifications, as people type them.
//
// Nothing outside of the text may be touched (the specification that names a file is looked over only, never made), and
// what is refused is refused in words.
#include <algorithm>
#include <optional>
#include <string>

#include "devices/device_spec.h"
#include "devices/size_text.h"
#include "fuzz/fuzz.h"

namespace whimbrel {
namespace {

// A second reading of sizes, by other means: digits, a fraction of which nine digits count, K, M, G or T, "iB".
std::optional<std::uint64_t> read_size(std::string_view text) {
  const auto digits = [&] {
    const std::string_view found = text.substr(0, std::min(text.find_first_not_of("0123456789"), text.size()));
    text.remove_prefix(found.size());
    return found;
  };
  __extension__ unsigned __int128 number = 0;
  const std::string_view whole = digits();
  if (whole.empty()) return std::nullopt;
  for (const char c : whole) {
    number = number * 10 + static_cast<unsigned>(c - '0');
    if (number >> 64 != 0) return std::nullopt;
  }
  number *= 1'000'000'000;
  bool fraction = false;
  if (text.starts_with('.')) {
    text.remove_prefix(1);
    const std::string_view part = digits();
    if (part.empty()) return std::nullopt;
    std::uint64_t value = 0;
    for (std::size_t i = 0; i < 9; ++i) value = value * 10 + (i < part.size() ? static_cast<unsigned>(part[i] - '0') : 0);
    number += value;
    fraction = value != 0;
  }
  if (text.empty()) {
    if (fraction) return std::nullopt;
  } else {
    const std::size_t unit = std::string_view("KkMmGgTt").find(text.front());
    if (unit == std::string_view::npos || (text.size() > 1 && text.substr(1) != "iB")) return std::nullopt;
    for (std::size_t i = 0; i <= unit / 2; ++i) {
      if (number >> 116 != 0) return std::nullopt;
      number <<= 10;
    }
  }
  number /= 1'000'000'000;
  if (number >> 63 != 0) return std::nullopt;
  return static_cast<std::uint64_t>(number);
}

void sizes(std::string_view text) {
  const std::optional<std::uint64_t> size = parse_size(text);
  PROPERTY(size == read_size(text), "a size is what two readers take it for");
  if (!size) return;
  PROPERTY(*size <= std::uint64_t{1} << 63, "a size within bounds");
  PROPERTY(text.front() >= '0' && text.front() <= '9', "a size begins with a digit");
  char buffer[24];
  const std::string_view written = format_size(*size, buffer);
  PROPERTY(written.size() < sizeof buffer, "the written size fits");
  PROPERTY(parse_size(written) == size, "a size that is written is read again as the same");
}

void specifications(std::string_view text) {
  SpecMessage message;
  const Result<void> good = check_device_spec(text, built_in_devices(), message);
  PROPERTY(good || !message.text().empty(), "what is refused is explained");
  PROPERTY(good || good.error().code == Errc::kInvalid || good.error().code == Errc::kNotSupported ||
               good.error().code == Errc::kNotFound,
           "the kind of refusal");
}

}  // namespace
}  // namespace whimbrel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace whimbrel;
  // On the heap in its exact size: reading beyond it is seen.
  const std::string text(reinterpret_cast<const char*>(data), size);
  sizes(text);
  specifications(text);
  return 0;
}
