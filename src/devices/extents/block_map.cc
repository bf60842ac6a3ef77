#include "devices/extents/block_map.h"

#include <bit>

#include "base/check.h"

namespace whimbrel {
namespace {

constexpr std::uint32_t kNowhere = ~0u;

// Calls f(word number, bits) for a run of at most 64 blocks.
template <class F>
void for_words(std::uint32_t first, std::uint32_t blocks, F&& f) noexcept {
  const std::uint64_t mask = blocks == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << blocks) - 1;
  const std::uint32_t shift = first % 64;
  f(first / 64, mask << shift);
  if (shift != 0 && shift + blocks > 64) f(first / 64 + 1, mask >> (64 - shift));
}

std::uint32_t ones(std::uint64_t word) noexcept { return static_cast<std::uint32_t>(std::popcount(word)); }

}  // namespace

BlockMap::BlockMap(MemorySource& source, std::uint64_t limit) noexcept
    : source_(source), limit_(limit), pieces_(source, (limit + kPieceBlocks - 1) / kPieceBlocks) {}

std::uint32_t BlockMap::blocks_of(std::uint64_t piece) const noexcept {
  const std::uint64_t left = limit_ - piece * kPieceBlocks;
  return left < kPieceBlocks ? static_cast<std::uint32_t>(left) : kPieceBlocks;
}

std::uint32_t BlockMap::find_free(const Piece& piece, std::uint32_t from, std::uint32_t end,
                                  std::uint32_t blocks) noexcept {
  std::uint32_t at = from, start = from;
  while (at < end) {
    const std::uint64_t word = piece.used[at / 64] >> (at % 64);
    const std::uint32_t left = 64 - at % 64;
    if ((word & 1) != 0) {
      const auto taken = static_cast<std::uint32_t>(std::countr_one(word));
      at += taken < left ? taken : left;
      start = at;
      continue;
    }
    const auto free = static_cast<std::uint32_t>(std::countr_zero(word));
    at += free < left ? free : left;
    if (at > end) at = end;
    if (at - start >= blocks) return start;
  }
  return kNowhere;
}

Result<std::uint64_t> BlockMap::take_in(std::uint64_t number, std::uint32_t from, std::uint32_t blocks) noexcept {
  Piece& piece = *pieces_[number];
  const std::uint32_t end = blocks_of(number);
  if (blocks >= piece.hopeless || end - piece.used_count < blocks) return fail(Errc::kDeviceFull);
  const std::uint32_t at = find_free(piece, from, end, blocks);
  if (at == kNowhere) {
    if (from == 0) piece.hopeless = blocks;
    return fail(Errc::kDeviceFull);
  }
  for_words(at, blocks, [&piece](std::uint32_t word, std::uint64_t bits) {
    piece.used[word] |= bits;
    piece.dead_count -= ones(piece.dead[word] & bits);
    piece.dead[word] &= ~bits;
  });
  piece.used_count += blocks;
  cursor_ = number * kPieceBlocks + at + blocks;
  if (cursor_ > high_) high_ = cursor_;
  return number * kPieceBlocks + at;
}

Result<std::uint64_t> BlockMap::take(std::uint32_t blocks) noexcept {
  CHECK(blocks != 0 && blocks <= kMostRun);
  MutexLock lock(mutex_);
  // A quarter is free: reuse it before the file grows.
  if (cursor_ == high_ && freed_ > high_ / 4) cursor_ = freed_ = 0;
  const std::uint64_t start = cursor_ / kPieceBlocks;
  // From where the last one ended to the end, then everything from the front.
  for (std::uint64_t i = start; i < count_; ++i) {
    const auto from = i == start ? static_cast<std::uint32_t>(cursor_ % kPieceBlocks) : 0;
    if (const Result<std::uint64_t> at = take_in(i, from, blocks); at) return at;
  }
  for (std::uint64_t i = 0; i < count_ && i <= start; ++i) {
    if (const Result<std::uint64_t> at = take_in(i, 0, blocks); at) return at;
  }
  if (count_ * kPieceBlocks >= limit_) return fail(Errc::kDeviceFull, 0, "file");
  if (!grow()) return fail(Errc::kNoMemory, 0, "map of the file");
  const Result<std::uint64_t> at = take_in(count_ - 1, 0, blocks);
  if (!at) return fail(Errc::kDeviceFull, 0, "file");
  return at;
}

bool BlockMap::grow() noexcept {
  auto* piece = static_cast<Piece*>(source_.take(sizeof(Piece)));
  if (piece == nullptr) return false;
  piece->hopeless = kNowhere;
  pieces_[count_++] = piece;
  return true;
}

