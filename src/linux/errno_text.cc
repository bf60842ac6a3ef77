#include "linux/errno_text.h"

#include <cerrno>

namespace whimbrel::sys {

const char* errno_text(int sys_errno) noexcept {
  switch (sys_errno) {
    case 0:
      return "";
    case EPERM:
      return "operation not permitted";
    case ENOENT:
      return "no such file or directory";
    case EIO:
      return "input/output error";
    case ENXIO:
      return "no such device";
    case EBADF:
      return "the descriptor is gone";
    case EAGAIN:
      return "try again";
    case ENOMEM:
      return "out of memory";
    case EACCES:
      return "permission denied";
    case EBUSY:
      return "in use";
    case EEXIST:
      return "it exists";
    case ENODEV:
      return "no such device";
    case ENOTDIR:
      return "not a directory";
    case EISDIR:
      return "is a directory";
    case EINVAL:
      return "not supported there";
    case ENFILE:
    case EMFILE:
      return "too many open files";
    case EFBIG:
      return "larger than files may be (ulimit -f)";
    case ENOSPC:
      return "no space left";
    case EROFS:
      return "read-only file system";
    case ENAMETOOLONG:
      return "the name is too long";
    case ENOSYS:
      return "unknown to this kernel";
    case ELOOP:
      return "a symbolic link";
    case EOPNOTSUPP:
      return "not supported there";
    case EDQUOT:
      return "disk quota exceeded";
    case ESTALE:
      return "the server no longer knows the file";
    case ETIMEDOUT:
      return "no answer";
    default:
      return "error";
  }
}

}  // namespace whimbrel::sys
