// Blob: the stored form of a unit of 1 to 16 pages.
//
//   | BlobHeader | one word for each same-filled page | the other pages, one after the other, compressed together |
//
// Same-filled pages are left out of the compressed part, so one page of zeros among noise costs eight bytes. The
// checksum covers the contents, all pages, as they were handed in: it finds damage in the blob, in the store's links
// and in the codec alike.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/memory_source.h"
#include "devices/codec.h"

namespace whimbrel {

inline constexpr std::uint32_t kMaxBlobPages = 16;

struct BlobHeader {
  std::uint64_t checksum;   // of the pages' contents
  std::uint32_t length;     // of what follows the header
  std::uint16_t filled;     // bit i: page i is same-filled
  CodecId codec;            // of the compressed part
  std::uint8_t dictionary;  // the codec's dictionary; 0: none
};
static_assert(sizeof(BlobHeader) == 16, "a blob of one small page is a few hundred bytes: keep its header small");

// A blob ready to be stored: the parts belong one after the other. Spans point into the encoder, or for incompressible
// contents into the pages themselves: valid until the next encode().
struct EncodedBlob {
  BlobHeader header;
  std::span<const std::byte> words;
  std::span<const std::byte> data;

  [[nodiscard]] std::size_t size() const noexcept { return sizeof(header) + words.size() + data.size(); }
  [[nodiscard]] bool raw() const noexcept { return header.codec == CodecId::kRaw; }
};

// The largest blob a unit of so many pages can become.
[[nodiscard]] constexpr std::size_t max_blob_bytes(std::uint32_t pages) noexcept {
  return sizeof(BlobHeader) + pages * std::size_t{4096 + 8};
}

// One worker's means to make blobs. Not thread-safe.
class BlobEncoder {
 public:
  BlobEncoder() = default;
  ~BlobEncoder();
  BlobEncoder(const BlobEncoder&) = delete;
  BlobEncoder& operator=(const BlobEncoder&) = delete;

  // For units of up to `max_pages`. kNoMemory, kInvalid.
  [[nodiscard]] Result<void> init(MemorySource& source, CodecId codec, int level, std::uint32_t max_pages) noexcept;
  // `contents` is 1..max_pages whole pages.
  [[nodiscard]] EncodedBlob encode(std::span<const std::byte> contents) noexcept;

 private:
  MemorySource* source_ = nullptr;
  Compressor compressor_;
  std::uint64_t words_[kMaxBlobPages] = {};
  std::byte* scratch_ = nullptr;  // gathered pages, then compressed bytes: half each
  std::size_t half_ = 0;
};

enum class BlobCheck : std::uint8_t {
  kChecksum,
  kNone,  // for contents that are compared with memory anyway
};

// Reads a blob back. `contents` is as many whole pages as were encoded, and all of it is written. kCorrupt: the bytes
// in `contents` then mean nothing.
[[nodiscard]] Result<void> decode_blob(Decompressor& decompressor, std::span<const std::byte> blob,
                                       std::span<std::byte> contents, BlobCheck check = BlobCheck::kChecksum) noexcept;

// The same for a blob that is raw and without same-filled pages, whose body was copied to `contents` directly.
[[nodiscard]] Result<void> check_raw_blob(const BlobHeader& header, std::span<const std::byte> contents,
                                          BlobCheck check = BlobCheck::kChecksum) noexcept;

}  // namespace whimbrel
