// The range protocol on the real kernel: every way a page can leave and come home.
#include <sys/wait.h>

#include <array>
#include <cstring>

#include "tests/live/live_space.h"
#include "tests/live/ram_driver.h"

namespace whimbrel::live {
namespace {

class Protocol : public ::testing::Test {
 protected:
  void fill(char* at, std::size_t bytes) {
    for (std::size_t i = 0; i < bytes / kPageSize; ++i) std::memset(at + i * kPageSize, static_cast<int>(1 + i % 250), kPageSize);
  }
  std::size_t wrong(const char* at, std::size_t bytes) {
    std::size_t bad = 0;
    for (std::size_t i = 0; i < bytes / kPageSize; ++i) {
      for (std::size_t k : {std::size_t{0}, std::size_t{2047}, kPageSize - 1}) {
        bad += at[i * kPageSize + k] != static_cast<char>(1 + i % 250);
      }
    }
    return bad;
  }
  PageState state(const char* at) { return live.space().entry(PageIndex::of(VirtualAddress(at))).state(); }
  bool is_huge(const char* at) {
    PageRun run[1];
    const auto n = live.mmu().scan({PageIndex::of(VirtualAddress(at)), PageCount(kPagesPerHuge)}, run, nullptr);
    return n && *n == 1 && (run[0].kind & PageRun::kHuge) != 0 && run[0].range.count.raw() == kPagesPerHuge;
  }
  // The toucher runs on as soon as his page is there; its device page is freed a moment later.
  std::uint64_t in_use_settling_at(std::uint64_t expected) {
    for (int i = 0; i < 1000 && driver.map().pages_in_use() != expected; ++i) usleep(1000);
    return driver.map().pages_in_use();
  }
  void TearDown() override {
    live.stop_fault_thread();
    live.space().check_invariants();
    EXPECT_EQ(live.space().pool(FrameUse::kStaging).in_use(), 0u);
    EXPECT_EQ(live.space().pool(FrameUse::kLanding).in_use(), 0u);
    EXPECT_EQ(live.space().pool(FrameUse::kHuge).in_use(), 0u);
  }

