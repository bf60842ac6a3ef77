#include "linux/io_ring.h"

#include <linux/io_uring.h>
#include <sys/mman.h>
#include <sys/syscall.h>

#include <atomic>
#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

Result<std::byte*> map_ring(int fd, std::size_t bytes, std::uint64_t what) noexcept {
  const long raw = sys::call(SYS_mmap, 0, static_cast<long>(bytes), PROT_READ | PROT_WRITE, MAP_SHARED | MAP_POPULATE,
                             fd, static_cast<long>(what));
  if (raw < 0 && raw > -4096) {
    return fail(sys::errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "mmap of an io_uring");
  }
  auto* memory = reinterpret_cast<std::byte*>(raw);
  // A child that went on using its parent's rings would take its completions away.
  (void)sys::madvise(memory, bytes, MADV_DONTFORK);
  return memory;
}

template <class T>
T* at(std::byte* base, std::uint32_t offset) noexcept {
  return reinterpret_cast<T*>(base + offset);
}

std::uint32_t load(std::uint32_t* word) noexcept {
  return std::atomic_ref<std::uint32_t>(*word).load(std::memory_order_acquire);
}
void store(std::uint32_t* word, std::uint32_t value) noexcept {
  std::atomic_ref<std::uint32_t>(*word).store(value, std::memory_order_release);
}

}  // namespace

Result<void> IoRing::open(unsigned entries) noexcept {
  CHECK(!is_open());
  io_uring_params params{};
  params.flags = IORING_SETUP_COOP_TASKRUN;  // completions wait for our next call instead of interrupting the thread
  const long raw = sys::call(SYS_io_uring_setup, entries, sys::arg(&params));
  if (raw < 0) return fail(sys::errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "io_uring_setup");
  State state;
  state.fd = static_cast<int>(raw);
  const std::size_t submit_bytes = params.sq_off.array + params.sq_entries * sizeof(std::uint32_t);
  const std::size_t done_bytes = params.cq_off.cqes + params.cq_entries * sizeof(io_uring_cqe);
  state.ring_bytes = submit_bytes > done_bytes ? submit_bytes : done_bytes;  // one mapping for both since Linux 5.4
  state.entry_bytes = params.sq_entries * sizeof(io_uring_sqe);
  const Result<std::byte*> rings = map_ring(state.fd, state.ring_bytes, IORING_OFF_SQ_RING);
  if (!rings) {
    sys::close(state.fd);
    return std::unexpected(rings.error());
  }
  state.rings = *rings;
  const Result<std::byte*> table = map_ring(state.fd, state.entry_bytes, IORING_OFF_SQES);
  if (!table) {
    sys::munmap(state.rings, state.ring_bytes);
    sys::close(state.fd);
    return std::unexpected(table.error());
  }
  state.entries = reinterpret_cast<io_uring_sqe*>(*table);
  state.sq_head = at<std::uint32_t>(state.rings, params.sq_off.head);
  state.sq_tail = at<std::uint32_t>(state.rings, params.sq_off.tail);
  state.sq_mask = *at<std::uint32_t>(state.rings, params.sq_off.ring_mask);
  state.cq_head = at<std::uint32_t>(state.rings, params.cq_off.head);
  state.cq_tail = at<std::uint32_t>(state.rings, params.cq_off.tail);
  state.cq_mask = *at<std::uint32_t>(state.rings, params.cq_off.ring_mask);
  state.done = at<io_uring_cqe>(state.rings, params.cq_off.cqes);
  auto* const order = at<std::uint32_t>(state.rings, params.sq_off.array);
  for (std::uint32_t i = 0; i < params.sq_entries; ++i) order[i] = i;
  state_ = state;
  return {};
}

void IoRing::close() noexcept {
  if (!is_open()) return;
  sys::munmap(state_.entries, state_.entry_bytes);
  sys::munmap(state_.rings, state_.ring_bytes);
  sys::close(state_.fd);
  state_ = State();
}

std::uint32_t IoRing::not_started() const noexcept { return *state_.sq_tail - load(state_.sq_head); }

void IoRing::push(const FileTransfer& transfer, std::uint64_t tag) noexcept {
  const std::uint32_t tail = *state_.sq_tail;
  CHECK(not_started() <= state_.sq_mask, "more transfers than the ring has room for");
  io_uring_sqe& entry = state_.entries[tail & state_.sq_mask];
  std::memset(&entry, 0, sizeof entry);
  entry.opcode = transfer.kind == FileTransfer::Kind::kRead ? IORING_OP_READ : IORING_OP_WRITE;
  entry.fd = transfer.fd;
  entry.off = transfer.offset;
  entry.addr = reinterpret_cast<std::uintptr_t>(transfer.memory);
  entry.len = transfer.bytes;
  entry.rw_flags = transfer.flags;
  entry.ioprio = transfer.priority;
  entry.user_data = tag;
  store(state_.sq_tail, tail + 1);
}

Result<void> IoRing::start(unsigned wait) noexcept {
  for (;;) {
    const std::uint32_t ready = load(state_.cq_tail) - *state_.cq_head;
    const std::uint32_t starting = not_started();
    if (starting == 0 && ready >= wait) return {};
    const long raw = sys::call(SYS_io_uring_enter, state_.fd, starting, ready >= wait ? 0 : wait,
                               ready >= wait ? 0 : IORING_ENTER_GETEVENTS, 0, 0);
    if (raw >= 0 || raw == -EINTR || raw == -EAGAIN || raw == -EBUSY) continue;
    return fail(sys::errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "io_uring_enter");
  }
}

bool IoRing::pop(Done& done) noexcept {
  const std::uint32_t head = *state_.cq_head;
  if (head == load(state_.cq_tail)) return false;
  const io_uring_cqe& entry = state_.done[head & state_.cq_mask];
  done = {entry.user_data, entry.res};
  store(state_.cq_head, head + 1);
  return true;
}

unsigned IoRing::take_back() noexcept {
  const std::uint32_t count = not_started();
  store(state_.sq_tail, *state_.sq_tail - count);
  return count;
}

}  // namespace whimbrel
