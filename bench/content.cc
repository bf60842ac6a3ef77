#include "bench/content.h"

#include <algorithm>
#include <bit>
#include <cstring>

#include "bench/random.h"

namespace bench {
namespace {

// Memory of one kind comes in runs (an arena, an array, a table): pages of one class lie together.
constexpr std::uint64_t kRunPages = 16;

// How a line of one class is put together after its tag. 't': from one of a few templates; 'h': hexadecimal digits,
// 'r': random bits, 'd': a double with random low bits, 'p': a heap pointer, 'i': a small integer, 'm': half a
// template word and half random, 'k': a template word but for two bytes.
struct Layout {
  std::uint32_t templates;  // a power of two: the more, the longer it takes a compressor to have seen them all
  std::array<char, kLineWords> words;
};

constexpr Layout layout_of(PageClass page_class) {
  switch (page_class) {
    case PageClass::kRecords:
      return {8, {'T', 't', 't', 'h', 'm', 't', 't', 'k'}};
    case PageClass::kObjects:
      return {8, {'T', 't', 't', 'p', 't', 't', 't', 'i'}};
    case PageClass::kNumbers:
      return {8, {'T', 'd', 'i', 't', 'd', 'd', 't', 'i'}};
    case PageClass::kNoise:
      return {1, {'T', 'r', 'r', 'r', 'r', 'r', 'r', 'r'}};
    case PageClass::kHalf:
      return {1, {'T', 't', 'r', 'r', 't', 't', 'r', 'r'}};
    case PageClass::kSame:
      return {1, {'T', 'T', 'T', 'T', 'T', 'T', 'T', 'T'}};
  }
  return {1, {}};
}

// Eight hexadecimal digits for the low 32 bits, without a table: spread the nibbles, then add 'a' - '0' - 10 where
// a nibble is above nine.
std::uint64_t hex_digits(std::uint64_t value) {
  std::uint64_t x = value & 0xFFFFFFFFull;
  x = ((x << 16) | x) & 0x0000FFFF0000FFFFull;
  x = ((x << 8) | x) & 0x00FF00FF00FF00FFull;
  x = ((x << 4) | x) & 0x0F0F0F0F0F0F0F0Full;
  const std::uint64_t letters = ((x + 0x0606060606060606ull) >> 4) & 0x0101010101010101ull;
  return x + 0x3030303030303030ull + letters * 0x27;
}

constexpr std::array<std::uint64_t, kLineWords> kWordFactors = {
    0x9E3779B97F4A7C15ull, 0xC2B2AE3D27D4EB4Full, 0x165667B19E3779F9ull, 0x85EBCA77C2B2AE63ull,
    0x27D4EB2F165667C5ull, 0xD6E8FEB86659FD93ull, 0xA0761D6478BD642Full, 0xE7037ED1A0B428DBull};

std::uint64_t make_word(char kind, std::uint64_t random, std::uint64_t from_template) {
  switch (kind) {
    case 'h':
      return hex_digits(random >> 9);
    case 'r':
      return random;
    case 'd':
      return (from_template & 0xFFFF000000000000ull) | (random & 0x0000FFFFFFFFFFFFull);
    case 'p':
      return (from_template & 0xFFFFFFFF00000000ull) | (random & 0x00000000FFFFFFF0ull);
    case 'm':
      return (from_template & 0xFFFFFFFF00000000ull) | (random & 0x00000000FFFFFFFFull);
    case 'k':
      return (from_template & 0xFFFFFFFFFFFF0000ull) | (random & 0x000000000000FFFFull);
    case 'i':
      return random & 0x7FFF;
    default:
      return from_template;
  }
}

std::uint64_t text_word(Random& random) {
  static constexpr std::string_view kLetters = "etaoinshrdlucmfwyp\":,_{} etaoin ";
  std::uint64_t word = 0;
  for (unsigned byte = 0; byte < 8; ++byte) {
    word |= static_cast<std::uint64_t>(static_cast<unsigned char>(kLetters[random.below(kLetters.size())]))
            << (8 * byte);
  }
  return word;
}

std::uint64_t template_word(PageClass page_class, char kind, Random& random) {
  switch (page_class) {
    case PageClass::kRecords:
      return text_word(random);
    case PageClass::kNumbers:
      return kind == 'd' ? 0x4050000000000000ull + (random.below(16) << 48) : 0;
    case PageClass::kObjects: {
      if (kind == 'p') return 0x00007F3A00000000ull + (random.below(2) << 32);
      return random.below(3) == 0 ? random.below(256) : 0x0000560000000000ull + (random.below(1u << 24) << 4);
    }
    default:
      return 0;
  }
}

// The share of each class in a mix, in percent.
struct Share {
  PageClass page_class;
  unsigned percent;
};

PageClass pick_class(Mix mix, std::uint64_t random) {
  // Averages over the measured processes: 6 % of the units do not compress and about 1 % of the pages are one word.
  static constexpr std::array<Share, 5> kMixed = {{{PageClass::kRecords, 60},
                                                   {PageClass::kObjects, 22},
                                                   {PageClass::kNumbers, 11},
                                                   {PageClass::kNoise, 6},
                                                   {PageClass::kSame, 1}}};
  switch (mix) {
    case Mix::kRecords:
      return PageClass::kRecords;
    case Mix::kObjects:
      return PageClass::kObjects;
    case Mix::kNumbers:
      return PageClass::kNumbers;
    case Mix::kNoise:
      return PageClass::kNoise;
    case Mix::kHalf:
      return PageClass::kHalf;
    case Mix::kMixed:
      break;
  }
  auto left = static_cast<unsigned>(random % 100);
  for (const Share& share : kMixed) {
    if (left < share.percent) return share.page_class;
    left -= share.percent;
  }
  return PageClass::kRecords;
}

}  // namespace

std::optional<Mix> parse_mix(std::string_view name) {
  const auto* found = std::ranges::find_if(kAllMixes, [&](Mix mix) { return name == mix_name(mix); });
  if (found == kAllMixes.end()) return std::nullopt;
  return *found;
}

const char* mix_name(Mix mix) {
  switch (mix) {
    case Mix::kMixed:
      return "mixed";
    case Mix::kRecords:
      return "records";
    case Mix::kObjects:
      return "objects";
    case Mix::kNumbers:
      return "numbers";
    case Mix::kNoise:
      return "noise";
    case Mix::kHalf:
      return "half";
  }
  return "?";
}

Content::Content(Mix mix, std::uint64_t seed) : mix_(mix), seed_(mix64(seed)) {
  for (std::size_t c = 0; c < kClasses; ++c) {
    const auto page_class = static_cast<PageClass>(c);
    const Layout layout = layout_of(page_class);
    Random random(seed + c);
    for (auto& one : templates_[c]) {
      for (std::size_t word = 0; word < kLineWords; ++word) {
        one[word] = template_word(page_class, layout.words[word], random);
      }
    }
  }
}

PageClass Content::class_of(std::uint64_t index) const { return pick_class(mix_, mix64(seed_ ^ (index / kRunPages))); }

template <PageClass kClass>
void Content::fill_lines(std::uint64_t* page, std::uint64_t index, std::uint64_t tag) const {
  static constexpr Layout kLayout = layout_of(kClass);
  const Templates& templates = templates_[static_cast<std::size_t>(kClass)];
  Random random(seed_ + index * 0x2545F4914F6CDD1Dull);
  for (std::size_t line = 0; line < kPageLines; ++line) {
    std::uint64_t* out = page + line * kLineWords;
    const std::uint64_t choice = random.next();
    const auto& from = templates[choice & (kLayout.templates - 1)];
    out[0] = tag;
    for (std::size_t word = 1; word < kLineWords; ++word) {
      const char kind = kLayout.words[word];
      // One multiplication each is random enough for a compressor, and keeps the program's own part of `fill` small.
      const std::uint64_t fresh = std::rotr(choice * kWordFactors[word], 29);
      out[word] = kind == 't' ? from[word] : kind == 'T' ? tag : make_word(kind, fresh, from[word]);
    }
  }
}

void Content::fill(std::uint64_t* page, std::uint64_t index, std::uint8_t generation) const {
  const std::uint64_t tag = page_tag(index, generation);
  switch (class_of(index)) {
    case PageClass::kRecords:
      return fill_lines<PageClass::kRecords>(page, index, tag);
    case PageClass::kObjects:
      return fill_lines<PageClass::kObjects>(page, index, tag);
    case PageClass::kNumbers:
      return fill_lines<PageClass::kNumbers>(page, index, tag);
    case PageClass::kNoise:
      return fill_lines<PageClass::kNoise>(page, index, tag);
    case PageClass::kSame:
      return fill_lines<PageClass::kSame>(page, index, tag);
    case PageClass::kHalf:
      return fill_lines<PageClass::kHalf>(page, index, tag);
  }
}

bool Content::verify(const std::uint64_t* page, std::uint64_t index, std::uint8_t generation) const {
  std::array<std::uint64_t, kPageWords> expected;
  fill(expected.data(), index, generation);
  return std::memcmp(page, expected.data(), kPageBytes) == 0;
}

}  // namespace bench
