#include "devices/blob.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "devices/checksum.h"
#include "devices/same_filled.h"
#include "tests/device_kit/page_contents.h"
#include "tests/device_kit/test_memory.h"

namespace whimbrel::testing {
namespace {

std::vector<std::byte> bytes_of(const EncodedBlob& blob) {
  std::vector<std::byte> bytes(blob.size());
  std::memcpy(bytes.data(), &blob.header, sizeof(blob.header));
  if (!blob.words.empty()) std::memcpy(bytes.data() + sizeof(blob.header), blob.words.data(), blob.words.size());
  if (!blob.data.empty()) {
    std::memcpy(bytes.data() + sizeof(blob.header) + blob.words.size(), blob.data.data(), blob.data.size());
  }
  return bytes;
}

class Blob : public ::testing::TestWithParam<CodecId> {
 protected:
  void SetUp() override {
    ASSERT_TRUE(encoder_.init(memory_, GetParam(), 1, kMaxBlobPages));
    ASSERT_TRUE(decompressor_.init(memory_));
  }
  std::vector<std::byte> encode(std::span<const std::byte> contents) { return bytes_of(encoder_.encode(contents)); }

  TestMemory memory_;
  BlobEncoder encoder_;
  Decompressor decompressor_;
};

TEST_P(Blob, EveryMixOfPagesComesBack) {
  for (std::uint64_t seed = 0; seed < 300; ++seed) {
    std::vector<std::byte> contents((1 + seed % kMaxBlobPages) * kPageBytes), back(contents.size());
    fill_mixed(seed, contents);
    const std::vector<std::byte> blob = encode(contents);
    ASSERT_LE(blob.size(), max_blob_bytes(static_cast<std::uint32_t>(contents.size() / kPageBytes)));
    ASSERT_TRUE(decode_blob(decompressor_, blob, back).has_value());
    ASSERT_EQ(contents, back) << seed;
  }
}

// All 16 patterns of same-filled pages in a unit of 4, with contents that compress and contents that do not.
TEST_P(Blob, SameFilledPagesCostAWordEach) {
  for (const Contents rest : {Contents::kText, Contents::kRandom}) {
    for (std::uint32_t filled = 0; filled < 16; ++filled) {
      std::vector<std::byte> contents(4 * kPageBytes), back(contents.size());
      std::size_t others = 0;
      for (std::uint32_t i = 0; i < 4; ++i) {
        const bool same = (filled >> i & 1) != 0;
        fill_pages(same ? Contents::kSameFilled : rest, i + 1, std::span(contents).subspan(i * kPageBytes, kPageBytes));
        if (!same) ++others;
      }
      const std::vector<std::byte> blob = encode(contents);
      EXPECT_LE(blob.size(), sizeof(BlobHeader) + (4 - others) * 8 + others * kPageBytes);
      EXPECT_EQ(others == 0, blob.size() == sizeof(BlobHeader) + 32);
      ASSERT_TRUE(decode_blob(decompressor_, blob, back).has_value());
      EXPECT_EQ(contents, back);
    }
  }
}

TEST_P(Blob, ContentsThatDoNotCompressAreKeptAsTheyAre) {
  std::vector<std::byte> contents(4 * kPageBytes);
  fill_pages(Contents::kRandom, 1, contents);
  // A quarter of it compressible is still not worth it, a good half is.
  const EncodedBlob raw = encoder_.encode(contents);
  EXPECT_TRUE(raw.raw());
  EXPECT_EQ(raw.data.data(), contents.data()) << "copied for nothing";
  EXPECT_EQ(raw.size(), sizeof(BlobHeader) + contents.size());
  EXPECT_TRUE(check_raw_blob(raw.header, contents).has_value());
  fill_pages(Contents::kText, 1, std::span(contents).first(2 * kPageBytes));
  const EncodedBlob packed = encoder_.encode(contents);
  EXPECT_FALSE(packed.raw());
  EXPECT_LT(packed.data.size(), contents.size() / 4 * 3);
  EXPECT_EQ(check_raw_blob(packed.header, contents).error().code, Errc::kCorrupt);
}

TEST_P(Blob, EveryFlippedBitIsNoticed) {
  for (const Contents kind : {Contents::kText, Contents::kRandom}) {
    std::vector<std::byte> contents(2 * kPageBytes), back(contents.size());
    fill_pages(kind, 1, std::span(contents).first(kPageBytes));
    fill_pages(Contents::kSameFilled, 2, std::span(contents).subspan(kPageBytes));
    std::vector<std::byte> blob = encode(contents);
    Random random(9);
    for (std::size_t i = 0; i < blob.size(); ++i) {
      const auto bit = std::byte{1} << random.below(8);
      blob[i] ^= bit;
      const Result<void> result = decode_blob(decompressor_, blob, back);
      // A few bits mean nothing to a codec (for one, padding at the end): then the contents are right nevertheless.
      if (result) {
        EXPECT_EQ(contents, back) << "wrong contents taken for right, byte " << i;
        EXPECT_GE(i, sizeof(BlobHeader)) << "a bit of the header that nobody looks at";
      } else {
        EXPECT_EQ(result.error().code, Errc::kCorrupt);
      }
      blob[i] ^= bit;
    }
    EXPECT_TRUE(decode_blob(decompressor_, blob, back).has_value());
  }
}

TEST_P(Blob, WrongLengthsAreNoticed) {
  std::vector<std::byte> contents(4 * kPageBytes), back(5 * kPageBytes);
  fill_mixed(3, contents);
  std::vector<std::byte> blob = encode(contents);
  for (std::size_t size = 0; size < blob.size(); ++size) {
    ASSERT_FALSE(decode_blob(decompressor_, std::span(blob).first(size), std::span(back).first(contents.size())));
  }
  EXPECT_FALSE(decode_blob(decompressor_, blob, std::span(back).first(3 * kPageBytes)).has_value());
  EXPECT_FALSE(decode_blob(decompressor_, blob, back).has_value());
  blob.push_back(std::byte{0});
  EXPECT_FALSE(decode_blob(decompressor_, blob, std::span(back).first(contents.size())).has_value());
}

TEST_P(Blob, RandomBytesAreNoBlob) {
  Random random(run_seed());
  std::vector<std::byte> blob, back(4 * kPageBytes);
  for (int i = 0; i < 5000; ++i) {
    blob.resize(random.below(300));
    for (std::byte& byte : blob) byte = static_cast<std::byte>(random.next());
    if (blob.size() >= sizeof(BlobHeader)) {  // plausible enough to get past the first checks
      BlobHeader header;
      std::memcpy(&header, blob.data(), sizeof(header));
      header.length = static_cast<std::uint32_t>(blob.size() - sizeof(header));
      header.filled &= 0xf;
      header.dictionary = 0;
      header.codec = static_cast<CodecId>(random.below(4));
      std::memcpy(blob.data(), &header, sizeof(header));
    }
    ASSERT_FALSE(decode_blob(decompressor_, blob, back).has_value());
  }
}

INSTANTIATE_TEST_SUITE_P(All, Blob, ::testing::Values(CodecId::kLz4, CodecId::kZstd),
                         [](const auto& test) { return std::string(codec_name(test.param)); });

TEST(SameFilled, FindsWordsAndNothingElse) {
  std::vector<std::byte> page(kPageBytes), made(kPageBytes);
  EXPECT_EQ(same_filled(page), 0u);
  for (std::uint64_t seed = 0; seed < 50; ++seed) {
    fill_pages(Contents::kSameFilled, seed, page);
    const auto word = same_filled(page);
    ASSERT_TRUE(word.has_value());
    fill_same(made, *word);
    ASSERT_EQ(page, made);
    const std::size_t at = Random(seed).below(kPageBytes);
    page[at] ^= std::byte{0x10};
    ASSERT_FALSE(same_filled(page).has_value()) << at;
  }
}

TEST(Checksum, IsXxh64) {
  // Known answers of the published algorithm.
  EXPECT_EQ(checksum64({}), 0xef46db3751d8e999u);
  const char* text = "xxhash";
  EXPECT_EQ(checksum64({reinterpret_cast<const std::byte*>(text), 6}), 0x32dd38952c4bc720u);
  EXPECT_EQ(checksum64({reinterpret_cast<const std::byte*>(text), 6}, 20141025), 0xb559b98d844e0635u);
}

}  // namespace
}  // namespace whimbrel::testing
