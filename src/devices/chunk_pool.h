// ChunkPool: memory for blobs of any size, as chains of 256-byte chunks, that gives back what it no longer needs.
//
// Chunks are handed out lowest address first, so that the high segments drain by themselves; compaction moves what is
// left in the highest segment into lower holes and gives the segment back. No size classes, so nothing is stranded
// when the sizes of blobs change. What a blob costs: 3 % for links, on average half a chunk for rounding.
//
// Life of a blob:
//   1. put() copies its bytes into fresh chunks and returns the number of the first. The owner records it.
//   2. get() copies the bytes out, as often as one likes.
//   3. Compaction may move chunks in between: it asks the owner (ChunkOwner) for the place where the first number is
//      recorded, under the owner's lock, and updates it.
//   4. The owner takes the number out of its records under its lock, then free_chain() gives the chunks back.
//
// Locking. The pool's own lock covers bitmaps and counters and is held for no longer than a chain is walked; no bytes
// are copied under it. Chains and contents are protected by the owner: whoever calls get() holds the lock that
// lock_blob() takes for that blob. So loads never wait for stores. Order: the owner's blob lock, then the pool's.
//
// Contents are not wiped chunk by chunk (only this process sees them); a segment is wiped before it goes back.
//
// Thread-safe. Contents are immutable, and after a fork the child never writes to what it inherited: it gives whole
// segments back when nothing in them is used any more, and stores into segments of its own.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "devices/allowance.h"
#include "devices/chunk_segment.h"
#include "base/zeroed_table.h"

namespace whimbrel {

class ChunkOwner {
 public:
  // Locks the blob known as `token` and returns where the number of its first chunk is recorded, or null when there is
  // no such blob (any more). unlock_blob() follows in both cases.
  [[nodiscard]] virtual std::uint32_t* lock_blob(std::uint32_t token) noexcept = 0;
  virtual void unlock_blob(std::uint32_t token) noexcept = 0;

 protected:
  ~ChunkOwner() = default;
};

class ChunkPool {
 public:
  static constexpr std::uint32_t kNone = 0xffffffff;
  using Part = std::span<const std::byte>;
  using Target = std::span<std::byte>;

  struct Options {
    std::size_t segment_bytes = std::size_t{2} << 20;    // 64 KiB .. 2 MiB, a power of two
    std::uint64_t max_bytes = std::uint64_t{256} << 30;  // the largest the pool can ever be
  };
  struct Stats {
    std::uint64_t held_bytes = 0;       // segments, those inherited over a fork included
    std::uint64_t inherited_bytes = 0;  // of these: inherited
    std::uint64_t used_chunks = 0;      // in all segments
    std::uint64_t moved_chunks = 0;     // by compaction, since the start
  };
  struct Step {
    std::uint32_t moved = 0;  // chunks
    bool more = false;        // another step is worth doing now
  };

  // Segments count against `allowance`, except those inherited over a fork: they are the parent's, and a child of a
  // process with a full store could not store anything otherwise. Both references outlive the pool.
  ChunkPool(MemorySource& source, Allowance& allowance, const Options& options) noexcept;
  ~ChunkPool();
  ChunkPool(const ChunkPool&) = delete;
  ChunkPool& operator=(const ChunkPool&) = delete;
  // False when there was no memory for the directory, or the options make no sense: use nothing else then.
  [[nodiscard]] bool valid() const noexcept NO_THREAD_SAFETY_ANALYSIS {  // the sizes of the tables never change
    return !segments_.empty() && !space_.empty();
  }

  // Stores the parts one after the other as one blob. `token` names it towards ChunkOwner. kDeviceFull, kNoMemory;
  // nothing is held then.
  [[nodiscard]] Result<std::uint32_t> put(std::uint32_t token, std::span<const Part> parts) noexcept EXCLUDES(mutex_);
  // Copies the first bytes of the blob, as many as the targets hold together, into them. False when the chain ends
  // before or leads nowhere: then the links are damaged. The caller keeps the blob locked.
  [[nodiscard]] bool get(std::uint32_t head, std::span<const Target> targets) const noexcept;
  // Gives a whole chain back; kNone is allowed. Nobody else may know it any more.
  void free_chain(std::uint32_t head) noexcept EXCLUDES(mutex_);

  // Moves up to about `budget_chunks` chunks (always whole blobs' worth within a segment) when the pool holds an
  // eighth more than needed, and from then on until nothing can be gained; `always` starts at any gain. One
  // thread at a time; another caller returns at once.
  Step compact_step(std::uint32_t budget_chunks, ChunkOwner& owner, bool always = false) noexcept
      EXCLUDES(mutex_, compact_mutex_);

  [[nodiscard]] Stats stats() const noexcept EXCLUDES(mutex_);
  // Whether compact_step() would start.
  [[nodiscard]] bool should_compact() const noexcept EXCLUDES(mutex_);
  // In a forked child, with no operation under way when the fork happened: what is there is read only from now on.
  void freeze_all() noexcept EXCLUDES(mutex_);

