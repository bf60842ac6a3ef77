// Sizes as people type them.
#pragma once

#include <cstdint>
#include <optional>
#include <string_view>

namespace whimbrel::cli {

// "67108864", "64M", "1.5G": a decimal number of bytes, or of K, M, G, T (powers of 1024; lower case and a trailing "B"
// or "iB" are accepted). Nothing for anything else, and for what does not fit into 63 bits.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text);

}  // namespace whimbrel::cli
