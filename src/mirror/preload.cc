// The calls of the program that the mirror devices are behind. Everything else goes straight to the kernel.
//
// Interposed: open and its relatives (the four nodes appear), close and its relatives, ioctl, read, write, mmap (of a
// node), fork, syscall; and what the kernel reports late, not at all, or answers otherwise for memory that is watched: mprotect,
// madvise, mincore, mremap, mlock.
#include <dlfcn.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstdarg>
#include <cstdio>
#include <cstring>

#include "base/syscall.h"
#include "mirror/advice.h"
#include "mirror/descriptor.h"
#include "mirror/proc_files.h"
#include "mirror/protection_lift.h"
#include "mirror/session.h"

#define EXPORT extern "C" __attribute__((visibility("default")))

namespace {

using whimbrel::mirror::Session;
namespace mirror = whimbrel::mirror;
namespace sys = whimbrel::sys;

// errno and -1 for a negative result, as libc does it.
template <class T>
T give(long result) {
  if (result < 0 && result > -4096) {
    errno = static_cast<int>(-result);
    result = -1;
  }
  return (T)result;
}

int open_any(int directory, const char* path, int flags, unsigned mode) {
  if (const auto minor = mirror::minor_of_path(path)) return give<int>(mirror::open_mirror(*minor, flags));
  const int fd = give<int>(sys::call(SYS_openat, directory, sys::arg(path), flags | O_LARGEFILE, mode));
  if (fd >= 0 && mirror::is_own_pagemap(path)) mirror::note_pagemap(fd);
  return fd;
}

unsigned mode_of(int flags, va_list arguments) {
  return (flags & O_CREAT) != 0 || (flags & O_TMPFILE) == O_TMPFILE ? va_arg(arguments, unsigned) : 0;
}

}  // namespace

#define OPEN_LIKE(name)                                  \
  EXPORT int name(const char* path, int flags, ...) {    \
    va_list arguments;                                   \
    va_start(arguments, flags);                          \
    const unsigned mode = mode_of(flags, arguments);     \
    va_end(arguments);                                   \
    return open_any(AT_FDCWD, path, flags, mode);        \
  }
#define OPENAT_LIKE(name)                                             \
  EXPORT int name(int directory, const char* path, int flags, ...) {  \
    va_list arguments;                                                \
    va_start(arguments, flags);                                       \
    const unsigned mode = mode_of(flags, arguments);                  \
    va_end(arguments);                                                \
    return open_any(directory, path, flags, mode);                    \
  }
OPEN_LIKE(open)
OPEN_LIKE(open64)
OPENAT_LIKE(openat)
OPENAT_LIKE(openat64)
EXPORT int __open_2(const char* path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }
EXPORT int __open64_2(const char* path, int flags) { return open_any(AT_FDCWD, path, flags, 0); }

EXPORT int close(int fd) {
  if (mirror::is_engine_descriptor(fd)) return give<int>(-EBADF);
  const std::uint64_t cookie = mirror::cookie_of(fd);
  const long result = sys::call(SYS_close, fd);
  if (cookie != 0) mirror::closed(cookie);
  return give<int>(result);
}

EXPORT int close_range(unsigned first, unsigned last, int flags) noexcept {
  return give<int>(mirror::close_descriptors(first, last, static_cast<unsigned>(flags)));
}
EXPORT void closefrom(int first) noexcept {
  (void)mirror::close_descriptors(first < 0 ? 0 : static_cast<unsigned>(first), ~0u, 0);
}

EXPORT int dup2(int from, int to) {
  const std::uint64_t cookie = from == to ? 0 : mirror::cookie_of(to);
  const long result = sys::call(SYS_dup2, from, to);
  if (cookie != 0 && result >= 0) mirror::closed(cookie);
  return give<int>(result);
}

EXPORT int dup3(int from, int to, int flags) {
  const std::uint64_t cookie = from == to ? 0 : mirror::cookie_of(to);
  const long result = sys::call(SYS_dup3, from, to, flags);
  if (cookie != 0 && result >= 0) mirror::closed(cookie);
  return give<int>(result);
}

EXPORT int ioctl(int fd, unsigned long request, ...) {
  va_list arguments;
  va_start(arguments, request);
  void* argument = va_arg(arguments, void*);
  va_end(arguments);
  const bool ours = mirror::is_mirror(fd) || ((request & ~0xfful) == mirror::kRequestBase && mirror::is_foreign_mirror(fd));
  if (ours) return give<int>(mirror::mirror_ioctl(fd, request, argument));
  long result = sys::call(SYS_ioctl, fd, static_cast<long>(request), sys::arg(argument));
  Session* session = Session::existing();
  if (result == -EBUSY && request == UFFDIO_REGISTER && session != nullptr) {
    // The program watches memory itself: ours goes.
    const auto& wanted = *static_cast<const uffdio_register*>(argument);
    mirror::GatePass pass(session->gate());
    session->yield_to_application(whimbrel::PageRange::touching(whimbrel::VirtualAddress(wanted.range.start),
                                                                whimbrel::VirtualAddress(wanted.range.start + wanted.range.len)));
    result = sys::call(SYS_ioctl, fd, static_cast<long>(request), sys::arg(argument));
  }
  return give<int>(result);
}

