#include "mirror/descriptor.h"

#include <asm/socket.h>
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/un.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "base/syscall.h"
#include "linux/sys.h"
#include "mirror/remote.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

struct Open {
  std::atomic<std::uint64_t> cookie{0};  // 0: free
  Mirror* mirror = nullptr;              // null: the open belongs to another process
  int server = -1;                       // our end, in this process's table
  bool taken = false;                    // being opened or closed, or open
  Mutex use;                             // held while a command of another process runs, and while the open ends
};
constexpr std::size_t kMaxOpens = 256;
Open g_opens[kMaxOpens];
Mutex g_table;                 // taken, server; leaf
std::atomic<int> g_bell{-1};   // tells the service thread that the table has changed

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

// The program's end carries a name, which says what it is wherever it is passed on to.
constexpr char kName[] = "whimbrel-hmm_dmirror-";

void name_socket(int fd, std::uint64_t cookie) {
  sockaddr_un name{};
  name.sun_family = AF_UNIX;
  std::size_t n = 1;
  for (const char* c = kName; *c != 0; ++c) name.sun_path[n++] = *c;
  for (std::uint64_t rest = cookie; rest != 0; rest >>= 4) name.sun_path[n++] = "0123456789abcdef"[rest & 15];
  sys::call(SYS_bind, fd, sys::arg(&name), static_cast<long>(offsetof(sockaddr_un, sun_path) + n));
}

