#include "devices/chunk_pool.h"

#include <gtest/gtest.h>

#include <array>
#include <atomic>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>

#include "tests/device_kit/page_contents.h"
#include "tests/device_kit/test_memory.h"

namespace whimbrel::testing {
namespace {

constexpr std::size_t kSegment = std::size_t{64} << 10;

// Owns blobs the way a device does: a table of first chunks, a lock per entry.
class Blobs final : public ChunkOwner {
 public:
  explicit Blobs(ChunkPool& pool, std::size_t count) : pool_(pool), blobs_(count) {}

  std::uint32_t* lock_blob(std::uint32_t token) noexcept override {
    blobs_[token].mutex.lock();
    return blobs_[token].bytes == 0 ? nullptr : &blobs_[token].head;
  }
  void unlock_blob(std::uint32_t token) noexcept override { blobs_[token].mutex.unlock(); }

  [[nodiscard]] bool has(std::uint32_t token) const { return blobs_[token].bytes != 0; }

  Result<void> put(std::uint32_t token, std::uint64_t seed, std::size_t bytes) {
    const std::vector<std::byte> contents = make(seed, bytes);
    const std::size_t cut = bytes / 3;  // in two parts, which meet in the middle of a chunk
    const ChunkPool::Part parts[] = {{contents.data(), cut}, {contents.data() + cut, bytes - cut}};
    const Result<std::uint32_t> head = pool_.put(token, parts);
    if (!head) return std::unexpected(head.error());
    Blob& blob = blobs_[token];
    const std::lock_guard lock(blob.mutex);
    EXPECT_EQ(blob.bytes, 0u);
    blob.head = *head;
    blob.bytes = bytes;
    blob.seed = seed;
    payload_ += bytes;
    return {};
  }

  void drop(std::uint32_t token) {
    Blob& blob = blobs_[token];
    std::uint32_t head = 0;
    {
      const std::lock_guard lock(blob.mutex);
      head = blob.head;
      payload_ -= blob.bytes;
      blob.bytes = 0;
    }
    pool_.free_chain(head);
  }

  bool intact(std::uint32_t token) {
    Blob& blob = blobs_[token];
    const std::lock_guard lock(blob.mutex);
    if (blob.bytes == 0) return true;
    std::vector<std::byte> back(blob.bytes);
    const std::size_t cut = blob.bytes / 2;
    const ChunkPool::Target targets[] = {{back.data(), cut}, {back.data() + cut, blob.bytes - cut}};
    return pool_.get(blob.head, targets) && back == make(blob.seed, blob.bytes);
  }

  bool all_intact() {
    for (std::uint32_t i = 0; i < blobs_.size(); ++i) {
      if (!intact(i)) return false;
    }
    return true;
  }
  void drop_all() {
    for (std::uint32_t i = 0; i < blobs_.size(); ++i) {
      if (has(i)) drop(i);
    }
  }
  [[nodiscard]] std::uint64_t payload() const { return payload_; }
  [[nodiscard]] std::uint32_t count() const { return static_cast<std::uint32_t>(blobs_.size()); }

 private:
  struct Blob {
    std::mutex mutex;
    std::uint32_t head = 0;
    std::size_t bytes = 0;
    std::uint64_t seed = 0;
  };
  static std::vector<std::byte> make(std::uint64_t seed, std::size_t bytes) {
    std::vector<std::byte> contents(bytes);
    Random random(seed);
    for (std::size_t i = 0; i < bytes; i += 8) {
      const std::uint64_t word = random.next();
      std::memcpy(contents.data() + i, &word, std::min<std::size_t>(8, bytes - i));
    }
    return contents;
  }

