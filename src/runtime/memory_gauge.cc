#include "runtime/memory_gauge.h"

#include <fcntl.h>

#include "linux/sys.h"
#include "mm/address.h"

namespace whimbrel {

Result<void> MemoryGauge::open() noexcept {
  // Of the thread, not of "self": that one is empty once the main thread has left.
  const Result<int> fd = sys::open("/proc/thread-self/statm", O_RDONLY);
  if (!fd) return std::unexpected(fd.error());
  fd_ = *fd;
  return {};
}

// "size resident shared text lib data dt", in pages.
Result<MemoryGauge::Reading> MemoryGauge::read() const noexcept {
  char text[128];
  const Result<std::size_t> got = sys::pread(fd_, text, sizeof text - 1, 0);
  if (!got) return std::unexpected(got.error());
  text[*got] = 0;
  std::uint64_t numbers[3] = {};
  const char* at = text;
  for (std::uint64_t& number : numbers) {
    if (*at < '0' || *at > '9') return fail(Errc::kInvalid, 0, "/proc/thread-self/statm");
    for (; *at >= '0' && *at <= '9'; ++at) number = number * 10 + static_cast<unsigned>(*at - '0');
    while (*at == ' ') ++at;
  }
  const std::uint64_t anonymous = numbers[1] > numbers[2] ? numbers[1] - numbers[2] : 0;
  return Reading{numbers[0] * kPageSize, anonymous * kPageSize};
}

}  // namespace whimbrel