EXPORT ssize_t read(int fd, void* buffer, size_t bytes) {
  if (mirror::is_mirror(fd)) return give<ssize_t>(-EINVAL);
  return give<ssize_t>(mirror::read_file(fd, buffer, bytes, -1));
}
EXPORT ssize_t pread(int fd, void* buffer, size_t bytes, off_t offset) {
  if (offset < 0) return give<ssize_t>(-EINVAL);
  return give<ssize_t>(mirror::read_file(fd, buffer, bytes, offset));
}
EXPORT ssize_t pread64(int fd, void* buffer, size_t bytes, off_t offset) { return pread(fd, buffer, bytes, offset); }

EXPORT FILE* fopen(const char* path, const char* mode) {
  static auto* const real = reinterpret_cast<FILE* (*)(const char*, const char*)>(dlsym(RTLD_NEXT, "fopen"));
  return mirror::is_own_pagemap(path) ? mirror::open_pagemap_stream(path, mode) : real(path, mode);
}
EXPORT FILE* fopen64(const char* path, const char* mode) { return fopen(path, mode); }

EXPORT ssize_t write(int fd, const void* buffer, size_t bytes) {
  if (mirror::is_mirror(fd)) return give<ssize_t>(-EINVAL);
  return give<ssize_t>(sys::call(SYS_write, fd, sys::arg(buffer), static_cast<long>(bytes)));
}

EXPORT void* mmap(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  if (fd >= 0 && (flags & MAP_ANONYMOUS) == 0 && mirror::is_mirror(fd)) {
    return give<void*>(mirror::map_node(address, bytes, protection, flags));
  }
  Session* session = Session::existing();
  if (session != nullptr && (flags & MAP_FIXED) != 0) {
    mirror::GatePass pass(session->gate());
    const auto from = reinterpret_cast<std::uint64_t>(address);
    session->note_borders(whimbrel::PageRange::touching(whimbrel::VirtualAddress(from), whimbrel::VirtualAddress(from + bytes)));
  }
  const long at = sys::call(SYS_mmap, sys::arg(address), static_cast<long>(bytes), protection, flags, fd, offset);
  constexpr int kUnwatched = MAP_SHARED | MAP_STACK | MAP_GROWSDOWN | MAP_HUGETLB;
  if (session != nullptr) session->mappings_change();
  if ((flags & MAP_LOCKED) != 0) mirror::memory_was_locked().store(true);
  if (session != nullptr && (at > 0 || at < -4095) && (flags & MAP_ANONYMOUS) != 0 && (flags & kUnwatched) == 0) {
    const auto from = static_cast<std::uint64_t>(at);
    mirror::GatePass pass(session->gate());
    session->watch(whimbrel::PageRange::touching(whimbrel::VirtualAddress(from), whimbrel::VirtualAddress(from + bytes)), true);
  }
  return give<void*>(at);
}
EXPORT void* mmap64(void* address, size_t bytes, int protection, int flags, int fd, off_t offset) {
  return mmap(address, bytes, protection, flags, fd, offset);
}

EXPORT int munmap(void* address, size_t bytes) noexcept { return give<int>(mirror::unmap(address, bytes)); }

EXPORT void* mremap(void* from, size_t old_bytes, size_t new_bytes, int flags, ...) noexcept {
  va_list arguments;
  va_start(arguments, flags);
  void* to = (flags & (MREMAP_FIXED | MREMAP_DONTUNMAP)) != 0 ? va_arg(arguments, void*) : nullptr;
  va_end(arguments);
  return give<void*>(mirror::remap(from, old_bytes, new_bytes, flags, to));
}

EXPORT int mprotect(void* address, size_t bytes, int protection) noexcept {
  return give<int>(mirror::protect(address, bytes, protection));
}

EXPORT int madvise(void* address, size_t bytes, int advice) noexcept {
  return give<int>(mirror::advise(address, bytes, advice));
}

EXPORT int mincore(void* address, size_t bytes, unsigned char* resident) noexcept {
  return give<int>(mirror::mincore(address, bytes, resident));
}

EXPORT int mlock(const void* address, size_t bytes) noexcept {
  mirror::memory_was_locked().store(true);
  return give<int>(sys::call(SYS_mlock, sys::arg(address), static_cast<long>(bytes)));
}
EXPORT int mlock2(const void* address, size_t bytes, unsigned flags) noexcept {
  mirror::memory_was_locked().store(true);
  return give<int>(sys::call(SYS_mlock2, sys::arg(address), static_cast<long>(bytes), flags));
}
EXPORT int mlockall(int flags) noexcept {
  mirror::memory_was_locked().store(true);
  return give<int>(sys::call(SYS_mlockall, flags));
}

// Calls that libc has no function for are made through this one.
EXPORT long syscall(long number, ...) noexcept {
  va_list arguments;
  va_start(arguments, number);
  long a[6];
  for (long& argument : a) argument = va_arg(arguments, long);
  va_end(arguments);
  if (number == SYS_io_uring_register) {
    mirror::before_io_uring_register(static_cast<unsigned>(a[1]), reinterpret_cast<const void*>(a[2]), static_cast<unsigned>(a[3]));
  }
  return give<long>(sys::call(number, a[0], a[1], a[2], a[3], a[4], a[5]));
}

EXPORT pid_t fork() {
  static auto* const real = reinterpret_cast<pid_t (*)()>(dlsym(RTLD_NEXT, "fork"));
  Session* session = Session::existing();
  if (session == nullptr) return real();
  session->before_fork();
  const pid_t pid = real();
  const int error = errno;
  if (pid == 0) {
    mirror::descriptors_after_fork_in_child();
    session->after_fork_in_child();
  } else {
    session->after_fork_in_parent();
  }
  errno = error;
  return pid;
}
