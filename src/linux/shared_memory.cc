#include "linux/shared_memory.h"

#include <linux/futex.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/un.h>
#include <time.h>

#include <cerrno>
#include <cstring>

#include "linux/sys.h"

namespace whimbrel::sys {

Result<int> connect_by_name(std::string_view name, unsigned patience_ms) noexcept {
  sockaddr_un address{};
  if (name.empty() || name.size() >= sizeof address.sun_path) return fail(Errc::kInvalid, 0, "name of a socket");
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const Result<long> made = checked(call(SYS_socket, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0), "socket");
  if (!made) return std::unexpected(made.error());
  const auto fd = static_cast<int>(*made);
  const timeval patience{patience_ms / 1000, patience_ms % 1000 * 1000};
  for (const int direction : {SO_RCVTIMEO, SO_SNDTIMEO}) {
    call(SYS_setsockopt, fd, SOL_SOCKET, direction, arg(&patience), sizeof patience);
  }
  const std::size_t length = offsetof(sockaddr_un, sun_path) + 1 + name.size();
  const long raw = call(SYS_connect, fd, arg(&address), static_cast<long>(length));
  if (raw >= 0) return fd;
  close(fd);
  if (raw == -ECONNREFUSED) return fail(Errc::kNotFound, ECONNREFUSED, "connect");
  return std::unexpected(checked(raw, "connect").error());
}

Result<std::uint32_t> peer_user(int socket) noexcept {
  ucred credentials{};
  socklen_t length = sizeof credentials;
  const Result<long> got =
      checked(call(SYS_getsockopt, socket, SOL_SOCKET, SO_PEERCRED, arg(&credentials), arg(&length)), "SO_PEERCRED");
  if (!got) return std::unexpected(got.error());
  return credentials.uid;
}

Result<void> send_message(int socket, const void* from, std::size_t bytes) noexcept {
  long raw;
  do raw = call(SYS_sendto, socket, arg(from), static_cast<long>(bytes), MSG_NOSIGNAL);
  while (raw == -EINTR);
  const Result<long> sent = checked(raw, "send");
  if (!sent) return std::unexpected(sent.error());
  return {};
}

Result<std::size_t> receive_message(int socket, void* to, std::size_t room, int* descriptor) noexcept {
  *descriptor = -1;
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  iovec part{to, room};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  long raw;
  do raw = call(SYS_recvmsg, socket, arg(&message), MSG_CMSG_CLOEXEC);
  while (raw == -EINTR);
  const Result<long> got = checked(raw, "receive");
  if (!got) return std::unexpected(got.error());
  const cmsghdr* header = CMSG_FIRSTHDR(&message);
  if (header != nullptr && header->cmsg_level == SOL_SOCKET && header->cmsg_type == SCM_RIGHTS) {
    std::memcpy(descriptor, CMSG_DATA(header), sizeof *descriptor);
  }
  return static_cast<std::size_t>(*got);
}

void ring_bell(int socket) noexcept {
  const char bell = 0;
  call(SYS_sendto, socket, arg(&bell), 1, MSG_NOSIGNAL | MSG_DONTWAIT);
}

bool is_connected(int socket) noexcept {
  pollfd look{.fd = socket, .events = POLLRDHUP, .revents = 0};
  const timespec now{};
  const long ready = call(SYS_ppoll, arg(&look), 1, arg(&now));
  return ready == 0 || (ready > 0 && (look.revents & (POLLHUP | POLLRDHUP | POLLERR | POLLNVAL)) == 0) || ready == -EINTR;
}

std::uint64_t inode_of(int fd) noexcept {
  struct stat info {};
  return call(SYS_fstat, fd, arg(&info)) == 0 ? info.st_ino : 0;
}

Result<void> keep_from_children(void* address, std::size_t bytes) noexcept {
  return madvise(address, bytes, MADV_DONTFORK);
}

void wait_shared(std::uint32_t* word, std::uint32_t expected, std::int64_t nanoseconds) noexcept {
  const timespec limit{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
  call(SYS_futex, arg(word), FUTEX_WAIT, expected, nanoseconds < 0 ? 0 : arg(&limit));
}

void wake_shared(std::uint32_t* word) noexcept { call(SYS_futex, arg(word), FUTEX_WAKE, 1); }

}  // namespace whimbrel::sys