  LiveSpace live;
  RamDriver driver{live.space(), 16 * kPagesPerHuge};
};

TEST_F(Protocol, BasePagesLeaveAndComeHomeWhenTouched) {
  char* at = map_memory(kHugeSize);
  fill(at, 64 * kPageSize);
  EXPECT_EQ(driver.to_device(at, 64 * kPageSize), 64u);
  EXPECT_EQ(state(at), PageState::kDevice);
  EXPECT_EQ(in_use_settling_at(64u), 64u);
  EXPECT_EQ(wrong(at, 64 * kPageSize), 0u);
  EXPECT_EQ(state(at), PageState::kRam);
  EXPECT_EQ(in_use_settling_at(0u), 0u);
}

TEST_F(Protocol, ExplicitReturnTripKeepsContents) {
  char* at = map_memory(kHugeSize);
  fill(at, kHugeSize);
  EXPECT_EQ(driver.to_device(at, kHugeSize), kPagesPerHuge);
  EXPECT_EQ(driver.to_ram(VirtualAddress(at), kHugeSize), kPagesPerHuge);
  EXPECT_EQ(in_use_settling_at(0u), 0u);
  EXPECT_EQ(wrong(at, kHugeSize), 0u);
}

TEST_F(Protocol, HolesAreReportedAndPopulated) {
  char* at = map_memory(kHugeSize);
  at[5 * kPageSize] = 7;
  EXPECT_EQ(driver.to_device(at, 16 * kPageSize, false), 16u);
  EXPECT_EQ(state(at), PageState::kDevice);
  EXPECT_EQ(at[0], 0);
  EXPECT_EQ(at[5 * kPageSize], 7);
}

TEST_F(Protocol, HugePagesStayHugeBothWays) {
  char* at = map_memory(kHugeSize, true);
  fill(at, kHugeSize);
  ASSERT_TRUE(is_huge(at));
  EXPECT_EQ(driver.to_device(at, kHugeSize), kPagesPerHuge);
  EXPECT_TRUE(live.space().entry(PageIndex::of(VirtualAddress(at))).is_huge());
  EXPECT_EQ(wrong(at, kHugeSize), 0u);  // one fault brings all 512
  EXPECT_EQ(in_use_settling_at(0u), 0u);
  EXPECT_TRUE(is_huge(at));
}

TEST_F(Protocol, AnUntouchedUnitBecomesOneHugeDevicePage) {
  char* at = map_memory(kHugeSize, true);
  EXPECT_EQ(driver.to_device(at, kHugeSize), kPagesPerHuge);
  EXPECT_TRUE(live.space().entry(PageIndex::of(VirtualAddress(at))).is_huge());
  EXPECT_EQ(at[kHugeSize - 1], 0);
}

TEST_F(Protocol, PartOfAHugeDevicePageSplitsIt) {
  char* at = map_memory(kHugeSize, true);
  fill(at, kHugeSize);
  ASSERT_EQ(driver.to_device(at, kHugeSize), kPagesPerHuge);
  EXPECT_EQ(driver.to_ram(VirtualAddress(at + 8 * kPageSize), 4 * kPageSize), 4u);
  EXPECT_EQ(driver.splits.load(), 511);
  EXPECT_EQ(in_use_settling_at(kPagesPerHuge - 4), kPagesPerHuge - 4);
  EXPECT_EQ(wrong(at, kHugeSize), 0u);
  EXPECT_EQ(in_use_settling_at(0u), 0u);
}

TEST_F(Protocol, DroppedDestinationsRestoreTheSource) {
  char* at = map_memory(kHugeSize);
  fill(at, 32 * kPageSize);
  std::array<MigrateWord, 32> src{}, dst{};
  MigrateVma args;
  args.start = VirtualAddress(at);
  args.end = VirtualAddress(at + 32 * kPageSize);
  args.src = src.data();
  args.dst = dst.data();
  args.pgmap_owner = &driver;
  args.flags = kSelectSystem;
  ASSERT_TRUE(migrate_vma_setup(live.space(), args));
  EXPECT_EQ(args.cpages, 32u);
  EXPECT_EQ(args.npages, 32u);
  EXPECT_TRUE(src[0].valid() && src[0].migrating() && src[0].writable());
  EXPECT_EQ(state(at), PageState::kMigratingOut);
  // A second setup over a range in flight sees nothing to do (COL-10).
  std::array<MigrateWord, 32> src2{}, dst2{};
  MigrateVma again = args;
  again.src = src2.data();
  again.dst = dst2.data();
  ASSERT_TRUE(migrate_vma_setup(live.space(), again));
  EXPECT_EQ(again.cpages, 0u);
  migrate_vma_pages(live.space(), args);  // dst is all zero: everything is refused
  EXPECT_FALSE(src[0].migrating());
  migrate_vma_finalize(live.space(), args);
  EXPECT_EQ(state(at), PageState::kRam);
  EXPECT_EQ(wrong(at, 32 * kPageSize), 0u);
  EXPECT_EQ(live.space().pool(FrameUse::kStaging).in_use(), 0u);
}

TEST_F(Protocol, SetupRefusesWhatIsNotOneOrdinaryMapping) {
  char* at = map_memory(2 * kHugeSize);
  munmap(at + kHugeSize, kHugeSize);
  std::array<MigrateWord, 8> src{}, dst{};
  MigrateVma args;
  args.src = src.data();
  args.dst = dst.data();
  args.start = VirtualAddress(at + kHugeSize - 4 * kPageSize);
  args.end = VirtualAddress(at + kHugeSize + 4 * kPageSize);
  EXPECT_FALSE(migrate_vma_setup(live.space(), args));
  args.end = args.start;
  EXPECT_FALSE(migrate_vma_setup(live.space(), args));
}

TEST_F(Protocol, UnmapFreesDevicePagesWithoutBringingThemHome) {
  char* at = map_memory(kHugeSize);
  fill(at, 64 * kPageSize);
  ASSERT_EQ(driver.to_device(at, 64 * kPageSize), 64u);
  munmap(at, 32 * kPageSize);
  live.space().pump();
  EXPECT_EQ(in_use_settling_at(32u), 32u);
  madvise(at + 32 * kPageSize, 16 * kPageSize, MADV_DONTNEED);
  EXPECT_EQ(at[32 * kPageSize], 0);  // never old data
  EXPECT_EQ(in_use_settling_at(16u), 16u);
}

TEST_F(Protocol, RemapCarriesDevicePagesToTheNewAddress) {
  char* at = map_memory(kHugeSize);
  char* target = map_memory(kHugeSize);
  fill(at, 64 * kPageSize);
  fill(target, 64 * kPageSize);
  ASSERT_EQ(driver.to_device(target, 64 * kPageSize), 64u);  // what was at the target is dropped, not the newcomer
  ASSERT_EQ(driver.to_device(at, 64 * kPageSize), 64u);
  ASSERT_EQ(mremap(at, kHugeSize, kHugeSize, MREMAP_MAYMOVE | MREMAP_FIXED, target), target);
  EXPECT_EQ(wrong(target, 64 * kPageSize), 0u);
  EXPECT_EQ(in_use_settling_at(0u), 0u);
}

TEST_F(Protocol, FrameRangeEvictionEmptiesTheDevice) {
  char* at = map_memory(2 * kHugeSize, true);
  fill(at, kHugeSize);
  fill(at + kHugeSize, kHugeSize);
  ASSERT_EQ(driver.to_device(at, kHugeSize), kPagesPerHuge);
  ASSERT_EQ(driver.to_device(at + kHugeSize, 64 * kPageSize, false), 64u);
  const std::uint64_t n = driver.map().count().raw();
  std::vector<MigrateWord> src(n), dst(n);
  migrate_device_range(live.space(), src.data(), driver.map().first(), n);
  for (std::uint64_t i = 0; i < n; ++i) {
    if (!src[i].migrating()) continue;
    const Result<Pfn> to = src[i].compound() ? live.space().alloc_huge_frame() : live.space().alloc_frames(PageCount(1));
    ASSERT_TRUE(to.has_value());
    std::memcpy(live.space().bytes(*to), driver.bytes(src[i].pfn()), src[i].pages().bytes());
    dst[i] = MigrateWord::of(*to).with(src[i].compound() ? MigrateWord::kCompound : 0);
  }
  migrate_device_pages(live.space(), src.data(), dst.data(), n);
  migrate_device_finalize(live.space(), src.data(), dst.data(), n);
  EXPECT_EQ(in_use_settling_at(0u), 0u);
  EXPECT_TRUE(is_huge(at));
  EXPECT_EQ(wrong(at, kHugeSize), 0u);
  EXPECT_EQ(wrong(at + kHugeSize, 64 * kPageSize), 0u);
}

TEST_F(Protocol, ForkedChildSeesEverythingThatWasAway) {
  char* at = map_memory(2 * kHugeSize, true);
  fill(at, kHugeSize);
  fill(at + kHugeSize, kHugeSize);
  ASSERT_EQ(driver.to_device(at, kHugeSize), kPagesPerHuge);
  ASSERT_EQ(driver.to_device(at + kHugeSize, 64 * kPageSize, false), 64u);
  const pid_t child = fork();
  if (child == 0) {
    const std::uint64_t touched = live.revive_in_child();
    const bool right = touched == 0 && wrong(at, kHugeSize) == 0 && wrong(at + kHugeSize, 64 * kPageSize) == 0;
    _exit(right ? 0 : 1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFEXITED(status) && WEXITSTATUS(status) == 0) << status;
  EXPECT_EQ(wrong(at, kHugeSize), 0u);
  EXPECT_EQ(wrong(at + kHugeSize, 64 * kPageSize), 0u);
}

TEST_F(Protocol, SystemCallsBringPagesHomeToo) {
  char* at = map_memory(kHugeSize);
  fill(at, 16 * kPageSize);
  ASSERT_EQ(driver.to_device(at, 16 * kPageSize), 16u);
  int fds[2];
  ASSERT_EQ(pipe(fds), 0);
  ASSERT_EQ(write(fds[1], at, 3 * kPageSize), static_cast<ssize_t>(3 * kPageSize));
  std::vector<char> got(3 * kPageSize);
  ASSERT_EQ(read(fds[0], got.data(), got.size()), static_cast<ssize_t>(got.size()));
  EXPECT_EQ(wrong(got.data(), got.size()), 0u);
  close(fds[0]);
  close(fds[1]);
}

}  // namespace
}  // namespace whimbrel::live
