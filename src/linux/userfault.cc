#include "linux/userfault.h"

#include <fcntl.h>

#include <cerrno>

#include "linux/sys.h"
#include "linux/uapi.h"

namespace whimbrel {
namespace {

// Without these three the engine cannot follow the address space, and pages would silently read as zeros.
constexpr std::uint64_t kEvents = uapi::kFeatureEventRemap | uapi::kFeatureEventRemove | uapi::kFeatureEventUnmap;

Result<int> open_device(int device_fd) noexcept {
  int device = device_fd;
  if (device < 0) {
    const Result<int> opened = sys::open("/dev/userfaultfd", O_RDWR);
    if (!opened) return fail(opened.error().code, opened.error().sys, "open /dev/userfaultfd");
    device = *opened;
  }
  // The argument is the flags word itself.
  const Result<long> fd =
      sys::ioctl(device, uapi::kDevUserfaultfdNew,
                 reinterpret_cast<void*>(static_cast<std::uintptr_t>(O_CLOEXEC | O_NONBLOCK)), "USERFAULTFD_IOC_NEW");
  if (device != device_fd) sys::close(device);
  if (!fd) return std::unexpected(fd.error());
  return static_cast<int>(*fd);
}

Result<int> open_rung(Rung rung, const UserfaultRequest& request) noexcept {
  switch (rung) {
    case Rung::kSystemCall:
      return sys::userfaultfd(0);
    case Rung::kDevice:
      return open_device(request.device_fd);
    case Rung::kUserModeOnly:
      return sys::userfaultfd(uapi::kUffdUserModeOnly);
  }
  return fail(Errc::kInvalid);
}

// UFFDIO_API: answers what is offered; `features` must be a part of that.
Result<std::uint64_t> handshake(int fd, std::uint64_t features) noexcept {
  uffdio_api api{};
  api.api = UFFD_API;
  api.features = features;
  const Result<long> answer = sys::ioctl(fd, UFFDIO_API, &api, "UFFDIO_API");
  if (!answer) return std::unexpected(answer.error());
  return api.features;
}

}  // namespace

const char* rung_name(Rung rung) noexcept {
  switch (rung) {
    case Rung::kSystemCall:
      return "userfaultfd";
    case Rung::kDevice:
      return "/dev/userfaultfd";
    case Rung::kUserModeOnly:
      return "userfaultfd, user mode only";
  }
  return "?";
}

Result<std::uint64_t> offered_features(Rung rung, const UserfaultRequest& request) noexcept {
  const Result<int> fd = open_rung(rung, request);
  if (!fd) return std::unexpected(fd.error());
  const Result<std::uint64_t> offered = handshake(*fd, 0);
  sys::close(*fd);
  return offered;
}

Result<Userfault> open_userfault(Rung rung, const UserfaultRequest& request) noexcept {
  const Result<std::uint64_t> offered = offered_features(rung, request);
  if (!offered) return std::unexpected(offered.error());
  if ((*offered & kEvents) != kEvents) return fail(Errc::kNotSupported, 0, "userfaultfd address-space events");
  std::uint64_t optional =
      uapi::kFeatureMove | uapi::kFeatureThreadId | uapi::kFeatureExactAddress | uapi::kFeaturePoison;
  if (request.write_protect) optional |= uapi::kFeaturePagefaultWp;
  if (request.write_protect && request.write_protect_async) optional |= uapi::kFeatureWpAsync;
  const std::uint64_t plain = kEvents | (*offered & optional);
  const std::uint64_t with_fork = plain | (request.fork_event ? *offered & uapi::kFeatureEventFork : 0);
  // Fork events need a capability and are refused at the handshake, which cannot be repeated on the same descriptor.
  const std::uint64_t attempts[] = {with_fork, plain};
  for (const std::uint64_t features : attempts) {
    const Result<int> fd = open_rung(rung, request);
    if (!fd) return std::unexpected(fd.error());
    const Result<std::uint64_t> answer = handshake(*fd, features);
    if (answer) return Userfault{*fd, features};
    sys::close(*fd);
    if (features == plain) return std::unexpected(answer.error());
  }
  return fail(Errc::kNotPermitted, EPERM, "UFFDIO_API");
}

}  // namespace whimbrel
