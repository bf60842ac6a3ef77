// A sample of one mix of contents, and what codecs make of it. Used by bench_mix_ratio and by content_test.
#pragma once

#include <lz4.h>
#include <zstd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <vector>

#include "bench/content.h"

namespace bench {

class MixSample {
 public:
  MixSample(Mix mix, std::size_t pages) : words_(pages * kPageWords) {
    const Content content(mix, 1);
    for (std::size_t page = 0; page < pages; ++page) content.fill(&words_[page * kPageWords], page, 1);
    const auto start = std::chrono::steady_clock::now();
    for (std::size_t page = 0; page < pages; ++page) content.fill(&words_[page * kPageWords], page, 1);
    const std::chrono::duration<double, std::nano> took = std::chrono::steady_clock::now() - start;
    fill_ns_per_page_ = took.count() / static_cast<double>(pages);
  }

  [[nodiscard]] double fill_ns_per_page() const { return fill_ns_per_page_; }
  // Input bytes over stored bytes, in units of `unit` bytes; a unit that shrinks by less than a quarter counts as raw.
  [[nodiscard]] double lz4_ratio(std::size_t unit) const {
    std::vector<char> out(static_cast<std::size_t>(LZ4_compressBound(static_cast<int>(unit))));
    return ratio(unit, [&](const char* in) {
      return static_cast<std::size_t>(
          LZ4_compress_default(in, out.data(), static_cast<int>(unit), static_cast<int>(out.size())));
    });
  }
  [[nodiscard]] double zstd_ratio(std::size_t unit, int level) const {
    std::vector<char> out(ZSTD_compressBound(unit));
    return ratio(unit, [&](const char* in) { return ZSTD_compress(out.data(), out.size(), in, unit, level); });
  }

 private:
  template <class Compress>
  [[nodiscard]] double ratio(std::size_t unit, Compress compress) const {
    const auto* bytes = reinterpret_cast<const char*>(words_.data());
    const std::size_t total = words_.size() * sizeof(std::uint64_t);
    std::size_t stored = 0;
    std::size_t seen = 0;
    for (; seen + unit <= total; seen += unit) {
      const std::size_t size = compress(bytes + seen);
      stored += size >= unit / 4 * 3 ? unit : size;
    }
    return static_cast<double>(seen) / static_cast<double>(stored);
  }

  std::vector<std::uint64_t> words_;
  double fill_ns_per_page_ = 0;
};

}  // namespace bench
