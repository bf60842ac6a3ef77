#include "devices/size_text.h"

#include <charconv>

namespace whimbrel {
namespace {

__extension__ using Wide = unsigned __int128;  // a billionth of a terabyte needs 70 bits

constexpr std::string_view kUnits = "KMGT";
constexpr std::uint64_t kLargest = std::uint64_t{1} << 63;

// The power of two that a unit stands for: "" 0, "K" or "KiB" 10, ...
std::optional<unsigned> unit_shift(std::string_view unit) noexcept {
  if (unit.empty()) return 0;
  const char letter = unit[0] >= 'a' && unit[0] <= 'z' ? static_cast<char>(unit[0] - 'a' + 'A') : unit[0];
  const std::size_t index = kUnits.find(letter);
  unit.remove_prefix(1);
  if (index == std::string_view::npos || (!unit.empty() && unit != "iB")) return std::nullopt;
  return static_cast<unsigned>(10 * (index + 1));
}

}  // namespace

std::optional<std::uint64_t> parse_size(std::string_view text) noexcept {
  std::uint64_t whole = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), whole);
  if (error != std::errc{} || end == text.data()) return std::nullopt;
  std::string_view rest(end, static_cast<std::size_t>(text.data() + text.size() - end));
  // The fraction in billionths: enough digits for a byte of a gigabyte, and no floating point.
  constexpr std::uint64_t kBillion = 1'000'000'000;
  std::uint64_t fraction = 0;
  if (!rest.empty() && rest[0] == '.') {
    rest.remove_prefix(1);
    if (rest.empty() || rest[0] < '0' || rest[0] > '9') return std::nullopt;
    for (std::uint64_t digit = kBillion / 10; !rest.empty() && rest[0] >= '0' && rest[0] <= '9'; digit /= 10) {
      fraction += digit * static_cast<std::uint64_t>(rest[0] - '0');
      rest.remove_prefix(1);
    }
  }
  const std::optional<unsigned> shift = unit_shift(rest);
  if (!shift || (*shift == 0 && fraction != 0) || whole >= kLargest >> *shift) return std::nullopt;
  const auto parts = static_cast<Wide>(fraction) << *shift;
  return (whole << *shift) + static_cast<std::uint64_t>(parts / kBillion);
}

std::string_view format_size(std::uint64_t bytes, std::span<char> buffer) noexcept {
  std::size_t unit = 0;
  while (unit < kUnits.size() && bytes != 0 && bytes % 1024 == 0) {
    bytes /= 1024;
    ++unit;
  }
  char* end = std::to_chars(buffer.data(), buffer.data() + buffer.size() - 1, bytes).ptr;
  if (unit > 0) *end++ = kUnits[unit - 1];
  return {buffer.data(), static_cast<std::size_t>(end - buffer.data())};
}

}  // namespace whimbrel
