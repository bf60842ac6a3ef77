#include "device_process/chunk_map.h"

#include <gtest/gtest.h>

#include <cerrno>
#include <map>
#include <random>

namespace whimbrel::device_process {
namespace {

constexpr std::uint64_t kFirst = 128 << 10, kChunk = 1 << 20;

TEST(ChunkMap, VolumesGetChunksWhenTheyAreWrittenTo) {
  ChunkMap map(kFirst, kFirst + 8 * kChunk);
  EXPECT_EQ(map.chunks(), 8u);
  const std::uint32_t a = map.make_volume(), b = map.make_volume();
  std::vector<ExportRange> ranges;
  EXPECT_EQ(map.find(a, 0, 4096, ranges), ENODATA);
  EXPECT_EQ(map.place(a, 0, 8192, ranges), 0);
  EXPECT_EQ(ranges, (std::vector<ExportRange>{{kFirst, 8192}}));
  EXPECT_EQ(map.find(a, 4096, 8192, ranges), ENODATA) << "the second block was never written";
  ranges.clear();
  EXPECT_EQ(map.place(b, 0, 4096, ranges), 0);
  EXPECT_EQ(ranges.front().offset, kFirst + kChunk);
  ranges.clear();
  EXPECT_EQ(map.place(a, 5 * kChunk - 4096, 8192, ranges), 0) << "across a border";
  std::uint64_t bytes = 0;
  for (const ExportRange& range : ranges) bytes += range.bytes;
  EXPECT_EQ(bytes, 8192u);
  EXPECT_EQ(map.free_chunks(), 4u);
}

TEST(ChunkMap, AFullExportIsAnErrorAndEmptyChunksComeBack) {
  ChunkMap map(kFirst, kFirst + 2 * kChunk);
  const std::uint32_t a = map.make_volume(), b = map.make_volume();
  std::vector<ExportRange> ranges;
  EXPECT_EQ(map.place(a, 0, 2 * kChunk, ranges), 0);
  EXPECT_EQ(map.place(b, 0, 4096, ranges), ENOSPC);
  std::vector<std::uint32_t> empty;
  ranges.clear();
  map.clear(a, 0, kChunk - 4096, ranges, empty);
  EXPECT_TRUE(empty.empty());
  map.clear(a, kChunk - 4096, 4096, ranges, empty);
  EXPECT_EQ(empty.size(), 1u);
  EXPECT_EQ(map.place(b, 0, 4096, ranges), ENOSPC) << "not before the server has forgotten it";
  map.give(empty);
  EXPECT_EQ(map.place(b, 0, 4096, ranges), 0);
}

TEST(ChunkMap, AVolumeLivesAsLongAsItsUsers) {
  ChunkMap map(kFirst, kFirst + 2 * kChunk);
  const std::uint32_t a = map.make_volume();
  std::vector<ExportRange> ranges;
  ASSERT_EQ(map.place(a, 0, 4096, ranges), 0);
  map.add_user(a);
  EXPECT_EQ(map.users(a), 2u);
  EXPECT_TRUE(map.drop_user(a).empty());
  ranges.clear();
  EXPECT_EQ(map.find(a, 0, 4096, ranges), 0);
  const std::vector<std::uint32_t> freed = map.drop_user(a);
  EXPECT_EQ(freed.size(), 1u);
  EXPECT_FALSE(map.exists(a));
  map.taint({map.range_of(freed.front()).offset + 4096, 4096});
  map.give(freed);
  EXPECT_EQ(map.free_chunks(), 1u) << "something may still be written there";
}

TEST(ChunkMap, NoTwoVolumesShareABlock) {
  ChunkMap map(kFirst, kFirst + 16 * kChunk);
  std::mt19937 random(7);
  std::map<std::uint64_t, std::pair<std::uint32_t, std::uint64_t>> owner;  // block of the export → whose, and where there
  std::vector<std::uint32_t> volumes;
  for (int i = 0; i < 3; ++i) volumes.push_back(map.make_volume());
  for (int step = 0; step < 20000; ++step) {
    std::uint32_t& volume = volumes[random() % volumes.size()];
    const std::uint64_t offset = random() % 4096 * 4096, bytes = (1 + random() % 16) * 4096;
    std::vector<ExportRange> ranges;
    std::vector<std::uint32_t> empty;
    const std::uint64_t what = random() % 100;
    if (what < 60) {
      if (map.place(volume, offset, bytes, ranges) != 0) continue;
      std::uint64_t at = offset;
      for (const ExportRange& range : ranges) {
        for (std::uint64_t b = range.offset; b < range.offset + range.bytes; b += 4096, at += 4096) {
          ASSERT_TRUE(!owner.contains(b) || owner[b] == std::pair(volume, at)) << "step " << step;
          owner[b] = {volume, at};
        }
      }
    } else if (what < 99) {
      map.clear(volume, offset, bytes, ranges, empty);
      std::erase_if(owner, [&](const auto& entry) {
        return entry.second.first == volume && entry.second.second >= offset && entry.second.second < offset + bytes;
      });
      map.give(empty);
    } else {
      map.give(map.drop_user(volume));
      std::erase_if(owner, [&](const auto& entry) { return entry.second.first == volume; });
      volume = map.make_volume();
    }
    for (int look = 0; look < 3 && !owner.empty(); ++look) {
      const auto entry = owner.lower_bound(kFirst + random() % (16 * kChunk));
      if (entry == owner.end()) continue;
      ranges.clear();
      ASSERT_EQ(map.find(entry->second.first, entry->second.second, 4096, ranges), 0);
      ASSERT_EQ(ranges.front().offset, entry->first);
    }
  }
}

}  // namespace
}  // namespace whimbrel::device_process
