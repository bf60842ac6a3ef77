#include "linux/address_space.h"

#include <sys/resource.h>

#include "linux/sys.h"
#include "mm/address.h"

namespace whimbrel {

std::uint64_t affordable_address_space(std::uint64_t wanted) noexcept {
  const Result<sys::Limit> limit = sys::limit(RLIMIT_AS);
  if (!limit || limit->soft == sys::kUnlimited) return wanted;
  // The first number is the size of the address space in pages. thread-self: the main thread may have exited.
  const Result<std::uint64_t> pages = sys::read_number("/proc/thread-self/statm");
  const std::uint64_t used = pages ? *pages * kPageSize : 0;
  const std::uint64_t left = limit->soft > used ? limit->soft - used : 0;
  return wanted < left / 4 ? wanted : left / 4;
}

}  // namespace whimbrel
