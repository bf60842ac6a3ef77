// SIGBUS for an access whose contents cannot be had.
//
// The kernel lets nobody but a thread itself queue a signal with the code of a real fault, and a marker in the slot
// (poison()) stays there for good. So the thread that waits gets a directed SIGBUS with the address in si_addr and
// SI_QUEUE in si_code: the access is over, and the next one asks the device again. A system call that waits for the
// page is not ended by a signal: there only the marker helps, and the call fails with EFAULT.
#include <signal.h>
#include <sys/syscall.h>

#include <cstring>
#include <string_view>

#include "linux/sys.h"
#include "linux/userfault_mmu.h"

namespace whimbrel {
namespace {

// A small file of another thread of this process.
class ThreadFile {
 public:
  ThreadFile(std::uint32_t thread, const char* name) noexcept {
    char path[64] = "/proc/thread-self/../";  // not of "self": that is empty once the main thread has left
    char* at = path + std::strlen(path);
    char digits[12];
    int n = 0;
    do digits[n++] = static_cast<char>('0' + thread % 10);
    while ((thread /= 10) != 0);
    while (n > 0) *at++ = digits[--n];
    std::memcpy(at, name, std::strlen(name) + 1);
    const Result<std::size_t> got = sys::read_text(path, text_, sizeof text_);
    length_ = got ? *got : 0;
  }
  [[nodiscard]] std::string_view text() const noexcept { return {text_, length_}; }

 private:
  char text_[4096];
  std::size_t length_ = 0;
};

enum class Wait { kOver, kOfProgram, kOfSystemCall };

// A message can be older than the wait that it tells of: a signal has ended it, and the thread does something else.
Wait wait_of(std::uint32_t thread) noexcept {
  const ThreadFile call(thread, "/syscall");
  if (call.text().starts_with("running")) return Wait::kOver;
  const ThreadFile place(thread, "/wchan");
  // "0" where the kernel does not say.
  const bool here = place.text().empty() || place.text() == "0" || place.text() == "handle_userfault";
  if (!here) return Wait::kOver;
  // The number of a call, or -1 outside of any.
  return call.text().empty() || call.text().starts_with("-1") ? Wait::kOfProgram : Wait::kOfSystemCall;
}

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

Result<void> UserfaultMmu::raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept {
  if (!abilities_.thread_id) return fail(Errc::kNotSupported, 0, "raise_bus_error");
  switch (wait_of(thread)) {
    case Wait::kOver: return {};
    case Wait::kOfSystemCall: return fail(Errc::kNotSupported, 0, "a system call waits for the page");
    case Wait::kOfProgram: break;
  }
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
