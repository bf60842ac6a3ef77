#include "cli/available_memory.h"

#include <algorithm>
#include <fstream>
#include <string>

namespace whimbrel::cli {
namespace {

std::uint64_t machine_available() {
  std::ifstream file("/proc/meminfo");
  std::string name;
  std::uint64_t kibibytes = 0;
  for (std::string rest; file >> name >> kibibytes; std::getline(file, rest)) {
    if (name == "MemAvailable:") return kibibytes * 1024;
  }
  return std::uint64_t{1} << 30;
}

// "max" and unreadable files count as no limit.
std::uint64_t number_in(const std::string& path) {
  std::ifstream file(path);
  std::uint64_t value = 0;
  return file >> value ? value : ~std::uint64_t{0};
}

std::uint64_t group_available() {
  std::ifstream groups("/proc/self/cgroup");
  std::uint64_t least = ~std::uint64_t{0};
  for (std::string line; std::getline(groups, line);) {
    if (!line.starts_with("0::")) continue;
    // Every level may have a limit.
    for (std::string path = line.substr(3); !path.empty() && path != "/"; path.resize(path.rfind('/'))) {
      const std::string directory = "/sys/fs/cgroup" + path;
      const std::uint64_t limit = number_in(directory + "/memory.max");
      const std::uint64_t used = number_in(directory + "/memory.current");
      if (limit != ~std::uint64_t{0} && used != ~std::uint64_t{0}) least = std::min(least, limit > used ? limit - used : 0);
    }
  }
  return least;
}

}  // namespace

std::uint64_t available_memory() { return std::min(machine_available(), group_available()); }

}  // namespace whimbrel::cli
