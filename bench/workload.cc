// The program that is measured. It knows nothing about who pages it: it maps memory, fills it, uses it in the patterns
// asked for, prints one JSON line for each and says at the end whether every byte was what it had written.
//
// Exit status: 0 all contents right, 1 could not run, 2 bad arguments, 3 wrong contents.
#include <charconv>
#include <cinttypes>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <optional>
#include <string>
#include <string_view>
#include <vector>

#include "bench/kernels.h"
#include "bench/patterns.h"

namespace {

constexpr const char* kUsage =
    "usage: bench_workload [--size SIZE] [--mix NAME] [--patterns A,B,...] [--seed N] [--random-scale X]\n"
    "                      [--set-share X] [--threads N] [--latency] [--huge] [--no-verify] [--corrupt PAGE]\n"
    "  SIZE       bytes, or with K, M, G (default 64M)\n"
    "  patterns   fill seqread stride2 randread randwrite zipf chase twophase seqwrite touch matmul join\n"
    "  mixes      mixed records objects numbers noise half\n"
    "  --huge     asks for transparent huge pages; --latency times every random access\n"
    "  --corrupt  damages a byte of that page before the last check, which must then fail\n";

struct Arguments {
  bench::PatternOptions pattern;
  std::uint64_t size = 64u << 20;
  std::vector<std::string> patterns = {"fill", "seqread", "randread"};
  bool verify = true;
  std::optional<std::uint64_t> corrupt;
};

class BadArgument : public std::exception {
 public:
  explicit BadArgument(std::string text) : text_(std::move(text)) {}
  [[nodiscard]] const char* what() const noexcept override { return text_.c_str(); }

 private:
  std::string text_;
};

template <class Number>
Number parse_number(std::string_view name, std::string_view text, Number low, Number high) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size() || !(value >= low && value <= high)) {
    throw BadArgument(std::string(name) + " does not accept '" + std::string(text) + "'");
  }
  return value;
}

std::uint64_t parse_size(std::string_view text) {
  std::uint64_t unit = 1;
  std::string_view digits = text;
  if (!digits.empty()) {
    switch (digits.back()) {
      case 'K':
        unit = 1ull << 10;
        break;
      case 'M':
        unit = 1ull << 20;
        break;
      case 'G':
        unit = 1ull << 30;
        break;
      default:
        break;
    }
    if (unit != 1) digits.remove_suffix(1);
  }
  return parse_number<std::uint64_t>("--size", digits, 1, 1ull << 40) * unit;
}

bool known(std::string_view pattern) {
  return bench::PageArray::known(pattern) || pattern == "matmul" || pattern == "join";
}

std::vector<std::string> parse_patterns(std::string_view list) {
  std::vector<std::string> patterns;
  while (!list.empty()) {
    const std::size_t comma = list.find(',');
    const std::string_view name = list.substr(0, comma);
    if (!known(name)) throw BadArgument("unknown pattern '" + std::string(name) + "'");
    patterns.emplace_back(name);
    list.remove_prefix(comma == std::string_view::npos ? list.size() : comma + 1);
  }
  if (patterns.empty()) throw BadArgument("--patterns needs at least one name");
  return patterns;
}

Arguments parse(int argc, char** argv) {
  Arguments arguments;
  for (int i = 1; i < argc; ++i) {
    const std::string_view name = argv[i];
    const auto value = [&]() -> std::string_view {
      if (i + 1 >= argc) throw BadArgument(std::string(name) + " needs a value");
      return argv[++i];
    };
    if (name == "--size") {
      arguments.size = parse_size(value());
    } else if (name == "--mix") {
      const std::string_view text = value();
      const auto mix = bench::parse_mix(text);
      if (!mix) throw BadArgument("unknown mix '" + std::string(text) + "'");
      arguments.pattern.mix = *mix;
    } else if (name == "--patterns") {
      arguments.patterns = parse_patterns(value());
    } else if (name == "--seed") {
      arguments.pattern.seed = parse_number<std::uint64_t>(name, value(), 0, ~0ull);
    } else if (name == "--random-scale") {
      arguments.pattern.random_scale = parse_number<double>(name, value(), 1e-6, 1e6);
    } else if (name == "--set-share") {
      arguments.pattern.set_share = parse_number<double>(name, value(), 1e-6, 0.5);
    } else if (name == "--threads") {
      arguments.pattern.threads = parse_number<unsigned>(name, value(), 1, 1024);
    } else if (name == "--latency") {
      arguments.pattern.latency = true;
    } else if (name == "--huge") {
      arguments.pattern.huge = true;
    } else if (name == "--no-verify") {
      arguments.verify = false;
    } else if (name == "--corrupt") {
      arguments.corrupt = parse_number<std::uint64_t>(name, value(), 0, ~0ull);
    } else {
      throw BadArgument("unknown argument '" + std::string(name) + "'");
    }
  }
  arguments.pattern.pages = arguments.size / bench::kPageBytes;
  if (arguments.pattern.pages < 16) throw BadArgument("--size must be at least 64K");
  return arguments;
}

// Prints what a phase measured and passes on how much of it was wrong.
std::uint64_t report(const std::vector<bench::Result>& results) {
  std::uint64_t wrong = 0;
  for (const bench::Result& result : results) {
    result.print();
    wrong += result.wrong;
  }
  return wrong;
}

std::uint64_t run_patterns(const Arguments& arguments) {
  bench::PageArray array(arguments.pattern);
  std::uint64_t wrong = 0;
  bool filled = false;
  bool any = false;
  for (const std::string& pattern : arguments.patterns) {
    if (!bench::PageArray::known(pattern)) continue;
    any = true;
    filled = filled || pattern == "fill";
    if (!filled && pattern != "touch") throw BadArgument("pattern '" + pattern + "' needs 'fill' before it");
    wrong += report(array.run(pattern));
  }
  if (!any || !filled || !arguments.verify) return wrong;
  if (arguments.corrupt) array.corrupt(*arguments.corrupt);
  const std::uint64_t wrong_pages = array.wrong_pages();
  std::printf("{\"verified_pages\": %" PRIu64 ", \"wrong_pages\": %" PRIu64 "}\n", arguments.pattern.pages,
              wrong_pages);
  return wrong + wrong_pages;
}

}  // namespace

int main(int argc, char** argv) {
  try {
    const Arguments arguments = parse(argc, argv);
    std::uint64_t wrong = run_patterns(arguments);
    for (const std::string& pattern : arguments.patterns) {
      if (pattern == "matmul") wrong += report(bench::matrix_product(arguments.size, arguments.pattern.seed));
      if (pattern == "join") wrong += report(bench::hash_join(arguments.size, arguments.pattern.seed));
    }
    if (wrong == 0) return 0;
    std::fprintf(stderr, "bench_workload: WRONG CONTENTS: %" PRIu64 " accesses or pages\n", wrong);
    return 3;
  } catch (const BadArgument& error) {
    std::fprintf(stderr, "bench_workload: %s\n%s", error.what(), kUsage);
    return 2;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_workload: %s\n  try: a smaller --size\n", error.what());
    return 1;
  }
}
