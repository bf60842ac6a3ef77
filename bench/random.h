// Reproducible numbers for the workload: a fast generator, a zipf sampler and a permutation of the pages.
//
// Everything here is deterministic for a seed, so that all sides of a comparison do exactly the same accesses.
#pragma once

#include <cmath>
#include <cstdint>

namespace bench {

// A bijection on 64-bit values that leaves no visible pattern (the finaliser of SplitMix64).
[[nodiscard]] constexpr std::uint64_t mix64(std::uint64_t x) {
  x += 0x9E3779B97F4A7C15ull;
  x = (x ^ (x >> 30)) * 0xBF58476D1CE4E5B9ull;
  x = (x ^ (x >> 27)) * 0x94D049BB133111EBull;
  return x ^ (x >> 31);
}

// SplitMix64: some two nanoseconds a number. Not thread-safe.
class Random {
 public:
  explicit Random(std::uint64_t seed) : state_(mix64(seed)) {}
  std::uint64_t next() { return mix64(state_++); }
  // Uniform in [0, bound), bound > 0; the bias of the multiplication method is below 2^-32 for the sizes used here.
  std::uint64_t below(std::uint64_t bound) {
    return static_cast<std::uint64_t>((static_cast<Wide>(next()) * bound) >> 64);
  }
  // Uniform in [0, 1).
  double unit() { return static_cast<double>(next() >> 11) * 0x1.0p-53; }

 private:
  __extension__ using Wide = unsigned __int128;
  std::uint64_t state_;
};

// A pseudo-random bijection of [0, count): a four-round Feistel network over the next even power of two, walked until
// the value falls into range. Costs some 20 ns and no memory.
class Permutation {
 public:
  Permutation(std::uint64_t count, std::uint64_t seed) : count_(count), seed_(seed) {
    while ((std::uint64_t{1} << (2 * half_bits_)) < count) {
      ++half_bits_;
    }
  }
  [[nodiscard]] std::uint64_t operator()(std::uint64_t index) const {
    do {
      index = round_trip(index);
    } while (index >= count_);
    return index;
  }

 private:
  [[nodiscard]] std::uint64_t round_trip(std::uint64_t x) const {
    const std::uint64_t mask = (std::uint64_t{1} << half_bits_) - 1;
    std::uint64_t left = x >> half_bits_;
    std::uint64_t right = x & mask;
    for (std::uint64_t round = 0; round < 4; ++round) {
      const std::uint64_t old = right;
      right = left ^ (mix64(right + seed_ + (round << 56)) & mask);
      left = old;
    }
    return (left << half_bits_) | right;
  }

  std::uint64_t count_;
  std::uint64_t seed_;
  unsigned half_bits_ = 1;
};

// Ranks 0..count-1 with probability proportional to 1 / (rank + 1)^theta, 0 < theta < 1. The constructor sums `count`
// terms; a sample costs two powers at most (Gray et al., "Quickly generating billion-record synthetic databases").
class Zipf {
 public:
  Zipf(std::uint64_t count, double theta) : count_(count), theta_(theta), alpha_(1.0 / (1.0 - theta)) {
    for (std::uint64_t rank = 1; rank <= count; ++rank) {
      zeta_ += std::pow(1.0 / static_cast<double>(rank), theta);
    }
    const double zeta2 = 1.0 + std::pow(0.5, theta);
    eta_ = (1.0 - std::pow(2.0 / static_cast<double>(count), 1.0 - theta)) / (1.0 - zeta2 / zeta_);
  }
  [[nodiscard]] std::uint64_t operator()(Random& random) const {
    const double u = random.unit();
    const double scaled = u * zeta_;
    if (scaled < 1.0) return 0;
    if (scaled < 1.0 + std::pow(0.5, theta_)) return 1;
    const auto rank = static_cast<std::uint64_t>(static_cast<double>(count_) * std::pow(eta_ * u - eta_ + 1.0, alpha_));
    return rank < count_ ? rank : count_ - 1;
  }

 private:
  std::uint64_t count_;
  double theta_;
  double alpha_;
  double zeta_ = 0.0;
  double eta_ = 0.0;
};

}  // namespace bench
