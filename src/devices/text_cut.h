// Cutting text at a character. string_view::substr() can throw, which this layer must not even link.
#pragma once

#include <string_view>

namespace whimbrel {

struct Cut {
  std::string_view before;
  std::string_view after;  // empty when the character is not there
};

// At the first `at`; without one everything is before it.
[[nodiscard]] constexpr Cut cut(std::string_view text, char at) noexcept {
  const std::size_t position = text.find(at);
  if (position == std::string_view::npos) return {text, {}};
  return {{text.data(), position}, {text.data() + position + 1, text.size() - position - 1}};
}

}  // namespace whimbrel
