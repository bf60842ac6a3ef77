// Errors on their way out: negative errno, and a sentence for whoever reads it.
#include <cerrno>
#include <cstring>

#include "capi/complain.h"
#include "whimbrel/mm.h"

namespace whimbrel::capi {
namespace {

// Formatted when it is asked for: a call that fails often costs three stores. Static TLS, so that engine threads and
// threads inside malloc can fail too.
struct Complaint {
  int sys_errno = 0;
  const char* what = "";
  const char* reason = "";
  const char* next = "";
  bool is_complete = true;  // text says it all
  char text[320] = "no call of this thread has failed";
};
thread_local constinit Complaint t_complaint;

const char* errno_name(int sys_errno) noexcept {
  switch (sys_errno) {
    case EPERM: return "EPERM";
    case ENOENT: return "ENOENT";
    case ESRCH: return "ESRCH";
    case EIO: return "EIO";
    case EAGAIN: return "EAGAIN";
    case ENOMEM: return "ENOMEM";
    case EFAULT: return "EFAULT";
    case EBUSY: return "EBUSY";
    case EMFILE: return "EMFILE";
    case ENODEV: return "ENODEV";
    case EINVAL: return "EINVAL";
    case ENOSYS: return "ENOSYS";
    case EOVERFLOW: return "EOVERFLOW";
    case EOPNOTSUPP: return "EOPNOTSUPP";
    default: return "error";
  }
}

}  // namespace

int complain(int sys_errno, const char* what, const char* next) noexcept {
  t_complaint.sys_errno = sys_errno;
  t_complaint.what = what;
  t_complaint.reason = "";
  t_complaint.next = next;
  t_complaint.is_complete = false;
  return -sys_errno;
}

int complain(const Error& error, const char* what, const char* next) noexcept {
  const int result = complain(errno_of(error), what, next);
  t_complaint.reason = *error.where != 0 ? error.where : errc_name(error.code);
  return result;
}

int complain_because(int sys_errno, const char* what, const char* reason, const char* next) noexcept {
  const int result = complain(sys_errno, what, next);
  t_complaint.reason = reason;
  (void)whimbrel_error();  // while the reason is there
  return result;
}

int errno_of(const Error& error) noexcept {
  switch (error.code) {
    case Errc::kBusy: return EBUSY;
    case Errc::kAgain:
    case Errc::kEventPending: return EAGAIN;
    case Errc::kNotFound: return ENOENT;
    case Errc::kExists: return EBUSY;
    case Errc::kFault: return EFAULT;
    case Errc::kInvalid: return EINVAL;
    case Errc::kNotPermitted: return EPERM;
    case Errc::kNotSupported: return EOPNOTSUPP;
    case Errc::kNoMemory: return ENOMEM;
    case Errc::kGone: return ESRCH;
    case Errc::kDeviceFull: return ENOMEM;
    case Errc::kDeviceIo:
    case Errc::kCorrupt: return EIO;
  }
  return EIO;
}

}  // namespace whimbrel::capi

const char* whimbrel_error() {
  auto& complaint = whimbrel::capi::t_complaint;
  if (complaint.is_complete) return complaint.text;
  std::size_t used = 0;
  const auto add = [&](const char* part) {
    while (*part != 0 && used + 1 < sizeof complaint.text) complaint.text[used++] = *part++;
  };
  add(complaint.what);
  add(" (");
  add(whimbrel::capi::errno_name(complaint.sys_errno));
  if (*complaint.reason != 0) add(": ");
  add(complaint.reason);
  add(")");
  if (*complaint.next != 0) add("; next: ");
  add(complaint.next);
  complaint.text[used] = 0;
  complaint.is_complete = true;
  return complaint.text;
}
