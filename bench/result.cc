#include "bench/result.h"

#include <sys/resource.h>
#include <time.h>

#include <algorithm>
#include <bit>
#include <cinttypes>
#include <cstdio>
#include <utility>

namespace bench {
namespace {

std::int64_t timeval_ns(const timeval& value) { return value.tv_sec * 1'000'000'000ll + value.tv_usec * 1'000ll; }

// Four buckets to each power of two.
std::size_t bucket_of(std::int64_t ns) {
  const auto value = static_cast<std::uint64_t>(std::max<std::int64_t>(ns, 4));
  const unsigned power = static_cast<unsigned>(std::bit_width(value)) - 1;
  return power * 4 + ((value >> (power - 2)) & 3);
}

std::int64_t upper_edge(std::size_t bucket) {
  const std::size_t power = bucket / 4;
  return static_cast<std::int64_t>((std::uint64_t{5} + bucket % 4) << power >> 2);
}

}  // namespace

std::int64_t monotonic_ns() {
  timespec now{};
  clock_gettime(CLOCK_MONOTONIC, &now);
  return now.tv_sec * 1'000'000'000ll + now.tv_nsec;
}

void Histogram::add(std::int64_t ns) {
  ++buckets_[bucket_of(ns)];
  ++count_;
  max_ = std::max(max_, ns);
}

std::int64_t Histogram::quantile(double quantile) const {
  if (count_ == 0) return 0;
  const auto wanted = static_cast<std::uint64_t>(quantile * static_cast<double>(count_ - 1)) + 1;
  std::uint64_t seen = 0;
  for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) {
    seen += buckets_[bucket];
    if (seen >= wanted) return std::min(upper_edge(bucket), max_);
  }
  return max_;
}

void Histogram::merge(const Histogram& other) {
  for (std::size_t bucket = 0; bucket < buckets_.size(); ++bucket) buckets_[bucket] += other.buckets_[bucket];
  count_ += other.count_;
  max_ = std::max(max_, other.max_);
}

void Result::print() const {
  const double ns = static_cast<double>(end_ns - start_ns);
  std::printf("{\"pattern\": \"%s\", \"start_ns\": %" PRId64 ", \"end_ns\": %" PRId64
              ", \"seconds\": %.6f, \"accesses\": %" PRIu64
              ", \"ns_per_access\": %.1f, \"gb_per_s\": %.4f, "
              "\"wrong\": %" PRIu64 ", \"checksum\": \"%016" PRIx64 "\", \"minor_faults\": %" PRIu64
              ", \"major_faults\": %" PRIu64 ", \"user_s\": %.4f, \"system_s\": %.4f",
              pattern.c_str(), start_ns, end_ns, ns / 1e9, accesses,
              accesses == 0 ? 0.0 : ns / static_cast<double>(accesses), ns <= 0 ? 0.0 : static_cast<double>(bytes) / ns,
              wrong, checksum, minor_faults, major_faults, static_cast<double>(user_ns) / 1e9,
              static_cast<double>(system_ns) / 1e9);
  if (!latency.empty()) {
    std::printf(", \"latency_ns\": {\"p50\": %" PRId64 ", \"p90\": %" PRId64 ", \"p99\": %" PRId64
                ", \"p999\": %" PRId64 ", \"max\": %" PRId64 "}",
                latency.quantile(0.5), latency.quantile(0.9), latency.quantile(0.99), latency.quantile(0.999),
                latency.max());
  }
  std::printf("}\n");
  std::fflush(stdout);
}

Measurement::Measurement(std::string pattern) {
  result_.pattern = std::move(pattern);
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  result_.minor_faults = static_cast<std::uint64_t>(usage.ru_minflt);
  result_.major_faults = static_cast<std::uint64_t>(usage.ru_majflt);
  result_.user_ns = timeval_ns(usage.ru_utime);
  result_.system_ns = timeval_ns(usage.ru_stime);
  result_.start_ns = monotonic_ns();
}

Result Measurement::finish(std::uint64_t accesses, std::uint64_t bytes, std::uint64_t wrong, std::uint64_t checksum) {
  result_.end_ns = monotonic_ns();
  rusage usage{};
  getrusage(RUSAGE_SELF, &usage);
  result_.minor_faults = static_cast<std::uint64_t>(usage.ru_minflt) - result_.minor_faults;
  result_.major_faults = static_cast<std::uint64_t>(usage.ru_majflt) - result_.major_faults;
  result_.user_ns = timeval_ns(usage.ru_utime) - result_.user_ns;
  result_.system_ns = timeval_ns(usage.ru_stime) - result_.system_ns;
  result_.accesses = accesses;
  result_.bytes = bytes;
  result_.wrong = wrong;
  result_.checksum = checksum;
  return result_;
}

}  // namespace bench
