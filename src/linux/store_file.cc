#include "linux/store_file.h"

#include <fcntl.h>
#include <linux/falloc.h>
#include <sys/file.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "linux/known_contents.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr std::size_t kMostPath = 4096;
constexpr int kTries = 50;  // for a name that another process of the same program uses for a moment

std::unexpected<Error> refused(long raw, const char* why) noexcept {
  const int error = static_cast<int>(-raw);
  return fail(sys::errc_of(error), error, why);
}

// Where the last component of the path starts: 0 when there is no directory before it.
std::size_t name_start(const char* path) noexcept {
  std::size_t start = 0;
  for (std::size_t i = 0; path[i] != 0; ++i) {
    if (path[i] == '/') start = i + 1;
  }
  return start;
}

bool copy_directory(const char* path, char (&directory)[kMostPath]) noexcept {
  const std::size_t length = name_start(path);
  if (length >= kMostPath) return false;
  std::memcpy(directory, path, length);
  if (length == 0) directory[0] = '.';
  directory[length == 0 ? 1 : length] = 0;
  return true;
}

Result<void> check_directory(const char* directory) noexcept {
  struct stat info {};
  if (const long raw = sys::call(SYS_newfstatat, AT_FDCWD, sys::arg(directory), sys::arg(&info), 0); raw < 0) {
    return refused(raw, "lies in a directory that cannot be reached");
  }
  if (!S_ISDIR(info.st_mode)) return fail(Errc::kInvalid, ENOTDIR, "lies in something that is no directory");
  if (const long raw = sys::call(SYS_faccessat, AT_FDCWD, sys::arg(directory), W_OK | X_OK); raw < 0) {
    return refused(raw, "lies in a directory that cannot be written");
  }
  return {};
}

Result<void> check_block(int fd, bool force) noexcept {
  const Result<const char*> known = known_contents(fd);
  if (!known) return std::unexpected(known.error());
  if (**known != 0 && !force) return fail(Errc::kExists, EEXIST, *known);
  return {};
}

Result<int> open_block_device(const char* path, int flags) noexcept {
  // O_EXCL without O_CREAT: refused while it is mounted, used for swap, or part of another device.
  const long raw = sys::call(SYS_openat, AT_FDCWD, sys::arg(path), flags | O_EXCL | O_CLOEXEC, 0);
  if (raw == -EBUSY) return fail(Errc::kBusy, EBUSY, "is mounted, or in use by something else");
  if (raw < 0) return refused(raw, "cannot be opened");
  return static_cast<int>(raw);
}

}  // namespace

Result<void> check_store_path(const StoreFileOptions& options) noexcept {
  struct stat info {};
  const long raw = sys::call(SYS_newfstatat, AT_FDCWD, sys::arg(options.path), sys::arg(&info), AT_SYMLINK_NOFOLLOW);
  if (raw == -ENOENT) {
    char directory[kMostPath];
    if (!copy_directory(options.path, directory)) return fail(Errc::kInvalid, ENAMETOOLONG, "is too long a name");
    if (options.path[name_start(options.path)] == 0) return refused(raw, "is not there");
    return check_directory(directory);
  }
  if (raw < 0) return refused(raw, "cannot be reached");
  if (S_ISLNK(info.st_mode) && sys::call(SYS_newfstatat, AT_FDCWD, sys::arg(options.path), sys::arg(&info), 0) < 0) {
    return fail(Errc::kInvalid, ELOOP, "is a symbolic link to nowhere");
  }
  if (S_ISDIR(info.st_mode)) {
    const long allowed = sys::call(SYS_faccessat, AT_FDCWD, sys::arg(options.path), W_OK | X_OK);
    if (allowed < 0) return refused(allowed, "is a directory that cannot be written");
    return {};
  }
  if (S_ISBLK(info.st_mode)) {
    const Result<int> fd = open_block_device(options.path, O_RDWR);
    if (!fd) return std::unexpected(fd.error());
    const Result<void> good = check_block(*fd, options.force);
    sys::close(*fd);
    return good;
  }
  if (!S_ISREG(info.st_mode)) return fail(Errc::kInvalid, 0, "is neither a file, a directory nor a block device");
  if (!options.force) return fail(Errc::kExists, EEXIST, "exists already, and its contents would be lost");
  return {};
}

