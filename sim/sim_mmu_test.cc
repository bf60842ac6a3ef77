// What the simulated kernel must do because the real one was seen to do it: moving, filling, refusing.
#include "sim/sim_mmu.h"

#include <gtest/gtest.h>

#include <array>
#include <cstring>

namespace whimbrel::sim {
namespace {

constexpr PageIndex kHome{0x10000};  // 2 MiB aligned
constexpr PageCount kOne{1};

class SimMmuTest : public ::testing::Test {
 protected:
  void SetUp() override {
    map({kHome, PageCount(64)});
    window_ = *mmu_.open_window(PageCount(64), WindowKind::kSmall);
    huge_window_ = *mmu_.open_window(PageCount(2 * kPagesPerHuge), WindowKind::kHuge);
  }
  void TearDown() override { mmu_.space().check_invariants(); }

  void map(PageRange range, std::uint32_t more = 0, std::uint32_t less = 0) {
    Vma vma;
    vma.range = range;
    vma.attributes = (vma.attributes | more) & ~less;
    ASSERT_TRUE(mmu_.space().map(vma).has_value());
  }
  // A mapping of its own for one kind of memory.
  PageIndex special(std::uint32_t more, std::uint32_t less = 0) {
    next_ = next_ + PageCount(4);
    map({next_, kOne}, more, less & ~Mapping::kWritable);
    if ((more & Mapping::kShared) == 0 && (less & Mapping::kReadable) == 0) fill(next_, 'x');
    Vma* vma = mmu_.space().find(next_);
    vma->attributes &= ~less;
    return next_;
  }
  void fill(PageIndex page, char value) {
    ASSERT_EQ(mmu_.space().access(page, true), Access::kDone);
    std::array<char, kPageSize> bytes;
    bytes.fill(value);
    mmu_.space().poke(page, 0, bytes.data(), kPageSize);
  }
  int byte(PageIndex page) {
    char value = 0;
    mmu_.space().peek(page, 17, &value, 1);
    return value;
  }
  // A huge page at kHuge with `value` in its page `written`.
  PageIndex make_huge(std::uint64_t written = 3, char value = 'h') {
    const PageIndex base{0x40000};
    map({base, PageCount(kPagesPerHuge)}, Mapping::kHugeAdvised);
    fill(base + PageCount(written), value);
    EXPECT_TRUE(mmu_.space().is_huge(base));
    return base;
  }
  static void expect_failed(const Progress& progress, Errc error, std::uint64_t done = 0) {
    EXPECT_TRUE(progress.failed);
    EXPECT_STREQ(errc_name(progress.error.code), errc_name(error));
    EXPECT_EQ(progress.done.raw(), done);
  }
  static void expect_done(const Progress& progress, std::uint64_t done = 1) {
    EXPECT_FALSE(progress.failed) << errc_name(progress.error.code);
    EXPECT_EQ(progress.done.raw(), done);
  }

