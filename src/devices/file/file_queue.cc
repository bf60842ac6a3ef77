#include "devices/file/file_queue.h"

#include <cerrno>

#include "base/check.h"
#include "base/mutex.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kLook = 50'000;  // nanoseconds

// As ioprio_set(2) has them: somebody waits for a load, nobody for a store. Schedulers without priorities ignore them.
constexpr std::uint16_t kBestEffort = 2 << 13;
constexpr std::uint16_t kLoadPriority = kBestEffort | 0, kStorePriority = kBestEffort | 7;

// RWF_DONTCACHE, Linux 6.14: a buffered transfer that leaves nothing in the page cache. Older kernels and some file
// systems refuse it, and the transfer is made again without.
constexpr int kDontCache = 0x80;

}  // namespace

void FileQueue::forget_after_fork() noexcept {
  ring_.forget_after_fork();
  in_flight_ = by_hand_ = added_ = 0;
}

bool FileQueue::prepare() noexcept {
  if (!may_ring_) return false;
  if (!ring_.is_open() && !ring_.open(depth_)) may_ring_ = false;
  return may_ring_;
}

void FileQueue::add(const BlockTransfer& wanted, std::uint32_t tag) noexcept {
  CHECK(!is_full() && tag < kMost);
  const bool reading = wanted.kind == BlockTransfer::Kind::kRead;
  const FileTransfer transfer{.kind = reading ? FileTransfer::Kind::kRead : FileTransfer::Kind::kWrite,
                              .fd = files_[wanted.volume].fd(),
                              .memory = wanted.memory,
                              .bytes = wanted.bytes,
                              .offset = wanted.offset,
                              .flags = direct_->load(std::memory_order_relaxed) ? 0 : kDontCache,
                              .priority = reading ? kLoadPriority : kStorePriority};
  transfers_[tag] = transfer;
  ++in_flight_;
  if (prepare()) ring_.push(transfer, tag);
  order_[added_++] = static_cast<std::uint8_t>(tag);
  if (!may_ring_) by_hand_ = added_;
}

FileQueue::Done FileQueue::wait() noexcept {
  CHECK(in_flight_ != 0);
  for (;;) {
    if (by_hand_ != 0) {
      const std::uint32_t tag = order_[--added_];
      --by_hand_;
      return finish(tag, transfer_now(transfers_[tag]));
    }
    IoRing::Done done;
    if (!may_ring_) {  // given up: what was started ends in its own time
      if (ring_.pop(done)) return finish(static_cast<std::uint32_t>(done.tag), done.result);
      Event nothing;
      nothing.wait(nothing.value(), kLook);
    } else if (ring_.start(1)) {
      added_ = 0;
      if (ring_.pop(done)) return finish(static_cast<std::uint32_t>(done.tag), done.result);
    } else {
      give_up_ring();
    }
  }
}

// The kernel takes no more, for instance because the program has filtered that system call. What it took it finishes.
void FileQueue::give_up_ring() noexcept {
  by_hand_ = ring_.take_back();
  // Those not taken back were started: their order does not matter any more.
  for (std::uint32_t i = 0; i < by_hand_; ++i) order_[i] = order_[added_ - by_hand_ + i];
  added_ = by_hand_;
  may_ring_ = false;
}

FileQueue::Done FileQueue::finish(std::uint32_t tag, int result) noexcept {
  --in_flight_;
  FileTransfer rest = transfers_[tag];
  if (result < 0 && rest.flags != 0 && (result == -EOPNOTSUPP || result == -EINVAL)) {
    rest.flags = 0;  // a wish that this file system does not know
    result = 0;
  }
  // A ring may stop half-way (a signal, memory pressure, a disk nearly full), or refuse for want of memory.
  if (result == -EAGAIN || result == -EINTR) result = 0;
  if (result >= 0 && static_cast<std::uint32_t>(result) < rest.bytes) {
    rest.memory += result;
    rest.offset += static_cast<std::uint64_t>(result);
    rest.bytes -= static_cast<std::uint32_t>(result);
    result = transfer_now(rest);
    if (result >= 0 && static_cast<std::uint32_t>(result) < rest.bytes) return {tag, kEnd};
  }
  return {tag, result < 0 ? -result : 0};
}

}  // namespace whimbrel
