#include "mirror/proc_files.h"

#include <fcntl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <array>
#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/syscall.h"
#include "linux/sys.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

std::array<std::atomic<int>, 64> g_pagemaps;  // number + 1 of descriptors opened as a pagemap; 0: free

// What the descriptor is now, as a path; empty when nobody knows.
bool ends_with(int fd, const char* name) {
  char link[32] = "/proc/self/fd/", path[64] = {};
  std::size_t n = std::strlen(link);
  char digits[12];
  std::size_t count = 0;
  for (int rest = fd; count == 0 || rest != 0; rest /= 10) digits[count++] = static_cast<char>('0' + rest % 10);
  while (count != 0) link[n++] = digits[--count];
  const long length = sys::call(SYS_readlinkat, AT_FDCWD, sys::arg(link), sys::arg(path), sizeof path - 1);
  const auto want = static_cast<long>(std::strlen(name));
  return length > want && std::strncmp(path, "/proc/", 6) == 0 &&
         std::strcmp(path + (length - want), name) == 0;
}

bool is_known_pagemap(int fd) {
  for (const auto& known : g_pagemaps) {
    if (known.load(std::memory_order_relaxed) == fd + 1) return ends_with(fd, "/pagemap");
  }
  return false;
}

// Pages that are away are swapped out, as far as pagemap goes.
void mark_away_pages(Session& session, std::uint64_t offset, void* words, std::size_t bytes) {
  constexpr std::uint64_t kSwapped = std::uint64_t{1} << 62;
  const GatePass pass(session.gate());
  session.follow_family();
  AddressSpace& space = session.space();
  const PageRange range{PageIndex(offset / sizeof kSwapped), PageCount(bytes / sizeof kSwapped)};
  MutexLock hold(space.mutex());
  space.pump_locked();
  space.table().for_each(range, [&](PageRange where, PageEntry entry) {
    if (entry.state() == PageState::kCoherent || entry.state() == PageState::kPoisoned) return true;
    for (PageIndex at = where.first; at < where.end(); ++at) {
      // The buffer may be anywhere, and is ours to write: the kernel has just done so.
      std::memcpy(static_cast<std::byte*>(words) + (at - range.first).raw() * sizeof kSwapped, &kSwapped, sizeof kSwapped);
    }
    return true;
  });
}

long raw_read(int fd, void* buffer, std::size_t bytes, off_t at) {
  return at < 0 ? sys::call(SYS_read, fd, sys::arg(buffer), static_cast<long>(bytes))
                : sys::call(SYS_pread64, fd, sys::arg(buffer), static_cast<long>(bytes), at);
}

}  // namespace

bool is_own_pagemap(const char* path) noexcept {
  if (path == nullptr || std::strncmp(path, "/proc/", 6) != 0) return false;
  const char* rest = path + 6;
  if (std::strcmp(rest, "self/pagemap") == 0 || std::strcmp(rest, "thread-self/pagemap") == 0) return true;
  int pid = 0;
  while (*rest >= '0' && *rest <= '9') pid = pid * 10 + (*rest++ - '0');
  return pid == sys::getpid() && std::strcmp(rest, "/pagemap") == 0;
}

void note_pagemap(int fd) noexcept {
  for (auto& known : g_pagemaps) {
    int expected = known.load(std::memory_order_relaxed);
    if (expected == fd + 1) return;
    if (expected != 0 && ends_with(expected - 1, "/pagemap")) continue;
    if (known.compare_exchange_strong(expected, fd + 1)) return;
  }
}

long read_file(int fd, void* buffer, std::size_t bytes, off_t at) noexcept {
  Session* session = Session::existing();
  if (session == nullptr) return raw_read(fd, buffer, bytes, at);
  if (is_known_pagemap(fd)) {
    const long from = at >= 0 ? at : sys::call(SYS_lseek, fd, 0, SEEK_CUR);
    // Copied through memory of our own: the program's buffer may be away, and the lock is held while words are set.
    alignas(8) std::byte words[4096];
    const long got = raw_read(fd, words, bytes < sizeof words ? bytes : sizeof words, at);
    if (got <= 0 || from < 0) return got;
    mark_away_pages(*session, static_cast<std::uint64_t>(from), words, static_cast<std::size_t>(got));
    std::memcpy(buffer, words, static_cast<std::size_t>(got));
    if (static_cast<std::size_t>(got) == bytes || static_cast<std::size_t>(got) < sizeof words) return got;
    const long more = read_file(fd, static_cast<std::byte*>(buffer) + got, bytes - static_cast<std::size_t>(got),
                                at < 0 ? at : at + got);
    return more > 0 ? got + more : got;
  }
  long got = raw_read(fd, buffer, bytes, at);
  if (at >= 0 && (got == -EIO || (got >= 0 && static_cast<std::size_t>(got) < bytes)) && ends_with(fd, "/mem")) {
    // Reads of one's own memory through the file do not wait for pages that are away.
    const PageRange range = PageRange::touching(VirtualAddress(static_cast<std::uint64_t>(at)),
                                                VirtualAddress(static_cast<std::uint64_t>(at) + bytes));
    if (session->space().mmu().populate(range, false)) got = raw_read(fd, buffer, bytes, at);
  }
  return got;
}

std::FILE* open_pagemap_stream(const char* path, const char* mode) noexcept {
  const long fd = sys::call(SYS_openat, AT_FDCWD, sys::arg(path), O_RDONLY | O_CLOEXEC);
  if (fd < 0) {
    errno = static_cast<int>(-fd);
    return nullptr;
  }
  note_pagemap(static_cast<int>(fd));
  cookie_io_functions_t calls{};
  calls.read = [](void* cookie, char* buffer, std::size_t bytes) -> ssize_t {
    const long got = read_file(static_cast<int>(reinterpret_cast<std::intptr_t>(cookie)), buffer, bytes, -1);
    return got < 0 ? -1 : got;
  };
  calls.seek = [](void* cookie, off64_t* offset, int whence) -> int {
    const long at = sys::call(SYS_lseek, static_cast<int>(reinterpret_cast<std::intptr_t>(cookie)), *offset, whence);
    if (at < 0) return -1;
    *offset = at;
    return 0;
  };
  calls.close = [](void* cookie) -> int {
    sys::close(static_cast<int>(reinterpret_cast<std::intptr_t>(cookie)));
    return 0;
  };
  std::FILE* const stream = fopencookie(reinterpret_cast<void*>(static_cast<std::intptr_t>(fd)), mode, calls);
  if (stream == nullptr) sys::close(static_cast<int>(fd));
  return stream;
}

}  // namespace whimbrel::mirror