  SimMmu mmu_{SimMmu::Options{}};
  PageRange window_;
  PageRange huge_window_;
  PageIndex next_{0x80000};
};

TEST_F(SimMmuTest, MoveTakesThePageAndLeavesNothing) {
  fill(kHome, 'a');
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
  EXPECT_TRUE(mmu_.space().slot(kHome).is_empty());
  EXPECT_EQ(static_cast<char>(mmu_.bytes(window_.first)[17]), 'a');
}

TEST_F(SimMmuTest, SourceNeedsNoWatchingDestinationDoes) {
  fill(kHome, 'a');
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
  expect_failed(mmu_.move(kHome, window_.first, kOne, Wake::kNo), Errc::kInvalid);
  ASSERT_TRUE(mmu_.watch({kHome, PageCount(64)}).has_value());
  expect_done(mmu_.move(kHome, window_.first, kOne, Wake::kNo));
  EXPECT_EQ(byte(kHome), 'a');
  EXPECT_EQ(static_cast<char>(mmu_.bytes(window_.first)[17]), 0);  // a stale pointer sees nothing
}

TEST_F(SimMmuTest, MoveRefusesMemoryOfOtherKinds) {
  const auto move = [&](PageIndex from) { return mmu_.move(window_.first, from, kOne, Wake::kNo); };
  expect_failed(move(special(0, Mapping::kWritable)), Errc::kInvalid);
  expect_failed(move(special(0, Mapping::kWritable | Mapping::kReadable)), Errc::kInvalid);
  expect_failed(move(special(Mapping::kExecutable)), Errc::kInvalid);
  expect_failed(move(special(Mapping::kFileBacked)), Errc::kInvalid);
  expect_failed(move(special(Mapping::kShared)), Errc::kInvalid);
  expect_failed(move(special(Mapping::kHugetlb)), Errc::kInvalid);
  expect_failed(move(special(Mapping::kLocked)), Errc::kInvalid);
  expect_failed(mmu_.move(window_.first, PageIndex(0x99999), kOne, Wake::kNo), Errc::kNotFound);
  expect_failed(mmu_.move(window_.first, kHome, PageCount(0), Wake::kNo), Errc::kInvalid);
}

TEST_F(SimMmuTest, FlagsThatNeedNotAgree) {
  PageIndex to = window_.first;
  for (const std::uint32_t flag : {Mapping::kHugeAdvised, Mapping::kNoHuge, Mapping::kDontFork, Mapping::kWipeOnFork}) {
    expect_done(mmu_.move(to, special(flag), kOne, Wake::kNo));
    ++to;
  }
}

TEST_F(SimMmuTest, ZeroSwappedAndLazilyFreedPagesMove) {
  ASSERT_EQ(mmu_.space().access(kHome, false), Access::kDone);
  ASSERT_EQ(mmu_.space().slot(kHome).kind, Slot::Kind::kZeroPage);
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
  fill(kHome + kOne, 's');
  ASSERT_TRUE(mmu_.space().swap_out(kHome + kOne).has_value());
  expect_done(mmu_.move(window_.first + kOne, kHome + kOne, kOne, Wake::kNo));
  EXPECT_EQ(mmu_.space().slot(window_.first + kOne).kind, Slot::Kind::kSwapped);
  fill(kHome + PageCount(2), 'f');
  mmu_.space().lazy_free({kHome + PageCount(2), kOne});
  const PageIndex staged = window_.first + PageCount(2);
  expect_done(mmu_.move(staged, kHome + PageCount(2), kOne, Wake::kNo));
  EXPECT_EQ(static_cast<char>(mmu_.bytes(staged)[17]), 'f');
  mmu_.reclaim({staged, kOne});  // still clean: it may vanish in the window too
  EXPECT_EQ(static_cast<char>(mmu_.bytes(staged)[17]), 0);
}

TEST_F(SimMmuTest, SharedAfterForkIsBusyUntilThisProcessWrites) {
  fill(kHome, 'c');
  auto child = mmu_.fork();
  const auto move = [&] { return mmu_.move(window_.first, kHome, kOne, Wake::kNo); };
  expect_failed(move(), Errc::kBusy);
  ASSERT_EQ(mmu_.space().access(kHome, false), Access::kDone);
  expect_failed(move(), Errc::kBusy);
  ASSERT_EQ(child->access(kHome, true), Access::kDone);  // the child's write gives the child a copy
  expect_failed(move(), Errc::kBusy);
  child.reset();  // and its end changes nothing either
  expect_failed(move(), Errc::kBusy);
  ASSERT_TRUE(mmu_.populate({kHome, kOne}, true).has_value());
  expect_done(move());
  EXPECT_EQ(static_cast<char>(mmu_.bytes(window_.first)[17]), 'c');
}

TEST_F(SimMmuTest, ForkIsolatesContents) {
  fill(kHome, 'c');
  auto child = mmu_.fork();
  fill(kHome, 'p');
  char seen = 0;
  child->peek(kHome, 0, &seen, 1);
  EXPECT_EQ(seen, 'c');
  EXPECT_EQ(byte(kHome), 'p');
  child->check_invariants();
}

TEST_F(SimMmuTest, StagedFramesAreSharedAfterForkToo) {
  fill(kHome, 's');
  ASSERT_TRUE(mmu_.watch({kHome, PageCount(64)}).has_value());
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
  auto child = mmu_.fork();
  EXPECT_EQ(child->access(kHome, false), Access::kDone);  // the child is not watched: silently zero
  expect_failed(mmu_.move(kHome, window_.first, kOne, Wake::kNo), Errc::kBusy);
  expect_done(mmu_.copy(kHome, mmu_.bytes(window_.first), kOne, Wake::kNo));
  EXPECT_EQ(byte(kHome), 's');
}

TEST_F(SimMmuTest, MergedPagesAreBusyUntilWritten) {
  fill(kHome, 'k');
  fill(kHome + kOne, 'k');
  ASSERT_TRUE(mmu_.space().merge(kHome, kHome + kOne));
  expect_failed(mmu_.move(window_.first, kHome, kOne, Wake::kNo), Errc::kBusy);
  ASSERT_TRUE(mmu_.populate({kHome, kOne}, true).has_value());
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
}

TEST_F(SimMmuTest, PinnedPageStopsARunAndIsBusy) {
  for (std::uint64_t i = 0; i < 4; ++i) fill(kHome + PageCount(i), 'p');
  ASSERT_TRUE(mmu_.pin(kHome + PageCount(2)));
  expect_failed(mmu_.move(window_.first, kHome, PageCount(4), Wake::kNo), Errc::kBusy, 2);
  mmu_.unpin(kHome + PageCount(2));
  expect_done(mmu_.move(window_.first + PageCount(2), kHome + PageCount(2), PageCount(2), Wake::kNo), 2);
}

TEST_F(SimMmuTest, PlainReferencesDoNotHinderAndSeeRefilledFrames) {
  fill(kHome, 'A');
  fill(kHome + kOne, 'A');
  const FramePtr refilled = mmu_.hold(kHome);
  const FramePtr freed = mmu_.hold(kHome + kOne);
  expect_done(mmu_.move(window_.first, kHome, PageCount(2), Wake::kNo), 2);
  std::memset(mmu_.bytes(window_.first), 'B', kPageSize);
  ASSERT_TRUE(mmu_.discard({window_.first + kOne, kOne}).has_value());
  char seen = 0;
  refilled->read(0, &seen, 1);
  EXPECT_EQ(seen, 'B');  // the corruption that refilling causes
  freed->read(0, &seen, 1);
  EXPECT_EQ(seen, 'A');
}

TEST_F(SimMmuTest, HolesMarkersAndOccupiedDestinations) {
  ASSERT_TRUE(mmu_.watch({kHome, PageCount(64)}).has_value());
  expect_failed(mmu_.move(window_.first, kHome, kOne, Wake::kNo), Errc::kNotFound);
  std::array<std::byte, kPageSize> page{};
  expect_done(mmu_.copy(kHome, page.data(), kOne, Wake::kNo));
  expect_failed(mmu_.copy(kHome, page.data(), kOne, Wake::kNo), Errc::kExists);
  expect_failed(mmu_.zero(kHome, kOne, Wake::kNo), Errc::kExists);
  ASSERT_TRUE(mmu_.poison({kHome + kOne, kOne}).has_value());
  EXPECT_EQ(mmu_.space().access(kHome + kOne, false), Access::kBus);
  expect_failed(mmu_.move(window_.first, kHome + kOne, kOne, Wake::kNo), Errc::kFault);
  expect_failed(mmu_.copy(kHome + kOne, page.data(), kOne, Wake::kNo), Errc::kExists);
  ASSERT_FALSE(mmu_.poison({kHome, kOne}).has_value());
  mmu_.space().install_guard({kHome + PageCount(2), kOne});
  EXPECT_EQ(mmu_.space().access(kHome + PageCount(2), false), Access::kSegv);
  expect_failed(mmu_.move(window_.first, kHome + PageCount(2), kOne, Wake::kNo), Errc::kFault);
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
  expect_failed(mmu_.move(kHome + PageCount(2), window_.first, kOne, Wake::kNo), Errc::kExists);
  mmu_.zap({kHome, PageCount(3)});
  EXPECT_TRUE(mmu_.space().slot(kHome + kOne).is_empty());  // poison goes, guards stay
  EXPECT_EQ(mmu_.space().slot(kHome + PageCount(2)).kind, Slot::Kind::kGuard);
}

TEST_F(SimMmuTest, WriteProtectMarkersBlockMoveNotCopy) {
  ASSERT_TRUE(mmu_.watch({kHome, PageCount(64)}).has_value());
  ASSERT_TRUE(mmu_.write_protect({kHome, PageCount(2)}, true, Wake::kNo).has_value());
  std::array<std::byte, kPageSize> page{};
  expect_done(mmu_.copy(kHome, page.data(), kOne, Wake::kNo));
  expect_failed(mmu_.move(window_.first, kHome + kOne, kOne, Wake::kNo), Errc::kFault);
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
  expect_failed(mmu_.move(kHome + kOne, window_.first, kOne, Wake::kNo), Errc::kExists);
  ASSERT_TRUE(mmu_.write_protect({kHome + kOne, kOne}, false, Wake::kNo).has_value());
  expect_done(mmu_.move(kHome + kOne, window_.first, kOne, Wake::kNo));
}

TEST_F(SimMmuTest, ProtectionDoesNotTravel) {
  ASSERT_TRUE(mmu_.watch({kHome, PageCount(64)}).has_value());
  std::array<std::byte, kPageSize> page{};
  expect_done(mmu_.copy(kHome, page.data(), kOne, Wake::kNo, true));
  EXPECT_EQ(mmu_.space().access(kHome, false), Access::kDone);
  EXPECT_EQ(mmu_.space().access(kHome, true), Access::kWriteProtected);
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
  expect_done(mmu_.move(kHome, window_.first, kOne, Wake::kNo));
  EXPECT_EQ(mmu_.space().access(kHome, true), Access::kDone);
}

TEST_F(SimMmuTest, NoCallCrossesAMappingsEdge) {
  map({kHome + PageCount(64), PageCount(8)});
  fill(kHome + PageCount(63), 'l');
  fill(kHome + PageCount(64), 'r');
  expect_failed(mmu_.move(window_.first, kHome + PageCount(63), PageCount(2), Wake::kNo), Errc::kInvalid);
  expect_done(mmu_.move(window_.first, kHome + PageCount(63), kOne, Wake::kNo));
  ASSERT_TRUE(mmu_.watch({kHome, PageCount(72)}).has_value());
  std::array<std::byte, 2 * kPageSize> pages{};
  expect_failed(mmu_.copy(kHome + PageCount(63), pages.data(), PageCount(2), Wake::kNo), Errc::kNotFound);
}

TEST_F(SimMmuTest, CopyFillsReadOnlyAndProtNoneHomesMoveDoesNot) {
  const PageIndex page = special(0, Mapping::kWritable | Mapping::kReadable);
  ASSERT_TRUE(mmu_.watch({page, kOne}).has_value());
  std::array<std::byte, kPageSize> contents;
  contents.fill(std::byte{'n'});
  fill(kHome, 'm');
  expect_done(mmu_.move(window_.first, kHome, kOne, Wake::kNo));
  expect_failed(mmu_.move(page, window_.first, kOne, Wake::kNo), Errc::kInvalid);
  expect_done(mmu_.copy(page, contents.data(), kOne, Wake::kNo));
  EXPECT_EQ(byte(page), 'n');
  EXPECT_EQ(mmu_.space().access(page, false), Access::kSegv);
}

TEST_F(SimMmuTest, FillingNeedsAWatchedMapping) {
  std::array<std::byte, kPageSize> page{};
  expect_failed(mmu_.copy(kHome, page.data(), kOne, Wake::kNo), Errc::kNotFound);
  expect_failed(mmu_.zero(PageIndex(0x99999), kOne, Wake::kNo), Errc::kNotFound);
}

TEST_F(SimMmuTest, WatchRefusals) {
  EXPECT_EQ(mmu_.watch({PageIndex(0x99999), kOne}).error().code, Errc::kInvalid);
  EXPECT_EQ(mmu_.watch({special(Mapping::kFileBacked), kOne}).error().code, Errc::kInvalid);
  EXPECT_TRUE(mmu_.watch({special(Mapping::kShared | Mapping::kFileBacked), kOne}).has_value());  // yet not movable
  const PageIndex foreign = special(0);
  mmu_.space().find(foreign)->watched_by_other = true;
  EXPECT_EQ(mmu_.watch({foreign, kOne}).error().code, Errc::kExists);
  EXPECT_TRUE(mmu_.watch({kHome, PageCount(32)}).has_value());
  EXPECT_TRUE(mmu_.watch({kHome, PageCount(64)}).has_value());
  EXPECT_EQ(mmu_.space().access(kHome, false), Access::kMissing);
}

TEST_F(SimMmuTest, TooManyMappings) {
  SimMmu small(SimMmu::Options{.abilities = {}, .space = {.max_mappings = 2, .zero_page_on_read = true}});
  Vma vma;
  vma.range = {kHome, PageCount(16)};
  ASSERT_TRUE(small.space().map(vma).has_value());
  EXPECT_EQ(small.watch({kHome + PageCount(4), PageCount(4)}).error().code, Errc::kNoMemory);
  EXPECT_TRUE(small.watch({kHome, PageCount(16)}).has_value());
}

TEST_F(SimMmuTest, CopyNeedsRam) {
  ASSERT_TRUE(mmu_.watch({kHome, PageCount(64)}).has_value());
  mmu_.set_ram_limit(mmu_.ram().used + 2);
  std::array<std::byte, 4 * kPageSize> pages{};
  expect_failed(mmu_.copy(kHome, pages.data(), PageCount(4), Wake::kNo), Errc::kNoMemory, 2);
}

// ---- huge pages ------------------------------------------------------------------------------------------------

TEST_F(SimMmuTest, WholeAlignedHugePageMovesHuge) {
  const PageIndex base = make_huge();
  ASSERT_TRUE(mmu_.watch({base, PageCount(kPagesPerHuge)}).has_value());
  expect_done(mmu_.move(huge_window_.first, base, PageCount(kPagesPerHuge), Wake::kNo), kPagesPerHuge);
  EXPECT_TRUE(mmu_.space().is_huge(huge_window_.first));
  EXPECT_EQ(static_cast<char>(mmu_.bytes(huge_window_.first)[3 * kPageSize]), 'h');  // one pointer for the whole run
  expect_done(mmu_.move(base, huge_window_.first, PageCount(kPagesPerHuge), Wake::kNo), kPagesPerHuge);
  EXPECT_TRUE(mmu_.space().is_huge(base));
  EXPECT_EQ(byte(base + PageCount(3)), 'h');
}

TEST_F(SimMmuTest, UnalignedDestinationSplits) {
  const PageIndex base = make_huge();
  const PageIndex to = huge_window_.first + PageCount(1);
  expect_done(mmu_.move(to, base, PageCount(kPagesPerHuge), Wake::kNo), kPagesPerHuge);
  EXPECT_FALSE(mmu_.space().is_huge(to));
  EXPECT_EQ(static_cast<char>(mmu_.bytes(to + PageCount(3))[0]), 'h');
}

TEST_F(SimMmuTest, OnePageOutOfAHugePageSplitsAndZeroPartsBecomeTheZeroPage) {
  const PageIndex base = make_huge();
  expect_done(mmu_.move(window_.first, base, kOne, Wake::kNo));
  EXPECT_FALSE(mmu_.space().is_huge(base));
  EXPECT_EQ(mmu_.space().slot(base + PageCount(3)).kind, Slot::Kind::kFrame);
  EXPECT_EQ(mmu_.space().slot(base + PageCount(4)).kind, Slot::Kind::kZeroPage);
}

TEST_F(SimMmuTest, PinnedHugePageIsBusyAndSplitByTheRefusal) {
  const PageIndex base = make_huge();
  ASSERT_TRUE(mmu_.pin(base + PageCount(9)));
  expect_failed(mmu_.move(huge_window_.first, base, PageCount(kPagesPerHuge), Wake::kNo), Errc::kBusy);
  EXPECT_FALSE(mmu_.space().is_huge(base));
  expect_failed(mmu_.move(window_.first, base, kOne, Wake::kNo), Errc::kBusy);  // an unpinned part of it
  mmu_.unpin(base + PageCount(9));
  expect_done(mmu_.move(window_.first, base, kOne, Wake::kNo));
}

TEST_F(SimMmuTest, SharedHugePageIsBusyStaysHugeAndPopulateCuresIt) {
  const PageIndex base = make_huge();
  { auto child = mmu_.fork(); }
  const auto move = [&] { return mmu_.move(huge_window_.first, base, PageCount(kPagesPerHuge), Wake::kNo); };
  expect_failed(move(), Errc::kBusy);
  ASSERT_TRUE(mmu_.populate({base, PageCount(kPagesPerHuge)}, true).has_value());
  EXPECT_TRUE(mmu_.space().is_huge(base));
  expect_done(move(), kPagesPerHuge);
}

TEST_F(SimMmuTest, FreshHugeWindowPageComesHomeHuge) {
  const PageIndex base{0x40000};
  map({base, PageCount(kPagesPerHuge)}, Mapping::kHugeAdvised);
  ASSERT_TRUE(mmu_.watch({base, PageCount(kPagesPerHuge)}).has_value());
  std::byte* bytes = mmu_.bytes(huge_window_.first);
  bytes[511 * kPageSize] = std::byte{'e'};
  expect_done(mmu_.move(base, huge_window_.first, PageCount(kPagesPerHuge), Wake::kNo), kPagesPerHuge);
  EXPECT_TRUE(mmu_.space().is_huge(base));
  char seen = 0;
  mmu_.space().peek(base + PageCount(511), 0, &seen, 1);
  EXPECT_EQ(seen, 'e');
}

TEST_F(SimMmuTest, CopyOfAUnitGivesSmallPagesCollapseMakesThemHuge) {
  const PageIndex base{0x40000};
  map({base, PageCount(kPagesPerHuge)}, Mapping::kHugeAdvised);
  ASSERT_TRUE(mmu_.watch({base, PageCount(kPagesPerHuge)}).has_value());
  std::vector<std::byte> bytes(kHugeSize, std::byte{'c'});
  expect_done(mmu_.copy(base, bytes.data(), PageCount(kPagesPerHuge - 1), Wake::kNo), kPagesPerHuge - 1);
  EXPECT_FALSE(mmu_.space().is_huge(base));
  EXPECT_FALSE(mmu_.space().collapse(base));  // one page is missing
  expect_done(mmu_.copy(base + PageCount(kPagesPerHuge - 1), bytes.data(), kOne, Wake::kNo));
  EXPECT_TRUE(mmu_.space().collapse(base));
  EXPECT_TRUE(mmu_.space().is_huge(base));
}

// ---- looking -----------------------------------------------------------------------------------------------------

TEST_F(SimMmuTest, ScanReportsRunsByKind) {
  fill(kHome + PageCount(2), 'a');
  fill(kHome + PageCount(3), 'b');
  ASSERT_EQ(mmu_.space().access(kHome + PageCount(4), false), Access::kDone);
  fill(kHome + PageCount(9), 's');
  ASSERT_TRUE(mmu_.space().swap_out(kHome + PageCount(9)).has_value());
  std::array<PageRun, 8> runs;
  PageIndex scanned;
  ASSERT_EQ(mmu_.scan({kHome, PageCount(64)}, runs, &scanned).value(), 3u);
  EXPECT_EQ(scanned, kHome + PageCount(64));
  EXPECT_EQ(runs[0].range, (PageRange{kHome + PageCount(2), PageCount(2)}));
  EXPECT_TRUE(runs[0].kind & PageRun::kPresent);
  EXPECT_TRUE(runs[1].kind & PageRun::kZero);
  EXPECT_EQ(runs[2].kind, static_cast<std::uint32_t>(PageRun::kSwapped));
  ASSERT_EQ(mmu_.scan({kHome, PageCount(64)}, std::span(runs).first(1), &scanned).value(), 1u);
  EXPECT_EQ(scanned, kHome + PageCount(4));
}

TEST_F(SimMmuTest, QueriesGiveTheNextMappingAndSlowFlagsOnlySlowly) {
  const PageIndex locked = special(Mapping::kLocked);
  const auto fast = mmu_.mapping_at_or_above(locked - kOne);
  ASSERT_TRUE(fast.has_value());
  EXPECT_EQ(fast->range.first, locked);
  EXPECT_TRUE(fast->has(Mapping::kFlagsUnknown));
  EXPECT_FALSE(fast->has(Mapping::kLocked));
  const auto slow = mmu_.detailed_mapping_at_or_above(locked);
  EXPECT_TRUE(slow->has(Mapping::kLocked));
  EXPECT_FALSE(slow->has(Mapping::kFlagsUnknown));
}

TEST_F(SimMmuTest, ReadProgramDoesNotFault) {
  std::array<std::byte, kPageSize> page;
  EXPECT_EQ(mmu_.read_program(kHome, page.data()).error().code, Errc::kNotFound);
  fill(kHome, 'r');
  ASSERT_TRUE(mmu_.read_program(kHome, page.data()).has_value());
  EXPECT_EQ(static_cast<char>(page[17]), 'r');
}

TEST_F(SimMmuTest, ExitingSpaceIsGone) {
  mmu_.exit_space();
  expect_failed(mmu_.move(window_.first, kHome, kOne, Wake::kNo), Errc::kGone);
}

TEST_F(SimMmuTest, FailuresAreInjectedPartWay) {
  Choices choices = Choices::exhaustive();
  int whole = 0;
  int part_way = 0;
  while (choices.next()) {
    Failures failures(choices, 1);
    failures.arm(false);
    SimMmu mmu(SimMmu::Options{}, &failures);
    Vma vma;
    vma.range = {kHome, PageCount(8)};
    ASSERT_TRUE(mmu.space().map(vma).has_value());
    const PageRange window = *mmu.open_window(PageCount(8), WindowKind::kSmall);
    for (std::uint64_t i = 0; i < 4; ++i) ASSERT_EQ(mmu.space().access(kHome + PageCount(i), true), Access::kDone);
    failures.arm(true);
    const Progress progress = mmu.move(window.first, kHome, PageCount(4), Wake::kNo);
    if (!progress.failed) {
      ++whole;
      EXPECT_EQ(progress.done.raw(), 4u);
      continue;
    }
    part_way += progress.done.raw() > 0;
    for (std::uint64_t i = 0; i < 4; ++i) {
      EXPECT_EQ(mmu.space().slot(kHome + PageCount(i)).is_empty(), i < progress.done.raw());
    }
  }
  EXPECT_EQ(whole, 1);
  EXPECT_EQ(part_way, 10);  // five errors, after one and after three pages
}

}  // namespace
}  // namespace whimbrel::sim
