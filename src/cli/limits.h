// Budgets as people write them: --ram and --total.
#pragma once

#include <cstdint>
#include <string>

namespace whimbrel::cli {

// Less than this and the engine would spend its life making room for single pages.
inline constexpr std::uint64_t kSmallestBudget = std::uint64_t{2} << 20;

struct Limits {
  std::uint64_t ram = 0;  // bytes; 0: none
  std::uint64_t total = 0;
};

// Reads the value of `option` ("--ram"). 0, or the exit status of a complaint.
[[nodiscard]] int read_limit(const char* option, const std::string& text, std::uint64_t* out);
// 0, or the exit status of a complaint: RAM that may be resident is a part of RAM in all.
[[nodiscard]] int check_limits(const Limits& limits);

}  // namespace whimbrel::cli
