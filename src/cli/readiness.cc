#include "cli/readiness.h"

#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "linux/userfault.h"

namespace whimbrel::cli {
namespace {

bool good_enough(const Proof& proof) { return proof.serves() && proof.move && proof.kernel_faults; }

}  // namespace

bool ready_to_run(std::string* problem, std::string* advice) {
  const UserfaultRequest request{};
  const Proof by_call = prove(Rung::kSystemCall, request);
  if (good_enough(by_call)) return true;
  const Proof by_device = prove(Rung::kDevice, request);
  if (good_enough(by_device)) return true;

  const Proof& best = by_call.opened ? by_call : by_device.opened ? by_device : by_call;
  *problem = "userfaultfd cannot be used here: ";
  if (best.opened && !best.move) {
    *problem += "UFFDIO_MOVE does not work (it needs Linux 6.8 and no filter against it)";
    *advice = "use a newer kernel; whimbrel doctor shows the details";
    return false;
  }
  *problem += best.failure.where;
  if (best.failure.sys != 0) problem->append(": ").append(std::strerror(best.failure.sys));
  if (by_call.failure.sys == ENOSYS) {
    *advice = "a kernel with CONFIG_USERFAULTFD, or a container or seccomp profile that lets it through; see: whimbrel doctor";
  } else if (geteuid() != 0) {
    *advice = "as root: sysctl vm.unprivileged_userfaultfd=1, or chmod o+rw /dev/userfaultfd; see: whimbrel doctor";
  } else {
    *advice = "run outside of the container or seccomp profile that forbids it; see: whimbrel doctor";
  }
  return false;
}

}  // namespace whimbrel::cli
