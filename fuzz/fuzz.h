// What all fuzzers share: reading decisions from the bytes of an input, and complaining in words that a test looks for.
//
// Each fuzzer states properties of the code under test, not only "does not crash": a broken one prints
// "fuzz: PROPERTY" and stops the process, so that libFuzzer keeps the input.
#pragma once

#include <cstddef>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <span>
#include <string_view>

namespace whimbrel::fuzz {

[[noreturn]] inline void complain(const char* property, const char* file, int line) {
  std::fprintf(stderr, "fuzz: %s (%s:%d)\n", property, file, line);
  std::abort();
}

// The property holds, or the process ends with its name.
#define PROPERTY(condition, name) \
  do {                            \
    if (!(condition)) ::whimbrel::fuzz::complain(name, __FILE__, __LINE__); \
  } while (0)

// An input as a row of decisions. After its end everything is 0.
class Decisions {
 public:
  explicit Decisions(std::span<const std::uint8_t> bytes) : rest_(bytes) {}

  [[nodiscard]] bool at_end() const { return rest_.empty(); }
  [[nodiscard]] std::span<const std::uint8_t> rest() const { return rest_; }
  std::uint8_t byte() {
    if (rest_.empty()) return 0;
    const std::uint8_t out = rest_.front();
    rest_ = rest_.subspan(1);
    return out;
  }
  // Little endian.
  std::uint64_t number(std::size_t bytes) {
    std::uint64_t out = 0;
    for (std::size_t i = 0; i < bytes; ++i) out |= std::uint64_t{byte()} << (8 * i);
    return out;
  }
  std::uint64_t below(std::uint64_t n) { return n <= 256 ? byte() % n : number(2) % n; }
  std::span<const std::uint8_t> bytes(std::size_t most) {
    const auto out = rest_.first(most < rest_.size() ? most : rest_.size());
    rest_ = rest_.subspan(out.size());
    return out;
  }

 private:
  std::span<const std::uint8_t> rest_;
};

}  // namespace whimbrel::fuzz
