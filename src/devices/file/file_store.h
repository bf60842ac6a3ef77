// FileStore: the blocks of a device in files of its own (store_file.h).
//
// Each process has a file to store to, and reads the files it inherited by descriptors of its own.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "devices/extents/block_store.h"
#include "devices/file/file_queue.h"
#include "linux/store_file.h"

namespace whimbrel {

class FileStore final : public BlockStore {
 public:
  static constexpr std::size_t kMostPath = 1024;

  // The path is copied, and shorter than kMostPath. `ring` false: pread and pwrite only.
  FileStore(const StoreFileOptions& options, bool ring) noexcept;

  [[nodiscard]] const Words& words() const noexcept override;
  [[nodiscard]] Result<void> start(MemorySource& source, const Plan& plan) noexcept override;
  [[nodiscard]] BlockQueue& queue(std::uint32_t number) noexcept override { return queues_[number]; }
  [[nodiscard]] Result<void> open(int volume) noexcept override;
  void close(int volume) noexcept override { files_[volume].close(); }
  [[nodiscard]] bool is_open(int volume) const noexcept override { return files_[volume].is_open(); }
  [[nodiscard]] bool can_be_made_again() const noexcept override { return can_be_made_again_; }
  [[nodiscard]] std::uint64_t fixed_bytes(int volume) const noexcept override { return files_[volume].fixed_bytes(); }
  void lengthen(int volume, std::uint64_t bytes) noexcept override { files_[volume].lengthen(bytes); }
  [[nodiscard]] Result<void> punch(int volume, std::uint64_t offset, std::uint64_t bytes) noexcept override {
    return files_[volume].punch(offset, bytes);
  }
  [[nodiscard]] bool is_sole_user(int volume) noexcept override { return files_[volume].is_sole_user(); }
  [[nodiscard]] Inherited prepare_fork(std::uint32_t wanted, int own) noexcept override;
  void after_fork_in_parent() noexcept override { close_carried(); }
  void after_fork_in_child() noexcept override;
  [[nodiscard]] std::span<const int> carried() const noexcept override { return {carried_.data(), carried_count_}; }
  void settle_in_child() noexcept override;
  void drop_carried() noexcept override { close_carried(); }

  // How transfers are made now.
  [[nodiscard]] bool is_direct() const noexcept { return direct_; }
  // Makes the ring of one queue, to see whether that is allowed.
  [[nodiscard]] bool try_ring() noexcept { return ring_ && queues_[queues_.size() - 1].prepare(); }
  [[nodiscard]] int fd(int volume) const noexcept { return files_[volume].fd(); }

 private:
  void close_carried() noexcept;

  StoreFileOptions options_;
  char path_[kMostPath] = {};
  const bool ring_;
  SourceArray<FileQueue> queues_;
  std::array<StoreFile, kMostVolumes> files_;
  std::atomic<bool> direct_{false};
  bool can_be_made_again_ = true;

  // Only while a fork is prepared.
  std::atomic<int> owner_{0};  // a thread in whose descriptor table the files are
  std::array<int, kMostVolumes> carried_{};
  std::array<std::uint8_t, kMostVolumes> carried_volume_{};
  std::size_t carried_count_ = 0;
};

}  // namespace whimbrel
