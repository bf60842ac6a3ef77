// Blobs: what any bytes decode to, and what contents become on their way through.
//
//   byte 0   bit 0: the rest is a blob to be read; otherwise contents to be stored, then damaged
//   byte 1   pages, codec
#include <memory>
#include <vector>

#include "devices/blob.h"
#include "fuzz/fuzz.h"
#include "mm/heap_source.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPage = 4096;

Decompressor& decompressor() {
  static HeapSource heap;
  static Decompressor one;
  static const bool ready = one.init(heap).has_value();
  PROPERTY(ready, "a decompressor");
  return one;
}

BlobEncoder& encoder(CodecId codec) {
  static HeapSource heap;
  static BlobEncoder lz4, zstd;
  static const bool ready =
      lz4.init(heap, CodecId::kLz4, 0, kMaxBlobPages) && zstd.init(heap, CodecId::kZstd, 1, kMaxBlobPages);
  PROPERTY(ready, "encoders");
  return codec == CodecId::kLz4 ? lz4 : zstd;
}

std::span<const std::byte> as_bytes(std::span<const std::uint8_t> bytes) {
  return {reinterpret_cast<const std::byte*>(bytes.data()), bytes.size()};
}

// Foreign bytes: refused or decoded, never beyond the contents (the address sanitizer watches the exact sizes).
void read_foreign(fuzz::Decisions& in, std::size_t pages) {
  const BlobCheck check = in.byte() % 2 == 0 ? BlobCheck::kNone : BlobCheck::kChecksum;
  // The header's length is made right half of the time: otherwise little gets past it.
  const bool honest = in.byte() % 2 == 0;
  const auto given = as_bytes(in.rest());
  const std::vector<std::byte> exact(given.begin(), given.end());
  std::vector<std::byte> blob = exact;
  if (honest && blob.size() >= sizeof(BlobHeader)) {
    BlobHeader header;
    std::memcpy(&header, blob.data(), sizeof header);
    header.length = static_cast<std::uint32_t>(blob.size() - sizeof header);
    header.dictionary = 0;
    std::memcpy(blob.data(), &header, sizeof header);
  }
  std::vector<std::byte> contents(pages * kPage);
  const Result<void> read = decode_blob(decompressor(), blob, contents, check);
  PROPERTY(read || read.error().code == Errc::kCorrupt, "a damaged blob is kCorrupt");
  if (blob.size() >= sizeof(BlobHeader)) {
    BlobHeader header;
    std::memcpy(&header, blob.data(), sizeof header);
    PROPERTY(!read || header.length == blob.size() - sizeof header, "a blob of another length is kCorrupt");
    (void)check_raw_blob(header, contents, check);
  } else {
    PROPERTY(!read, "less than a header is kCorrupt");
  }
}

// Contents made of the input: pages of noise, of one word, of repeated pieces.
std::vector<std::byte> make_contents(fuzz::Decisions& in, std::size_t pages) {
  std::vector<std::byte> contents(pages * kPage);
  for (std::size_t i = 0; i < pages; ++i) {
    std::byte* const page = contents.data() + i * kPage;
    const std::uint8_t how = in.byte();
    const auto piece = in.bytes(1 + how / 4);
    for (std::size_t at = 0; at < kPage; ++at) {
      const std::uint8_t byte = piece.empty() ? 0 : piece[how % 4 == 0 ? at % 8 % piece.size() : at % piece.size()];
      page[at] = std::byte{static_cast<std::uint8_t>(byte + (how % 4 == 3 ? at * at >> 3 : 0))};
    }
  }
  return contents;
}

void store_and_damage(fuzz::Decisions& in, std::size_t pages, CodecId codec) {
  const std::uint8_t damage = in.byte();
  const std::size_t where = in.number(2);
  const std::vector<std::byte> contents = make_contents(in, pages);
  const EncodedBlob made = encoder(codec).encode(contents);
  PROPERTY(made.size() <= max_blob_bytes(static_cast<std::uint32_t>(pages)), "a blob is no larger than promised");
  std::vector<std::byte> blob(made.size());
  std::memcpy(blob.data(), &made.header, sizeof made.header);
  std::byte* const body = blob.data() + sizeof made.header;
  if (!made.words.empty()) std::memcpy(body, made.words.data(), made.words.size());
  if (!made.data.empty()) std::memcpy(body + made.words.size(), made.data.data(), made.data.size());

  std::vector<std::byte> back(contents.size(), std::byte{0xa5});
  PROPERTY(decode_blob(decompressor(), blob, back).has_value(), "a blob can be read again");
  PROPERTY(back == contents, "a blob holds what was stored");
  if (damage == 0) return;
  blob[where % blob.size()] ^= std::byte{damage};
  const Result<void> read = decode_blob(decompressor(), blob, back);
  PROPERTY(!read || back == contents, "damage is noticed or harmless");
}

}  // namespace
}  // namespace whimbrel

extern "C" int LLVMFuzzerTestOneInput(const std::uint8_t* data, std::size_t size) {
  using namespace whimbrel;
  fuzz::Decisions in({data, size});
  const bool foreign = in.byte() % 2 != 0;
  const std::uint8_t shape = in.byte();
  const std::size_t pages = 1 + shape % kMaxBlobPages;
  if (foreign) {
    read_foreign(in, pages);
  } else {
    store_and_damage(in, pages, shape < 128 ? CodecId::kLz4 : CodecId::kZstd);
  }
  return 0;
}
