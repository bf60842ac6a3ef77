#include "devices/file/file_store.h"

#include <cstring>

#include "linux/descriptors.h"
#include "linux/sys.h"

namespace whimbrel {

FileStore::FileStore(const StoreFileOptions& options, bool ring) noexcept : options_(options), ring_(ring) {
  std::memcpy(path_, options.path, std::strlen(options.path));
  options_.path = path_;
}

const BlockStore::Words& FileStore::words() const noexcept {
  static constexpr Words kWords = {.name = "file",
                                   .writing = "writing to the file",
                                   .reading = "reading the file",
                                   .ends_early = "the file ends early",
                                   .damaged = "the file does not hold what was stored",
                                   .not_handed_on = "the file cannot be handed to a forked process",
                                   .not_inherited = "the parent's file could not be opened in a forked process"};
  return kWords;
}

Result<void> FileStore::start(MemorySource& source, const Plan& plan) noexcept {
  owner_.store(sys::gettid(), std::memory_order_relaxed);
  queues_ = SourceArray<FileQueue>(source, plan.queues);
  if (queues_.empty()) return fail(Errc::kNoMemory, 0, "queues of the file");
  for (FileQueue& queue : queues_) queue.set_up(plan.depth, ring_, files_.data(), direct_);
  return {};
}

Result<void> FileStore::open(int volume) noexcept {
  StoreFile& file = files_[volume];
  if (const Result<void> opened = file.open(options_); !opened) return opened;
  direct_.store(file.is_direct(), std::memory_order_relaxed);
  can_be_made_again_ = file.can_be_made_again();
  return {};
}

// --- fork -----------------------------------------------------------------------------------------------------------

BlockStore::Inherited FileStore::prepare_fork(std::uint32_t wanted, int own) noexcept {
  Inherited out;
  carried_count_ = 0;
  const DescriptorRoom room(kMostVolumes);  // the program may have used up its own
  for (int i = 0; i < kMostVolumes; ++i) {
    if ((wanted >> i & 1) == 0) continue;
    Result<StoreFile::Again> again = files_[i].open_again(owner_.load(std::memory_order_relaxed));
    if (!again) again = files_[i].open_again(0);  // one table for all threads
    if (!again) {
      out.error = again.error().sys;
      continue;
    }
    if (i == own) out.own_sharing_is_noticed = again->has_own_lock;
    out.volumes |= 1u << i;
    carried_volume_[carried_count_] = static_cast<std::uint8_t>(i);
    carried_[carried_count_++] = again->fd;
  }
  return out;
}

void FileStore::close_carried() noexcept {
  for (std::size_t i = 0; i < carried_count_; ++i) {
    // The program may have closed it and used the number again.
    if (files_[carried_volume_[i]].is_same(carried_[i])) sys::close(carried_[i]);
  }
  carried_count_ = 0;
}

void FileStore::after_fork_in_child() noexcept {
  for (StoreFile& file : files_) file.take_over(-1);
  for (std::size_t i = 0; i < carried_count_; ++i) files_[carried_volume_[i]].take_over(carried_[i]);
  owner_.store(0, std::memory_order_relaxed);
}

void FileStore::settle_in_child() noexcept { owner_.store(sys::gettid(), std::memory_order_relaxed); }

}  // namespace whimbrel
