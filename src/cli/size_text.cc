#include "cli/size_text.h"

namespace whimbrel::cli {
namespace {

// The power of 1024 that a unit stands for; -1: no such unit.
int power_of(std::string_view unit) {
  if (unit.empty() || unit == "B" || unit == "b") return 0;
  static constexpr std::string_view kLetters = "KMGT";
  const char letter = unit.front() >= 'a' && unit.front() <= 'z' ? static_cast<char>(unit.front() - 32) : unit.front();
  const std::size_t at = kLetters.find(letter);
  unit.remove_prefix(1);
  if (at == std::string_view::npos || !(unit.empty() || unit == "B" || unit == "iB")) return -1;
  return static_cast<int>(at) + 1;
}

bool is_digit(char c) { return c >= '0' && c <= '9'; }

}  // namespace

std::optional<std::uint64_t> parse_size(std::string_view text) {
  constexpr std::uint64_t kMost = ~std::uint64_t{0} >> 1;
  std::uint64_t whole = 0;
  std::size_t at = 0;
  for (; at < text.size() && is_digit(text[at]); ++at) {
    if (whole > kMost / 10 - 1) return std::nullopt;
    whole = whole * 10 + static_cast<unsigned>(text[at] - '0');
  }
  if (at == 0) return std::nullopt;
  double fraction = 0;
  if (at + 1 < text.size() && text[at] == '.' && is_digit(text[at + 1])) {
    double place = 0.1;
    for (++at; at < text.size() && is_digit(text[at]); ++at, place /= 10) fraction += place * (text[at] - '0');
  }
  const int power = power_of(text.substr(at));
  if (power < 0 || (power == 0 && fraction != 0)) return std::nullopt;
  const unsigned shift = 10 * static_cast<unsigned>(power);
  if (whole > kMost >> shift) return std::nullopt;
  return (whole << shift) + static_cast<std::uint64_t>(fraction * static_cast<double>(std::uint64_t{1} << shift) + 0.5);
}

}  // namespace whimbrel::cli
