// ChunkSegment: one large block of memory, cut into chunks of 256 bytes.
//
//   | chunk 0 | chunk 1 | ... | chunk n-1 | next[n] | owner[n] | bitmap of free chunks |
//
// The links lie apart from the data, so that following a chain touches few cache lines and the processor can fetch the
// chunks themselves in parallel. 8 bytes of links per chunk cost 3 %.
//
// A segment is only an address and a layout; who may touch what is the pool's business (see chunk_pool.h).
#pragma once

#include <bit>
#include <cstddef>
#include <cstdint>

namespace whimbrel {

inline constexpr std::size_t kChunkBytes = 256;

// Where things lie in a segment of a given size. The same for all segments of a pool.
class SegmentLayout {
 public:
  explicit constexpr SegmentLayout(std::size_t bytes) noexcept : bytes_(bytes), chunks_(chunks_in(bytes)) {
    index_bits_ = static_cast<std::uint32_t>(std::bit_width(chunks_ - 1));
  }
  [[nodiscard]] constexpr std::size_t bytes() const noexcept { return bytes_; }
  [[nodiscard]] constexpr std::uint32_t chunks() const noexcept { return chunks_; }
  [[nodiscard]] constexpr std::uint32_t words() const noexcept { return (chunks_ + 63) / 64; }

  // A chunk's number within the pool: the segment in the high bits, the chunk in the low ones.
  [[nodiscard]] constexpr std::uint32_t segment_of(std::uint32_t index) const noexcept { return index >> index_bits_; }
  [[nodiscard]] constexpr std::uint32_t chunk_of(std::uint32_t index) const noexcept {
    return index & ((1u << index_bits_) - 1);
  }
  [[nodiscard]] constexpr std::uint32_t index(std::uint32_t segment, std::uint32_t chunk) const noexcept {
    return segment << index_bits_ | chunk;
  }
  // The highest number is kept for "none".
  [[nodiscard]] constexpr std::uint32_t max_segments() const noexcept { return (1u << (32 - index_bits_)) - 1; }

  [[nodiscard]] std::byte* chunk(std::byte* base, std::uint32_t chunk) const noexcept {
    return base + chunk * kChunkBytes;
  }
  [[nodiscard]] std::uint32_t* next(std::byte* base) const noexcept {
    return reinterpret_cast<std::uint32_t*>(base + chunks_ * kChunkBytes);
  }
  [[nodiscard]] std::uint32_t* owner(std::byte* base) const noexcept { return next(base) + chunks_; }
  // A set bit is a free chunk. 8-byte aligned, since the two arrays before it are 4 bytes per chunk each.
  [[nodiscard]] std::uint64_t* bitmap(std::byte* base) const noexcept {
    return reinterpret_cast<std::uint64_t*>(base + chunks_ * (kChunkBytes + 8));
  }

 private:
  static constexpr std::uint32_t chunks_in(std::size_t bytes) noexcept {
    std::size_t n = bytes / (kChunkBytes + 8);
    while (n * (kChunkBytes + 8) + (n + 63) / 64 * 8 > bytes) --n;
    return static_cast<std::uint32_t>(n);
  }

  std::size_t bytes_;
  std::uint32_t chunks_;
  std::uint32_t index_bits_ = 0;
};

// The pool's record of a segment, kept outside of it: a segment inherited over a fork is counted without being
// written to, since a write would copy the page. All zero: no segment here.
struct SegmentState {
  std::byte* base;           // null: no segment here
  std::uint32_t used;        // chunks in use
  std::uint32_t first_word;  // no free chunk in the words of the bitmap before this one
  std::uint32_t high_water;  // chunks from here on were never used, so there is nothing to wipe
  bool frozen;               // inherited: never written to or filled again
};

}  // namespace whimbrel