Result<void> StoreFile::open(const StoreFileOptions& options) noexcept {
  struct stat info {};
  const long raw = sys::call(SYS_newfstatat, AT_FDCWD, sys::arg(options.path), sys::arg(&info), 0);
  Result<void> opened{};
  if (raw == 0 && S_ISBLK(info.st_mode)) {
    opened = open_block(options);
  } else if (raw == 0 && S_ISDIR(info.st_mode)) {
    opened = make_nameless(options);
  } else if (raw == 0 && S_ISREG(info.st_mode) && options.force) {
    opened = open_existing(options);
  } else {
    opened = make_named(options);
  }
  if (opened) opened = settle(options);
  if (!opened) close();
  return opened;
}

void StoreFile::close() noexcept {
  if (fd_ >= 0) sys::close(fd_);
  fd_ = -1;
}

Result<void> StoreFile::open_block(const StoreFileOptions& options) noexcept {
  const Result<int> fd = open_block_device(options.path, O_RDWR);
  if (!fd) return std::unexpected(fd.error());
  fd_ = *fd;
  if (const Result<void> good = check_block(fd_, options.force); !good) return good;
  const Result<std::uint64_t> bytes = sys::file_size(fd_);
  if (!bytes) return std::unexpected(bytes.error());
  fixed_bytes_ = *bytes;
  if (fixed_bytes_ < 4096) return fail(Errc::kDeviceFull, 0, "is a block device without room");
  return {};
}

Result<void> StoreFile::open_existing(const StoreFileOptions& options) noexcept {
  const long raw = sys::call(SYS_openat, AT_FDCWD, sys::arg(options.path), O_RDWR | O_CLOEXEC | O_NOFOLLOW, 0);
  if (raw < 0) return refused(raw, "cannot be opened");
  fd_ = static_cast<int>(raw);
  if (sys::call(SYS_flock, fd_, LOCK_EX | LOCK_NB) < 0) return fail(Errc::kBusy, EBUSY, "is in use by another process");
  if (const Result<void> empty = sys::truncate(fd_, 0); !empty) return refused(-empty.error().sys, "cannot be emptied");
  return {};
}

Result<void> StoreFile::make_nameless(const StoreFileOptions& options) noexcept {
  made_ = true;
  const long raw = sys::call(SYS_openat, AT_FDCWD, sys::arg(options.path), O_TMPFILE | O_RDWR | O_CLOEXEC, 0600);
  if (raw >= 0) {
    fd_ = static_cast<int>(raw);
    return {};
  }
  if (raw != -EOPNOTSUPP && raw != -EISDIR && raw != -EINVAL) return refused(raw, "does not let a file be made in it");
  // A file system that knows no nameless files.
  char path[kMostPath];
  const std::size_t length = std::strlen(options.path);
  constexpr char kName[] = "/.whimbrel-store";
  if (length + sizeof kName > sizeof path) return fail(Errc::kInvalid, ENAMETOOLONG, "is too long a name");
  std::memcpy(path, options.path, length);
  std::memcpy(path + length, kName, sizeof kName);
  StoreFileOptions named = options;
  named.path = path;
  return make_named(named);
}

Result<void> StoreFile::make_named(const StoreFileOptions& options) noexcept {
  made_ = true;
  for (int i = 0;; ++i) {
    const long raw =
        sys::call(SYS_openat, AT_FDCWD, sys::arg(options.path), O_CREAT | O_EXCL | O_RDWR | O_CLOEXEC, 0600);
    if (raw >= 0) {
      fd_ = static_cast<int>(raw);
      sys::call(SYS_unlinkat, AT_FDCWD, sys::arg(options.path), 0);
      return {};
    }
    if (raw != -EEXIST) return refused(raw, "cannot be made");
    if (i == kTries) return fail(Errc::kExists, EEXIST, "exists already, and its contents would be lost");
    const timespec pause{0, 1'000'000};
    sys::call(SYS_nanosleep, sys::arg(&pause), 0);
  }
}

// Direct transfers where they work, proved by one; then the lock and what identifies the file.
Result<void> StoreFile::settle(const StoreFileOptions& options) noexcept {
  struct stat info {};
  if (const long raw = sys::call(SYS_fstat, fd_, sys::arg(&info)); raw < 0) return refused(raw, "cannot be examined");
  device_ = info.st_dev;
  inode_ = info.st_ino;
  if (sys::call(SYS_flock, fd_, LOCK_SH | LOCK_NB) < 0) return fail(Errc::kBusy, EBUSY, "is in use by another process");
  if (options.direct == DirectIo::kOff) return {};
  const long flags = sys::call(SYS_fcntl, fd_, F_GETFL, 0);
  long raw = sys::call(SYS_fcntl, fd_, F_SETFL, flags | O_DIRECT);
  if (raw >= 0) {
    alignas(4096) std::byte block[4096] = {};
    const auto kind = fixed_bytes_ != 0 ? FileTransfer::Kind::kRead : FileTransfer::Kind::kWrite;
    raw = transfer_now({.kind = kind, .fd = fd_, .memory = block, .bytes = sizeof block});
  }
  direct_ = raw >= 0;
  if (direct_) return {};
  if (raw == -ENOSPC || raw == -EDQUOT || raw == -EFBIG || raw == -EIO) return refused(raw, "cannot be written");
  if (options.direct == DirectIo::kOn) return refused(raw, "lies on a file system without direct=on");
  sys::call(SYS_fcntl, fd_, F_SETFL, flags & ~O_DIRECT);
  return {};
}

