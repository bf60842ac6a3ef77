#include "devices/chunk_pool.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstring>

#include "base/check.h"

namespace whimbrel {
namespace {

constexpr std::size_t kMinSegment = std::size_t{64} << 10, kMaxSegment = std::size_t{2} << 20;

std::size_t places(const ChunkPool::Options& options, const SegmentLayout& layout) noexcept {
  const std::uint64_t wanted = options.max_bytes / layout.bytes();
  return static_cast<std::size_t>(wanted < layout.max_segments() ? wanted : layout.max_segments());
}

std::size_t checked_segment(std::size_t bytes) noexcept {
  CHECK(std::has_single_bit(bytes) && bytes >= kMinSegment && bytes <= kMaxSegment, "segment size of a chunk pool");
  return bytes;
}

}  // namespace

ChunkPool::ChunkPool(MemorySource& source, Allowance& allowance, const Options& options) noexcept
    : source_(source),
      layout_(checked_segment(options.segment_bytes)),
      allowance_(allowance),
      segments_(source, places(options, layout_)),
      space_(source, (places(options, layout_) + 63) / 64) {}

ChunkPool::~ChunkPool() {
  Retired retired;
  {
    MutexLock lock(mutex_);
    for (std::uint32_t i = 0; i < top_; ++i) {
      if (segments_[i].base != nullptr) retire_locked(i, retired);
    }
  }
  give_back(retired);
}

// --- finding one's way ----------------------------------------------------------------------------------------------

std::byte* ChunkPool::base_of(std::uint32_t index) const noexcept {
  // Installed and removed under the lock; whoever asks without it holds a chunk there, so it stays.
  auto& state = const_cast<SegmentState&>(segments_[layout_.segment_of(index)]);
  return std::atomic_ref<std::byte*>(state.base).load(std::memory_order_acquire);
}

bool ChunkPool::known(std::uint32_t index) const noexcept {
  return index != kNone && layout_.segment_of(index) < segments_.size() && layout_.chunk_of(index) < layout_.chunks() &&
         base_of(index) != nullptr;
}

// --- storing and reading --------------------------------------------------------------------------------------------

Result<std::uint32_t> ChunkPool::put(std::uint32_t token, std::span<const Part> parts) noexcept {
  std::size_t bytes = 0;
  for (const Part& part : parts) bytes += part.size();
  const std::uint32_t count = chunks_for(bytes == 0 ? 1 : bytes);
  std::uint32_t head = kNone;
  {
    MutexLock lock(mutex_);
    while (free_ < count) {
      if (const Result<void> grown = grow_locked(); !grown) return std::unexpected(grown.error());
    }
    head = allocate_chain_locked(count, token);
  }
  copy_in(head, parts);  // nobody else knows the chain yet
  return head;
}

void ChunkPool::copy_in(std::uint32_t head, std::span<const Part> parts) noexcept {
  std::uint32_t index = head;
  std::size_t at = 0;
  for (const Part& part : parts) {
    for (std::size_t done = 0; done < part.size();) {
      if (at == kChunkBytes) {
        index = next(index);
        at = 0;
      }
      const std::size_t n = part.size() - done < kChunkBytes - at ? part.size() - done : kChunkBytes - at;
      std::memcpy(data(index) + at, part.data() + done, n);
      done += n;
      at += n;
    }
  }
}

bool ChunkPool::get(std::uint32_t head, std::span<const Target> targets) const noexcept {
  std::uint32_t index = head;
  std::size_t at = 0;
  if (!known(index)) return false;
  for (const Target& target : targets) {
    for (std::size_t done = 0; done < target.size();) {
      if (at == kChunkBytes) {
        index = next(index);
        if (!known(index)) return false;
        at = 0;
      }
      const std::size_t n = target.size() - done < kChunkBytes - at ? target.size() - done : kChunkBytes - at;
      std::memcpy(target.data() + done, data(index) + at, n);
      done += n;
      at += n;
    }
  }
  return true;
}

void ChunkPool::free_chain(std::uint32_t head) noexcept {
  if (head == kNone) return;
  Retired retired;
  {
    MutexLock lock(mutex_);
    for (std::uint32_t index = head; index != kNone;) {
      CHECK(known(index), "damaged chain of chunks");
      const std::uint32_t following = next(index);
      free_chunk_locked(index, retired);
      index = following;
    }
  }
  give_back(retired);
}

// --- chunks ---------------------------------------------------------------------------------------------------------

std::uint32_t ChunkPool::allocate_chain_locked(std::uint32_t count, std::uint32_t token) noexcept {
  std::uint32_t head = kNone;
  std::uint32_t* link = &head;
  std::uint32_t segment = lowest_with_space_locked();
  for (; count > 0; --count) {
    if (segments_[segment].used == layout_.chunks()) segment = lowest_with_space_locked();
    *link = take_chunk_locked(segment, token);
    link = &next(*link);
  }
  *link = kNone;
  return head;
}

std::uint32_t ChunkPool::take_chunk_locked(std::uint32_t segment, std::uint32_t token) noexcept {
  SegmentState& state = segments_[segment];
  std::uint64_t* bitmap = layout_.bitmap(state.base);
  std::uint32_t word = state.first_word;
  while (bitmap[word] == 0) ++word;
  const std::uint32_t chunk = word * 64 + static_cast<std::uint32_t>(std::countr_zero(bitmap[word]));
  bitmap[word] &= bitmap[word] - 1;
  state.first_word = word;
  if (chunk >= state.high_water) state.high_water = chunk + 1;
  layout_.owner(state.base)[chunk] = token;
  if (state.used++ == 0) --empty_;
  if (state.used == layout_.chunks()) set_space_locked(segment, false);
  --free_;
  ++used_;
  return layout_.index(segment, chunk);
}

void ChunkPool::free_chunk_locked(std::uint32_t index, Retired& retired) noexcept {
  const std::uint32_t segment = layout_.segment_of(index), chunk = layout_.chunk_of(index);
  SegmentState& state = segments_[segment];
  CHECK(state.used > 0, "chunk freed twice");
  --state.used;
  if (state.frozen) {
    --frozen_used_;
    if (state.used == 0) retire_locked(segment, retired);
    return;
  }
  std::uint64_t& word = layout_.bitmap(state.base)[chunk / 64];
  CHECK((word & std::uint64_t{1} << chunk % 64) == 0, "chunk freed twice");
  word |= std::uint64_t{1} << chunk % 64;
  if (chunk / 64 < state.first_word) state.first_word = chunk / 64;
  set_space_locked(segment, true);
  ++free_;
  --used_;
  if (state.used != 0) return;
  ++empty_;
  // One empty segment stays, so that a store that hovers around a boundary does not take and give all the time.
  if (empty_ > 1 || compacting_) retire_locked(segment, retired);
}

// --- segments -------------------------------------------------------------------------------------------------------

void ChunkPool::set_space_locked(std::uint32_t segment, bool space) noexcept {
  std::uint64_t& word = space_[segment / 64];
  const std::uint64_t bit = std::uint64_t{1} << segment % 64;
  if (!space) {
    word &= ~bit;
    return;
  }
  word |= bit;
  if (segment / 64 < space_hint_) space_hint_ = segment / 64;
}

std::uint32_t ChunkPool::lowest_with_space_locked() noexcept {
  while (space_[space_hint_] == 0) {
    ++space_hint_;
    CHECK(space_hint_ < space_.size(), "free chunks were promised");
  }
  return space_hint_ * 64 + static_cast<std::uint32_t>(std::countr_zero(space_[space_hint_]));
}

std::uint32_t ChunkPool::lowest_hole_locked() noexcept {
  while (hole_hint_ < segments_.size() && segments_[hole_hint_].base != nullptr) ++hole_hint_;
  return hole_hint_;
}

// Takes one segment more. The lock is dropped meanwhile: the source may have to ask the kernel.
Result<void> ChunkPool::grow_locked() noexcept {
  if (!allowance_.claim(layout_.bytes())) return fail(Errc::kDeviceFull, 0, "chunk pool");
  mutex_.unlock();
  auto* base = static_cast<std::byte*>(source_.take(layout_.bytes()));
  if (base != nullptr) {
    std::uint64_t* bitmap = layout_.bitmap(base);
    for (std::uint32_t word = 0; word < layout_.words(); ++word) bitmap[word] = ~std::uint64_t{0};
    if (layout_.chunks() % 64 != 0) bitmap[layout_.words() - 1] = (std::uint64_t{1} << layout_.chunks() % 64) - 1;
  }
  mutex_.lock();
  const std::uint32_t segment = base == nullptr ? 0 : lowest_hole_locked();
  if (base == nullptr || segment == segments_.size()) {
    if (base != nullptr) source_.give(base, layout_.bytes());
    allowance_.refund(layout_.bytes());
    return fail(base == nullptr ? Errc::kNoMemory : Errc::kDeviceFull, 0, "chunk pool");
  }
  install_locked(segment, base);
  return {};
}

void ChunkPool::install_locked(std::uint32_t segment, std::byte* base) noexcept {
  SegmentState& state = segments_[segment];
  std::atomic_ref<std::byte*>(state.base).store(base, std::memory_order_release);
  state.used = state.first_word = state.high_water = 0;
  state.frozen = false;
  if (segment >= top_) top_ = segment + 1;
  ++own_segments_;
  free_ += layout_.chunks();
  ++empty_;
  set_space_locked(segment, true);
}

void ChunkPool::retire_locked(std::uint32_t segment, Retired& retired) noexcept {
  SegmentState& state = segments_[segment];
  auto* record = reinterpret_cast<RetiredSegment*>(state.base);
  const RetiredSegment contents{retired.first, state.high_water, state.frozen};
  std::memcpy(static_cast<void*>(record), &contents, sizeof(contents));
  retired.first = record;
  if (state.frozen) {
    --frozen_segments_;
    frozen_used_ -= state.used;
  } else {
    --own_segments_;
    free_ -= layout_.chunks() - state.used;
    used_ -= state.used;
    if (state.used == 0) --empty_;
    set_space_locked(segment, false);
  }
  std::atomic_ref<std::byte*>(state.base).store(nullptr, std::memory_order_release);
  if (segment < hole_hint_) hole_hint_ = segment;
  while (top_ > 0 && segments_[top_ - 1].base == nullptr) --top_;
}

// Wipes before it gives. What a child inherited is the exception: wiping would first copy every page, and the parent
// goes on using the same contents anyway.
void ChunkPool::give_back(Retired& retired) noexcept {
  while (retired.first != nullptr) {
    RetiredSegment record;
    std::memcpy(&record, static_cast<const void*>(retired.first), sizeof(record));
    auto* base = reinterpret_cast<std::byte*>(retired.first);
    retired.first = record.next;
    if (!record.frozen) std::memset(base, 0, std::max(sizeof(record), record.high_water * kChunkBytes));
    source_.give(base, layout_.bytes());
    if (!record.frozen) allowance_.refund(layout_.bytes());
  }
}

void ChunkPool::freeze_all() noexcept {
  Retired retired;
  {
    MutexLock lock(mutex_);
    const std::uint32_t top = top_;
    for (std::uint32_t i = 0; i < top; ++i) {
      SegmentState& state = segments_[i];
      if (state.base == nullptr || state.frozen) continue;
      set_space_locked(i, false);
      allowance_.refund(layout_.bytes());
      --own_segments_;
      used_ -= state.used;
      free_ -= layout_.chunks() - state.used;
      if (state.used == 0) --empty_;
      state.frozen = true;
      ++frozen_segments_;
      frozen_used_ += state.used;
      if (state.used == 0) retire_locked(i, retired);
    }
    compacting_ = false;
  }
  give_back(retired);
}

ChunkPool::Stats ChunkPool::stats() const noexcept {
  MutexLock lock(mutex_);
  return {.held_bytes = (own_segments_ + frozen_segments_) * layout_.bytes(),
          .inherited_bytes = frozen_segments_ * layout_.bytes(),
          .used_chunks = used_ + frozen_used_,
          .moved_chunks = moved_};
}

}  // namespace whimbrel
