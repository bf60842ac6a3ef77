#include "mirror/descriptor.h"

#include <asm/socket.h>
#include <fcntl.h>
#include <linux/memfd.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/syscall.h"
#include "mirror/remote.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

struct Open {
  std::atomic<std::uint64_t> cookie{0};  // 0: free
  Mirror* mirror = nullptr;              // null: the open belongs to another process
  int server = -1;                       // our end, in this process's table
  std::atomic<bool> closing{false};
};
constexpr std::size_t kMaxOpens = 256;
Open g_opens[kMaxOpens];

Open* find(std::uint64_t cookie) {
  for (Open& open : g_opens) {
    if (cookie != 0 && open.cookie.load(std::memory_order_acquire) == cookie) return &open;
  }
  return nullptr;
}

std::uint64_t socket_cookie(int fd) {
  std::uint64_t cookie = 0;
  unsigned size = sizeof cookie;
  return sys::call(SYS_getsockopt, fd, SOL_SOCKET, SO_COOKIE, sys::arg(&cookie), sys::arg(&size)) == 0 ? cookie : 0;
}

// The caller is this process: plain memory, but a bad pointer must be an error and not a signal.
class LocalBuffer final : public CallerBuffer {
 public:
  explicit LocalBuffer(std::uint64_t at) noexcept : at_(at) {}
  bool put(std::uint64_t offset, const std::byte* from, std::size_t bytes) noexcept override {
    const iovec local{const_cast<std::byte*>(from), bytes}, remote{pointer(offset), bytes};
    return sys::call(SYS_process_vm_writev, sys::call(SYS_getpid), sys::arg(&local), 1, sys::arg(&remote), 1) ==
           static_cast<long>(bytes);
  }
  bool get(std::uint64_t offset, std::byte* to, std::size_t bytes) noexcept override {
    const iovec local{to, bytes}, remote{pointer(offset), bytes};
    return sys::call(SYS_process_vm_readv, sys::call(SYS_getpid), sys::arg(&local), 1, sys::arg(&remote), 1) ==
           static_cast<long>(bytes);
  }

 private:
  void* pointer(std::uint64_t offset) const { return reinterpret_cast<void*>(at_ + offset); }
  const std::uint64_t at_;
};

bool hung_up(int server) {
  pollfd state{server, POLLIN, 0};
  if (sys::call(SYS_poll, sys::arg(&state), 1, 0) <= 0) return false;
  return (state.revents & POLLHUP) != 0;
}

void end_open(Open& open) {
  if (open.closing.exchange(true)) return;
  Session::existing()->close(open.mirror);
  sys::call(SYS_close, open.server);
  open.mirror = nullptr;
  open.server = -1;
  open.closing.store(false);
  open.cookie.store(0, std::memory_order_release);
}

}  // namespace

std::optional<int> minor_of_path(const char* path) noexcept {
  constexpr char kPrefix[] = "/dev/hmm_dmirror";
  if (path == nullptr || std::strncmp(path, kPrefix, sizeof kPrefix - 1) != 0) return std::nullopt;
  const char* digit = path + sizeof kPrefix - 1;
  if (digit[0] < '0' || digit[0] >= '0' + kNodes || digit[1] != 0) return std::nullopt;
  return digit[0] - '0';
}

