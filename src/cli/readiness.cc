#include "cli/readiness.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "linux/userfault.h"

namespace whimbrel::cli {

bool ready_to_run(std::string* problem, std::string* advice) {
  // Nothing less will do for programs that know nothing of us: their system calls must see their memory.
  const Ladder ladder = climb(UserfaultRequest{}, {.allow_user_mode_only = false, .require_move = true});
  if (ladder.chosen >= 0) return true;

  const Proof& by_call = ladder.proofs[0];
  const Proof& best = by_call.opened || !ladder.proofs[1].opened ? by_call : ladder.proofs[1];
  if (best.opened && !best.move) {
    *problem = "userfaultfd cannot be used here: UFFDIO_MOVE does not work (it needs Linux 6.8, and no filter against it)";
    *advice = "use a newer kernel; whimbrel doctor shows the details";
    return false;
  }
  *problem = "userfaultfd cannot be used here";
  if (best.failure.sys != 0) problem->append(": ").append(std::strerror(best.failure.sys));
  if (best.failure.sys == ENOSYS) {
    *advice = "a kernel with CONFIG_USERFAULTFD, or a container or seccomp profile that lets it through; whimbrel doctor shows more";
  } else if (geteuid() != 0) {
    *advice = "as root: sysctl vm.unprivileged_userfaultfd=1, or give this user access to /dev/userfaultfd; whimbrel doctor shows more";
  } else {
    *advice = "run outside of the container or seccomp profile that forbids it; whimbrel doctor shows more";
  }
  return false;
}

}  // namespace whimbrel::cli