  ChunkPool& pool_;
  std::vector<Blob> blobs_;
  std::atomic<std::uint64_t> payload_{0};
};

void compact_fully(ChunkPool& pool, Blobs& blobs) {
  while (pool.compact_step(256, blobs).more) {
  }
}

TEST(SegmentLayout, UsesTheWholeSegment) {
  for (std::size_t bytes = std::size_t{64} << 10; bytes <= std::size_t{2} << 20; bytes *= 2) {
    const SegmentLayout layout(bytes);
    const std::size_t used = layout.chunks() * (kChunkBytes + 8) + layout.words() * 8;
    EXPECT_LE(used, bytes);
    EXPECT_GT(used + kChunkBytes + 16, bytes);
    EXPECT_EQ(layout.chunk_of(layout.index(5, layout.chunks() - 1)), layout.chunks() - 1);
    EXPECT_EQ(layout.segment_of(layout.index(5, layout.chunks() - 1)), 5u);
    EXPECT_NE(layout.index(layout.max_segments() - 1, layout.chunks() - 1), ChunkPool::kNone);
  }
}

TEST(ChunkPool, BlobsOfEverySizeComeBack) {
  TestMemory memory;
  {
    Allowance allowance(0);
    ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
    Blobs blobs(pool, 1200);
    std::uint32_t token = 0;
    for (std::size_t bytes = 1; bytes < 600; ++bytes) ASSERT_TRUE(blobs.put(token++, bytes, bytes));
    for (std::size_t bytes = 1020; bytes < 70'000; bytes += 511) ASSERT_TRUE(blobs.put(token++, bytes, bytes));
    EXPECT_TRUE(blobs.all_intact());
    blobs.drop_all();
    EXPECT_EQ(pool.stats().used_chunks, 0u);
    EXPECT_LE(pool.stats().held_bytes, kSegment);
  }
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

TEST(ChunkPool, TheLowestHoleIsFilledFirst) {
  TestMemory memory;
  Allowance allowance(0);
  ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
  Blobs blobs(pool, 1000);
  for (std::uint32_t i = 0; i < 1000; ++i) ASSERT_TRUE(blobs.put(i, i, 256));
  const std::uint64_t held = pool.stats().held_bytes;
  for (const std::uint32_t i : {900u, 3u, 500u}) blobs.drop(i);
  const auto head_of = [&](std::uint32_t i) {
    const std::uint32_t head = *blobs.lock_blob(i);
    blobs.unlock_blob(i);
    return head;
  };
  ASSERT_TRUE(blobs.put(900, 1, 256).has_value());
  EXPECT_EQ(head_of(900), 3u);
  ASSERT_TRUE(blobs.put(3, 1, 256).has_value());
  EXPECT_LT(head_of(3), head_of(501));
  ASSERT_TRUE(blobs.put(500, 1, 256).has_value());
  EXPECT_EQ(pool.stats().held_bytes, held);
}

TEST(ChunkPool, CapacityIsKeptAndAFailedPutHoldsNothing) {
  TestMemory memory;
  Allowance allowance(4 * kSegment + 100);
  ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
  Blobs blobs(pool, 100);
  std::uint32_t stored = 0;
  for (;; ++stored) {
    const Result<void> result = blobs.put(stored, stored, 16'000);
    if (!result) {
      EXPECT_EQ(result.error().code, Errc::kDeviceFull);
      break;
    }
  }
  EXPECT_EQ(pool.stats().held_bytes, 4 * kSegment);
  EXPECT_EQ(stored, 15u);  // 63 chunks each of 4 * 248
  EXPECT_EQ(pool.stats().used_chunks, 15u * 63u);
  EXPECT_TRUE(blobs.all_intact());
  blobs.drop(7);
  EXPECT_TRUE(blobs.put(7, 99, 16'000).has_value());
  EXPECT_TRUE(blobs.all_intact());
  blobs.drop_all();
}

TEST(ChunkPool, NoMemoryIsAnErrorAndHoldsNothing) {
  TestMemory memory;
  Allowance allowance(0);
  ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
  Blobs blobs(pool, 100);
  memory.set_limit(memory.bytes_in_use() + 2 * kSegment);
  ASSERT_TRUE(blobs.put(0, 0, kSegment));
  EXPECT_EQ(blobs.put(1, 1, kSegment).error().code, Errc::kNoMemory);
  EXPECT_TRUE(blobs.put(2, 2, 20'000).has_value());
  memory.set_limit(1u << 30);
  EXPECT_TRUE(blobs.put(1, 1, kSegment).has_value());
  EXPECT_TRUE(blobs.all_intact());
  blobs.drop_all();
}

TEST(ChunkPool, MemoryGoesBackWiped) {
  TestMemory memory;
  static std::size_t unwiped;
  static std::size_t segments;
  unwiped = segments = 0;
  memory.set_on_give([](const std::byte* block, std::size_t bytes) {
    if (bytes != kSegment) return;
    ++segments;
    for (std::size_t i = 0; i < SegmentLayout(kSegment).chunks() * kChunkBytes; ++i) {
      if (block[i] != std::byte{0}) ++unwiped;
    }
  });
  {
    Allowance allowance(0);
    ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
    Blobs blobs(pool, 100);
    for (std::uint32_t i = 0; i < 100; ++i) ASSERT_TRUE(blobs.put(i, i, 10'000));
    for (std::uint32_t i = 0; i < 90; ++i) blobs.drop(i);
    compact_fully(pool, blobs);
  }
  EXPECT_GT(segments, 10u);
  EXPECT_EQ(unwiped, 0u);
}

TEST(ChunkPool, DamagedLinksAreNoticed) {
  TestMemory memory;
  Allowance allowance(0);
  ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
  Blobs blobs(pool, 2);
  ASSERT_TRUE(blobs.put(0, 0, 1000).has_value());
  const SegmentLayout layout(kSegment);
  for (const TestMemory::Block& block : memory.blocks()) {
    if (block.bytes != kSegment) continue;
    std::uint32_t& link = layout.next(block.memory)[1];
    for (const std::uint32_t wrong : {ChunkPool::kNone, layout.index(9, 0), layout.index(0, layout.chunks())}) {
      const std::uint32_t right = link;
      link = wrong;
      EXPECT_FALSE(blobs.intact(0));
      link = right;
    }
  }
  EXPECT_TRUE(blobs.intact(0));
  blobs.drop_all();
}

TEST(ChunkPool, CompactionStopsWhenNothingCanBeGained) {
  TestMemory memory;
  Allowance allowance(0);
  ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
  Blobs blobs(pool, 1000);
  for (std::uint32_t i = 0; i < 1000; ++i) ASSERT_TRUE(blobs.put(i, i, 1400));
  EXPECT_FALSE(pool.should_compact());
  EXPECT_FALSE(pool.compact_step(1000, blobs).more);
  EXPECT_EQ(pool.stats().moved_chunks, 0u);
  for (std::uint32_t i = 0; i < 1000; ++i) {
    if (i % 4 != 0) blobs.drop(i);
  }
  EXPECT_TRUE(pool.should_compact());
  const ChunkPool::Step step = pool.compact_step(10, blobs);
  EXPECT_TRUE(step.more);
  EXPECT_GE(step.moved, 10u);
  EXPECT_LE(step.moved, 16u);  // whole blobs
  compact_fully(pool, blobs);
  EXPECT_FALSE(pool.should_compact());
  EXPECT_TRUE(blobs.all_intact());
  const SegmentLayout layout(kSegment);
  EXPECT_EQ(pool.stats().held_bytes / kSegment, (pool.stats().used_chunks + layout.chunks() - 1) / layout.chunks());
  blobs.drop_all();
  compact_fully(pool, blobs);
  EXPECT_EQ(pool.stats().held_bytes, 0u);
}

// A blob whose owner has not recorded it yet, or has let go of it already, is passed over, not waited for.
TEST(ChunkPool, CompactionPassesOverBlobsInMotion) {
  TestMemory memory;
  Allowance allowance(0);
  ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
  Blobs blobs(pool, 201);
  for (std::uint32_t i = 0; i < 100; ++i) ASSERT_TRUE(blobs.put(i, i, 1400));
  const std::byte byte{42};
  const ChunkPool::Part part{&byte, 1};
  const std::uint32_t head = pool.put(200, {&part, 1}).value();  // never recorded
  for (std::uint32_t i = 100; i < 200; ++i) ASSERT_TRUE(blobs.put(i, i, 1400));
  for (std::uint32_t i = 0; i < 200; i += 2) blobs.drop(i);
  for (int i = 0; i < 100; ++i) pool.compact_step(64, blobs, true);
  EXPECT_TRUE(blobs.all_intact());
  std::byte back{};
  const ChunkPool::Target target{&back, 1};
  EXPECT_TRUE(pool.get(head, {&target, 1}));
  EXPECT_EQ(back, byte);
  pool.free_chain(head);
  blobs.drop_all();
}

TEST(ChunkPool, ThreadsStoreLoadReleaseAndCompact) {
  TestMemory memory;
  const std::uint64_t seed = run_seed();
  {
    Allowance allowance(0);
    ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
    constexpr std::uint32_t kPerThread = 150;
    Blobs blobs(pool, 4 * kPerThread);
    std::atomic<bool> failed{false};
    std::atomic<int> running{4};
    std::vector<std::thread> threads;
    for (std::uint32_t t = 0; t < 4; ++t) {
      threads.emplace_back([&, t] {
        Random random(seed + t);
        for (int i = 0; i < 4000 && !failed; ++i) {
          const auto mine = static_cast<std::uint32_t>(t * kPerThread + random.below(kPerThread));
          // Mostly empty in the first half of each thousand operations, so that there is something to compact.
          const std::uint64_t fill = i % 1000 < 500 ? 20 : 80;
          if (blobs.has(mine)) {
            if (random.below(100) >= fill) blobs.drop(mine);
          } else if (random.below(100) < fill) {
            if (!blobs.put(mine, random.next(), 1 + random.below(20'000))) failed = true;
          }
          if (!blobs.intact(static_cast<std::uint32_t>(random.below(blobs.count())))) failed = true;
        }
        --running;
      });
    }
    std::thread compactor([&] {
      while (running > 0) pool.compact_step(64, blobs, true);
    });
    for (std::thread& thread : threads) thread.join();
    compactor.join();
    EXPECT_FALSE(failed);
    EXPECT_GT(pool.stats().moved_chunks, 0u);
    EXPECT_TRUE(blobs.all_intact());
    blobs.drop_all();
    EXPECT_EQ(pool.stats().used_chunks, 0u);
  }
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

TEST(ChunkPool, FrozenSegmentsAreOnlyReadAndGoBackWhenEmpty) {
  TestMemory memory;
  {
    Allowance allowance(20 * kSegment);
    ChunkPool pool(memory, allowance, {.segment_bytes = kSegment});
    Blobs blobs(pool, 400);
    for (std::uint32_t i = 0; i < 200; ++i) ASSERT_TRUE(blobs.put(i, i, 3000));
    const std::uint64_t inherited = pool.stats().held_bytes;
    std::vector<std::vector<std::byte>> before;
    const std::vector<TestMemory::Block> blocks = memory.blocks();
    for (const TestMemory::Block& block : blocks) {
      if (block.bytes == kSegment) before.emplace_back(block.memory, block.memory + block.bytes);
    }
    pool.freeze_all();
    EXPECT_EQ(pool.stats().inherited_bytes, inherited);
    for (std::uint32_t i = 0; i < 200; i += 2) blobs.drop(i);
    for (std::uint32_t i = 200; i < 400; ++i) ASSERT_TRUE(blobs.put(i, i, 3000)) << "the limit counts what is added";
    compact_fully(pool, blobs);
    EXPECT_TRUE(blobs.all_intact());
    std::size_t i = 0;
    for (const TestMemory::Block& block : blocks) {
      if (block.bytes != kSegment) continue;
      EXPECT_EQ(std::memcmp(block.memory, before[i++].data(), kSegment), 0) << "written to";
    }
    EXPECT_EQ(pool.stats().inherited_bytes, inherited) << "half of each segment is still in use";
    for (std::uint32_t k = 1; k < 200; k += 2) blobs.drop(k);
    EXPECT_EQ(pool.stats().inherited_bytes, 0u);
    EXPECT_TRUE(blobs.all_intact());
    blobs.drop_all();
    compact_fully(pool, blobs);
    EXPECT_EQ(pool.stats().held_bytes, 0u);
  }
  EXPECT_EQ(memory.bytes_in_use(), 0u);
}

// --- what storing costs ---------------------------------------------------------------------------------------------

// Sizes of compressed units as measured on two programs, by their 10th, 50th and 90th percentiles.
struct Sizes {
  std::array<std::size_t, 3> quantiles;

  [[nodiscard]] std::size_t draw(Random& random) const {
    const std::uint64_t permille = random.below(1000);
    const auto between = [&](std::size_t low, std::size_t high, std::uint64_t from, std::uint64_t to) {
      return low + (high - low) * (permille - from) / (to - from);
    };
    if (permille < 100) return between(quantiles[0] * 3 / 4, quantiles[0], 0, 100);
    if (permille < 500) return between(quantiles[0], quantiles[1], 100, 500);
    if (permille < 900) return between(quantiles[1], quantiles[2], 500, 900);
    return between(quantiles[2], quantiles[2] * 9 / 8, 900, 1000);
  }
};

struct Population {
  const char* name;
  std::uint32_t blobs;
  Sizes first, second;          // of the first program, and of the one whose data replaces it
  std::array<double, 4> bound;  // on held / payload bytes in each phase, after compaction
};

class StorageOverhead : public ::testing::TestWithParam<Population> {};

// Four moments in the life of a store: filled; after replacing everything four times over; after three quarters were
// released at random; filled again with data of other sizes and replaced twice over.
TEST_P(StorageOverhead, StaysLowInEveryPhase) {
  const Population& population = GetParam();
  TestMemory memory;
  Random random(42);
  Allowance allowance(0);
  ChunkPool pool(memory, allowance, {.segment_bytes = std::size_t{256} << 10});
  Blobs blobs(pool, population.blobs);
  const auto put = [&](std::uint32_t token, const Sizes& sizes) {
    ASSERT_TRUE(blobs.put(token, token, sizes.draw(random)));
  };
  std::array<double, 4> before{}, after{};
  const auto measure = [&](std::size_t phase) {
    const auto overhead = [&] {
      return static_cast<double>(pool.stats().held_bytes) / static_cast<double>(blobs.payload());
    };
    before[phase] = overhead();
    compact_fully(pool, blobs);
    EXPECT_LE(overhead(), population.bound[phase] * 1.125) << "left to itself, phase " << phase;
    while (pool.compact_step(1000, blobs, true).more) {
    }
    after[phase] = overhead();
    EXPECT_LE(after[phase], population.bound[phase]) << "phase " << phase;
  };
  const auto churn = [&](std::uint32_t times, const Sizes& sizes) {
    for (std::uint64_t i = 0; i < std::uint64_t{times} * population.blobs; ++i) {
      const auto token = static_cast<std::uint32_t>(random.below(population.blobs));
      blobs.drop(token);
      put(token, sizes);
    }
  };

  for (std::uint32_t i = 0; i < population.blobs; ++i) put(i, population.first);
  measure(0);
  churn(4, population.first);
  measure(1);
  const std::uint64_t moved = pool.stats().moved_chunks;
  for (std::uint32_t i = 0; i < population.blobs; ++i) {
    if (random.below(4) != 0) blobs.drop(i);
  }
  const std::uint64_t left = pool.stats().used_chunks;
  measure(2);
  EXPECT_GT(before[2], 2.0) << "without compaction this phase must be bad, or the test shows nothing";
  EXPECT_LT(pool.stats().moved_chunks - moved, left) << "moved more than everything";
  for (std::uint32_t i = 0; i < population.blobs; ++i) {
    if (!blobs.has(i)) put(i, population.second);
  }
  churn(2, population.second);
  measure(3);
  EXPECT_TRUE(blobs.all_intact());
  std::printf("%s: held/payload before compaction %.2f %.2f %.2f %.2f, after %.3f %.3f %.3f %.3f\n", population.name,
              before[0], before[1], before[2], before[3], after[0], after[1], after[2], after[3]);
  blobs.drop_all();
}

INSTANTIATE_TEST_SUITE_P(
    Units, StorageOverhead,
    ::testing::Values(
        Population{"unit4K", 12'000, {{1027, 1442, 1728}}, {{400, 690, 1000}}, {1.15, 1.15, 1.15, 1.25}},
        Population{"unit16K", 4'000, {{4000, 4980, 5800}}, {{1700, 2490, 3300}}, {1.08, 1.08, 1.08, 1.11}},
        Population{"unit64K", 3'000, {{14'348, 17'852, 21'069}}, {{6500, 9230, 12'000}}, {1.06, 1.06, 1.06, 1.07}}),
    [](const auto& test) { return test.param.name; });

}  // namespace
}  // namespace whimbrel::testing