// The caller is this process: plain memory, but a bad pointer must be an error and not a signal.
class LocalBuffer final : public CallerBuffer {
 public:
  explicit LocalBuffer(std::uint64_t at) noexcept : at_(at) {}
  // From the engine's side as the remote one: the kernel reaches it without the processor's translations, which are cold
  // where pages have just been moved to.
  bool put(std::uint64_t offset, const std::byte* from, std::size_t bytes) noexcept override {
    const iovec local{pointer(offset), bytes}, remote{const_cast<std::byte*>(from), bytes};
    return sys::call(SYS_process_vm_readv, sys::call(SYS_getpid), sys::arg(&local), 1, sys::arg(&remote), 1) ==
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

void end_hung_up_opens();

bool hung_up(int server) {
  pollfd state{server, POLLIN, 0};
  if (sys::call(SYS_poll, sys::arg(&state), 1, 0) <= 0) return false;
  return (state.revents & POLLHUP) != 0;
}

void ring() {
  const std::uint64_t one = 1;
  sys::call(SYS_write, g_bell.load(), sys::arg(&one), sizeof one);
}

// Both the closing thread and the service thread may find that an open has come to its end: one of them ends it, and the
// other comes back when that is done.
void end_open(Open& open, std::uint64_t cookie) {
  MutexLock hold(open.use);
  if (open.cookie.load() != cookie || open.mirror == nullptr) return;
  Session::existing()->close(open.mirror);
  MutexLock table(g_table);
  sys::call(SYS_close, open.server);
  open.mirror = nullptr;
  open.server = -1;
  open.taken = false;
  open.cookie.store(0, std::memory_order_release);
}

void serve(Open& open, std::uint64_t cookie) {
  bool more = true;
  {
    MutexLock hold(open.use);
    if (open.cookie.load() != cookie || open.mirror == nullptr) return;
    more = serve_remote_command(open.server, *open.mirror);
  }
  if (!more) end_open(open, cookie);
}

void service_thread(void*) {
  for (;;) {
    pollfd waits[kMaxOpens + 1];
    Open* opens[kMaxOpens + 1];
    std::uint64_t cookies[kMaxOpens + 1];
    unsigned count = 1;
    waits[0] = {g_bell.load(), POLLIN, 0};
    {
      MutexLock hold(g_table);
      for (Open& open : g_opens) {
        const std::uint64_t cookie = open.cookie.load();
        if (!open.taken || cookie == 0 || open.server < 0) continue;
        waits[count] = {open.server, POLLIN, 0};
        cookies[count] = cookie;
        opens[count++] = &open;
      }
    }
    if (sys::call(SYS_poll, sys::arg(waits), count, -1) <= 0) continue;
    if (waits[0].revents != 0) {
      std::uint64_t rings = 0;
      sys::call(SYS_read, waits[0].fd, sys::arg(&rings), sizeof rings);
    }
    for (unsigned i = 1; i < count; ++i) {
      if (waits[i].revents == 0) continue;
      GatePass pass(Session::existing()->gate());
      serve(*opens[i], cookies[i]);
    }
  }
}

// High numbers, out of the way of programs that count theirs.
int move_up(int fd) {
  const Result<sys::Limit> limit = sys::limit(RLIMIT_NOFILE);
  const std::uint64_t soft = limit ? limit->soft : 1024;
  const Result<int> high = sys::duplicate_above(fd, static_cast<int>((soft < 3600 ? soft : 3600) / 4 * 3));
  if (!high) return fd;
  sys::close(fd);
  return *high;
}

bool start_service(Session& session) {
  MutexLock hold(g_table);
  if (g_bell.load() >= 0) return true;
  const Result<int> bell = sys::eventfd();
  if (!bell) return false;
  g_bell.store(move_up(*bell));
  return session.start_thread(&service_thread, nullptr).has_value();
}

// A free place in the table, or null.
Open* reserve() {
  MutexLock hold(g_table);
  for (Open& open : g_opens) {
    if (open.taken || open.cookie.load() != 0) continue;
    open.taken = true;
    return &open;
  }
  return nullptr;
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
  GatePass pass((*session)->gate());
  end_hung_up_opens();
  Open* const open = start_service(**session) ? reserve() : nullptr;
  if (open == nullptr) return -ENOMEM;
  const auto give_up = [&](long error) {
    MutexLock hold(g_table);
    open->taken = false;
    return static_cast<int>(error);
  };
  const Result<Mirror*> mirror = (*session)->open(minor);
  if (!mirror) return give_up(-ENOMEM);
  int pair[2];
  const int type = SOCK_SEQPACKET | SOCK_CLOEXEC;
  if (const long made = sys::call(SYS_socketpair, AF_UNIX, type, 0, sys::arg(pair)); made < 0) {
    (*session)->close(*mirror);
    return give_up(made);
  }
  const std::uint64_t cookie = socket_cookie(pair[0]);
  name_socket(pair[0], cookie);
  if ((flags & O_CLOEXEC) == 0) sys::call(SYS_fcntl, pair[0], F_SETFD, 0);
  {
    MutexLock hold(g_table);
    open->mirror = *mirror;
    open->server = move_up(pair[1]);
    open->cookie.store(cookie, std::memory_order_release);
  }
  ring();
  return pair[0];
}

namespace {

// Another process may have closed the last descriptor of an open of ours: what follows from that is visible at once.
void end_hung_up_opens() {
  for (Open& open : g_opens) {
    const std::uint64_t cookie = open.cookie.load(std::memory_order_acquire);
    if (cookie != 0 && open.mirror != nullptr) closed(cookie);
  }
}

}  // namespace

std::uint64_t cookie_of(int fd) noexcept {
  if (Session::existing() == nullptr) return 0;
  const std::uint64_t cookie = socket_cookie(fd);
  return find(cookie) != nullptr ? cookie : 0;
}

bool is_mirror(int fd) noexcept { return cookie_of(fd) != 0; }

bool is_foreign_mirror(int fd) noexcept {
  sockaddr_un name{};
  unsigned size = sizeof name;
  if (sys::call(SYS_getsockname, fd, sys::arg(&name), sys::arg(&size)) != 0 || name.sun_family != AF_UNIX) return false;
  return name.sun_path[0] == 0 && std::memcmp(name.sun_path + 1, kName, sizeof kName - 1) == 0;
}

int mirror_ioctl(int fd, unsigned long request, void* argument) noexcept {
  Command command{};
  LocalBuffer block(reinterpret_cast<std::uint64_t>(argument));
  if (!block.get(0, reinterpret_cast<std::byte*>(&command), sizeof command)) return -EFAULT;
  const unsigned long number = request - kRequestBase;
  const unsigned known = number <= 0xff ? static_cast<unsigned>(number) : 0xff;
  if (Session::existing() != nullptr) end_hung_up_opens();
  Open* open = find(cookie_of(fd));
  int result = 0;
  if (open != nullptr && open->mirror != nullptr) {
    GatePass pass(Session::existing()->gate());
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
  if (open == nullptr || open->mirror == nullptr) return;
  GatePass pass(Session::existing()->gate());
  // Another thread that ends the open holds its lock: behind it nothing is left to do.
  const bool last = [&] {
    MutexLock hold(open->use);
    return open->cookie.load() == cookie && hung_up(open->server);
  }();
  if (last) end_open(*open, cookie);
}

bool is_engine_descriptor(int fd) noexcept {
  Session* session = Session::existing();
  if (session == nullptr || fd < 0) return false;
  if (fd == g_bell.load() || session->owns_descriptor(fd)) return true;
  for (const Open& open : g_opens) {
    if (open.cookie.load() != 0 && open.server == fd) return true;
  }
  return false;
}

int close_descriptors(unsigned first, unsigned last, unsigned flags) noexcept {
  constexpr unsigned kOnlyMark = 4;  // CLOSE_RANGE_CLOEXEC: nothing is closed, and the engine's have the mark anyway
  if (Session::existing() == nullptr || first > last || (flags & kOnlyMark) != 0) {
    return static_cast<int>(sys::call(SYS_close_range, first, last, flags));
  }
  // Our own are never above the soft limit; beyond it there can only be descriptors from before it was lowered.
  constexpr unsigned kHighest = 1u << 14;
  std::uint64_t ended[kMaxOpens];
  std::size_t count = 0;
  unsigned from = first;
  for (unsigned fd = first; fd <= last && fd < kHighest; ++fd) {
    const int number = static_cast<int>(fd);
    if (is_engine_descriptor(number)) {
      if (from < fd) sys::call(SYS_close_range, from, fd - 1, flags);
      from = fd + 1;
      continue;
    }
    if (const std::uint64_t cookie = cookie_of(number); cookie != 0 && count < kMaxOpens) ended[count++] = cookie;
  }
  const long result = from <= last ? sys::call(SYS_close_range, from, last, flags) : 0;
  for (std::size_t i = 0; i < count; ++i) closed(ended[i]);
  return static_cast<int>(result);
}

long map_node(void* address, std::size_t bytes, int protection, int flags) noexcept {
  const Result<Session*> session = Session::get();
  if (!session) return -ENOMEM;
  GatePass pass((*session)->gate());
  // Anonymous memory: its pages start out as zeros that cannot be written, and a first write makes them ordinary.
  const long at = sys::call(SYS_mmap, sys::arg(address), static_cast<long>(bytes), protection,
                            MAP_PRIVATE | MAP_ANONYMOUS | (flags & (MAP_FIXED | MAP_FIXED_NOREPLACE)), -1, 0);
  if (at < 0 && at > -4096) return at;
  const auto from = static_cast<std::uint64_t>(at);
  const PageRange range = PageRange::touching(VirtualAddress(from), VirtualAddress(from + bytes));
  (*session)->add_node_mapping(range);
  return at;
}

void descriptors_after_fork_in_child() noexcept {
  g_table.reset_after_fork();
  if (g_bell.load() >= 0) sys::call(SYS_close, g_bell.load());
  g_bell.store(-1);
  for (Open& open : g_opens) {
    open.use.reset_after_fork();
    if (open.cookie.load() == 0) {
      open.taken = false;
      continue;
    }
    // The parent's: our copy of its end must go, or it would never hang up.
    if (open.server >= 0) sys::call(SYS_close, open.server);
    open.server = -1;
    open.mirror = nullptr;
  }
}

}  // namespace whimbrel::mirror
