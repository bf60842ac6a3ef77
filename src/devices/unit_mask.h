// UnitMask: one bit per page of a unit of up to 512 pages.
#pragma once

#include <bit>
#include <cstdint>

namespace whimbrel {

class UnitMask {
 public:
  static constexpr std::uint32_t kPages = 512;

  void set(std::uint32_t first, std::uint32_t count) noexcept {
    for_words(first, count, [this](std::uint32_t word, std::uint64_t bits) { words_[word] |= bits; });
  }
  void clear(std::uint32_t first, std::uint32_t count) noexcept {
    for_words(first, count, [this](std::uint32_t word, std::uint64_t bits) { words_[word] &= ~bits; });
  }
  [[nodiscard]] bool all(std::uint32_t first, std::uint32_t count) const noexcept {
    bool result = true;
    for_words(first, count,
              [&](std::uint32_t word, std::uint64_t bits) { result = result && (words_[word] & bits) == bits; });
    return result;
  }
  [[nodiscard]] std::uint32_t count() const noexcept {
    std::uint32_t sum = 0;
    for (const std::uint64_t word : words_) sum += static_cast<std::uint32_t>(std::popcount(word));
    return sum;
  }
  [[nodiscard]] bool none() const noexcept { return count() == 0; }

 private:
  template <class F>
  static void for_words(std::uint32_t first, std::uint32_t count, F&& f) noexcept {
    const std::uint32_t end = first + count;
    while (first < end) {
      const std::uint32_t word = first / 64, bit = first % 64;
      const std::uint32_t n = end - first < 64 - bit ? end - first : 64 - bit;
      f(word, (n == 64 ? ~std::uint64_t{0} : ((std::uint64_t{1} << n) - 1)) << bit);
      first += n;
    }
  }
  std::uint64_t words_[kPages / 64] = {};
};

}  // namespace whimbrel
