// Page contents for tests and benchmarks, made from a seed: the same seed gives the same bytes everywhere.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

namespace whimbrel::testing {

inline constexpr std::size_t kPageBytes = 4096;

// A small random generator that is the same on every platform.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(seed * 0x9e3779b97f4a7c15u + 0xd1b54a32d192ed03u) {}
  std::uint64_t next() {  // splitmix64
    std::uint64_t z = (state_ += 0x9e3779b97f4a7c15u);
    z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
    z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
    return z ^ (z >> 31);
  }
  std::uint64_t below(std::uint64_t limit) { return next() % limit; }

 private:
  std::uint64_t state_;
};

enum class Contents : std::uint8_t {
  kZero,        // all bytes 0
  kSameFilled,  // one 8-byte word, repeated
  kRandom,      // does not compress
  kText,        // records of words and numbers, like a table of JSON documents
  kPointers,    // a heap of objects: pointers near each other, small integers, flags
  kHalf,        // 8 random bytes of every 16: 2:1 at best
  kCount,
};

[[nodiscard]] const char* contents_name(Contents contents);
// Fills whole pages; `seed` decides what.
void fill_pages(Contents contents, std::uint64_t seed, std::span<std::byte> memory);
// Each page of a kind of its own, all from the seed: what a slice of a real heap looks like.
void fill_mixed(std::uint64_t seed, std::span<std::byte> memory);

// The seed of this run: WHIMBREL_SEED, or the time. Printed by each test that uses it.
[[nodiscard]] std::uint64_t run_seed();

}  // namespace whimbrel::testing
