#include "cli/limits.h"

#include <optional>

#include "cli/options.h"
#include "cli/summary.h"
#include "devices/size_text.h"

namespace whimbrel::cli {

int read_limit(const char* option, const std::string& text, std::uint64_t* out) {
  const std::string what = std::string(option) + " " + (text.empty() ? "''" : text);
  const std::optional<std::uint64_t> size = parse_size(text);
  if (!size) {
    return complain(kExitUsage, what + ": not a size", std::string("a number of bytes, or with K, M, G or T: ") + option + " 64M");
  }
  if (*size < kSmallestBudget) {
    return complain(kExitUsage, what + ": too small, " + human_bytes(*size) + " is no room to work in",
                    std::string("at least ") + option + " 2M");
  }
  *out = *size;
  return 0;
}

int check_limits(const Limits& limits) {
  if (limits.ram == 0 || limits.total == 0 || limits.ram <= limits.total) return 0;
  return complain(kExitUsage,
                  "--total " + human_bytes(limits.total) + " is below --ram " + human_bytes(limits.ram) + ", which is a part of it",
                  "make --total larger, or leave one of them out");
}

}  // namespace whimbrel::cli
