// BlockMap: which 4 KiB blocks of a file are in use.
//
// A block is free and clean (nothing of it on disk), in use, dead (free, but the disk still holds it), or kept:
// released here while a forked child may still read it. Runs are handed out next-fit, so a stream of evictions lies in
// one piece and can be read as one; the file grows only while little of it is free. Maps grow by pieces of 1 GiB of
// file and take 128 KiB of memory for each.
//
// Thread-safe; its lock is a leaf held for microseconds.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "base/zeroed_table.h"

namespace whimbrel {

class BlockMap {
 public:
  static constexpr std::uint32_t kMostRun = 64;

  struct Run {
    std::uint64_t first = 0;
    std::uint64_t blocks = 0;
  };
  struct Stats {
    std::uint64_t used = 0;  // kept ones included
    std::uint64_t dead = 0;
  };

  // For a file of at most so many blocks.
  BlockMap(MemorySource& source, std::uint64_t limit) noexcept;
  ~BlockMap() { reset(); }
  BlockMap(const BlockMap&) = delete;
  BlockMap& operator=(const BlockMap&) = delete;
  // A smaller limit, before anything is taken.
  void set_limit(std::uint64_t blocks) noexcept {
    if (blocks < limit_) limit_ = blocks;
  }
  [[nodiscard]] bool valid() const noexcept { return !pieces_.empty(); }

  // 1..kMostRun blocks in a row. kDeviceFull; kNoMemory.
  [[nodiscard]] Result<std::uint64_t> take(std::uint32_t blocks) noexcept EXCLUDES(mutex_);
  void give(std::uint64_t first, std::uint32_t blocks) noexcept EXCLUDES(mutex_);
  // The file cannot grow: the next run is looked for at its front.
  void rewind() noexcept EXCLUDES(mutex_);

  // Dead blocks in a row, at most so many, for the caller to have the disk forget them. They are nobody else's until
  // give_clean(): who wrote there meanwhile would lose it. No blocks: there are none.
  [[nodiscard]] Run take_dead(std::uint64_t most) noexcept EXCLUDES(mutex_);
  void give_clean(Run run) noexcept EXCLUDES(mutex_);

  // fork: from now on what is in use is not used again by release, until nobody else can read it.
  void share() noexcept EXCLUDES(mutex_);
  void unshare() noexcept EXCLUDES(mutex_);
  [[nodiscard]] bool is_shared() const noexcept EXCLUDES(mutex_);

  // Forgets everything; all memory goes back.
  void reset() noexcept EXCLUDES(mutex_);
  void reset_after_fork() noexcept { mutex_.reset_after_fork(); }
  [[nodiscard]] Stats stats() const noexcept EXCLUDES(mutex_);

 private:
  static constexpr std::uint32_t kPieceBlocks = 1u << 18;
  static constexpr std::uint32_t kWords = kPieceBlocks / 64;

  struct Piece {
    std::uint64_t used[kWords];
    std::uint64_t dead[kWords];
    std::uint64_t shared[kWords];  // in use at a fork
    std::uint64_t kept[kWords];    // of these: released since
    std::uint32_t used_count;
    std::uint32_t dead_count;
    std::uint32_t hopeless;  // runs of so many blocks and more are not to be found here
  };

  [[nodiscard]] std::uint32_t blocks_of(std::uint64_t piece) const noexcept;
  [[nodiscard]] static std::uint32_t find_free(const Piece& piece, std::uint32_t from, std::uint32_t end,
                                               std::uint32_t blocks) noexcept;
  [[nodiscard]] Result<std::uint64_t> take_in(std::uint64_t piece, std::uint32_t from, std::uint32_t blocks) noexcept
      REQUIRES(mutex_);
  [[nodiscard]] bool grow() noexcept REQUIRES(mutex_);

  MemorySource& source_;
  std::uint64_t limit_;
  mutable Mutex mutex_;
  ZeroedTable<Piece*> pieces_;
  std::uint64_t count_ GUARDED_BY(mutex_) = 0;   // pieces there are
  std::uint64_t cursor_ GUARDED_BY(mutex_) = 0;  // where the last run ended
  std::uint64_t high_ GUARDED_BY(mutex_) = 0;    // no block from here on was ever used
  std::uint64_t freed_ GUARDED_BY(mutex_) = 0;   // blocks since the search last began at the front
  std::uint64_t sweep_ GUARDED_BY(mutex_) = 0;   // where the search for dead blocks goes on
  bool shared_ GUARDED_BY(mutex_) = false;
};

}  // namespace whimbrel