void BlockMap::give(std::uint64_t first, std::uint32_t blocks) noexcept {
  MutexLock lock(mutex_);
  CHECK(first / kPieceBlocks < count_);
  Piece& piece = *pieces_[first / kPieceBlocks];
  for_words(static_cast<std::uint32_t>(first % kPieceBlocks), blocks, [&piece](std::uint32_t word, std::uint64_t bits) {
    DCHECK((piece.used[word] & bits) == bits && (piece.kept[word] & bits) == 0, "blocks given back twice");
    const std::uint64_t kept = bits & piece.shared[word];
    const std::uint64_t gone = bits & ~kept;
    piece.kept[word] |= kept;
    piece.used[word] &= ~gone;
    piece.dead[word] |= gone;
    piece.used_count -= ones(gone);
    piece.dead_count += ones(gone);
  });
  piece.hopeless = kNowhere;
  freed_ += blocks;
}

void BlockMap::rewind() noexcept {
  MutexLock lock(mutex_);
  cursor_ = 0;
}

BlockMap::Run BlockMap::take_dead(std::uint64_t most) noexcept {
  MutexLock lock(mutex_);
  for (std::uint64_t tried = 0; tried <= count_; ++tried) {
    if (sweep_ / kPieceBlocks >= count_) sweep_ = 0;
    if (count_ == 0) return {};
    Piece& piece = *pieces_[sweep_ / kPieceBlocks];
    const std::uint64_t base = sweep_ / kPieceBlocks * kPieceBlocks;
    if (piece.dead_count != 0) {
      for (auto word = static_cast<std::uint32_t>(sweep_ - base) / 64; word < kWords; ++word) {
        if (piece.dead[word] == 0) continue;
        Run run{base + word * 64 + static_cast<std::uint32_t>(std::countr_zero(piece.dead[word])), 0};
        std::uint64_t at = run.first - base;
        while (run.blocks < most && at < kPieceBlocks && (piece.dead[at / 64] >> (at % 64) & 1) != 0) {
          piece.dead[at / 64] &= ~(std::uint64_t{1} << (at % 64));
          piece.used[at / 64] |= std::uint64_t{1} << (at % 64);
          ++at;
          ++run.blocks;
        }
        piece.dead_count -= static_cast<std::uint32_t>(run.blocks);
        piece.used_count += static_cast<std::uint32_t>(run.blocks);
        sweep_ = base + at;
        return run;
      }
    }
    sweep_ = base + kPieceBlocks;
  }
  return {};
}

void BlockMap::give_clean(Run run) noexcept {
  MutexLock lock(mutex_);
  Piece& piece = *pieces_[run.first / kPieceBlocks];
  for (std::uint64_t at = run.first % kPieceBlocks, left = run.blocks; left != 0; ++at, --left) {
    piece.used[at / 64] &= ~(std::uint64_t{1} << (at % 64));
  }
  piece.used_count -= static_cast<std::uint32_t>(run.blocks);
  piece.hopeless = kNowhere;
}

void BlockMap::share() noexcept {
  MutexLock lock(mutex_);
  shared_ = true;
  for (std::uint64_t i = 0; i < count_; ++i) {
    for (std::uint32_t word = 0; word < kWords; ++word) pieces_[i]->shared[word] |= pieces_[i]->used[word];
  }
}

void BlockMap::unshare() noexcept {
  MutexLock lock(mutex_);
  shared_ = false;
  for (std::uint64_t i = 0; i < count_; ++i) {
    Piece& piece = *pieces_[i];
    for (std::uint32_t word = 0; word < kWords; ++word) {
      const std::uint64_t kept = piece.kept[word];
      piece.shared[word] = piece.kept[word] = 0;
      piece.used[word] &= ~kept;
      piece.dead[word] |= kept;
      piece.used_count -= ones(kept);
      piece.dead_count += ones(kept);
    }
    piece.hopeless = kNowhere;
  }
}

bool BlockMap::is_shared() const noexcept {
  MutexLock lock(mutex_);
  return shared_;
}

void BlockMap::reset() noexcept {
  MutexLock lock(mutex_);
  for (std::uint64_t i = 0; i < count_; ++i) source_.give(pieces_[i], sizeof(Piece));
  count_ = cursor_ = high_ = freed_ = sweep_ = 0;
  shared_ = false;
}

BlockMap::Stats BlockMap::stats() const noexcept {
  MutexLock lock(mutex_);
  Stats stats;
  for (std::uint64_t i = 0; i < count_; ++i) {
    stats.used += pieces_[i]->used_count;
    stats.dead += pieces_[i]->dead_count;
  }
  return stats;
}

}  // namespace whimbrel
