#include "tests/device_kit/page_contents.h"

#include <array>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <cstring>

namespace whimbrel::testing {
namespace {

void put_word(std::span<std::byte> memory, std::size_t index, std::uint64_t word) {
  std::memcpy(memory.data() + index * 8, &word, 8);
}

void fill_text(Random& random, std::span<std::byte> memory) {
  static constexpr std::array kWords = {"name",  "street", "amsterdam", "order", "pending", "true",
                                        "false", "value",  "customer",  "item",  "shipped", "country"};
  std::size_t at = 0;
  while (at < memory.size()) {
    char record[160];
    const int length = std::snprintf(
        record, sizeof(record), "{\"id\":%llu,\"%s\":\"%s %s\",\"%s\":%llu.%02llu,\"at\":\"2024-%02llu-%02llu\"},",
        static_cast<unsigned long long>(random.below(1'000'000'000)), kWords[random.below(kWords.size())],
        kWords[random.below(kWords.size())], kWords[random.below(kWords.size())], kWords[random.below(kWords.size())],
        static_cast<unsigned long long>(random.below(10'000)), static_cast<unsigned long long>(random.below(100)),
        static_cast<unsigned long long>(1 + random.below(12)), static_cast<unsigned long long>(1 + random.below(28)));
    const std::size_t n = std::min(static_cast<std::size_t>(length), memory.size() - at);
    std::memcpy(memory.data() + at, record, n);
    at += n;
  }
}

void fill_pointers(Random& random, std::span<std::byte> memory) {
  const std::uint64_t base = 0x00007f0000000000u + (random.next() & 0xfff0000000u);
  for (std::size_t i = 0; i < memory.size() / 8; ++i) {
    switch (i % 6) {
      case 0:
        put_word(memory, i, base + (random.next() & 0xfffff0u));
        break;
      case 1:
        put_word(memory, i, base + 0x4000);
        break;  // the type of the object
      case 2:
        put_word(memory, i, random.below(64));
        break;
      case 3:
        put_word(memory, i, base + (random.next() & 0xfffff0u));
        break;
      default:
        put_word(memory, i, 0);
        break;
    }
  }
}

}  // namespace

const char* contents_name(Contents contents) {
  switch (contents) {
    case Contents::kZero:
      return "zero";
    case Contents::kSameFilled:
      return "same_filled";
    case Contents::kRandom:
      return "random";
    case Contents::kText:
      return "text";
    case Contents::kPointers:
      return "pointers";
    case Contents::kHalf:
      return "half";
    case Contents::kCount:
      break;
  }
  return "?";
}

void fill_pages(Contents contents, std::uint64_t seed, std::span<std::byte> memory) {
  Random random(seed);
  const std::size_t words = memory.size() / 8;
  switch (contents) {
    case Contents::kZero:
      std::memset(memory.data(), 0, memory.size());
      return;
    case Contents::kSameFilled: {
      const std::uint64_t word = random.next();
      for (std::size_t i = 0; i < words; ++i) put_word(memory, i, word);
      return;
    }
    case Contents::kRandom:
      for (std::size_t i = 0; i < words; ++i) put_word(memory, i, random.next());
      return;
    case Contents::kText:
      fill_text(random, memory);
      return;
    case Contents::kPointers:
      fill_pointers(random, memory);
      return;
    case Contents::kHalf:
      for (std::size_t i = 0; i < words; ++i) put_word(memory, i, i % 2 == 0 ? random.next() : seed & 0xff);
      return;
    case Contents::kCount:
      break;
  }
}

void fill_mixed(std::uint64_t seed, std::span<std::byte> memory) {
  Random random(seed ^ 0x5bd1e995);
  for (std::size_t at = 0; at + kPageBytes <= memory.size(); at += kPageBytes) {
    const auto kind = static_cast<Contents>(random.below(static_cast<std::uint64_t>(Contents::kCount)));
    fill_pages(kind, random.next(), memory.subspan(at, kPageBytes));
  }
}

std::uint64_t run_seed() {
  const char* text = std::getenv("WHIMBREL_SEED");
  const std::uint64_t seed =
      text != nullptr ? std::strtoull(text, nullptr, 0)
                      : static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count());
  std::printf("WHIMBREL_SEED=%llu\n", static_cast<unsigned long long>(seed));
  return seed;
}

}  // namespace whimbrel::testing
