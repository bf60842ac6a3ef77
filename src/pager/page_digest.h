// PageDigest: a fingerprint of one page, to tell later whether the page still holds the same bytes.
//
// NH of UMAC (Black, Halevi, Krawczyk, Krovetz, Rogaway: "UMAC: Fast and Secure Message Authentication", CRYPTO 1999), words
// of 64 bits, two rounds with the key shifted by two words. Under a random key, two given pages that differ have the same
// fingerprint with a probability of at most 2^-128, whatever they hold: far below that of memory changing bits by itself.
// So equal fingerprints are taken for equal pages. The key never leaves the process, and a fingerprint means nothing
// outside of it. About a third of a microsecond a page.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>

#include "mm/address.h"

namespace whimbrel {

struct PageDigest {
  std::array<std::uint64_t, 4> words{};
  [[nodiscard]] bool operator==(const PageDigest&) const = default;
};

// Constant after construction: any thread.
class PageDigester {
 public:
  // The key is drawn from `seed`, which should differ from run to run.
  explicit PageDigester(std::uint64_t seed) noexcept;
  // `page`: 4096 bytes, 8-byte aligned.
  [[nodiscard]] PageDigest operator()(const std::byte* page) const noexcept;

 private:
  static constexpr std::size_t kWords = kPageSize / sizeof(std::uint64_t);
  std::array<std::uint64_t, kWords + 2> key_;
};

}  // namespace whimbrel
