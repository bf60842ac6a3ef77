#include "device_process/ring_client.h"

#include <fcntl.h>
#include <linux/futex.h>
#include <sys/mman.h>
#include <sys/socket.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <cstring>

namespace whimbrel::device_process {
namespace {

constexpr std::uint32_t kMostSlotBytes = 1 << 20;

std::uint32_t load(std::uint32_t& word) { return std::atomic_ref<std::uint32_t>(word).load(std::memory_order_acquire); }

}  // namespace

RingClient::~RingClient() {
  if (memory_ != nullptr) munmap(memory_, bytes_);
  close(socket_);
}

int RingClient::make_ring(const RingHello& shape, std::string* problem) {
  if (shape.lanes == 0 || shape.lanes > WHIMBREL_RING_MOST_LANES || shape.depth == 0 ||
      shape.depth > WHIMBREL_RING_MOST_DEPTH || shape.slot_bytes == 0 || shape.slot_bytes > kMostSlotBytes ||
      shape.slot_bytes % WHIMBREL_RING_PAGE != 0) {
    *problem = "a ring of that shape cannot be made";
    return -1;
  }
  const std::size_t front = (1 + std::size_t{shape.lanes}) * WHIMBREL_RING_PAGE;
  const std::size_t bytes = front + std::size_t{shape.lanes} * shape.depth * shape.slot_bytes;
  const int fd = memfd_create("whimbrel-ring", MFD_CLOEXEC | MFD_ALLOW_SEALING);
  if (fd < 0 || ftruncate(fd, static_cast<off_t>(bytes)) != 0 ||
      fcntl(fd, F_ADD_SEALS, F_SEAL_SHRINK | F_SEAL_GROW | F_SEAL_SEAL) != 0) {
    *problem = std::string("no memory for a ring: ") + std::strerror(errno);
    if (fd >= 0) close(fd);
    return -1;
  }
  void* const mapped = mmap(nullptr, bytes, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0);
  if (mapped == MAP_FAILED) {
    *problem = std::string("no memory for a ring: ") + std::strerror(errno);
    close(fd);
    return -1;
  }
  memory_ = static_cast<std::byte*>(mapped);
  bytes_ = bytes;
  data_ = memory_ + front;
  lanes_ = shape.lanes;
  depth_ = shape.depth;
  slot_bytes_ = shape.slot_bytes;
  taken_.assign(lanes_, 0);
  done_.assign(lanes_, 0);
  auto* const header = reinterpret_cast<RingHeader*>(memory_);
  header->magic = WHIMBREL_RING_MAGIC;
  header->lanes = lanes_;
  header->depth = depth_;
  header->slot_bytes = slot_bytes_;
  return fd;
}

void RingClient::answer(const RingWelcome& welcome, int memory) const {
  iovec part{const_cast<RingWelcome*>(&welcome), sizeof welcome};
  alignas(cmsghdr) char control[CMSG_SPACE(sizeof(int))] = {};
  msghdr message{};
  message.msg_iov = &part;
  message.msg_iovlen = 1;
  if (memory >= 0) {
    message.msg_control = control;
    message.msg_controllen = sizeof control;
    cmsghdr* const header = CMSG_FIRSTHDR(&message);
    header->cmsg_level = SOL_SOCKET;
    header->cmsg_type = SCM_RIGHTS;
    header->cmsg_len = CMSG_LEN(sizeof(int));
    std::memcpy(CMSG_DATA(header), &memory, sizeof memory);
  }
  (void)!sendmsg(socket_, &message, MSG_NOSIGNAL | MSG_DONTWAIT);  // who has gone needs no answer
}

std::optional<RingRequest> RingClient::take(std::uint32_t number) {
  RingLane& from = lane(number);
  const std::uint32_t posted = load(from.posted);
  if (posted == taken_[number]) return std::nullopt;
  // No more than `depth` can be without an answer.
  if (posted - done_[number] > depth_) {
    breaks_rules_ = true;
    return std::nullopt;
  }
  RingRequest out;
  std::memcpy(&out, &from.requests[taken_[number] % depth_], sizeof out);
  ++taken_[number];
  if (out.slot >= depth_) {
    breaks_rules_ = true;
    return std::nullopt;
  }
  return out;
}

bool RingClient::has_request() const {
  if (breaks_rules_ || leaving) return false;
  for (std::uint32_t i = 0; i < lanes_; ++i) {
    if (load(lane(i).posted) != taken_[i]) return true;
  }
  return false;
}

void RingClient::complete(std::uint32_t number, std::uint32_t slot, int error, std::uint64_t value) {
  if (leaving) return;
  RingLane& to = lane(number);
  to.completions[done_[number] % depth_] = {.slot = slot, .error = error, .value = value};
  std::atomic_ref<std::uint32_t>(to.done).store(++done_[number], std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_seq_cst);
  const std::atomic_ref<std::uint32_t> sleeps(to.sleeps);
  if (sleeps.load(std::memory_order_relaxed) != 0 && sleeps.exchange(0, std::memory_order_relaxed) != 0) {
    syscall(SYS_futex, &to.done, FUTEX_WAKE, 1, nullptr, nullptr, 0);
  }
}

void RingClient::set_asleep(bool asleep) {
  if (memory_ == nullptr) return;
  std::atomic_ref<std::uint32_t>(reinterpret_cast<RingHeader*>(memory_)->asleep)
      .store(asleep ? 1 : 0, std::memory_order_seq_cst);
}

bool RingClient::hear_bells() {
  char bells[64];
  for (;;) {
    const ssize_t got = recv(socket_, bells, sizeof bells, MSG_DONTWAIT);
    if (got > 0) continue;
    if (got < 0 && errno == EINTR) continue;
    return got < 0 && (errno == EAGAIN || errno == EWOULDBLOCK);
  }
}

}  // namespace whimbrel::device_process
