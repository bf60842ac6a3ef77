// One measured phase of a program: how long, how much, what it cost the kernel, whether the contents were right.
// Printed as one JSON object per line; whoever runs the program reads these lines.
#pragma once

#include <array>
#include <cstdint>
#include <string>

namespace bench {

// Monotonic nanoseconds since boot: comparable with the samples somebody takes from outside.
[[nodiscard]] std::int64_t monotonic_ns();

// Counts of nanoseconds in buckets a quarter of a power of two wide. Not thread-safe.
class Histogram {
 public:
  void add(std::int64_t ns);
  // Upper edge of the bucket that holds the share `quantile` (0..1) of the samples; 0 when empty.
  [[nodiscard]] std::int64_t quantile(double quantile) const;
  [[nodiscard]] std::int64_t max() const { return max_; }
  [[nodiscard]] bool empty() const { return count_ == 0; }
  void merge(const Histogram& other);

 private:
  std::array<std::uint64_t, 256> buckets_{};
  std::uint64_t count_ = 0;
  std::int64_t max_ = 0;
};

struct Result {
  std::string pattern;
  std::int64_t start_ns = 0, end_ns = 0;
  std::uint64_t accesses = 0;  // of the unit the pattern counts, mostly pages
  std::uint64_t bytes = 0;     // moved to or from memory by the pattern; 0: the rate says nothing
  std::uint64_t wrong = 0;     // accesses that found other contents than were put there
  std::uint64_t checksum = 0;  // equal on all sides of a comparison
  std::uint64_t minor_faults = 0, major_faults = 0;
  std::int64_t user_ns = 0, system_ns = 0;
  Histogram latency;  // empty unless asked for

  void print() const;
};

// Fills in times and the process's counters between construction and finish().
class Measurement {
 public:
  explicit Measurement(std::string pattern);
  Result finish(std::uint64_t accesses, std::uint64_t bytes, std::uint64_t wrong, std::uint64_t checksum);

 private:
  Result result_;
};

}  // namespace bench
