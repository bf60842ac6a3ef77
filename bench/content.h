// What the workload keeps in its pages: bytes that compress like those of real programs and prove themselves right.
//
// A page is 64 lines of 64 bytes. The first word of each line is the page's tag, made of its index and generation, so
// that one look at every line (which is what the timed patterns do) detects a page that is missing, swapped, stale or
// torn. The other 56 bytes follow from the seed and the index alone; verify() regenerates and compares all of them.
//
// The classes of bytes are modelled on measured processes; content_test.cc holds them to the ratios.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <optional>
#include <string_view>

namespace bench {

inline constexpr std::size_t kPageBytes = 4096;
inline constexpr std::size_t kLineWords = 8;
inline constexpr std::size_t kPageLines = 64;
inline constexpr std::size_t kPageWords = kPageBytes / sizeof(std::uint64_t);

enum class PageClass : std::uint8_t {
  kRecords,  // text records, as in a key-value store or a database's cache: LZ4 about 2, zstd about 3
  kObjects,  // pointers, small integers, reference counts, as in an interpreter or a compiler: LZ4 about 3.5
  kNumbers,  // doubles with noisy low bits, as in numeric arrays: LZ4 about 1.5
  kNoise,    // compressed or encrypted data: does not compress
  kSame,     // one word repeated
  kHalf,     // eight random bytes of every sixteen: LZ4 and zstd both near 2
};

enum class Mix : std::uint8_t { kMixed, kRecords, kObjects, kNumbers, kNoise, kHalf };
[[nodiscard]] std::optional<Mix> parse_mix(std::string_view name);
[[nodiscard]] const char* mix_name(Mix mix);
inline constexpr std::array kAllMixes = {Mix::kMixed,   Mix::kRecords, Mix::kObjects,
                                         Mix::kNumbers, Mix::kNoise,   Mix::kHalf};

// Tag of page `index` in `generation`. Never zero, so that an empty page is always wrong.
[[nodiscard]] constexpr std::uint64_t page_tag(std::uint64_t index, std::uint8_t generation) {
  return ((index + 1) << 8) | generation;
}

// Thread-safe after construction; about 16 KiB of its own memory, always in use.
class Content {
 public:
  Content(Mix mix, std::uint64_t seed);

  // Writes the whole page. `page` points to kPageBytes bytes, 8-byte aligned.
  void fill(std::uint64_t* page, std::uint64_t index, std::uint8_t generation) const;
  // True when every byte is as fill() with these arguments (and restamp() since) left it.
  [[nodiscard]] bool verify(const std::uint64_t* page, std::uint64_t index, std::uint8_t generation) const;
  [[nodiscard]] PageClass class_of(std::uint64_t index) const;

 private:
  static constexpr std::size_t kMaxTemplates = 32;
  static constexpr std::size_t kClasses = 6;
  using Templates = std::array<std::array<std::uint64_t, kLineWords>, kMaxTemplates>;

  template <PageClass kClass>
  void fill_lines(std::uint64_t* page, std::uint64_t index, std::uint64_t tag) const;

  Mix mix_;
  std::uint64_t seed_;
  std::array<Templates, kClasses> templates_{};
};

// Reads one word of each line. True when all carry the tag. This is what "reading a page" means in the patterns.
[[nodiscard]] inline bool read_page(const std::uint64_t* page, std::uint64_t tag) {
  std::uint64_t difference = 0;
  for (std::size_t line = 0; line < kPageLines; ++line) {
    difference |= page[line * kLineWords] ^ tag;
  }
  return difference == 0;
}

// Writes one word of each line. This is what "writing a page" means in the patterns.
inline void restamp(std::uint64_t* page, std::uint64_t tag, bool same_filled) {
  if (same_filled) {
    for (std::size_t word = 0; word < kPageWords; ++word) page[word] = tag;
    return;
  }
  for (std::size_t line = 0; line < kPageLines; ++line) {
    page[line * kLineWords] = tag;
  }
}

}  // namespace bench
