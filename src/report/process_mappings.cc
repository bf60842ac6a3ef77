#include "report/process_mappings.h"

#include <charconv>
#include <fstream>
#include <string>
#include <string_view>

namespace whimbrel::report {
namespace {

constexpr std::uint64_t kSmallest = std::uint64_t{16} << 12;  // the pager leaves smaller ones alone

}  // namespace

std::vector<replay::Mapping> private_mappings(std::uint32_t pid) {
  std::vector<replay::Mapping> out;
  std::ifstream maps("/proc/" + std::to_string(pid) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    std::uint64_t start = 0, end = 0;
    const char* const stop = line.data() + line.size();
    auto read = std::from_chars(line.data(), stop, start, 16);
    if (read.ec != std::errc() || read.ptr == stop) continue;
    read = std::from_chars(read.ptr + 1, stop, end, 16);
    const std::string_view rest(read.ptr, static_cast<std::size_t>(stop - read.ptr));
    // " rw-p 00000000 00:00 0    [heap]"
    if (rest.size() < 5 || rest[2] != 'w' || rest[4] != 'p' || end - start < kSmallest) continue;
    const std::size_t slash = rest.find('/');
    if (slash != std::string_view::npos && rest[slash - 1] == ' ') continue;  // of a file
    const std::size_t bracket = rest.find('[');
    out.push_back({start, end - start, bracket == std::string_view::npos ? std::string() : std::string(rest.substr(bracket))});
  }
  return out;
}

}  // namespace whimbrel::report
