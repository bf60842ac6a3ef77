// Pages that hold one 8-byte word, repeated: found, and made again.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstring>
#include <optional>
#include <span>

namespace whimbrel {

// The word that fills the bytes, if one does. Whole words only. Nearly free: most pages differ in the first words.
[[nodiscard]] inline std::optional<std::uint64_t> same_filled(std::span<const std::byte> bytes) noexcept {
  std::uint64_t word = 0;
  std::memcpy(&word, bytes.data(), 8);
  // Equal to itself moved by a word, hence periodic; memcmp is the fastest loop there is.
  if (std::memcmp(bytes.data(), bytes.data() + 8, bytes.size() - 8) != 0) return std::nullopt;
  return word;
}

inline void fill_same(std::span<std::byte> bytes, std::uint64_t word) noexcept {
  for (std::size_t at = 0; at < bytes.size(); at += 8) std::memcpy(bytes.data() + at, &word, 8);
}

}  // namespace whimbrel
