// One bit per page of a region, with the searches a page allocator needs. Owns nothing: the words are the caller's.
//
// Not thread-safe. Words beyond the part the caller has made accessible are never touched: every search and change is
// bounded by its arguments.
#pragma once

#include <cstddef>
#include <cstdint>

namespace whimbrel {

class PageBitmap {
 public:
  static constexpr std::size_t kNone = ~std::size_t{0};
  [[nodiscard]] static constexpr std::size_t words_for(std::size_t pages) { return (pages + 63) / 64; }

  constexpr PageBitmap() noexcept = default;
  explicit PageBitmap(std::uint64_t* words) noexcept : words_(words) {}

  [[nodiscard]] bool test(std::size_t i) const noexcept { return (words_[i / 64] >> (i % 64) & 1) != 0; }
  void set(std::size_t first, std::size_t count) noexcept { change(first, count, true); }
  void clear(std::size_t first, std::size_t count) noexcept { change(first, count, false); }

  // Bits set in [first, first + count).
  [[nodiscard]] std::size_t count(std::size_t first, std::size_t count) const noexcept;
  // The lowest set (clear) bit in [from, limit), or `limit`.
  [[nodiscard]] std::size_t next_set(std::size_t from, std::size_t limit) const noexcept {
    return next(from, limit, 0);
  }
  [[nodiscard]] std::size_t next_clear(std::size_t from, std::size_t limit) const noexcept {
    return next(from, limit, ~std::uint64_t{0});
  }
  // One past the highest set bit below `limit`; 0 when there is none.
  [[nodiscard]] std::size_t end_of_set(std::size_t limit) const noexcept;
  // The lowest run of `count` clear bits in [from, limit) that starts at a multiple of `alignment` (a power of two),
  // or kNone.
  [[nodiscard]] std::size_t find_clear(std::size_t from, std::size_t limit, std::size_t count,
                                       std::size_t alignment) const noexcept;

 private:
  void change(std::size_t first, std::size_t count, bool value) noexcept;
  // The lowest bit in [from, limit) that differs from `pattern` (all zeros or all ones).
  [[nodiscard]] std::size_t next(std::size_t from, std::size_t limit, std::uint64_t pattern) const noexcept;

  std::uint64_t* words_ = nullptr;
};

}  // namespace whimbrel
