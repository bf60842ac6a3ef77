#include "cli/size_text.h"

#include <gtest/gtest.h>

namespace whimbrel::cli {
namespace {

TEST(SizeText, WhatPeopleType) {
  EXPECT_EQ(parse_size("67108864"), 64u << 20);
  EXPECT_EQ(parse_size("64M"), 64u << 20);
  EXPECT_EQ(parse_size("64m"), 64u << 20);
  EXPECT_EQ(parse_size("64MiB"), 64u << 20);
  EXPECT_EQ(parse_size("0.5G"), 512u << 20);
  EXPECT_EQ(parse_size("1.5K"), 1536u);
  EXPECT_EQ(parse_size("2T"), std::uint64_t{2} << 40);
  EXPECT_EQ(parse_size("0"), 0u);
}

TEST(SizeText, WhatMakesNoSense) {
  for (const char* text : {"", "M", "abc", "-5M", "1.2.3M", "5MM", " ", "5 M", "0x10M", "1e6", "64M64M", "10X", "1.", ".5G", "1.5",
                           "99999999999999999999T", "9223372036854775807K", "18446744073709551616", "5i", "5iB"}) {
    EXPECT_FALSE(parse_size(text)) << text;
  }
}

}  // namespace
}  // namespace whimbrel::cli
