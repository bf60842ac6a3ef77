// Filling, protecting, poisoning, dropping and reading pages on the real kernel.
#include <csignal>

#include "linux/mmu_fixture_test.h"

namespace whimbrel {
namespace {

using test::Memory;
using test::Watched;

class MmuPages : public test::MmuTest {
 protected:
  void SetUp() override {
    MmuTest::SetUp();
    std::memset(source_.data(), 0x42, source_.size());
  }
  Progress copy(PageIndex to, std::size_t pages, bool write_protected = false) {
    return settled([&] { return mmu().copy(to, source_.data(), PageCount(pages), Wake::kYes, write_protected); });
  }
  std::vector<std::byte> source_ = std::vector<std::byte>(8 * kPageSize);
};

TEST_F(MmuPages, CopyFillsEmptySlotsOnly) {
  Memory home(8);
  home.fill(5, 1);
  const Watched watched(mmu(), home.range());
  EXPECT_STOPPED(copy(home.page(0), 8), 5, kExists);
  EXPECT_TRUE(Memory::holds(home.at(4), 0x42));
  EXPECT_TRUE(Memory::holds(home.at(5), Memory::mark(5)));
  EXPECT_COMPLETE(copy(home.page(6), 2), 2);
}

TEST_F(MmuPages, CopyRefusesWhatIsNotWatched) {
  Memory home(8);
  EXPECT_STOPPED(copy(home.page(0), 8), 0, kNotFound);
  EXPECT_STOPPED(copy(PageIndex(16), 1), 0, kNotFound);
}

TEST_F(MmuPages, CopyAcrossTheEndOfAMappingDoesNothing) {
  Memory home(8);
  ASSERT_EQ(madvise(home.at(4), 4 * kPageSize, MADV_DONTFORK), 0);
  const Watched watched(mmu(), home.range());
  EXPECT_STOPPED(copy(home.page(0), 8), 0, kNotFound);
  EXPECT_COMPLETE(copy(home.page(0), 4), 4);
  EXPECT_COMPLETE(copy(home.page(4), 4), 4);
}

TEST_F(MmuPages, CopyFromAnUnreadableBufferIsAFault) {
  Memory home(2);
  Memory buffer(2, PROT_NONE);
  const Watched watched(mmu(), home.range());
  const Progress progress = mmu().copy(home.page(0), buffer.at(0), PageCount(2), Wake::kYes);
  EXPECT_STOPPED(progress, 0, kFault);
}

TEST_F(MmuPages, CopyFillsReadOnlyAndInaccessibleHomes) {
  for (const int protection : {PROT_READ, PROT_NONE}) {
    Memory home(2);
    ASSERT_EQ(mprotect(home.at(0), home.bytes(), protection), 0);
    const Watched watched(mmu(), home.range());
    EXPECT_COMPLETE(copy(home.page(0), 2), 2);
    ASSERT_EQ(mprotect(home.at(0), home.bytes(), PROT_READ), 0);
    EXPECT_TRUE(Memory::holds(home.at(1), 0x42));
  }
}

TEST_F(MmuPages, ZeroMapsTheZeroPage) {
  Memory home(8);
  home.fill(6, 1);
  const Watched watched(mmu(), home.range());
  EXPECT_STOPPED(mmu().zero(home.page(0), PageCount(8), Wake::kYes), 6, kExists);
  EXPECT_TRUE(Memory::holds(home.at(0), 0));
  PageRun run;
  const Result<std::size_t> runs = mmu().scan(home.range(0, 6), {&run, 1}, nullptr);
  ASSERT_TRUE(runs && *runs == 1);
  EXPECT_TRUE(run.kind & PageRun::kZero);
}

TEST_F(MmuPages, SleeperWakesOnlyWhenTold) {
  Memory home(1);
  const Watched watched(mmu(), home.range());
  std::atomic<int> seen{-1};
  std::thread reader([&] { seen = std::to_integer<int>(*const_cast<volatile std::byte*>(home.at(0))); });
  EXPECT_EQ(next_message().range, home.range());
  EXPECT_COMPLETE(mmu().copy(home.page(0), source_.data(), PageCount(1), Wake::kNo), 1);
  std::this_thread::sleep_for(std::chrono::milliseconds(20));
  EXPECT_EQ(seen.load(), -1);
  mmu().wake(home.range());
  reader.join();
  EXPECT_EQ(seen.load(), 0x42);
}

TEST_F(MmuPages, WriteToAProtectedPageIsAMessage) {
  if (!mmu().abilities().write_protect) GTEST_SKIP() << "this kernel has no write-protect faults";
  Memory home(4);
  home.fill(0, 2);
  const Watched watched(mmu(), home.range());
  ASSERT_TRUE(mmu().write_protect(home.range(0, 2), true, Wake::kNo));
  EXPECT_COMPLETE(copy(home.page(2), 2, true), 2);
  for (const std::size_t page : {1u, 3u}) {
    SCOPED_TRACE(page);
    std::thread writer([&] { *const_cast<volatile std::byte*>(home.at(page) + 77) = std::byte{0xee}; });
    const Message message = next_message();
    EXPECT_EQ(message.kind, Message::Kind::kFault);
    EXPECT_TRUE(message.write_protect);
    EXPECT_TRUE(message.write);
    EXPECT_EQ(message.address, VirtualAddress(home.at(page) + 77));
    std::byte now[kPageSize];
    ASSERT_TRUE(mmu().read_program(home.page(page), now));
    EXPECT_NE(now[77], std::byte{0xee});
    ASSERT_TRUE(mmu().write_protect(home.range(page, 1), false, Wake::kYes));
    writer.join();
    EXPECT_EQ(home.at(page)[77], std::byte{0xee});
  }
}

TEST_F(MmuPages, WriteProtectingWhatIsNotWatchedIsRefused) {
  Memory home(2);
  home.fill(0, 2);
  EXPECT_REFUSED(mmu().write_protect(home.range(), true, Wake::kNo), kNotFound);
}

TEST_F(MmuPages, ProtectingASpanLeavesItsHolesAlone) {
  // A marker in an empty slot would block the page's way home.
  if (!mmu().abilities().write_protect) GTEST_SKIP() << "this kernel has no write-protect faults";
  Memory home(4);
  home.fill(0, 4);
  const PageRange frames = window(1);
  const Watched watched(mmu(), home.range());
  EXPECT_COMPLETE(move(frames.first, home.page(2), 1), 1);
  ASSERT_TRUE(mmu().write_protect(home.range(), true, Wake::kNo));
  EXPECT_COMPLETE(move(home.page(2), frames.first, 1), 1);
  ASSERT_TRUE(mmu().write_protect(home.range(), false, Wake::kYes));
  mmu().close_window(frames);
}

TEST_F(MmuPages, PoisonGivesSigbusUntilItIsDropped) {
  if (!mmu().abilities().poison) GTEST_SKIP() << "this kernel has no UFFDIO_POISON";
  Memory home(2);
  {
    const Watched watched(mmu(), home.range());
    ASSERT_TRUE(mmu().poison(home.range(1, 1)));
    EXPECT_REFUSED(mmu().poison(home.range(1, 1)), kExists);
  }
  const auto touch = [&] {
    return test::in_child([&] {
      signal(SIGBUS, SIG_DFL);
      return std::to_integer<int>(*const_cast<volatile std::byte*>(home.at(1)));
    });
  };
  EXPECT_EQ(touch(), -SIGBUS);
  ASSERT_TRUE(mmu().discard(home.range(1, 1)));
  EXPECT_EQ(touch(), 0);
}

TEST_F(MmuPages, DiscardDropsAndSaysWhatIsNotMapped) {
  Memory home(8);
  home.fill(0, 8);
  ASSERT_TRUE(mmu().discard(home.range(2, 3)));
  EXPECT_TRUE(Memory::holds(home.at(4), 0));
  EXPECT_TRUE(Memory::holds(home.at(5), Memory::mark(5)));
  munmap(home.at(5), kPageSize);
  EXPECT_REFUSED(mmu().discard(home.range(4, 4)), kNotFound);
  EXPECT_TRUE(Memory::holds(home.at(7), 0)) << "the mapped part is dropped all the same";
}

TEST_F(MmuPages, ManyScatteredRangesGoInOneCall) {
  constexpr std::size_t kPages = 1000;
  Memory home(kPages);
  home.fill(0, kPages);
  std::vector<PageRange> ranges;
  for (std::size_t i = 0; i < kPages; i += 3) ranges.push_back(home.range(i, 1 + i % 2));
  ASSERT_TRUE(mmu().discard_many(ranges));
  for (std::size_t i = 0; i < kPages; ++i) {
    const bool dropped = i % 3 == 0 || (i % 3 == 1 && (i - 1) % 2 == 1);
    ASSERT_TRUE(Memory::holds(home.at(i), dropped ? 0 : Memory::mark(i))) << i;
  }
}

TEST_F(MmuPages, ManyRangesWithAGapSayNotFoundAfterDroppingWhatComesBefore) {
  Memory home(600);
  home.fill(0, 600);
  std::vector<PageRange> ranges;
  for (std::size_t i = 0; i < 600; i += 2) ranges.push_back(home.range(i, 1));
  munmap(home.at(400), kPageSize);
  EXPECT_REFUSED(mmu().discard_many(ranges), kNotFound);
  for (std::size_t i = 0; i < 400; i += 2) ASSERT_TRUE(Memory::holds(home.at(i), 0)) << i;
}

TEST_F(MmuPages, PopulateFaultsPagesIn) {
  Memory home(8);
  ASSERT_TRUE(mmu().populate(home.range(), true));
  PageRun run;
  const Result<std::size_t> runs = mmu().scan(home.range(), {&run, 1}, nullptr);
  ASSERT_TRUE(runs && *runs == 1);
  EXPECT_EQ(run.range, home.range());
  EXPECT_REFUSED(mmu().populate({PageIndex(16), PageCount(1)}, false), kNotFound);
  Memory read_only(2, PROT_READ);
  EXPECT_REFUSED(mmu().populate(read_only.range(), true), kInvalid);
}

TEST_F(MmuPages, ReadsTheProgramWithoutWaitingForPagesThatAreAway) {
  Memory home(4);
  home.fill(0, 4);
  const PageRange frames = window(1);
  const Watched watched(mmu(), home.range());
  EXPECT_COMPLETE(move(frames.first, home.page(2), 1), 1);
  alignas(8) std::byte out[kPageSize];
  ASSERT_TRUE(mmu().read_program(home.page(1), out));
  EXPECT_TRUE(Memory::holds(out, Memory::mark(1)));
  EXPECT_REFUSED(mmu().read_program(home.page(2), out), kNotFound);  // nobody serves: waiting would hang
  EXPECT_REFUSED(mmu().read_program(PageIndex(16), out), kNotFound);
  EXPECT_COMPLETE(move(home.page(2), frames.first, 1), 1);
  mmu().close_window(frames);
}

TEST_F(MmuPages, WindowsAreEmptySeparateAndReusable) {
  const PageRange a = window(3);
  const PageRange b = window(512);
  const PageRange c = window(513, WindowKind::kHuge);
  EXPECT_FALSE(a.overlaps(b) || b.overlaps(c) || a.overlaps(c));
  for (const PageRange& w : {a, b, c}) {
    EXPECT_TRUE(mmu().window_range().contains(w));
    const Result<Mapping> mapping = mmu().mapping_at_or_above(w.first);
    ASSERT_TRUE(mapping);
    EXPECT_EQ(mapping->range, w) << "a mapping of its own, merged with nothing";
    std::memset(window_bytes(w, 0), 1, w.count.bytes());
  }
  mmu().close_window(b);
  const PageRange again = window(500);
  EXPECT_EQ(again.first, b.first);
  EXPECT_TRUE(Memory::holds(window_bytes(again, 499), 0));
  EXPECT_REFUSED(mmu().open_window(mmu().window_range().count, WindowKind::kSmall), kNoMemory);
  EXPECT_REFUSED(mmu().open_window(PageCount(0), WindowKind::kSmall), kInvalid);
}

}  // namespace
}  // namespace whimbrel
