#include "linux/sys.h"

#include <fcntl.h>
#include <linux/prctl.h>
#include <poll.h>
#include <sys/eventfd.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <time.h>
#include <unistd.h>

#include <cerrno>

namespace whimbrel::sys {
namespace {

constexpr long kSigsetBytes = 8;

Result<void> done(long raw, const char* where) noexcept {
  if (raw < 0) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), where);
  return {};
}

Result<int> number(long raw, const char* where) noexcept {
  if (raw < 0) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), where);
  return static_cast<int>(raw);
}

Result<std::size_t> bytes_done(long raw, const char* where) noexcept {
  if (raw < 0) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), where);
  return static_cast<std::size_t>(raw);
}

}  // namespace

Errc errc_of(int sys_errno) noexcept {
  switch (sys_errno) {
    case EBUSY:
      return Errc::kBusy;
    case EAGAIN:
    case EINTR:
      return Errc::kAgain;
    case ENOENT:
      return Errc::kNotFound;
    case EEXIST:
      return Errc::kExists;
    case EFAULT:
    case EHWPOISON:
      return Errc::kFault;
    case EPERM:
    case EACCES:
      return Errc::kNotPermitted;
    case ENOSYS:
    case ENOTTY:
    case EOPNOTSUPP:
      return Errc::kNotSupported;
    case ENOMEM:
    case EMFILE:
    case ENFILE:
      return Errc::kNoMemory;
    case ESRCH:
      return Errc::kGone;
    case ENOSPC:
      return Errc::kDeviceFull;
    case EIO:
      return Errc::kDeviceIo;
    default:
      return Errc::kInvalid;
  }
}

Result<long> checked(long raw, const char* where) noexcept {
  if (raw < 0 && raw > -4096) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), where);
  return raw;
}

Result<int> open(const char* path, int flags, unsigned mode) noexcept {
  return number(call(SYS_openat, AT_FDCWD, arg(path), flags | O_CLOEXEC, mode), "open");
}

void close(int fd) noexcept { call(SYS_close, fd); }

void close_range(unsigned first, unsigned last) noexcept { call(SYS_close_range, first, last, 0); }

Result<std::size_t> read(int fd, void* to, std::size_t bytes) noexcept {
  return bytes_done(call(SYS_read, fd, arg(to), static_cast<long>(bytes)), "read");
}

Result<std::size_t> write(int fd, const void* from, std::size_t bytes) noexcept {
  return bytes_done(call(SYS_write, fd, arg(from), static_cast<long>(bytes)), "write");
}

Result<std::size_t> pread(int fd, void* to, std::size_t bytes, std::uint64_t offset) noexcept {
  return bytes_done(call(SYS_pread64, fd, arg(to), static_cast<long>(bytes), static_cast<long>(offset)), "pread");
}

Result<long> ioctl(int fd, unsigned long request, void* argument, const char* where) noexcept {
  return checked(call(SYS_ioctl, fd, static_cast<long>(request), arg(argument)), where);
}

Result<int> duplicate_above(int fd, int lowest) noexcept {
  return number(call(SYS_fcntl, fd, F_DUPFD_CLOEXEC, lowest), "fcntl(F_DUPFD_CLOEXEC)");
}

Result<int> eventfd() noexcept { return number(call(SYS_eventfd2, 0, EFD_CLOEXEC | EFD_NONBLOCK), "eventfd2"); }

Result<int> pidfd_self() noexcept {
#ifndef SYS_pidfd_open
#define SYS_pidfd_open 434
#endif
  constexpr long kPidfdThread = O_EXCL;  // Linux 6.9; the thread group leader may have exited before us
  long raw = call(SYS_pidfd_open, call(SYS_gettid), kPidfdThread);
  if (raw < 0) raw = call(SYS_pidfd_open, call(SYS_getpid), 0);
  return number(raw, "pidfd_open");
}

Result<int> poll(pollfd* fds, std::size_t count, std::int64_t nanoseconds) noexcept {
  timespec limit{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  const long raw =
      call(SYS_ppoll, arg(fds), static_cast<long>(count), nanoseconds < 0 ? 0 : arg(&limit), 0, kSigsetBytes);
  return raw == -EINTR ? Result<int>(0) : number(raw, "ppoll");
}

Result<int> userfaultfd(int flags) noexcept {
  return number(call(SYS_userfaultfd, flags | O_CLOEXEC | O_NONBLOCK), "userfaultfd");
}

Result<std::uint64_t> file_size(int fd) noexcept {
  const long raw = call(SYS_lseek, fd, 0, SEEK_END);
  if (raw < 0) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "lseek");
  return static_cast<std::uint64_t>(raw);
}

Result<void> truncate(int fd, std::uint64_t bytes) noexcept {
  return done(call(SYS_ftruncate, fd, static_cast<long>(bytes)), "ftruncate");
}

Result<void*> map_shared(int fd, std::size_t bytes) noexcept {
  const long raw = call(SYS_mmap, 0, static_cast<long>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (raw < 0 && raw > -4096) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "mmap");
  return reinterpret_cast<void*>(raw);
}

