#include "device_process/chunk_map.h"

#include <algorithm>
#include <bit>
#include <cerrno>

namespace whimbrel::device_process {
namespace {

// Many chunks let many processes share an export; large ones keep the table small and streams in one piece.
constexpr std::uint64_t kSmallestChunk = 1 << 20;
constexpr std::uint64_t kMostChunks = 1 << 16;
// A volume cannot be longer; the engine's slots do not reach as far.
constexpr std::uint64_t kLongestVolume = std::uint64_t{1} << 44;

}  // namespace

ChunkMap::ChunkMap(std::uint64_t first, std::uint64_t end)
    : first_(first),
      chunk_bytes_(std::max(kSmallestChunk, std::bit_ceil((end - first + kMostChunks - 1) / kMostChunks))),
      chunks_((end - first) / chunk_bytes_) {
  for (auto i = static_cast<std::uint32_t>(chunks_.size()); i-- > 0;) free_.push_back(i);  // taken from the front
}

std::uint32_t ChunkMap::make_volume() {
  volumes_.emplace(next_volume_, Volume());
  return next_volume_++;
}

std::uint32_t ChunkMap::users(std::uint32_t volume) const {
  const auto found = volumes_.find(volume);
  return found == volumes_.end() ? 0 : found->second.users;
}

std::vector<std::uint32_t> ChunkMap::drop_user(std::uint32_t volume) {
  Volume& left = volumes_.at(volume);
  std::vector<std::uint32_t> out;
  if (--left.users != 0) return out;
  std::copy_if(left.chunks.begin(), left.chunks.end(), std::back_inserter(out), [](std::uint32_t c) { return c != kNone; });
  volumes_.erase(volume);
  return out;
}

template <class F>
void ChunkMap::for_pieces(std::uint64_t offset, std::uint64_t bytes, F&& f) const {
  while (bytes != 0) {
    const std::uint64_t within = offset % chunk_bytes_;
    const std::uint64_t piece = std::min(bytes, chunk_bytes_ - within);
    f(offset / chunk_bytes_, within, piece);
    offset += piece;
    bytes -= piece;
  }
}

void ChunkMap::add(ExportRange range, std::vector<ExportRange>& out) {
  if (!out.empty() && out.back().offset + out.back().bytes == range.offset) {
    out.back().bytes += range.bytes;
  } else {
    out.push_back(range);
  }
}

int ChunkMap::find(std::uint32_t number, std::uint64_t offset, std::uint64_t bytes, std::vector<ExportRange>& out) {
  const Volume& volume = volumes_.at(number);
  int error = 0;
  for_pieces(offset, bytes, [&](std::uint64_t index, std::uint64_t within, std::uint64_t piece) {
    if (index >= volume.chunks.size() || volume.chunks[index] == kNone) {
      error = ENODATA;
      return;
    }
    const Chunk& chunk = chunks_[volume.chunks[index]];
    for (std::uint64_t block = within / kBlock; block < (within + piece) / kBlock; ++block) {
      if ((chunk.used[block / 64] >> block % 64 & 1) == 0) error = ENODATA;
    }
    add({range_of(volume.chunks[index]).offset + within, piece}, out);
  });
  return error;
}

int ChunkMap::place(std::uint32_t number, std::uint64_t offset, std::uint64_t bytes, std::vector<ExportRange>& out) {
  if (offset + bytes > kLongestVolume || offset + bytes < offset) return EFBIG;
  Volume& volume = volumes_.at(number);
  const std::uint64_t end = (offset + bytes - 1) / chunk_bytes_ + 1;
  if (volume.chunks.size() < end) volume.chunks.resize(end, kNone);
  for (std::uint64_t i = offset / chunk_bytes_; i < end; ++i) {
    if (volume.chunks[i] != kNone) continue;
    if (free_.empty()) return ENOSPC;
    volume.chunks[i] = free_.back();
    free_.pop_back();
    high_ = std::max(high_, std::uint64_t{volume.chunks[i]} + 1);
    Chunk& chunk = chunks_[volume.chunks[i]];
    chunk.used.assign(chunk_bytes_ / kBlock / 64, 0);
    chunk.used_count = 0;
  }
  for_pieces(offset, bytes, [&](std::uint64_t index, std::uint64_t within, std::uint64_t piece) {
    Chunk& chunk = chunks_[volume.chunks[index]];
    for (std::uint64_t block = within / kBlock; block < (within + piece) / kBlock; ++block) {
      const std::uint64_t bit = std::uint64_t{1} << block % 64;
      if ((chunk.used[block / 64] & bit) == 0) ++chunk.used_count;
      chunk.used[block / 64] |= bit;
    }
    add({range_of(volume.chunks[index]).offset + within, piece}, out);
  });
  return 0;
}

void ChunkMap::clear(std::uint32_t number, std::uint64_t offset, std::uint64_t bytes, std::vector<ExportRange>& out,
                     std::vector<std::uint32_t>& empty) {
  Volume& volume = volumes_.at(number);
  for_pieces(offset, bytes, [&](std::uint64_t index, std::uint64_t within, std::uint64_t piece) {
    if (index >= volume.chunks.size() || volume.chunks[index] == kNone) return;
    Chunk& chunk = chunks_[volume.chunks[index]];
    for (std::uint64_t block = within / kBlock; block < (within + piece) / kBlock; ++block) {
      const std::uint64_t bit = std::uint64_t{1} << block % 64;
      if ((chunk.used[block / 64] & bit) != 0) --chunk.used_count;
      chunk.used[block / 64] &= ~bit;
    }
    add({range_of(volume.chunks[index]).offset + within, piece}, out);
    if (chunk.used_count != 0) return;
    empty.push_back(volume.chunks[index]);
    volume.chunks[index] = kNone;
  });
}

void ChunkMap::give(const std::vector<std::uint32_t>& chunks) {
  for (const std::uint32_t chunk : chunks) {
    if (!chunks_[chunk].tainted) free_.push_back(chunk);
  }
}

void ChunkMap::taint(const ExportRange& range) {
  for (std::uint64_t at = range.offset - first_; at < range.offset - first_ + range.bytes; at += kBlock) {
    chunks_[at / chunk_bytes_].tainted = true;
  }
}

void ChunkMap::lose_contents() {
  for (auto& [number, volume] : volumes_) {
    for (const std::uint32_t chunk : volume.chunks) {
      if (chunk != kNone && !chunks_[chunk].tainted) free_.push_back(chunk);
    }
    volume.chunks.clear();
  }
}

}  // namespace whimbrel::device_process
