// System calls as functions that return a Result: one call, one Result, no policy, no errno variable. Safe on threads
// that libc does not know, in a forked child, and on the fault path.
//
// errc_of() is the general meaning of an errno. Calls whose errno means something more precise (UFFDIO_MOVE, …)
// translate it themselves, next to the call.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/syscall.h"
#include "mm/address.h"

struct iovec;
struct pollfd;

namespace whimbrel::sys {

[[nodiscard]] Errc errc_of(int sys_errno) noexcept;

// Turns the raw result of call() into a Result; `where` is static text.
[[nodiscard]] Result<long> checked(long raw, const char* where) noexcept;

// ---- descriptors ---------------------------------------------------------------------------------------------------
[[nodiscard]] Result<int> open(const char* path, int flags, unsigned mode = 0) noexcept;
void close(int fd) noexcept;
void close_range(unsigned first, unsigned last) noexcept;
[[nodiscard]] Result<std::size_t> read(int fd, void* to, std::size_t bytes) noexcept;
[[nodiscard]] Result<std::size_t> write(int fd, const void* from, std::size_t bytes) noexcept;
[[nodiscard]] Result<std::size_t> pread(int fd, void* to, std::size_t bytes, std::uint64_t offset) noexcept;
[[nodiscard]] Result<long> ioctl(int fd, unsigned long request, void* argument, const char* where) noexcept;
// A duplicate of `fd` with the lowest free number at or above `lowest`, close-on-exec.
[[nodiscard]] Result<int> duplicate_above(int fd, int lowest) noexcept;
[[nodiscard]] Result<int> eventfd() noexcept;
// A descriptor for this process; in a process whose main thread has exited, for the calling thread where possible.
[[nodiscard]] Result<int> pidfd_self() noexcept;
// Number of ready descriptors; 0 after `nanoseconds` (negative: no limit). A signal counts as 0.
[[nodiscard]] Result<int> poll(pollfd* fds, std::size_t count, std::int64_t nanoseconds) noexcept;
[[nodiscard]] Result<int> userfaultfd(int flags) noexcept;
[[nodiscard]] Result<std::uint64_t> file_size(int fd) noexcept;
[[nodiscard]] Result<void> truncate(int fd, std::uint64_t bytes) noexcept;

// ---- memory --------------------------------------------------------------------------------------------------------
[[nodiscard]] Result<void*> mmap(void* address, std::size_t bytes, int protection, int flags) noexcept;  // anonymous
[[nodiscard]] Result<void*> map_shared(int fd, std::size_t bytes) noexcept;  // a file, readable and writable
void munmap(void* address, std::size_t bytes) noexcept;
[[nodiscard]] Result<void> mprotect(void* address, std::size_t bytes, int protection) noexcept;
[[nodiscard]] Result<void> madvise(void* address, std::size_t bytes, int advice) noexcept;
// Bytes advised, which may be fewer than asked for.
[[nodiscard]] Result<std::size_t> process_madvise(int pidfd, const iovec* ranges, std::size_t count,
                                                  int advice) noexcept;
// Whether the page is in RAM (mincore). kNoMemory: nothing is mapped there.
[[nodiscard]] Result<bool> is_resident(PageIndex page) noexcept;
// Writes one page of this process without touching it; fails where the program could not write.
[[nodiscard]] Result<void> write_own_memory(PageIndex page, const std::byte* bytes) noexcept;
[[nodiscard]] Result<void> munlock(void* address, std::size_t bytes) noexcept;
// Locks what is there, and what comes later when it comes.
[[nodiscard]] Result<void> lock_on_fault(void* address, std::size_t bytes) noexcept;

// Puts the calling thread ahead of the threads it was like, ten steps of nice(2), where the user may do that.
void be_preferred() noexcept;

// ---- process -------------------------------------------------------------------------------------------------------
struct Limit {
  std::uint64_t soft;
  std::uint64_t hard;
};
inline constexpr std::uint64_t kUnlimited = ~std::uint64_t{0};
[[nodiscard]] Result<Limit> limit(int resource) noexcept;
[[nodiscard]] Result<void> set_limit(int resource, Limit value) noexcept;
[[nodiscard]] int gettid() noexcept;
// What tools call this thread; at most 15 characters.
void name_thread(const char* name) noexcept;
[[nodiscard]] int getpid() noexcept;
[[nodiscard]] int getppid() noexcept;
// Also true for a process that may not be signalled, and for one that nobody has waited for yet.
[[nodiscard]] bool process_exists(int pid) noexcept;

// Random bytes from the kernel, fit for keys.
[[nodiscard]] Result<void> random_bytes(void* to, std::size_t bytes) noexcept;

// Reads a small text file whole into `buffer`, zero-terminated; returns the length without the zero. What does not fit
// is cut off.
[[nodiscard]] Result<std::size_t> read_text(const char* path, char* buffer, std::size_t room) noexcept;
// The first decimal number of a small text file such as a sysctl.
[[nodiscard]] Result<std::uint64_t> read_number(const char* path) noexcept;

}  // namespace whimbrel::sys
