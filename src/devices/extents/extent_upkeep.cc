// ExtentDevice: giving room back to the store, and fork.
#include <algorithm>

#include "base/check.h"
#include "devices/extents/extent_device.h"

namespace whimbrel {
namespace {

// What one hole costs, expressed in bytes of upkeep: so a scattered file does not make long rounds.
constexpr std::uint64_t kHoleCost = 64 << 10;
// Dead blocks that are soon used again are not worth a hole: so many of those in use may stay.
constexpr std::uint64_t kDeadShare = 8;

}  // namespace

bool ExtentDevice::maintain(std::size_t budget_bytes) noexcept {
  GatePass pass(table_.gate());
  const int own = own_.load(std::memory_order_acquire);
  {
    MutexLock lock(volumes_mutex_);
    for (int i = 0; i < kMostVolumes; ++i) {
      Volume& volume = volumes_[i];
      // The parent may use the blocks again as soon as nobody has the file.
      if (i == own || !store_.is_open(i) || volume.units.load(std::memory_order_relaxed) != 0) continue;
      store_.close(i);
      volume.cipher.forget();
    }
  }
  if (own < 0) return false;
  if (map_.is_shared() && !never_unshare_.load(std::memory_order_relaxed) && store_.is_sole_user(own)) map_.unshare();
  if (!punching_.load(std::memory_order_relaxed)) return false;
  for (std::uint64_t left = budget_bytes;;) {
    const BlockMap::Stats blocks = map_.stats();
    if (blocks.dead == 0 || blocks.dead <= blocks.used / kDeadShare) return false;
    if (left == 0) return true;
    const BlockMap::Run run = map_.take_dead(std::max<std::uint64_t>(left / kBlockBytes, 1));
    if (run.blocks == 0) return false;
    const Result<void> done = store_.punch(own, run.first * kBlockBytes, run.blocks * kBlockBytes);
    if (!done && done.error().code == Errc::kAgain) return false;  // may happen yet: those blocks are lost
    map_.give_clean(run);
    if (!done && done.error().code == Errc::kNotSupported) punching_.store(false, std::memory_order_relaxed);
    left -= std::min(left, std::max(run.blocks * kBlockBytes, kHoleCost));
  }
}

// --- fork -----------------------------------------------------------------------------------------------------------

void ExtentDevice::prepare_fork() noexcept {
  table_.gate().close();
  std::uint32_t wanted = 0;
  for (int i = 0; i < kMostVolumes; ++i) {
    if (store_.is_open(i) && volumes_[i].units.load(std::memory_order_relaxed) != 0) wanted |= 1u << i;
  }
  const int own = own_.load(std::memory_order_acquire);
  const BlockStore::Inherited got = store_.prepare_fork(wanted, own);
  if (got.error != 0) (void)failed(got.error, store_.words().not_handed_on);
  own_is_inherited_ = own >= 0 && (got.volumes >> own & 1) != 0;
  if (own_is_inherited_ && !got.own_sharing_is_noticed) never_unshare_.store(true, std::memory_order_relaxed);
}

void ExtentDevice::after_fork_in_parent() noexcept {
  if (own_is_inherited_) map_.share();
  store_.after_fork_in_parent();
  table_.gate().open();
}

void ExtentDevice::after_fork_in_child() noexcept {
  // Loads of the parent may have been under way.
  table_.reset_stripes_after_fork();
  volumes_mutex_.reset_after_fork();
  loaders_.reset_in_child();
  storers_.reset_in_child();
  for (Workers* workers : {&loaders_, &storers_}) {
    for (Worker& worker : *workers) {
      worker.queue->forget_after_fork();
      worker.free_tags = options_.depth == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << options_.depth) - 1;
    }
  }
  store_.after_fork_in_child();
  own_.store(-1, std::memory_order_release);
  map_.reset_after_fork();
  map_.reset();
  never_unshare_.store(false, std::memory_order_relaxed);
  table_.gate().open_in_child();
}

}  // namespace whimbrel
