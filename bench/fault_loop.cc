#include "bench/fault_loop.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sched.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <utility>

namespace bench {
namespace {

constexpr std::uint64_t kPage = 4096;

int open_descriptor() {
  const auto descriptor = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
  if (descriptor < 0) {
    throw std::runtime_error(std::string("userfaultfd: ") + std::strerror(errno) +
                             "\n  try: as root, or sysctl vm.unprivileged_userfaultfd=1");
  }
  uffdio_api api{};
  api.api = UFFD_API;
  if (ioctl(descriptor, UFFDIO_API, &api) != 0) {
    const int error = errno;
    close(descriptor);
    throw std::runtime_error(std::string("UFFDIO_API: ") + std::strerror(error));
  }
  return descriptor;
}

[[noreturn]] void die(const char* what) {
  std::fprintf(stderr, "bench_floor: %s: %s\n", what, std::strerror(errno));
  std::abort();
}

}  // namespace

const char* placement_name(Placement placement) {
  switch (placement) {
    case Placement::kSameCpu:
      return "same cpu";
    case Placement::kOtherCpu:
      return "other cpu";
    case Placement::kFree:
      return "not pinned";
  }
  return "?";
}

bool pin_thread(std::optional<unsigned> cpu) {
  cpu_set_t set;
  CPU_ZERO(&set);
  const auto count = static_cast<unsigned>(sysconf(_SC_NPROCESSORS_ONLN));
  for (unsigned each = 0; each < count; ++each) {
    if (!cpu || *cpu == each) CPU_SET(each, &set);
  }
  return sched_setaffinity(0, sizeof set, &set) == 0;
}

FaultLoop::FaultLoop(std::uint64_t pages, std::uint64_t window, Placement placement, PageSource source)
    : pages_(pages),
      window_(window),
      source_(std::move(source)),
      region_((pages + 1) * kPage),
      buffer_(window * kPage),
      descriptor_(open_descriptor()) {
  uffdio_register area{};
  area.range.start = reinterpret_cast<std::uintptr_t>(region_.as<std::byte>());
  area.range.len = region_.bytes();
  area.mode = UFFDIO_REGISTER_MODE_MISSING;
  if (ioctl(descriptor_, UFFDIO_REGISTER, &area) != 0) {
    const int error = errno;
    close(descriptor_);
    throw std::runtime_error(std::string("UFFDIO_REGISTER: ") + std::strerror(error));
  }
  std::memset(buffer_.as<std::byte>(), 0x5A, buffer_.bytes());
  if (placement == Placement::kSameCpu) handler_cpu_ = 0;
  if (placement == Placement::kOtherCpu) handler_cpu_ = 1;
  pin_thread(placement == Placement::kFree ? std::nullopt : std::optional<unsigned>(0));
  handler_ = std::thread([this] { serve(); });
}

FaultLoop::~FaultLoop() {
  memory()[pages_ * kPage];  // the page that ends the handler
  handler_.join();
  close(descriptor_);
  pin_thread(std::nullopt);
}

volatile std::byte* FaultLoop::memory() const { return region_.as<volatile std::byte>(); }

void FaultLoop::drop() { madvise(region_.as<std::byte>(), pages_ * kPage, MADV_DONTNEED); }

void FaultLoop::copy_window(std::uint64_t page) {
  const std::uint64_t first = page / window_ * window_;
  const std::uint64_t count = first + window_ <= pages_ ? window_ : pages_ - first;
  source_(first, count, buffer_.as<std::byte>());
  uffdio_copy copy{};
  copy.dst = reinterpret_cast<std::uintptr_t>(region_.as<std::byte>()) + first * kPage;
  copy.src = reinterpret_cast<std::uintptr_t>(buffer_.as<std::byte>());
  copy.len = count * kPage;
  if (ioctl(descriptor_, UFFDIO_COPY, &copy) != 0 && errno != EEXIST) die("UFFDIO_COPY");
}

void FaultLoop::serve() {
  if (handler_cpu_ && !pin_thread(handler_cpu_)) die("cannot pin the handler");
  const auto start = reinterpret_cast<std::uintptr_t>(region_.as<std::byte>());
  for (;;) {
    uffd_msg message{};
    if (read(descriptor_, &message, sizeof message) != static_cast<ssize_t>(sizeof message)) {
      if (errno == EINTR || errno == EAGAIN) continue;
      die("reading a fault");
    }
    if (message.event != UFFD_EVENT_PAGEFAULT) continue;
    const std::uint64_t page = (message.arg.pagefault.address - start) / kPage;
    if (page < pages_) {
      copy_window(page);
      continue;
    }
    uffdio_zeropage zero{};
    zero.range.start = start + pages_ * kPage;
    zero.range.len = kPage;
    if (ioctl(descriptor_, UFFDIO_ZEROPAGE, &zero) != 0 && errno != EEXIST) die("UFFDIO_ZEROPAGE");
    return;
  }
}

}  // namespace bench
