// Compaction: empties the highest segment into holes further down, blob by blob, and gives it back.
//
// No blob is moved unless a whole segment can be gained, so the work always pays: when there are as many free chunks
// as a segment has, the contents of the highest one fit into the others.
#include <bit>
#include <cstring>

#include "base/check.h"
#include "devices/chunk_pool.h"

namespace whimbrel {

bool ChunkPool::gain_possible_locked() const noexcept { return free_ >= layout_.chunks(); }

// An eighth more than the chunks in use need. With lowest-address-first a store in a steady state stays well below
// that, so this is about shrinking and changing data; and emptying a segment that is 8/9 full costs eight bytes of
// copying for each byte gained, which is as much as memory should be worth.
bool ChunkPool::wasteful_locked() const noexcept {
  return own_segments_ * layout_.bytes() * 8 > used_ * (kChunkBytes + 8) * 9;
}

bool ChunkPool::should_compact() const noexcept {
  MutexLock lock(mutex_);
  return gain_possible_locked() && (compacting_ || wasteful_locked());
}

ChunkPool::Step ChunkPool::compact_step(std::uint32_t budget_chunks, ChunkOwner& owner, bool always) noexcept {
  Step step;
  if (!compact_mutex_.try_lock()) return step;
  while (step.moved < budget_chunks) {
    std::uint32_t token = 0;
    if (!next_to_move(always, &token)) break;
    std::uint32_t freed = kNone;
    std::uint32_t* head = owner.lock_blob(token);
    // Without a head the blob is being stored or released just now; its chunks are found again in the next pass.
    const std::uint32_t moved = head == nullptr ? 0 : move_blob(token, head, &freed);
    owner.unlock_blob(token);
    free_chain(freed);  // may wipe a segment: not while anybody waits for the blob
    step.moved += moved;
    moved_in_pass_ += moved;
  }
  step.more = step.moved >= budget_chunks;
  compact_mutex_.unlock();
  MutexLock lock(mutex_);
  moved_ += step.moved;
  step.more = step.more && gain_possible_locked();
  return step;
}

// The highest segment of our own; those that are empty already are retired on the way.
bool ChunkPool::choose_victim_locked(Retired& retired) noexcept {
  for (std::uint32_t i = top_; i > 0 && gain_possible_locked(); --i) {
    const SegmentState& state = segments_[i - 1];
    if (state.base == nullptr || state.frozen) continue;
    if (state.used == 0) {
      retire_locked(i - 1, retired);
      continue;
    }
    if (victim_ != i - 1) {
      victim_ = i - 1;
      cursor_ = moved_in_pass_ = 0;
    }
    return true;
  }
  compacting_ = false;
  victim_ = kNone;
  return false;
}

// The owner of the next chunk to move; false when there is nothing to gain, or what is left cannot be moved now.
bool ChunkPool::next_to_move(bool always, std::uint32_t* token) noexcept {
  Retired retired;
  bool found = false;
  {
    MutexLock lock(mutex_);
    if (!compacting_) compacting_ = gain_possible_locked() && (always || wasteful_locked());
    if (compacting_ && choose_victim_locked(retired)) {
      std::byte* base = segments_[victim_].base;
      const std::uint64_t* bitmap = layout_.bitmap(base);
      while (!found) {
        while (cursor_ < layout_.chunks() && (bitmap[cursor_ / 64] >> cursor_ % 64 & 1) != 0) ++cursor_;
        found = cursor_ < layout_.chunks();
        if (found || moved_in_pass_ == 0) break;
        cursor_ = moved_in_pass_ = 0;
      }
      if (found) {
        *token = layout_.owner(base)[cursor_++];
      } else {
        cursor_ = 0;
      }
    }
  }
  give_back(retired);
  return found;
}

// Moves the blob's chunks out of the victim. The caller holds the blob's lock, so nobody reads the chain meanwhile;
// the pool's lock is held only to take a chunk, never to copy one.
std::uint32_t ChunkPool::move_blob(std::uint32_t token, std::uint32_t* head, std::uint32_t* freed) noexcept {
  std::uint32_t moved = 0;
  for (std::uint32_t* link = head; *link != kNone;) {
    const std::uint32_t from = *link;
    if (layout_.segment_of(from) != victim_) {
      link = &next(from);
      continue;
    }
    std::uint32_t to = kNone;
    {
      MutexLock lock(mutex_);
      if (free_ == 0) return moved;
      const std::uint32_t segment = lowest_with_space_locked();
      if (segment >= victim_) return moved;
      to = take_chunk_locked(segment, token);
    }
    std::memcpy(data(to), data(from), kChunkBytes);
    next(to) = next(from);
    *link = to;
    link = &next(to);
    next(from) = *freed;
    *freed = from;
    ++moved;
  }
  return moved;
}

}  // namespace whimbrel