 private:
  // Segments to give back once no lock is held, threaded through the segments themselves.
  struct RetiredSegment {
    RetiredSegment* next;
    std::uint32_t high_water;
    bool frozen;
  };
  struct Retired {
    RetiredSegment* first = nullptr;
  };

  [[nodiscard]] static std::uint32_t chunks_for(std::size_t bytes) noexcept {
    return static_cast<std::uint32_t>((bytes + kChunkBytes - 1) / kChunkBytes);
  }
  [[nodiscard]] std::byte* data(std::uint32_t index) const noexcept {
    return layout_.chunk(base_of(index), layout_.chunk_of(index));
  }
  [[nodiscard]] std::uint32_t& next(std::uint32_t index) const noexcept {
    return layout_.next(base_of(index))[layout_.chunk_of(index)];
  }
  [[nodiscard]] std::byte* base_of(std::uint32_t index) const noexcept;
  [[nodiscard]] bool known(std::uint32_t index) const noexcept;
  void copy_in(std::uint32_t head, std::span<const Part> parts) noexcept;

  [[nodiscard]] Result<void> grow_locked() noexcept REQUIRES(mutex_);
  void install_locked(std::uint32_t segment, std::byte* base) noexcept REQUIRES(mutex_);
  [[nodiscard]] std::uint32_t lowest_hole_locked() noexcept REQUIRES(mutex_);
  [[nodiscard]] std::uint32_t lowest_with_space_locked() noexcept REQUIRES(mutex_);
  [[nodiscard]] std::uint32_t allocate_chain_locked(std::uint32_t count, std::uint32_t token) noexcept REQUIRES(mutex_);
  [[nodiscard]] std::uint32_t take_chunk_locked(std::uint32_t segment, std::uint32_t token) noexcept REQUIRES(mutex_);
  void free_chunk_locked(std::uint32_t index, Retired& retired) noexcept REQUIRES(mutex_);
  void retire_locked(std::uint32_t segment, Retired& retired) noexcept REQUIRES(mutex_);
  void set_space_locked(std::uint32_t segment, bool space) noexcept REQUIRES(mutex_);
  void give_back(Retired& retired) noexcept EXCLUDES(mutex_);

  [[nodiscard]] bool gain_possible_locked() const noexcept REQUIRES(mutex_);
  [[nodiscard]] bool wasteful_locked() const noexcept REQUIRES(mutex_);
  [[nodiscard]] bool choose_victim_locked(Retired& retired) noexcept REQUIRES(compact_mutex_, mutex_);
  [[nodiscard]] bool next_to_move(bool always, std::uint32_t* token) noexcept REQUIRES(compact_mutex_) EXCLUDES(mutex_);
  [[nodiscard]] std::uint32_t move_blob(std::uint32_t token, std::uint32_t* head, std::uint32_t* freed) noexcept
      REQUIRES(compact_mutex_) EXCLUDES(mutex_);

  MemorySource& source_;
  const SegmentLayout layout_;
  Allowance& allowance_;

  mutable Mutex mutex_;
  // `base` is also read without the lock, by those who hold a blob in the segment: it cannot change under them.
  ZeroedTable<SegmentState> segments_;
  ZeroedTable<std::uint64_t> space_ GUARDED_BY(mutex_);  // bit per segment: has free chunks and is not frozen
  std::uint32_t space_hint_ GUARDED_BY(mutex_) = 0;      // no bit set in the words of space_ before this one
  std::uint32_t hole_hint_ GUARDED_BY(mutex_) = 0;       // every place before this one has a segment
  std::uint32_t top_ GUARDED_BY(mutex_) = 0;             // no segment at or above
  std::uint64_t own_segments_ GUARDED_BY(mutex_) = 0;    // not frozen
  std::uint64_t frozen_segments_ GUARDED_BY(mutex_) = 0;
  std::uint64_t used_ GUARDED_BY(mutex_) = 0;         // chunks in own segments
  std::uint64_t frozen_used_ GUARDED_BY(mutex_) = 0;  // chunks in frozen segments
  std::uint64_t free_ GUARDED_BY(mutex_) = 0;         // chunks in own segments
  std::uint64_t empty_ GUARDED_BY(mutex_) = 0;        // own segments without a used chunk
  std::uint64_t moved_ GUARDED_BY(mutex_) = 0;
  bool compacting_ GUARDED_BY(mutex_) = false;

  Mutex compact_mutex_;                                      // before the owner's lock and mutex_
  std::uint32_t victim_ GUARDED_BY(compact_mutex_) = kNone;  // the segment being emptied
  std::uint32_t cursor_ GUARDED_BY(compact_mutex_) = 0;      // where in it
  std::uint32_t moved_in_pass_ GUARDED_BY(compact_mutex_) = 0;
};

}  // namespace whimbrel
