#include "linux/page_bitmap.h"

#include <gtest/gtest.h>

#include <random>
#include <vector>

namespace whimbrel {
namespace {

constexpr std::size_t kBits = 1000;

// The same questions answered one bit at a time.
struct Model {
  std::vector<bool> bits = std::vector<bool>(kBits);
  std::size_t find_clear(std::size_t from, std::size_t limit, std::size_t count, std::size_t alignment) const {
    for (std::size_t start = from; start + count <= limit; ++start) {
      if (start % alignment != 0) continue;
      bool free = true;
      for (std::size_t i = 0; i < count; ++i) free = free && !bits[start + i];
      if (free) return start;
    }
    return PageBitmap::kNone;
  }
  std::size_t end_of_set(std::size_t limit) const {
    while (limit > 0 && !bits[limit - 1]) --limit;
    return limit;
  }
  std::size_t next(std::size_t from, std::size_t limit, bool wanted) const {
    while (from < limit && bits[from] != wanted) ++from;
    return from;
  }
};

TEST(PageBitmap, AgreesWithABitByBitModel) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    SCOPED_TRACE(seed);
    std::mt19937 random(seed);
    std::vector<std::uint64_t> words(PageBitmap::words_for(kBits));
    PageBitmap map(words.data());
    Model model;
    const auto below = [&](std::size_t n) { return static_cast<std::size_t>(random() % n); };
    for (int step = 0; step < 2000; ++step) {
      const std::size_t first = below(kBits);
      const std::size_t count = below(seed % 2 != 0 ? 8 : 200) % (kBits - first);
      const bool value = below(2) != 0;
      value ? map.set(first, count) : map.clear(first, count);
      for (std::size_t i = 0; i < count; ++i) model.bits[first + i] = value;

      const std::size_t from = below(kBits);
      const std::size_t limit = from + below(kBits - from + 1);
      const std::size_t want = 1 + below(70);
      const std::size_t alignment = std::size_t{1} << below(8);
      ASSERT_EQ(map.find_clear(from, limit, want, alignment), model.find_clear(from, limit, want, alignment))
          << from << " " << limit << " " << want << " " << alignment;
      ASSERT_EQ(map.next_set(from, limit), model.next(from, limit, true));
      ASSERT_EQ(map.next_clear(from, limit), model.next(from, limit, false));
      ASSERT_EQ(map.end_of_set(limit), model.end_of_set(limit));
      std::size_t set = 0;
      for (std::size_t i = from; i < limit; ++i) set += model.bits[i] ? 1 : 0;
      ASSERT_EQ(map.count(from, limit - from), set);
      ASSERT_EQ(map.test(first), model.bits[first]);
    }
  }
}

TEST(PageBitmap, NeverReadsBeyondItsLimit) {
  // The word behind the limit does not exist; AddressSanitizer would tell.
  std::vector<std::uint64_t> words(1, ~std::uint64_t{0});
  PageBitmap map(words.data());
  EXPECT_EQ(map.find_clear(0, 64, 1, 1), PageBitmap::kNone);
  EXPECT_EQ(map.next_clear(0, 64), 64u);
  map.clear(0, 64);
  EXPECT_EQ(map.find_clear(0, 64, 64, 64), 0u);
  EXPECT_EQ(map.end_of_set(64), 0u);
  EXPECT_EQ(map.next_set(64, 64), 64u);
}

}  // namespace
}  // namespace whimbrel
