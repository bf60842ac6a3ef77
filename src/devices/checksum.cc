#include "devices/checksum.h"

// The static zstd library carries xxHash under a prefix of its own; it has no header for it.
extern "C" unsigned long long ZSTD_XXH64(const void* input, std::size_t length, unsigned long long seed);

namespace whimbrel {

std::uint64_t checksum64(std::span<const std::byte> bytes, std::uint64_t seed) noexcept {
  return ZSTD_XXH64(bytes.data(), bytes.size(), seed);
}

}  // namespace whimbrel
