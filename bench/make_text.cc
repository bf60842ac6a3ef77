// Writes about the given number of bytes of text lines to standard output: input for sorting. Each line has a random
// key and words of a small vocabulary, so the text compresses like text.
//
// Usage: bench_make_text BYTES
#include <array>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <string>

#include "bench/random.h"

namespace {

constexpr std::array<const char*, 32> kWords = {
    "amber",  "basalt", "cedar",  "delta",  "ember",  "fjord",  "garnet", "harbor", "island", "jasper", "kelp",
    "lagoon", "marble", "north",  "oyster", "pebble", "quartz", "river",  "sierra", "tundra", "umber",  "valley",
    "willow", "xenon",  "yarrow", "zephyr", "atlas",  "beacon", "copper", "dune",   "echo",   "flint"};

void append_line(bench::Random& random, std::string& out) {
  std::array<char, 32> key{};
  std::snprintf(key.data(), key.size(), "%010llu", static_cast<unsigned long long>(random.below(10'000'000'000ull)));
  out += key.data();
  for (std::uint64_t word = 0, count = 7 + random.below(6); word < count; ++word) {
    out += ' ';
    out += kWords[random.below(kWords.size())];
  }
  out += '\n';
}

}  // namespace

int main(int argc, char** argv) {
  const unsigned long long wanted = argc == 2 ? std::strtoull(argv[1], nullptr, 10) : 0;
  if (wanted == 0) {
    std::fprintf(stderr, "usage: bench_make_text BYTES\n");
    return 2;
  }
  bench::Random random(5);
  std::string out;
  for (std::uint64_t written = 0; written < wanted; written += out.size()) {
    out.clear();
    while (out.size() < (1u << 20)) append_line(random, out);
    if (std::fwrite(out.data(), 1, out.size(), stdout) != out.size()) {
      std::perror("bench_make_text: writing");
      return 1;
    }
  }
  return std::fflush(stdout) == 0 ? 0 : 1;
}
