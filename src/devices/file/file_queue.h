// FileQueue: transfers under way for one worker: by io_uring, or one after the other by pread and pwrite where that is
// denied. What a ring leaves half done is finished here, so a transfer has either moved completely or failed.
//
// For one thread at a time. A forked child's copy must forget_after_fork().
#pragma once

#include <array>
#include <cstdint>

#include "linux/io_ring.h"

namespace whimbrel {

class FileQueue {
 public:
  static constexpr std::uint32_t kMost = 64;

  struct Done {
    std::uint32_t tag = 0;
    int error = 0;  // an errno; 0: everything has moved. kEnd: the file ends before
  };
  static constexpr int kEnd = -1;

  // `ring` false: never a ring. Otherwise one is made with the first transfer, in the caller's descriptor table.
  void set_up(std::uint32_t depth, bool ring) noexcept {
    depth_ = depth < kMost ? depth : kMost;
    may_ring_ = ring;
  }
  void forget_after_fork() noexcept;
  // Makes the ring now. False: there will be none.
  bool prepare() noexcept;

  [[nodiscard]] bool is_full() const noexcept { return in_flight_ == depth_; }
  [[nodiscard]] std::uint32_t in_flight() const noexcept { return in_flight_; }
  // `tag` below kMost, of no transfer under way.
  void add(const FileTransfer& transfer, std::uint32_t tag) noexcept;
  // Waits for one of those under way; with none, CHECKs.
  [[nodiscard]] Done wait() noexcept;

 private:
  [[nodiscard]] Done finish(std::uint32_t tag, int result) noexcept;
  void give_up_ring() noexcept;

  IoRing ring_;
  std::uint32_t depth_ = 1;
  bool may_ring_ = false;
  std::uint32_t in_flight_ = 0;
  std::uint32_t by_hand_ = 0;  // of these: the last in the order below, to be done by pread and pwrite
  std::array<FileTransfer, kMost> transfers_{};  // by tag
  std::array<std::uint8_t, kMost> order_{};      // tags as they were added and not started
  std::uint32_t added_ = 0;
};

}  // namespace whimbrel
