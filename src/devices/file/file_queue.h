// FileQueue: transfers under way for one worker: by io_uring, or one after the other by pread and pwrite where that is
// denied. What a ring leaves half done is finished here, so a transfer has either moved completely or failed.
//
// For one thread at a time. A forked child's copy must forget_after_fork().
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "devices/extents/block_store.h"
#include "linux/io_ring.h"
#include "linux/store_file.h"

namespace whimbrel {

class FileQueue final : public BlockQueue {
 public:
  // `ring` false: never a ring. Otherwise one is made with the first transfer, in the caller's descriptor table.
  // `files`: by number of the volume; `direct`: they are not read and written through the page cache.
  void set_up(std::uint32_t depth, bool ring, const StoreFile* files, const std::atomic<bool>& direct) noexcept {
    depth_ = depth < kMost ? depth : kMost;
    may_ring_ = ring;
    files_ = files;
    direct_ = &direct;
  }
  void forget_after_fork() noexcept override;
  // Makes the ring now. False: there will be none.
  bool prepare() noexcept;

  [[nodiscard]] bool is_full() const noexcept override { return in_flight_ == depth_; }
  [[nodiscard]] std::uint32_t in_flight() const noexcept override { return in_flight_; }
  void add(const BlockTransfer& transfer, std::uint32_t tag) noexcept override;
  [[nodiscard]] Done wait() noexcept override;

 private:
  [[nodiscard]] Done finish(std::uint32_t tag, int result) noexcept;
  void give_up_ring() noexcept;

  IoRing ring_;
  const StoreFile* files_ = nullptr;
  const std::atomic<bool>* direct_ = nullptr;
  std::uint32_t depth_ = 1;
  bool may_ring_ = false;
  std::uint32_t in_flight_ = 0;
  std::uint32_t by_hand_ = 0;  // of these: the last in the order below, to be done by pread and pwrite
  std::array<FileTransfer, kMost> transfers_{};  // by tag
  std::array<std::uint8_t, kMost> order_{};      // tags as they were added and not started
  std::uint32_t added_ = 0;
};

}  // namespace whimbrel
