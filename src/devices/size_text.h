// Sizes as people write them: 4096, 64K, 256M, 1.5G, 2T. Binary units; "KiB", "MiB" and so on are accepted as well.
#pragma once

#include <cstddef>
#include <cstdint>
#include <optional>
#include <span>
#include <string_view>

namespace whimbrel {

// The number of bytes, rounded down to a whole one; nothing when the text is not a size, or one beyond 2^63.
[[nodiscard]] std::optional<std::uint64_t> parse_size(std::string_view text) noexcept;

// The shortest exact form, e.g. "16K", "1536M", "5000". The view is into `buffer` (at least 24 bytes).
[[nodiscard]] std::string_view format_size(std::uint64_t bytes, std::span<char> buffer) noexcept;

}  // namespace whimbrel
