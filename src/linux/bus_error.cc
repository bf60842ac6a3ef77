#include "linux/bus_error.h"

#include <signal.h>
#include <sys/syscall.h>

#include <string_view>

#include "linux/sys.h"
#include "linux/thread_file.h"

namespace whimbrel {
namespace {

bool has_signal(std::string_view status, std::string_view line, int signal) noexcept {
  const std::size_t at = status.find(line);
  if (at == status.npos) return false;
  std::uint64_t mask = 0;
  for (std::size_t i = at + line.size(); i < status.size() && status[i] != '\n'; ++i) {
    const char c = status[i];
    if (c >= '0' && c <= '9') mask = mask * 16 + static_cast<unsigned>(c - '0');
    if (c >= 'a' && c <= 'f') mask = mask * 16 + static_cast<unsigned>(c - 'a' + 10);
  }
  return (mask >> (signal - 1) & 1) != 0;
}

}  // namespace

Result<void> send_bus_error(std::uint32_t thread, VirtualAddress address) noexcept {
  const ThreadFile status(thread, "/status");
  // Not to be had by asking; a real fault would end the process, and the marker does.
  if (has_signal(status.text(), "\nSigBlk:", SIGBUS) || has_signal(status.text(), "\nSigIgn:", SIGBUS)) {
    return fail(Errc::kNotPermitted, 0, "SIGBUS is blocked");
  }
  siginfo_t info{};
  info.si_signo = SIGBUS;
  info.si_code = SI_QUEUE;
  info.si_addr = reinterpret_cast<void*>(address.raw());
  const long raw = sys::call(SYS_rt_tgsigqueueinfo, sys::getpid(), thread, SIGBUS, sys::arg(&info));
  const Result<long> sent = sys::checked(raw, "rt_tgsigqueueinfo");
  if (!sent) return std::unexpected(sent.error());
  return {};
}

}  // namespace whimbrel
