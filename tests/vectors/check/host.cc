#include "host.h"

#include <fcntl.h>
#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>

#include "tests/vectors/replay/vector_file.h"

namespace vectors {
namespace {

constexpr std::size_t kPageSize = 4096;

bool maps_zero_page() {
  void* at = mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  std::uint64_t entry = 0;
  bool known = at != MAP_FAILED && pagemap >= 0;
  if (known) {
    const char seen = *static_cast<volatile char*>(at);
    const auto offset = static_cast<off_t>(reinterpret_cast<std::uintptr_t>(at) / kPageSize * sizeof entry);
    known = seen == 0 && pread(pagemap, &entry, sizeof entry, offset) == sizeof entry;
  }
  if (!known) {
    std::perror("run_vectors: cannot look at the pages of this host");
    std::exit(2);
  }
  close(pagemap);
  munmap(at, kPageSize);
  constexpr std::uint64_t kOnlyUser = 1ull << 56;  // never so for the zero page
  return (entry & kOnlyUser) == 0;
}

bool gives_huge_pages() {
  const auto policy = read_file("/sys/kernel/mm/transparent_hugepage/enabled");
  return policy && policy->find("[never]") == std::string::npos;
}

}  // namespace

std::set<std::string> host_conditions() {
  std::set<std::string> conditions;
  if (!maps_zero_page()) conditions.insert("no-zero-page");
  if (!gives_huge_pages()) conditions.insert("no-huge-pages");
  return conditions;
}

std::uint64_t background_collapses() {
  const auto count = read_file("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed");
  return count ? std::strtoull(count->c_str(), nullptr, 10) : 0;
}

const std::set<std::string>& known_conditions() {
  static const std::set<std::string> known = {"no-zero-page", "no-huge-pages"};
  return known;
}

}  // namespace vectors
