// Text from a program, made fit to print.
#pragma once

#include <string>
#include <string_view>

namespace whimbrel::cli {

// The length of the printable character that the text begins with: UTF-8 without control characters. 0: it begins with
// something else.
[[nodiscard]] inline std::size_t printable_length(std::string_view text) {
  const auto byte = [&](std::size_t i) { return i < text.size() ? static_cast<unsigned char>(text[i]) : 0u; };
  const auto tail = [&](std::size_t i) { return (byte(i) & 0xc0u) == 0x80; };
  const unsigned first = byte(0);
  if (first < 0x80) return first >= ' ' && first != 0x7f ? 1 : 0;
  if (first >= 0xc2 && first < 0xe0) return tail(1) && (first != 0xc2 || byte(1) >= 0xa0) ? 2 : 0;
  if (first >= 0xe0 && first < 0xf0) {
    const bool short_enough = first == 0xe0 && byte(1) < 0xa0, surrogate = first == 0xed && byte(1) >= 0xa0;
    return tail(1) && tail(2) && !short_enough && !surrogate ? 3 : 0;
  }
  if (first >= 0xf0 && first < 0xf5) {
    const bool outside = (first == 0xf0 && byte(1) < 0x90) || (first == 0xf4 && byte(1) >= 0x90);
    return tail(1) && tail(2) && tail(3) && !outside ? 4 : 0;
  }
  return 0;
}

// Names and messages come from memory that any program of the run can write: what is not a printable character becomes
// '?', so that none of it is a command to the terminal, breaks a line of the output or is no text at all.
[[nodiscard]] inline std::string printable(std::string_view text) {
  std::string out;
  while (!text.empty()) {
    const std::size_t length = printable_length(text);
    if (length == 0) {
      out += '?';
    } else {
      out += text.substr(0, length);
    }
    text.remove_prefix(length == 0 ? 1 : length);
  }
  return out;
}

}  // namespace whimbrel::cli
