#include "linux/page_bitmap.h"

#include <bit>

namespace whimbrel {
namespace {

// Bits [from, to) of one word; 0 <= from < to <= 64.
constexpr std::uint64_t mask(std::size_t from, std::size_t to) {
  return (~std::uint64_t{0} << from) & (~std::uint64_t{0} >> (64 - to));
}

// Calls f(word index, mask) for every word that [first, first + count) touches.
template <class F>
void for_words(std::size_t first, std::size_t count, F f) {
  const std::size_t end = first + count;
  while (first < end) {
    const std::size_t word = first / 64;
    const std::size_t stop = end < (word + 1) * 64 ? end : (word + 1) * 64;
    f(word, mask(first % 64, stop - word * 64));
    first = stop;
  }
}

}  // namespace

void PageBitmap::change(std::size_t first, std::size_t count, bool value) noexcept {
  for_words(first, count, [&](std::size_t word, std::uint64_t m) {
    if (value) {
      words_[word] |= m;
    } else {
      words_[word] &= ~m;
    }
  });
}

std::size_t PageBitmap::count(std::size_t first, std::size_t count) const noexcept {
  std::size_t total = 0;
  for_words(first, count, [&](std::size_t word, std::uint64_t m) {
    total += static_cast<std::size_t>(std::popcount(words_[word] & m));
  });
  return total;
}

std::size_t PageBitmap::next(std::size_t from, std::size_t limit, std::uint64_t pattern) const noexcept {
  while (from < limit) {
    const std::size_t word = from / 64;
    const std::uint64_t differing = (words_[word] ^ pattern) & mask(from % 64, 64);
    if (differing != 0) {
      const std::size_t found = word * 64 + static_cast<std::size_t>(std::countr_zero(differing));
      return found < limit ? found : limit;
    }
    from = (word + 1) * 64;
  }
  return limit;
}

std::size_t PageBitmap::end_of_set(std::size_t limit) const noexcept {
  while (limit > 0) {
    const std::size_t word = (limit - 1) / 64;
    const std::uint64_t found = words_[word] & mask(0, limit - word * 64);
    if (found != 0) return word * 64 + 64 - static_cast<std::size_t>(std::countl_zero(found));
    limit = word * 64;
  }
  return 0;
}

std::size_t PageBitmap::find_clear(std::size_t from, std::size_t limit, std::size_t count,
                                   std::size_t alignment) const noexcept {
  for (;;) {
    from = next_clear(from, limit);
    from = (from + alignment - 1) & ~(alignment - 1);
    if (from > limit || limit - from < count) return kNone;
    const std::size_t obstacle = next_set(from, from + count);
    if (obstacle == from + count) return from;
    from = obstacle + 1;
  }
}

}  // namespace whimbrel