int open_mirror(int minor, int flags) noexcept {
  const Result<Session*> session = Session::get();
  if (!session) {
    constexpr char kMessage[] =
        "whimbrel: the mirror devices need userfaultfd with page moves, which this kernel or user does not allow\n"
        "  see: whimbrel doctor\n";
    sys::call(SYS_write, 2, sys::arg(kMessage), sizeof kMessage - 1);
    return -ENOENT;
  }
  const Result<Mirror*> mirror = (*session)->open(minor);
  if (!mirror) return -ENOMEM;
  int pair[2];
  const int type = SOCK_SEQPACKET | SOCK_CLOEXEC;
  if (const long made = sys::call(SYS_socketpair, AF_UNIX, type, 0, sys::arg(pair)); made < 0) {
    (*session)->close(*mirror);
    return static_cast<int>(made);
  }
  if ((flags & O_CLOEXEC) == 0) sys::call(SYS_fcntl, pair[0], F_SETFD, 0);
  for (Open& open : g_opens) {
    bool expected = false;
    if (open.cookie.load() != 0 || !open.closing.compare_exchange_strong(expected, true)) continue;
    if (open.cookie.load() != 0) {
      open.closing.store(false);
      continue;
    }
    open.mirror = *mirror;
    open.server = pair[1];
    open.cookie.store(socket_cookie(pair[0]), std::memory_order_release);
    open.closing.store(false);
    serve_remote_commands(pair[1], *mirror, open.cookie.load());
    return pair[0];
  }
  sys::call(SYS_close, pair[0]);
  sys::call(SYS_close, pair[1]);
  (*session)->close(*mirror);
  return -ENOMEM;
}

std::uint64_t cookie_of(int fd) noexcept {
  if (Session::existing() == nullptr) return 0;
  const std::uint64_t cookie = socket_cookie(fd);
  return find(cookie) != nullptr ? cookie : 0;
}

bool is_mirror(int fd) noexcept { return cookie_of(fd) != 0; }

int mirror_ioctl(int fd, unsigned long request, void* argument) noexcept {
  Command command{};
  LocalBuffer block(reinterpret_cast<std::uint64_t>(argument));
  if (!block.get(0, reinterpret_cast<std::byte*>(&command), sizeof command)) return -EFAULT;
  const unsigned long number = request - kRequestBase;
  const unsigned known = number <= 0xff ? static_cast<unsigned>(number) : 0xff;
  Open* open = find(cookie_of(fd));
  int result = 0;
  if (open != nullptr && open->mirror != nullptr) {
    LocalBuffer buffer(command.ptr);
    result = open->mirror->run(known, command, buffer);
  } else {
    result = run_remotely(fd, known, command);
  }
  if (result != 0) return result;
  return block.put(0, reinterpret_cast<const std::byte*>(&command), sizeof command) ? 0 : -EFAULT;
}

void closed(std::uint64_t cookie) noexcept {
  Open* open = find(cookie);
  if (open != nullptr && open->mirror != nullptr && hung_up(open->server)) end_open(*open);
}

long map_node(void* address, std::size_t bytes, int protection, int flags) noexcept {
  const Result<Session*> session = Session::get();
  if (!session) return -ENOMEM;
  const long fd = sys::call(SYS_memfd_create, sys::arg("hmm_dmirror"), MFD_CLOEXEC);
  if (fd < 0) return -ENOMEM;
  long at = sys::call(SYS_ftruncate, fd, static_cast<long>(bytes));
  if (at == 0) {
    at = sys::call(SYS_mmap, sys::arg(address), static_cast<long>(bytes), protection,
                   MAP_PRIVATE | MAP_POPULATE | (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)), fd, 0);
  }
  sys::call(SYS_close, fd);
  if (at < 0 && at > -4096) return at;
  sys::call(SYS_madvise, at, static_cast<long>(bytes), MADV_POPULATE_READ);
  (*session)->add_node_mapping(PageRange::touching(VirtualAddress(static_cast<std::uint64_t>(at)),
                                                   VirtualAddress(static_cast<std::uint64_t>(at) + bytes)));
  return at;
}

void descriptors_after_fork_in_child() noexcept {
  for (Open& open : g_opens) {
    if (open.cookie.load() == 0) continue;
    // The parent's: our copy of its end must go, or it would never hang up.
    if (open.server >= 0) sys::call(SYS_close, open.server);
    open.server = -1;
    open.mirror = nullptr;
    open.closing.store(false);
  }
}

}  // namespace whimbrel::mirror
