// ChunkMap: which part of an export is behind which part of each volume.
//
// A volume is where one process stores: it looks endless, and gets chunks of the export when it is written to. A chunk
// whose last block was trimmed goes back, and so does everything of a volume that nobody uses any more: but only after
// the caller has had the server forget it (give()). Who reads what was never written is told so.
//
// Not thread-safe.
#pragma once

#include <cstdint>
#include <unordered_map>
#include <vector>

namespace whimbrel::device_process {

struct ExportRange {
  std::uint64_t offset = 0;  // of the export
  std::uint64_t bytes = 0;
  bool operator==(const ExportRange&) const = default;
};

class ChunkMap {
 public:
  static constexpr std::uint64_t kBlock = 4096;

  // The bytes [first, end) of the export; both at blocks.
  ChunkMap(std::uint64_t first, std::uint64_t end);

  [[nodiscard]] std::uint64_t chunk_bytes() const { return chunk_bytes_; }
  [[nodiscard]] std::uint64_t chunks() const { return chunks_.size(); }
  [[nodiscard]] std::uint64_t free_chunks() const { return free_.size(); }
  // No chunk from here on was ever used.
  [[nodiscard]] std::uint64_t high() const { return high_; }

  // A volume with one user.
  [[nodiscard]] std::uint32_t make_volume();
  [[nodiscard]] bool exists(std::uint32_t volume) const { return volumes_.contains(volume); }
  [[nodiscard]] std::uint32_t users(std::uint32_t volume) const;
  void add_user(std::uint32_t volume) { ++volumes_.at(volume).users; }
  // The chunks that nobody has any more, for give(); they are on no other list.
  [[nodiscard]] std::vector<std::uint32_t> drop_user(std::uint32_t volume);

  // Where a range of a volume lies, added to `out` in order, neighbours joined. An errno: ENODATA: something of it was
  // never written.
  [[nodiscard]] int find(std::uint32_t volume, std::uint64_t offset, std::uint64_t bytes, std::vector<ExportRange>& out);
  // The same for a range that is about to be written. ENOSPC: the export is full; nothing has changed then but that the
  // volume may have chunks in advance.
  [[nodiscard]] int place(std::uint32_t volume, std::uint64_t offset, std::uint64_t bytes,
                          std::vector<ExportRange>& out);
  // The range holds nothing any more: where it lay, and chunks that are empty now, for give().
  void clear(std::uint32_t volume, std::uint64_t offset, std::uint64_t bytes, std::vector<ExportRange>& out,
             std::vector<std::uint32_t>& empty);

  [[nodiscard]] ExportRange range_of(std::uint32_t chunk) const {
    return {first_ + chunk * chunk_bytes_, chunk_bytes_};
  }
  // Chunks may be used again, except tainted ones.
  void give(const std::vector<std::uint32_t>& chunks);
  // Something may still write there, at any time: never used again.
  void taint(const ExportRange& range);
  // The server has lost what was stored: all volumes are empty.
  void lose_contents();

 private:
  static constexpr std::uint32_t kNone = ~0u;
  struct Chunk {
    std::vector<std::uint64_t> used;  // a bit for each block
    std::uint32_t used_count = 0;
    bool tainted = false;
  };
  struct Volume {
    std::uint32_t users = 1;
    std::vector<std::uint32_t> chunks;  // kNone: nothing there
  };
  // Calls f(chunk number within the volume, offset within the chunk, bytes) for each piece.
  template <class F>
  void for_pieces(std::uint64_t offset, std::uint64_t bytes, F&& f) const;
  static void add(ExportRange range, std::vector<ExportRange>& out);

  std::uint64_t first_;
  std::uint64_t chunk_bytes_;
  std::vector<Chunk> chunks_;
  std::vector<std::uint32_t> free_;
  std::unordered_map<std::uint32_t, Volume> volumes_;
  std::uint32_t next_volume_ = 1;
  std::uint64_t high_ = 0;
};

}  // namespace whimbrel::device_process
