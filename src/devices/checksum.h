// A fast 64-bit checksum of page contents: finds memory, disks and networks that changed bytes, not attackers.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace whimbrel {

// XXH64. Stable over time, since it is stored: the same bytes and seed give the same value everywhere.
[[nodiscard]] std::uint64_t checksum64(std::span<const std::byte> bytes, std::uint64_t seed = 0) noexcept;

}  // namespace whimbrel
