#include "devices/codec.h"

#include <gtest/gtest.h>

#include <cstring>
#include <string>
#include <vector>

#include "tests/device_kit/page_contents.h"
#include "tests/device_kit/test_memory.h"

namespace whimbrel::testing {
namespace {

struct Setting {
  const char* name;
  CodecId codec;
  int level;
};

class Codec : public ::testing::TestWithParam<Setting> {
 protected:
  static constexpr std::size_t kMax = 16 * kPageBytes;

  void SetUp() override {
    ASSERT_TRUE(compressor_.init(memory_, GetParam().codec, GetParam().level, kMax));
    ASSERT_TRUE(decompressor_.init(memory_));
  }

  TestMemory memory_;
  Compressor compressor_;
  Decompressor decompressor_;
};

TEST_P(Codec, WhatGoesInComesOut) {
  for (std::uint64_t seed = 0; seed < 10; ++seed) {
    for (const std::size_t pages : {1u, 3u, 4u, 16u}) {
      for (unsigned kind = 0; kind < static_cast<unsigned>(Contents::kCount); ++kind) {
        std::vector<std::byte> in(pages * kPageBytes), out(in.size()), packed(in.size() + 1024);
        fill_pages(static_cast<Contents>(kind), seed, in);
        const std::size_t size = compressor_.compress(in, packed);
        ASSERT_GT(size, 0u);
        ASSERT_TRUE(decompressor_.decompress(GetParam().codec, std::span(packed).first(size), out));
        ASSERT_EQ(in, out);
      }
    }
  }
}

TEST_P(Codec, TheSameInputGivesTheSameBytesWhateverCameBefore) {
  std::vector<std::byte> in(4 * kPageBytes), other(16 * kPageBytes), first(in.size()), again(in.size()), scrap(1 << 17);
  fill_pages(Contents::kText, 1, in);
  const std::size_t size = compressor_.compress(in, first);
  for (unsigned kind = 0; kind < static_cast<unsigned>(Contents::kCount); ++kind) {
    fill_pages(static_cast<Contents>(kind), 2, other);
    ASSERT_GT(compressor_.compress(other, scrap), 0u);
    ASSERT_EQ(compressor_.compress(other, std::span(scrap).first(20)), 0u) << "a failed try in between";
    std::fill(again.begin(), again.end(), std::byte{0});
    ASSERT_EQ(compressor_.compress(in, again), size);
    std::vector<std::byte> out(in.size());
    ASSERT_TRUE(decompressor_.decompress(GetParam().codec, std::span(again).first(size), out));
    ASSERT_EQ(in, out);
  }
}

TEST_P(Codec, GivesUpWhenTheResultDoesNotFit) {
  std::vector<std::byte> in(4 * kPageBytes), out(in.size());
  fill_pages(Contents::kRandom, 1, in);
  EXPECT_EQ(compressor_.compress(in, std::span(out).first(in.size() / 4 * 3)), 0u);
  fill_pages(Contents::kText, 1, in);
  const std::size_t size = compressor_.compress(in, out);
  ASSERT_GT(size, 0u);
  out[size / 2] = std::byte{0x77};
  EXPECT_EQ(compressor_.compress(in, std::span(out).first(size / 2)), 0u);
  EXPECT_EQ(out[size / 2], std::byte{0x77}) << "wrote beyond the end";
  EXPECT_EQ(compressor_.compress({}, out), 0u);
}

// Whatever the input, nothing is written outside of the output and no wrong length is taken for success.
TEST_P(Codec, DamagedInputIsContained) {
  Random random(5);
  std::vector<std::byte> in(4 * kPageBytes), packed(in.size());
  fill_pages(Contents::kText, 1, in);
  const std::size_t size = compressor_.compress(in, packed);
  std::vector<std::byte> out(in.size() + 64, std::byte{0x33});
  for (int i = 0; i < 3000; ++i) {
    std::vector<std::byte> damaged(packed.begin(), packed.begin() + static_cast<std::ptrdiff_t>(size));
    for (std::uint64_t n = 1 + random.below(4); n > 0; --n) {
      damaged[random.below(size)] = static_cast<std::byte>(random.next());
    }
    if (random.below(3) == 0) damaged.resize(random.below(size));
    (void)decompressor_.decompress(GetParam().codec, damaged, std::span(out).first(in.size()));
    for (std::size_t k = in.size(); k < out.size(); ++k) ASSERT_EQ(out[k], std::byte{0x33});
  }
  EXPECT_FALSE(
      decompressor_.decompress(GetParam().codec, std::span(packed).first(size - 1), std::span(out).first(in.size())));
  EXPECT_FALSE(decompressor_.decompress(GetParam().codec, std::span(packed).first(size),
                                        std::span(out).first(in.size() - kPageBytes)));
}

TEST_P(Codec, TakesNoMemoryAfterSetUp) {
  const std::size_t held = memory_.bytes_in_use();
  memory_.set_limit(held);
  std::vector<std::byte> in(kMax), packed(kMax);
  for (std::uint64_t seed = 0; seed < 20; ++seed) {
    fill_mixed(seed, in);
    if (const std::size_t size = compressor_.compress(in, packed); size != 0) {
      std::vector<std::byte> out(kMax);
      EXPECT_TRUE(decompressor_.decompress(GetParam().codec, std::span(packed).first(size), out));
    }
  }
  EXPECT_EQ(memory_.bytes_in_use(), held);
}

INSTANTIATE_TEST_SUITE_P(All, Codec,
                         ::testing::Values(Setting{"lz4", CodecId::kLz4, 1}, Setting{"zstd1", CodecId::kZstd, 1},
                                           Setting{"zstd3", CodecId::kZstd, 3}, Setting{"zstd12", CodecId::kZstd, 12},
                                           Setting{"zstd19", CodecId::kZstd, 19}),
                         [](const auto& test) { return std::string(test.param.name); });

TEST(CodecSetUp, ErrorsAreTyped) {
  TestMemory none(0), enough;
  for (const CodecId codec : {CodecId::kLz4, CodecId::kZstd}) {
    Compressor compressor;
    EXPECT_EQ(compressor.init(none, codec, 1, kPageBytes).error().code, Errc::kNoMemory);
  }
  Decompressor decompressor;
  EXPECT_EQ(decompressor.init(none).error().code, Errc::kNoMemory);
  for (const int level : {0, 20, -1}) {
    Compressor compressor;
    EXPECT_EQ(compressor.init(enough, CodecId::kZstd, level, kPageBytes).error().code, Errc::kInvalid);
  }
}

TEST(CodecSetUp, ContextsAreSmall) {
  TestMemory memory;
  Compressor zstd, lz4;
  ASSERT_TRUE(zstd.init(memory, CodecId::kZstd, 1, 4 * kPageBytes));
  EXPECT_LE(memory.bytes_in_use(), 256u << 10);
  std::printf("zstd 1 for 16 KiB: %zu bytes", memory.bytes_in_use());
  const std::size_t before = memory.bytes_in_use();
  ASSERT_TRUE(lz4.init(memory, CodecId::kLz4, 1, 4 * kPageBytes));
  EXPECT_LE(memory.bytes_in_use() - before, 20u << 10);
  std::printf(", lz4: %zu bytes\n", memory.bytes_in_use() - before);
}

}  // namespace
}  // namespace whimbrel::testing
