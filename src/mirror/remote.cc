#include "mirror/remote.h"

#include <sys/socket.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "base/syscall.h"
#include "mirror/mirror.h"

namespace whimbrel::mirror {
namespace {

struct Request {
  std::uint64_t number;
  std::uint64_t pid;
  Command command;
};
struct Reply {
  std::int64_t result;
  Command command;
};

// A buffer in another process.
class RemoteBuffer final : public CallerBuffer {
 public:
  RemoteBuffer(pid_t pid, std::uint64_t at) noexcept : pid_(pid), at_(at) {}
  bool put(std::uint64_t offset, const std::byte* from, std::size_t bytes) noexcept override {
    const iovec local{const_cast<std::byte*>(from), bytes}, remote{reinterpret_cast<void*>(at_ + offset), bytes};
    return process_vm_writev(pid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes);
  }
  bool get(std::uint64_t offset, std::byte* to, std::size_t bytes) noexcept override {
    const iovec local{to, bytes}, remote{reinterpret_cast<void*>(at_ + offset), bytes};
    return process_vm_readv(pid_, &local, 1, &remote, 1, 0) == static_cast<ssize_t>(bytes);
  }

 private:
  const pid_t pid_;
  const std::uint64_t at_;
};

// What the interface says when the opener's address space is gone.
int dead_space(unsigned number, const Command& command) {
  if (command.addr % kPageSize != 0 || command.addr >= command.addr + command.npages * kPageSize) return -EINVAL;
  switch (static_cast<Number>(number)) {
    case Number::kRead:
    case Number::kWrite: return -EFAULT;
    case Number::kCheckExclusive:
    case Number::kRelease:
    case Number::kFlags: return 0;
    default: return -EINVAL;
  }
}

// One message with a descriptor to answer on.
long receive(int server, Request* request, int* answer) {
  iovec data{request, sizeof *request};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))];
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  *answer = -1;
  const long n = sys::call(SYS_recvmsg, server, sys::arg(&message), MSG_CMSG_CLOEXEC | MSG_DONTWAIT);
  if (n <= 0) return n;
  for (cmsghdr* c = CMSG_FIRSTHDR(&message); c != nullptr; c = CMSG_NXTHDR(&message, c)) {
    if (c->cmsg_type == SCM_RIGHTS) std::memcpy(answer, CMSG_DATA(c), sizeof *answer);
  }
  return n;
}

}  // namespace

bool serve_remote_command(int server, Mirror& mirror) noexcept {
  Request request{};
  int answer = -1;
  const long n = receive(server, &request, &answer);
  if (n == sizeof request && answer >= 0) {
    RemoteBuffer buffer(static_cast<pid_t>(request.pid), request.command.ptr);
    Reply reply{};
    reply.result = mirror.run(static_cast<unsigned>(request.number), request.command, buffer);
    reply.command = request.command;
    sys::call(SYS_sendto, answer, sys::arg(&reply), sizeof reply, MSG_NOSIGNAL, 0, 0);
  }
  if (answer >= 0) sys::call(SYS_close, answer);
  return n > 0 || n == -EINTR || n == -EAGAIN;
}

int run_remotely(int fd, unsigned number, Command& command) noexcept {
  int pair[2];
  if (const long made = sys::call(SYS_socketpair, AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0, sys::arg(pair)); made < 0) {
    return static_cast<int>(made);
  }
  Request request{number, static_cast<std::uint64_t>(sys::call(SYS_getpid)), command};
  iovec data{&request, sizeof request};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))]{};
  msghdr message{};
  message.msg_iov = &data;
  message.msg_iovlen = 1;
  message.msg_control = control;
  message.msg_controllen = sizeof control;
  cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  std::memcpy(CMSG_DATA(header), &pair[1], sizeof(int));
  Reply reply{};
  long got = sys::call(SYS_sendmsg, fd, sys::arg(&message), MSG_NOSIGNAL);
  sys::call(SYS_close, pair[1]);
  if (got >= 0) got = sys::call(SYS_recvfrom, pair[0], sys::arg(&reply), sizeof reply, 0, 0, 0);
  sys::call(SYS_close, pair[0]);
  if (got != sizeof reply) return dead_space(number, command);
  command = reply.command;
  return static_cast<int>(reply.result);
}

}  // namespace whimbrel::mirror
