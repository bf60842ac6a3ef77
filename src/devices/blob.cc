#include "devices/blob.h"

#include <bit>
#include <cstring>

#include "base/check.h"
#include "devices/checksum.h"
#include "devices/same_filled.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;

template <class T>
std::span<T> page(std::span<T> contents, std::uint32_t i) noexcept {
  return contents.subspan(i * kPageBytes, kPageBytes);
}

// Pages lie packed at the front; moves each to its place and makes the same-filled ones. From the back, since a page
// never moves forward past one that is still to be moved.
void spread(std::span<std::byte> contents, std::uint32_t filled, std::span<const std::byte> words) noexcept {
  const auto pages = static_cast<std::uint32_t>(contents.size() / kPageBytes);
  std::uint32_t packed = pages - static_cast<std::uint32_t>(std::popcount(filled));
  std::size_t word_at = words.size();
  for (std::uint32_t i = pages; i-- > 0;) {
    if ((filled >> i & 1) != 0) {
      std::uint64_t word = 0;
      word_at -= 8;
      std::memcpy(&word, words.data() + word_at, 8);
      fill_same(page(contents, i), word);
    } else if (--packed != i) {
      std::memmove(page(contents, i).data(), page(contents, packed).data(), kPageBytes);
    }
  }
}

Result<void> checked(const BlobHeader& header, std::span<const std::byte> contents, BlobCheck check) noexcept {
  if (check == BlobCheck::kChecksum && checksum64(contents) != header.checksum) {
    return fail(Errc::kCorrupt, 0, "blob checksum");
  }
  return {};
}

}  // namespace

BlobEncoder::~BlobEncoder() {
  if (scratch_ != nullptr) source_->give(scratch_, 2 * half_);
}

Result<void> BlobEncoder::init(MemorySource& source, CodecId codec, int level, std::uint32_t max_pages) noexcept {
  if (max_pages == 0 || max_pages > kMaxBlobPages) return fail(Errc::kInvalid, 0, "blob pages");
  source_ = &source;
  half_ = max_pages * kPageBytes;
  scratch_ = static_cast<std::byte*>(source.take(2 * half_));
  if (scratch_ == nullptr) return fail(Errc::kNoMemory, 0, "blob encoder");
  return compressor_.init(source, codec, level, half_);
}

EncodedBlob BlobEncoder::encode(std::span<const std::byte> contents) noexcept {
  const auto pages = static_cast<std::uint32_t>(contents.size() / kPageBytes);
  DCHECK(pages * kPageBytes == contents.size() && contents.size() <= half_);
  std::uint32_t filled = 0, count = 0;
  for (std::uint32_t i = 0; i < pages; ++i) {
    if (const auto word = same_filled(page(contents, i))) {
      filled |= 1u << i;
      words_[count++] = *word;
    }
  }
  std::span<const std::byte> data = contents;
  if (filled != 0) {
    std::size_t gathered = 0;
    for (std::uint32_t i = 0; i < pages; ++i) {
      if ((filled >> i & 1) != 0) continue;
      std::memcpy(scratch_ + gathered, page(contents, i).data(), kPageBytes);
      gathered += kPageBytes;
    }
    data = {scratch_, gathered};
  }
  // A result of three quarters or more is not worth the time of decoding it.
  const std::size_t worthwhile = data.size() / 4 * 3;
  const std::size_t size = data.empty() ? 0 : compressor_.compress(data, {scratch_ + half_, worthwhile - 1});
  if (size != 0) data = {scratch_ + half_, size};
  const std::span<const std::byte> words{reinterpret_cast<const std::byte*>(words_), count * std::size_t{8}};
  return {.header = {.checksum = checksum64(contents),
                     .length = static_cast<std::uint32_t>(words.size() + data.size()),
                     .filled = static_cast<std::uint16_t>(filled),
                     .codec = size != 0 ? compressor_.codec() : CodecId::kRaw,
                     .dictionary = 0},
          .words = words,
          .data = data};
}

Result<void> decode_blob(Decompressor& decompressor, std::span<const std::byte> blob, std::span<std::byte> contents,
                         BlobCheck check) noexcept {
  BlobHeader header;
  if (blob.size() < sizeof(header)) return fail(Errc::kCorrupt, 0, "blob header");
  std::memcpy(&header, blob.data(), sizeof(header));
  const auto pages = static_cast<std::uint32_t>(contents.size() / kPageBytes);
  const std::uint32_t filled = header.filled;
  const std::size_t words = static_cast<std::size_t>(std::popcount(filled)) * 8;
  if (header.length != blob.size() - sizeof(header) || (filled >> pages) != 0 || words > header.length ||
      header.dictionary != 0) {
    return fail(Errc::kCorrupt, 0, "blob header");
  }
  const std::span<const std::byte> body = blob.subspan(sizeof(header));
  const std::span<std::byte> packed = contents.first(contents.size() - words / 8 * kPageBytes);
  if (packed.empty() ? body.size() != words : !decompressor.decompress(header.codec, body.subspan(words), packed)) {
    return fail(Errc::kCorrupt, 0, "blob contents");
  }
  if (filled != 0) spread(contents, filled, body.first(words));
  return checked(header, contents, check);
}

Result<void> check_raw_blob(const BlobHeader& header, std::span<const std::byte> contents, BlobCheck check) noexcept {
  if (header.codec != CodecId::kRaw || header.length != contents.size() || header.filled != 0 ||
      header.dictionary != 0) {
    return fail(Errc::kCorrupt, 0, "blob header");
  }
  return checked(header, contents, check);
}

}  // namespace whimbrel
