#include "pager/page_digest.h"

#include <cstring>

namespace whimbrel {
namespace {

// SplitMix64 (Steele, Lea, Flood: "Fast Splittable Pseudorandom Number Generators", OOPSLA 2014).
std::uint64_t next_random(std::uint64_t& state) noexcept {
  std::uint64_t z = state += 0x9e3779b97f4a7c15;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9;
  z = (z ^ (z >> 27)) * 0x94d049bb133111eb;
  return z ^ (z >> 31);
}

__extension__ using Wide = unsigned __int128;

}  // namespace

PageDigester::PageDigester(std::uint64_t seed) noexcept {
  for (std::uint64_t& word : key_) word = next_random(seed);
}

PageDigest PageDigester::operator()(const std::byte* page) const noexcept {
  Wide first = 0, second = 0;
  for (std::size_t i = 0; i < kWords; i += 2) {
    std::uint64_t pair[2];
    std::memcpy(pair, page + i * sizeof(std::uint64_t), sizeof pair);
    first += Wide{pair[0] + key_[i]} * (pair[1] + key_[i + 1]);
    second += Wide{pair[0] + key_[i + 2]} * (pair[1] + key_[i + 3]);
  }
  return {{static_cast<std::uint64_t>(first), static_cast<std::uint64_t>(first >> 64), static_cast<std::uint64_t>(second),
           static_cast<std::uint64_t>(second >> 64)}};
}

}  // namespace whimbrel
