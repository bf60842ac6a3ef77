#include "devices/extents/extent_cipher.h"

#include <gtest/gtest.h>

#include <cstring>
#include <vector>

#include "tests/device_kit/page_contents.h"

namespace whimbrel::testing {
namespace {

class Cipher : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!ExtentCipher::is_possible()) GTEST_SKIP() << "this processor has no AES instructions";
    ASSERT_TRUE(cipher_.make_key().has_value());
    fill_pages(Contents::kText, 1, plain_);
  }
  ExtentCipher cipher_;
  std::vector<std::byte> plain_ = std::vector<std::byte>(kPageBytes);
  std::vector<std::byte> sealed_ = std::vector<std::byte>(kPageBytes);
  std::array<std::byte, ExtentCipher::kTagBytes> tag_{};
};

TEST_F(Cipher, WhatWasSealedIsOpenedAgain) {
  for (const std::size_t bytes : {std::size_t{1}, std::size_t{16}, std::size_t{1000}, kPageBytes}) {
    const std::span<std::byte> sealed(sealed_.data(), bytes);
    cipher_.encrypt({7, 3}, {plain_.data(), bytes}, sealed.data(), tag_.data());
    EXPECT_NE(std::memcmp(sealed.data(), plain_.data(), bytes), 0);
    ASSERT_TRUE(cipher_.decrypt({7, 3}, sealed, tag_.data()));
    EXPECT_EQ(std::memcmp(sealed.data(), plain_.data(), bytes), 0);
  }
}

TEST_F(Cipher, InPlace) {
  std::vector<std::byte> memory = plain_;
  cipher_.encrypt({1, 0}, memory, memory.data(), tag_.data());
  EXPECT_NE(memory, plain_);
  ASSERT_TRUE(cipher_.decrypt({1, 0}, memory, tag_.data()));
  EXPECT_EQ(memory, plain_);
}

TEST_F(Cipher, EveryChangeIsNoticed) {
  for (std::size_t at = 0; at < kPageBytes; at += 61) {
    cipher_.encrypt({at, 0}, plain_, sealed_.data(), tag_.data());
    sealed_[at] ^= std::byte{1};
    EXPECT_FALSE(cipher_.decrypt({at, 0}, sealed_, tag_.data()));
  }
  for (std::byte& byte : tag_) {
    cipher_.encrypt({9, 0}, plain_, sealed_.data(), tag_.data());
    byte ^= std::byte{0x80};
    EXPECT_FALSE(cipher_.decrypt({9, 0}, sealed_, tag_.data()));
  }
}

TEST_F(Cipher, EachKeyNumberAndPartMakesItDifferent) {
  std::vector<std::byte> other(kPageBytes);
  std::array<std::byte, ExtentCipher::kTagBytes> unused{};
  cipher_.encrypt({1, 0}, plain_, sealed_.data(), tag_.data());
  cipher_.encrypt({1, 1}, plain_, other.data(), unused.data());
  EXPECT_NE(other, sealed_);
  cipher_.encrypt({2, 0}, plain_, other.data(), unused.data());
  EXPECT_NE(other, sealed_);
  ExtentCipher second;
  ASSERT_TRUE(second.make_key().has_value());
  second.encrypt({1, 0}, plain_, other.data(), unused.data());
  EXPECT_NE(other, sealed_);
  EXPECT_FALSE(cipher_.decrypt({1, 1}, sealed_, tag_.data()));
  cipher_.encrypt({1, 0}, plain_, sealed_.data(), tag_.data());
  EXPECT_FALSE(second.decrypt({1, 0}, sealed_, tag_.data()));
}

// GCM's second standard case for 256 bits would need a chosen key; this shows at least that a block is XORed with what
// does not depend on it, which is what makes reusing a number fatal and why each store takes a new one.
TEST_F(Cipher, IsAStreamCipher) {
  std::vector<std::byte> zero(kPageBytes), stream(kPageBytes);
  cipher_.encrypt({5, 0}, zero, stream.data(), tag_.data());
  cipher_.encrypt({5, 0}, plain_, sealed_.data(), tag_.data());
  for (std::size_t i = 0; i < kPageBytes; ++i) ASSERT_EQ(stream[i] ^ plain_[i], sealed_[i]);
}

}  // namespace
}  // namespace whimbrel::testing
