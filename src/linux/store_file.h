// StoreFile: a file or block device that holds pages of one process. Nobody else can open it, and nothing of it is left
// when the process has ended, however it ended.
//
// PATH may be
//   a directory           a nameless file is made there
//   a name not yet taken  the file is made with mode 0600, exclusively, and its name removed at once
//   a block device        taken exclusively; refused when it is mounted or in use, or holds something known, unless
//   forced an existing file      only when forced, and by one process at a time
//
// Every open of the file holds a shared lock (flock) on it, so the process that made it can tell whether a forked child
// still uses what it inherited: is_sole_user(). The descriptor belongs to the table of the thread that opened it.
//
// Not thread-safe, but transfers may run on any number of threads.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "linux/io_ring.h"

namespace whimbrel {

enum class DirectIo : std::uint8_t {
  kAuto,  // past the page cache where the file system can, else through it
  kOn,    // refuse a file system that cannot
  kOff,
};

struct StoreFileOptions {
  const char* path = "";
  DirectIo direct = DirectIo::kAuto;
  bool force = false;  // take what exists; its contents are lost
};

// Whether such a file could be made, as far as can be told without making it. `where` of the error says why not, in
// words that can follow "PATH ". kInvalid, kNotFound, kNotPermitted, kBusy, kExists, kDeviceIo.
[[nodiscard]] Result<void> check_store_path(const StoreFileOptions& options) noexcept;

class StoreFile {
 public:
  StoreFile() = default;
  StoreFile(const StoreFile&) = delete;
  StoreFile& operator=(const StoreFile&) = delete;
  ~StoreFile() { close(); }

  // Errors as check_store_path(), and kDeviceFull, kNotSupported.
  [[nodiscard]] Result<void> open(const StoreFileOptions& options) noexcept;
  void close() noexcept;

  [[nodiscard]] bool is_open() const noexcept { return fd_ >= 0; }
  [[nodiscard]] int fd() const noexcept { return fd_; }
  [[nodiscard]] bool is_direct() const noexcept { return direct_; }
  // Another process can have one like it: not so for block devices and forced files.
  [[nodiscard]] bool can_be_made_again() const noexcept { return made_; }
  // Bytes there are; 0: a file that grows.
  [[nodiscard]] std::uint64_t fixed_bytes() const noexcept { return fixed_bytes_; }

  // Makes the file so long, without using room: a write that lengthens its file waits for all others. Never shorter
  // than before. Where that is refused the writes themselves do it. Not from two threads at a time.
  void lengthen(std::uint64_t bytes) noexcept;
  // Gives the blocks behind the range back. kNotSupported: this file cannot.
  [[nodiscard]] Result<void> punch(std::uint64_t offset, std::uint64_t bytes) noexcept;
  // Whether no other process has the file any more.
  [[nodiscard]] bool is_sole_user() noexcept;

  // ---- fork: the descriptor table of an engine thread is not inherited ----
  struct Again {
    int fd = -1;
    bool has_own_lock = true;  // false: is_sole_user() does not notice it
  };
  // Opens the file once more, in the caller's table; `owner` is a thread in whose table it is open (0: the caller's).
  // From any thread.
  [[nodiscard]] Result<Again> open_again(int owner) const noexcept;
  // In the child: works with that number from now on, which is open in the caller's table.
  void take_over(int fd) noexcept { fd_ = fd; }
  // Whether `fd` is this file in the caller's table.
  [[nodiscard]] bool is_same(int fd) const noexcept;

 private:
  [[nodiscard]] Result<void> open_block(const StoreFileOptions& options) noexcept;
  [[nodiscard]] Result<void> open_existing(const StoreFileOptions& options) noexcept;
  [[nodiscard]] Result<void> make_nameless(const StoreFileOptions& options) noexcept;
  [[nodiscard]] Result<void> make_named(const StoreFileOptions& options) noexcept;
  [[nodiscard]] Result<void> settle(const StoreFileOptions& options) noexcept;

  int fd_ = -1;
  bool direct_ = false;
  bool made_ = false;
  std::uint64_t fixed_bytes_ = 0;
  std::uint64_t device_ = 0, inode_ = 0;
};

// One transfer by pread or pwrite, carried on until everything has moved: bytes moved, or -errno.
[[nodiscard]] int transfer_now(const FileTransfer& transfer) noexcept;

}  // namespace whimbrel
