// whimbrel doctor: what this kernel and this user may do, what is lost, and what would fix it.
#include <cstdio>

#include "cli/options.h"
#include "cli/readiness.h"

namespace whimbrel::cli {

int doctor_command(const DoctorOptions&) {
  std::string problem, advice;
  if (!ready_to_run(&problem, &advice)) return complain(2, problem, advice);
  std::puts("whimbrel can run programs here");
  return 0;
}

}  // namespace whimbrel::cli