void StoreFile::lengthen(std::uint64_t bytes) noexcept {
  if (fixed_bytes_ == 0) (void)sys::truncate(fd_, bytes);
}

Result<void> StoreFile::punch(std::uint64_t offset, std::uint64_t bytes) noexcept {
  const long raw = sys::call(SYS_fallocate, fd_, FALLOC_FL_PUNCH_HOLE | FALLOC_FL_KEEP_SIZE, static_cast<long>(offset),
                             static_cast<long>(bytes));
  if (raw < 0) return refused(raw, "fallocate");
  return {};
}

bool StoreFile::is_sole_user() noexcept {
  if (sys::call(SYS_flock, fd_, LOCK_EX | LOCK_NB) < 0) {
    // A conversion that fails may have given the old lock up.
    sys::call(SYS_flock, fd_, LOCK_SH | LOCK_NB);
    return false;
  }
  sys::call(SYS_flock, fd_, LOCK_SH | LOCK_NB);
  return true;
}

bool StoreFile::is_same(int fd) const noexcept {
  struct stat info {};
  return sys::call(SYS_fstat, fd, sys::arg(&info)) == 0 && info.st_dev == device_ && info.st_ino == inode_;
}

Result<StoreFile::Again> StoreFile::open_again(int owner) const noexcept {
  char path[64];
  char* end = path;
  const auto add = [&end](const char* text) {
    while (*text != 0) *end++ = *text++;
  };
  const auto add_number = [&end](int number) {
    char digits[12];
    int n = 0;
    do digits[n++] = static_cast<char>('0' + number % 10);
    while ((number /= 10) != 0);
    while (n > 0) *end++ = digits[--n];
  };
  if (owner != 0) {
    add("/proc/self/task/");
    add_number(owner);
    add("/fd/");
  } else {
    add("/proc/thread-self/fd/");
  }
  add_number(fd_);
  *end = 0;
  const Result<int> fd = sys::open(path, O_RDWR | (direct_ ? O_DIRECT : 0));
  if (fd && is_same(*fd)) {
    if (sys::call(SYS_flock, *fd, LOCK_SH | LOCK_NB) == 0) return Again{*fd, true};
    sys::close(*fd);
    return fail(Errc::kBusy, EBUSY, "flock");
  }
  if (fd) sys::close(*fd);
  // The rights may be gone with which it was made, or /proc: then the same open file as the thread has, with one lock
  // for both.
  constexpr long kPidfdThread = O_EXCL;
  const long process = owner != 0 ? sys::call(434 /* pidfd_open */, owner, kPidfdThread) : -ESRCH;
  if (process < 0) return fd ? fail(Errc::kGone, 0, "pidfd_open") : std::unexpected(fd.error());
  const long copy = sys::call(438 /* pidfd_getfd */, process, fd_, 0);
  sys::close(static_cast<int>(process));
  if (copy < 0) return refused(copy, "pidfd_getfd");
  if (is_same(static_cast<int>(copy))) return Again{static_cast<int>(copy), false};
  sys::close(static_cast<int>(copy));
  return fail(Errc::kGone, 0, "pidfd_getfd");
}

int transfer_now(const FileTransfer& transfer) noexcept {
  std::uint32_t moved = 0;
  const bool reading = transfer.kind == FileTransfer::Kind::kRead;
  while (moved < transfer.bytes) {
    const iovec part{transfer.memory + moved, transfer.bytes - moved};
    const auto at = static_cast<long>(transfer.offset + moved);
    // The position in two halves, the high one without meaning on 64 bits.
    const long raw =
        sys::call(reading ? SYS_preadv2 : SYS_pwritev2, transfer.fd, sys::arg(&part), 1, at, 0, transfer.flags);
    if (raw == -EINTR) continue;
    if (raw < 0) return static_cast<int>(raw);
    if (raw == 0) break;
    moved += static_cast<std::uint32_t>(raw);
  }
  return static_cast<int>(moved);
}

}  // namespace whimbrel
