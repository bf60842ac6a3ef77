// SIGBUS for an access whose contents cannot be had.
//
// A marker in the slot (poison()) stays there for good. So the thread that waits gets a directed SIGBUS: the access is over, and
// the next one asks the device again. A system call that waits for the page is not ended by a signal: there only the marker
// helps, and the call fails with EFAULT.
#include "linux/bus_error.h"
#include "linux/thread_file.h"
#include "linux/userfault_mmu.h"

namespace whimbrel {
namespace {

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

}  // namespace

Result<void> UserfaultMmu::raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept {
  if (!abilities_.thread_id) return fail(Errc::kNotSupported, 0, "raise_bus_error");
  switch (wait_of(thread)) {
    case Wait::kOver: return {};
    case Wait::kOfSystemCall: return fail(Errc::kNotSupported, 0, "a system call waits for the page");
    case Wait::kOfProgram: break;
  }
  return send_bus_error(thread, address);
}

}  // namespace whimbrel
