// The policy and the windows, on recorded events and made-up memory.
#include <gtest/gtest.h>

#include <random>
#include <set>

#include "mm/heap_source.h"
#include "pager/control_block.h"
#include "pager/second_chance.h"
#include "pager/streams.h"

namespace whimbrel {
namespace {

PageRange pages(std::uint64_t first, std::uint64_t count) { return {PageIndex(first), PageCount(count)}; }

// A set of resident pages as a view, one mapping per 1 Mi pages.
class FakeView final : public ResidentView {
 public:
  bool next(PageIndex from, Clump* out) noexcept override {
    auto at = resident.lower_bound(from.raw());
    if (at == resident.end()) return false;
    const std::uint64_t end = (*at / kClumpPages + 1) * kClumpPages;
    *out = Clump();
    out->mapping = *at >> 20;
    out->range.first = PageIndex(*at);
    std::uint64_t last = *at, runs = 0;
    for (std::uint64_t previous = ~0ull - 1; at != resident.end() && *at < end; ++at) {
      ++out->present;
      if (*at != previous + 1) ++runs;
      previous = last = *at;
    }
    out->runs = static_cast<std::uint32_t>(runs);
    out->range.count = PageCount(last + 1 - out->range.first.raw());
    return true;
  }
  std::uint64_t evict(PageRange range) {
    std::uint64_t n = 0;
    for (auto at = resident.lower_bound(range.first.raw()); at != resident.end() && *at < range.end().raw(); ++n) {
      at = resident.erase(at);
    }
    return n;
  }
  std::set<std::uint64_t> resident;
};

struct Cache {
  explicit Cache(std::uint64_t capacity_in) : policy(source, 4096), capacity(capacity_in) {
    policy.set_capacity(PageCount(capacity));
  }
  // A touch: a miss makes room and brings the page in.
  void touch(std::uint64_t page) {
    ++touches;
    if (view.resident.contains(page)) return;
    ++misses;
    while (view.resident.size() >= capacity) make_room();
    view.resident.insert(page);
    policy.arrived(pages(page, 1), known.insert(page).second ? Arrival::kFresh : Arrival::kTouched);
  }
  void make_room() {
    PageRange victim;
    for (int i = 0; i < 1000; ++i) {
      const auto choice = policy.choose(view, PageCount(64), &victim);
      ASSERT_NE(choice, EvictionPolicy::Choice::kNothing) << "there are resident pages";
      if (choice != EvictionPolicy::Choice::kVictim) continue;
      ASSERT_EQ(victim.first.huge_base(), (victim.end() - PageCount(1)).huge_base());
      const std::uint64_t gone = view.evict(victim);
      ASSERT_GT(gone, 0u);
      policy.left(victim, PageCount(gone), Departure::kEvicted);
      return;
    }
    FAIL() << "the policy names no victim";
  }
  HeapSource source;
  SecondChance policy;
  FakeView view;
  std::uint64_t capacity;
  std::set<std::uint64_t> known;
  std::uint64_t touches = 0, misses = 0;
};

TEST(SecondChance, FindsNothingInEmptyMemory) {
  HeapSource source;
  SecondChance policy(source, 64);
  FakeView view;
  PageRange victim;
  int looks = 0;
  while (policy.choose(view, PageCount(64), &victim) == EvictionPolicy::Choice::kCameRound) ASSERT_LT(++looks, 10);
  EXPECT_EQ(policy.choose(view, PageCount(64), &victim), EvictionPolicy::Choice::kCameRound) << "and asks again later";
}

TEST(SecondChance, TakesNeighboursTogether) {
  HeapSource source;
  SecondChance policy(source, 64);
  FakeView view;
  for (std::uint64_t p = 512; p < 512 + 300; ++p) view.resident.insert(p);
  PageRange victim;
  ASSERT_EQ(policy.choose(view, PageCount(256), &victim), EvictionPolicy::Choice::kVictim);
  EXPECT_EQ(victim, pages(512, 256));
}

TEST(SecondChance, AStreamThrowsOutWhatItReadFirst) {
  Cache cache(2048);
  for (std::uint64_t p = 0; p < 2048; ++p) cache.touch(p);
  for (std::uint64_t p = 2048; p < 2048 + 64; ++p) cache.touch(p);
  EXPECT_FALSE(cache.view.resident.contains(0));
  EXPECT_TRUE(cache.view.resident.contains(1024));
  EXPECT_TRUE(cache.view.resident.contains(2048));
}

// The pattern: a hot set that is walked between the steps of a stream that never repeats.
template <class Touch>
void hot_set_and_stream(std::uint64_t hot, std::uint64_t step, int rounds, Touch touch) {
  std::uint64_t cold = 100'000;
  for (int round = 0; round < rounds; ++round) {
    for (std::uint64_t p = 0; p < hot; ++p) touch(p);
    for (std::uint64_t i = 0; i < step; ++i) touch(cold++);
  }
}

TEST(SecondChance, PagesThatAlwaysComeBackEarnTurns) {
  constexpr std::uint64_t kCapacity = 1280, kHot = 512, kStep = 640;
  std::uint64_t fifo_misses = 0;
  std::set<std::uint64_t> in;
  std::vector<std::uint64_t> order;
  std::size_t oldest = 0;
  hot_set_and_stream(kHot, kStep, 60, [&](std::uint64_t page) {
    if (!in.insert(page).second) return;
    order.push_back(page);
    if (page < kHot) ++fifo_misses;
    if (in.size() > kCapacity) in.erase(order[oldest++]);
  });
  Cache cache(kCapacity);
  std::uint64_t misses = 0;
  hot_set_and_stream(kHot, kStep, 60, [&](std::uint64_t page) {
    const std::uint64_t before = cache.misses;
    cache.touch(page);
    if (page < kHot) misses += cache.misses - before;
  });
  EXPECT_LT(misses * 3, fifo_misses * 2) << "first in, first out misses the hot set " << fifo_misses << " times";
}

TEST(SecondChance, LonePagesGoInTheEnd) {
  Cache cache(4096);
  for (std::uint64_t i = 0; i < 512; ++i) cache.touch(i * 64 * 3);  // one page per clump
  for (std::uint64_t i = 0; i < 100'000; ++i) cache.touch(1'000'000 + i);
  std::uint64_t left = 0;
  for (std::uint64_t i = 0; i < 512; ++i) left += cache.view.resident.contains(i * 64 * 3) ? 1 : 0;
  EXPECT_EQ(left, 0u) << "cold pages that lie alone must not stay for ever";
}

TEST(SecondChance, SurvivesAnythingThatCanHappen) {
  for (unsigned seed = 1; seed <= 20; ++seed) {
    Cache cache(512);
    std::mt19937_64 random(seed);
    for (int i = 0; i < 20'000; ++i) {
      cache.touch(random() % 4096);
      if (random() % 500 == 0) {
        const PageRange range = pages(random() % 4096, random() % 1024);
        cache.view.evict(range);
        cache.policy.left(range, range.count, Departure::kDropped);
      }
      if (random() % 5000 == 0) cache.policy.reset();
      ASSERT_LE(cache.view.resident.size(), cache.capacity);
    }
  }
}

// ---- windows ----

constexpr Streams::Ladder kLadder{{1, 8, 16, 64, 64}};

TEST(Streams, ASequentialReaderClimbsTheLadder) {
  Streams streams(kLadder);
  std::uint64_t page = 1000;
  std::vector<std::uint64_t> sizes;
  for (int i = 0; i < 6; ++i) {
    const Streams::Window window = streams.touch(PageIndex(page), PageCount(64));
    EXPECT_EQ(window.range.first, PageIndex(page));
    sizes.push_back(window.range.count.raw());
    streams.brought(window, window.range);
    page = window.range.end().raw();
  }
  EXPECT_EQ(sizes, (std::vector<std::uint64_t>{1, 8, 16, 64, 64, 64}));
}

TEST(Streams, ALongStreamIsOfferedWholeUnits) {
  Streams streams(Streams::Ladder{{1, 8, 16, 64, kPagesPerHuge}});
  std::uint64_t page = 1000;
  std::uint64_t largest = 0;
  for (int i = 0; i < 12; ++i) {
    const Streams::Window window = streams.touch(PageIndex(page), PageCount(kPagesPerHuge));
    largest = std::max(largest, window.range.count.raw());
    // Small pages up to the next border, as where no huge page is to be had.
    const PageIndex border = PageIndex(page).huge_base() + PageCount(kPagesPerHuge);
    const PageRange brought = window.range.intersect(PageRange::between(PageIndex(page), std::min(border, PageIndex(page + 64))));
    streams.brought(window, brought);
    page = brought.end().raw();
  }
  EXPECT_EQ(largest, kPagesPerHuge);
  EXPECT_EQ(streams.touch(PageIndex(page), PageCount(100)).range.count.raw(), 100u) << "never more than allowed";
}

TEST(Streams, ADescendingReaderIsFollowedDownwards) {
  Streams streams(kLadder);
  std::uint64_t page = 5000;
  for (std::uint64_t expected : {1, 8, 16, 64}) {
    const Streams::Window window = streams.touch(PageIndex(page), PageCount(64));
    EXPECT_EQ(window.range.count.raw(), expected);
    EXPECT_EQ(window.range.end(), PageIndex(page + 1)) << "the page touched is the highest";
    streams.brought(window, window.range);
    page = window.range.first.raw() - 1;
  }
}

TEST(Streams, LoneTouchesGetLonePages) {
  Streams streams(kLadder);
  std::mt19937_64 random(7);
  std::uint64_t brought = 0;
  for (int i = 0; i < 1000; ++i)
    brought += streams.touch(PageIndex(random() % (1u << 30)), PageCount(64)).range.count.raw();
  EXPECT_EQ(brought, 1000u);
  EXPECT_EQ(streams.take_verdict().waste_pages, 0u);
}

TEST(Streams, SeveralStreamsAtATimeEachKeepTheirWindow) {
  Streams streams(kLadder);
  std::uint64_t at[6] = {0, 100'000, 200'000, 300'000, 400'000, 500'000};
  for (int round = 0; round < 8; ++round) {
    for (std::uint64_t& page : at) {
      const Streams::Window window = streams.touch(PageIndex(page), PageCount(64));
      if (round >= 3) {
        EXPECT_EQ(window.range.count.raw(), 64u);
      }
      page = window.range.end().raw();
    }
  }
}

TEST(Streams, NeverMoreThanAllowed) {
  Streams streams(kLadder);
  std::uint64_t page = 0;
  for (int i = 0; i < 8; ++i) {
    const Streams::Window window = streams.touch(PageIndex(page), PageCount(5));
    EXPECT_LE(window.range.count.raw(), 5u);
    page = window.range.end().raw();
  }
  EXPECT_EQ(streams.touch(PageIndex(1u << 20), PageCount(0)).range.count.raw(), 1u) << "the page itself always";
}

TEST(Streams, StopsAtTheBottomOfTheAddressSpace) {
  Streams streams(kLadder);
  (void)streams.touch(PageIndex(20), PageCount(64));
  (void)streams.touch(PageIndex(19), PageCount(64));
  const Streams::Window window = streams.touch(PageIndex(11), PageCount(64));
  EXPECT_TRUE(window.range.contains(PageIndex(11)));
}

TEST(Streams, WasteKeepsWindowsShort) {
  // Three pages in a row at random places: each looks like a stream and never is one.
  Streams streams(kLadder);
  std::mt19937_64 random(3);
  std::uint64_t early = 0, late = 0;
  for (int i = 0; i < 400; ++i) {
    std::uint64_t page = (random() % (1u << 24)) * 1024;
    for (int step = 0; step < 4; ++step) {
      const Streams::Window window = streams.touch(PageIndex(page), PageCount(64));
      (i < 10 ? early : late) = std::max(i < 10 ? early : late, window.range.count.raw());
      if (i < 200) late = 0;
      page = window.range.end().raw();
      if (step == 1) break;
    }
  }
  EXPECT_LE(late, 8u);
  EXPECT_GT(streams.take_verdict().waste_pages, 1000u);
  // And a true stream is recognised again.
  std::uint64_t page = std::uint64_t{1} << 40, longest = 0;
  for (int i = 0; i < 60; ++i) {
    const Streams::Window window = streams.touch(PageIndex(page), PageCount(64));
    longest = std::max(longest, window.range.count.raw());
    page = window.range.end().raw();
  }
  EXPECT_EQ(longest, 64u);
}

TEST(Streams, CountsWindowsThatWereWalkedToTheEnd) {
  Streams streams(kLadder);
  std::uint64_t page = 1000;
  for (int i = 0; i < 5; ++i) page = streams.touch(PageIndex(page), PageCount(64)).range.end().raw();
  EXPECT_EQ(streams.take_verdict().hits, 3u);  // windows 8, 16 and 64; the one still open is not judged
}

// ---- control blocks ----

alignas(kPageSize) std::byte page_bytes[kPageSize];
std::uint64_t* words() { return reinterpret_cast<std::uint64_t*>(page_bytes); }

TEST(ControlBlock, IsRecognisedByItsOwnAddressAtAnyPlaceOnThePage) {
  const PageIndex home(0x7f1234567);
  for (std::size_t at = 0; at < kPageSize; at += 64) {
    std::fill(std::begin(page_bytes), std::end(page_bytes), std::byte{0xab});
    EXPECT_FALSE(holds_control_block(page_bytes, home));
    words()[at / 8] = home.address().raw() + at;
    EXPECT_FALSE(holds_control_block(page_bytes, home)) << "one self pointer is any list head";
    words()[at / 8 + 2] = home.address().raw() + at;
    EXPECT_TRUE(holds_control_block(page_bytes, home)) << at;
    EXPECT_FALSE(holds_control_block(page_bytes, home + PageCount(1))) << "its home counts, not where it is staged";
  }
}

TEST(ControlBlock, ThisThreadsOwnBlockIsRecognised) {
  const auto self = reinterpret_cast<std::uint64_t>(__builtin_thread_pointer());
  const PageIndex home = PageIndex::of(VirtualAddress(self));
  EXPECT_TRUE(holds_control_block(reinterpret_cast<const std::byte*>(home.address().raw()), home));
}

TEST(ControlBlock, StaticThreadLocalStorageStaysWithIt) {
  const PageRange kept = kept_with_control_block(PageIndex(1000));
  EXPECT_EQ(kept, pages(984, 18));
  EXPECT_EQ(kept_with_control_block(PageIndex(3)).first, PageIndex(0));
}

TEST(ControlBlock, AnArenaHeapIsRecognisedByThePointerBehindItself) {
  const PageIndex home = PageIndex::of(VirtualAddress(5 * kArenaAlignment));
  std::fill(std::begin(page_bytes), std::end(page_bytes), std::byte{0});
  EXPECT_FALSE(holds_arena_header(page_bytes, home));
  words()[0] = home.address().raw() + 0x30;
  EXPECT_TRUE(holds_arena_header(page_bytes, home));
  EXPECT_FALSE(holds_arena_header(page_bytes, home + PageCount(1)));
  words()[0] = home.address().raw() - 0x1000;  // the second heap of an arena points back to the first
  EXPECT_FALSE(holds_arena_header(page_bytes, home));
}

}  // namespace
}  // namespace whimbrel
