// FileDevice: giving room back to the file system, and fork.
#include <algorithm>

#include "base/check.h"
#include "devices/file/file_device.h"
#include "linux/descriptors.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

// What one hole costs, expressed in bytes of upkeep: so a scattered file does not make long rounds.
constexpr std::uint64_t kHoleCost = 64 << 10;
// Dead blocks that are soon used again are not worth a hole: so many of those in use may stay.
constexpr std::uint64_t kDeadShare = 8;

}  // namespace

bool FileDevice::maintain(std::size_t budget_bytes) noexcept {
  GatePass pass(table_.gate());
  const int own = own_.load(std::memory_order_acquire);
  {
    MutexLock lock(files_mutex_);
    for (int i = 0; i < kMostFiles; ++i) {
      Volume& volume = volumes_[i];
      // The parent may use the blocks again as soon as nobody has the file.
      if (i == own || !volume.file.is_open() || volume.units.load(std::memory_order_relaxed) != 0) continue;
      volume.file.close();
      volume.cipher.forget();
    }
  }
  if (own < 0) return false;
  StoreFile& file = volumes_[own].file;
  if (map_.is_shared() && !never_unshare_.load(std::memory_order_relaxed) && file.is_sole_user()) map_.unshare();
  if (!punching_.load(std::memory_order_relaxed)) return false;
  for (std::uint64_t left = budget_bytes;;) {
    const BlockMap::Stats blocks = map_.stats();
    if (blocks.dead == 0 || blocks.dead <= blocks.used / kDeadShare) return false;
    if (left == 0) return true;
    const BlockMap::Run run = map_.take_dead(std::max<std::uint64_t>(left / kBlockBytes, 1));
    if (run.blocks == 0) return false;
    const Result<void> done = file.punch(run.first * kBlockBytes, run.blocks * kBlockBytes);
    map_.give_clean(run);
    if (!done && done.error().code == Errc::kNotSupported) punching_.store(false, std::memory_order_relaxed);
    left -= std::min(left, std::max(run.blocks * kBlockBytes, kHoleCost));
  }
}

// --- fork -----------------------------------------------------------------------------------------------------------

void FileDevice::prepare_fork() noexcept {
  table_.gate().close();
  carried_count_ = 0;
  const DescriptorRoom room(kMostFiles);  // the program may have used up its own
  const int own = own_.load(std::memory_order_acquire);
  for (int i = 0; i < kMostFiles; ++i) {
    const Volume& volume = volumes_[i];
    if (!volume.file.is_open() || volume.units.load(std::memory_order_relaxed) == 0) continue;
    Result<StoreFile::Again> again = volume.file.open_again(owner_.load(std::memory_order_relaxed));
    if (!again) again = volume.file.open_again(0);  // one table for all threads
    if (!again) {
      (void)failed(again.error().sys, "the file cannot be handed to a forked process");
      continue;
    }
    if (i == own && !again->has_own_lock) never_unshare_.store(true, std::memory_order_relaxed);
    carried_volume_[carried_count_] = static_cast<std::uint8_t>(i);
    carried_[carried_count_++] = again->fd;
  }
}

void FileDevice::close_carried() noexcept {
  for (std::size_t i = 0; i < carried_count_; ++i) {
    // The program may have closed it and used the number again.
    if (volumes_[carried_volume_[i]].file.is_same(carried_[i])) sys::close(carried_[i]);
  }
  carried_count_ = 0;
}

void FileDevice::after_fork_in_parent() noexcept {
  const int own = own_.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < carried_count_; ++i) {
    if (carried_volume_[i] == own) map_.share();
  }
  close_carried();
  table_.gate().open();
}

void FileDevice::after_fork_in_child() noexcept {
  // Loads of the parent may have been under way.
  table_.reset_stripes_after_fork();
  files_mutex_.reset_after_fork();
  loaders_.reset_in_child();
  storers_.reset_in_child();
  for (Workers* workers : {&loaders_, &storers_}) {
    for (Worker& worker : *workers) {
      worker.queue.forget_after_fork();
      worker.free_tags = options_.depth == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << options_.depth) - 1;
    }
  }
  for (Volume& volume : volumes_) volume.file.take_over(-1);
  for (std::size_t i = 0; i < carried_count_; ++i) volumes_[carried_volume_[i]].file.take_over(carried_[i]);
  own_.store(-1, std::memory_order_release);
  map_.reset_after_fork();
  map_.reset();
  never_unshare_.store(false, std::memory_order_relaxed);
  owner_.store(0, std::memory_order_relaxed);
  table_.gate().open_in_child();
}

void FileDevice::settle_in_child() noexcept { owner_.store(sys::gettid(), std::memory_order_relaxed); }

void FileDevice::drop_carried() noexcept { close_carried(); }

}  // namespace whimbrel