Result<void*> mmap(void* address, std::size_t bytes, int protection, int flags) noexcept {
  const long raw = call(SYS_mmap, arg(address), static_cast<long>(bytes), protection, flags | MAP_ANONYMOUS, -1, 0);
  if (raw < 0 && raw > -4096) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "mmap");
  return reinterpret_cast<void*>(raw);
}

void munmap(void* address, std::size_t bytes) noexcept { call(SYS_munmap, arg(address), static_cast<long>(bytes)); }

Result<void> mprotect(void* address, std::size_t bytes, int protection) noexcept {
  return done(call(SYS_mprotect, arg(address), static_cast<long>(bytes), protection), "mprotect");
}

Result<void> madvise(void* address, std::size_t bytes, int advice) noexcept {
  return done(call(SYS_madvise, arg(address), static_cast<long>(bytes), advice), "madvise");
}

Result<std::size_t> process_madvise(int pidfd, const iovec* ranges, std::size_t count, int advice) noexcept {
#ifndef SYS_process_madvise
#define SYS_process_madvise 440
#endif
  return bytes_done(call(SYS_process_madvise, pidfd, arg(ranges), static_cast<long>(count), advice, 0),
                    "process_madvise");
}

Result<bool> is_resident(PageIndex page) noexcept {
  unsigned char answer = 0;
  const long raw = call(SYS_mincore, static_cast<long>(page.address().raw()), kPageSize, arg(&answer));
  if (raw < 0) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "mincore");
  return (answer & 1) != 0;
}

Result<void> write_own_memory(PageIndex page, const std::byte* bytes) noexcept {
  const iovec from{const_cast<std::byte*>(bytes), kPageSize};
  const iovec to{reinterpret_cast<void*>(page.address().raw()), kPageSize};
  const long raw = call(SYS_process_vm_writev, getpid(), arg(&from), 1, arg(&to), 1, 0);
  if (raw == static_cast<long>(kPageSize)) return {};
  if (raw < 0) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "process_vm_writev");
  return fail(Errc::kFault, 0, "process_vm_writev");
}

Result<void> munlock(void* address, std::size_t bytes) noexcept {
  return done(call(SYS_munlock, arg(address), static_cast<long>(bytes)), "munlock");
}

Result<void> lock_on_fault(void* address, std::size_t bytes) noexcept {
  constexpr int kOnFault = 1;  // MLOCK_ONFAULT
  return done(call(SYS_mlock2, arg(address), static_cast<long>(bytes), kOnFault), "mlock2");
}

Result<Limit> limit(int resource) noexcept {
  Limit value{};
  const long raw = call(SYS_prlimit64, 0, resource, 0, arg(&value));
  if (raw < 0) return fail(errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "prlimit");
  return value;
}

Result<void> set_limit(int resource, Limit value) noexcept {
  return done(call(SYS_prlimit64, 0, resource, arg(&value), 0), "prlimit");
}

void name_thread(const char* name) noexcept { (void)call(SYS_prctl, PR_SET_NAME, arg(name)); }

Result<void> random_bytes(void* to, std::size_t bytes) noexcept {
  auto* at = static_cast<std::byte*>(to);
  while (bytes != 0) {
    const long got = call(SYS_getrandom, arg(at), static_cast<long>(bytes), 0);
    if (got == -EINTR) continue;
    if (got <= 0) return std::unexpected(checked(got == 0 ? -EIO : got, "getrandom").error());
    at += got;
    bytes -= static_cast<std::size_t>(got);
  }
  return {};
}

int gettid() noexcept { return static_cast<int>(call(SYS_gettid)); }
void be_preferred() noexcept {
  constexpr long kSteps = 10;
  const long twenty_less_nice = call(SYS_getpriority, PRIO_PROCESS, 0);
  if (twenty_less_nice <= 0) return;
  const long nice = 20 - twenty_less_nice - kSteps;
  (void)call(SYS_setpriority, PRIO_PROCESS, 0, nice < -20 ? -20 : nice);
}

int getpid() noexcept { return static_cast<int>(call(SYS_getpid)); }
int getppid() noexcept { return static_cast<int>(call(SYS_getppid)); }
bool process_exists(int pid) noexcept { return call(SYS_kill, pid, 0) != -ESRCH; }

Result<std::size_t> read_text(const char* path, char* buffer, std::size_t room) noexcept {
  Result<int> fd = open(path, O_RDONLY);
  if (!fd) return std::unexpected(fd.error());
  std::size_t used = 0;
  while (used + 1 < room) {
    Result<std::size_t> got = read(*fd, buffer + used, room - 1 - used);
    if (!got) {
      if (got.error().sys == EINTR) continue;
      close(*fd);
      return std::unexpected(got.error());
    }
    if (*got == 0) break;
    used += *got;
  }
  close(*fd);
  buffer[used] = 0;
  return used;
}

Result<std::uint64_t> read_number(const char* path) noexcept {
  char text[64];
  Result<std::size_t> length = read_text(path, text, sizeof text);
  if (!length) return std::unexpected(length.error());
  const char* at = text;
  while (*at == ' ' || *at == '\t') ++at;
  if (*at < '0' || *at > '9') return fail(Errc::kInvalid, 0, path);
  std::uint64_t value = 0;
  for (; *at >= '0' && *at <= '9'; ++at) value = value * 10 + static_cast<unsigned>(*at - '0');
  return value;
}

}  // namespace whimbrel::sys
