#include "linux/descriptors.h"

#include <fcntl.h>
#include <sys/resource.h>
#include <sys/stat.h>
#include <sys/syscall.h>

#include "base/check.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

// Shared descriptors live in the last numbers below the soft limit, but never so high that the kernel's table would
// grow for their sake by more than a few pages.
constexpr std::uint64_t kHighestBase = 4000;

int shared_base() noexcept {
  const Result<sys::Limit> limit = sys::limit(RLIMIT_NOFILE);
  const std::uint64_t soft = limit ? limit->soft : 0;
  const std::uint64_t room = 2 * Descriptors::kCount;
  if (soft <= room + 3) return 0;
  return static_cast<int>(soft - room < kHighestBase ? soft - room : kHighestBase);
}

}  // namespace

Descriptors::Identity Descriptors::identity(int fd) noexcept {
  struct stat info {};
  if (sys::call(SYS_fstat, fd, sys::arg(&info)) < 0) return {};
  return {info.st_dev, info.st_ino};
}

void Descriptors::adopt(Which which, Result<int> opened, int lowest) noexcept {
  if (!opened) return;
  int number = *opened;
  if (lowest > number) {
    const Result<int> high = sys::duplicate_above(number, lowest);
    if (high) {
      sys::close(number);
      number = *high;
    }
  }
  numbers_[which] = number;
  identities_[which] = identity(number);
}

Result<void> Descriptors::open(int userfault, Visibility visibility) noexcept {
  DCHECK(!has(kUserfault) && !has(kMaps));
  const int lowest = visibility == Visibility::kShared ? shared_base() : 0;
  adopt(kUserfault, userfault, lowest);
  // thread-self: the plain self is empty once the main thread has exited. In the order of importance, for the program
  // may have next to no descriptors left.
  const Result<int> maps = sys::open("/proc/thread-self/maps", O_RDONLY);
  if (!maps) {
    close();
    return std::unexpected(maps.error());
  }
  adopt(kMaps, maps, lowest);
  adopt(kPagemap, sys::open("/proc/thread-self/pagemap", O_RDONLY), lowest);
  adopt(kBell, sys::eventfd(), lowest);
  adopt(kMemory, sys::open("/proc/thread-self/mem", O_RDONLY), lowest);
  adopt(kProcess, sys::pidfd_self(), lowest);
  adopt(kSmaps, sys::open("/proc/thread-self/smaps", O_RDONLY), lowest);
  return {};
}

void Descriptors::close() noexcept {
  for (int& number : numbers_) {
    if (number >= 0) sys::close(number);
    number = -1;
  }
}

void Descriptors::forget_inherited(Visibility visibility) noexcept {
  for (int i = 0; i < kCount; ++i) {
    if (numbers_[i] >= 0 && visibility == Visibility::kShared && identity(numbers_[i]) == identities_[i]) {
      sys::close(numbers_[i]);
    }
    numbers_[i] = -1;
  }
}

Descriptors::Span Descriptors::span() const noexcept {
  Span span{0, 0};
  for (const int number : numbers_) {
    if (number < 0) continue;
    if (span.end == 0 || number < span.first) span.first = number;
    if (number >= span.end) span.end = number + 1;
  }
  return span;
}

DescriptorRoom::DescriptorRoom() noexcept {
  constexpr std::uint64_t kEnough = 16;
  const Result<sys::Limit> limit = sys::limit(RLIMIT_NOFILE);
  if (!limit || limit->soft >= kEnough || limit->hard <= limit->soft) return;
  const std::uint64_t raised = limit->hard < kEnough ? limit->hard : kEnough;
  if (!sys::set_limit(RLIMIT_NOFILE, {raised, limit->hard})) return;
  soft_ = limit->soft;
  hard_ = limit->hard;
  changed_ = true;
}

DescriptorRoom::DescriptorRoom(std::uint64_t more) noexcept {
  const Result<sys::Limit> limit = sys::limit(RLIMIT_NOFILE);
  if (!limit || limit->hard <= limit->soft) return;
  const std::uint64_t raised = limit->hard - limit->soft < more ? limit->hard : limit->soft + more;
  if (!sys::set_limit(RLIMIT_NOFILE, {raised, limit->hard})) return;
  soft_ = limit->soft;
  hard_ = limit->hard;
  changed_ = true;
}

DescriptorRoom::~DescriptorRoom() {
  if (changed_) (void)sys::set_limit(RLIMIT_NOFILE, {soft_, hard_});
}

}  // namespace whimbrel
