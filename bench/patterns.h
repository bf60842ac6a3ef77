// The access patterns over one large array of self-proving pages.
//
// Reading a page reads one word of each of its 64 lines and compares it with what must be there; writing a page writes
// one word of each. So the check costs every side the same and no pattern can be right by luck.
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

#include "bench/content.h"
#include "bench/region.h"
#include "bench/result.h"

namespace bench {

struct PatternOptions {
  std::uint64_t pages = 0;
  Mix mix = Mix::kMixed;
  std::uint64_t seed = 1;
  double random_scale = 1.0;  // multiplies the accesses of the patterns that pick pages at random
  double set_share = 0.2;     // of all pages: one working set of `twophase`
  unsigned threads = 1;       // for randread
  bool latency = false;       // time every access of the random patterns
  bool huge = false;          // ask for transparent huge pages
};

// Not thread-safe. Its shadow of one byte a page is the only other large memory, and is kept hot by use.
class PageArray {
 public:
  explicit PageArray(const PatternOptions& options);

  // Names in the order they are meant to run. `fill` must come before all others.
  static const std::vector<std::string>& names();
  [[nodiscard]] static bool known(std::string_view name);

  // Runs one pattern; `twophase` yields three results, the others one. Throws std::invalid_argument.
  std::vector<Result> run(std::string_view name);

  // Compares every byte of every page; not a measurement. Returns the number of wrong pages.
  [[nodiscard]] std::uint64_t wrong_pages() const;
  // Damages one byte, so that it can be shown that wrong_pages() notices.
  void corrupt(std::uint64_t page);

 private:
  Result fill();
  Result sequential_read();
  Result sequential_write();
  Result stride_read(std::uint64_t stride);
  Result random_read();
  Result random_write();
  Result zipf_read_mostly();
  Result chase();
  std::vector<Result> two_phase();
  Result touch_fresh() const;
  Result working_set(const char* name, std::uint64_t first, std::uint64_t count, std::uint64_t accesses,
                     std::uint64_t seed);

  [[nodiscard]] std::uint64_t* page(std::uint64_t index) const { return words_ + index * kPageWords; }
  [[nodiscard]] std::uint64_t tag(std::uint64_t index) const { return page_tag(index, generation_[index]); }
  [[nodiscard]] bool read(std::uint64_t index) const { return read_page(page(index), tag(index)); }
  void write(std::uint64_t index);
  [[nodiscard]] std::uint64_t scaled(double accesses_per_page) const;

  PatternOptions options_;
  Content content_;
  Region region_;
  std::uint64_t* words_;
  std::vector<std::uint8_t> generation_;
};

}  // namespace bench
