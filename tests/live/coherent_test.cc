// Coherent device memory: pages that stay mapped in the program, in frames of another pool.
#include <array>
#include <cstring>

#include "migrate/range_fault.h"
#include "tests/live/live_space.h"
#include "tests/live/ram_driver.h"

namespace whimbrel::live {
namespace {

class CoherentDriver final : public PageMapOps {
 public:
  FaultResult migrate_to_ram(FaultContext&) noexcept override { return FaultResult::kSigbus; }
  void folio_free(Pfn, unsigned) noexcept override { ++freed; }
  std::atomic<int> freed{0};
};

class Coherent : public ::testing::Test {
 protected:
  static constexpr std::size_t kPages = 16;
  void SetUp() override {
    map = live.space().add_page_map(MemoryType::kCoherent, PageCount(512), &driver, &driver).value();
    at = map_memory(kHugeSize);
  }
  void TearDown() override {
    live.stop_fault_thread();
    live.space().check_invariants();
    EXPECT_EQ(live.space().pool(FrameUse::kStaging).in_use(), 0u);
    EXPECT_EQ(live.space().pool(FrameUse::kLanding).in_use(), 0u);
  }
  MigrateVma args(std::uint64_t flags) {
    MigrateVma a;
    a.start = VirtualAddress(at);
    a.end = VirtualAddress(at + kPages * kPageSize);
    a.src = src.data();
    a.dst = dst.data();
    a.pgmap_owner = &driver;
    a.flags = flags;
    return a;
  }
  std::uint64_t to_device() {
    MigrateVma a = args(kSelectSystem);
    EXPECT_TRUE(migrate_vma_setup(live.space(), a));
    for (std::size_t i = 0; i < kPages; ++i) {
      if (!src[i].migrating()) continue;
      const Pfn pfn = map->first() + PageCount(next++);
      EXPECT_TRUE(map->init_folio(pfn, 0));
      if (src[i].valid()) std::memcpy(live.space().bytes(pfn), live.space().bytes(src[i].pfn()), kPageSize);
      else std::memset(live.space().bytes(pfn), 0, kPageSize);
      dst[i] = MigrateWord::of(pfn);
    }
    migrate_vma_pages(live.space(), a);
    std::uint64_t moved = 0;
    for (const MigrateWord& word : src) moved += word.migrating();
    migrate_vma_finalize(live.space(), a);
    return moved;
  }
  std::uint64_t to_ram() {
    MigrateVma a = args(kSelectDeviceCoherent);
    EXPECT_TRUE(migrate_vma_setup(live.space(), a));
    for (std::size_t i = 0; i < kPages; ++i) {
      if (!src[i].migrating() || !src[i].valid()) continue;
      const Pfn frame = live.space().alloc_frames(PageCount(1)).value();
      std::memcpy(live.space().bytes(frame), live.space().bytes(src[i].pfn()), kPageSize);
      dst[i] = MigrateWord::of(frame);
    }
    migrate_vma_pages(live.space(), a);
    std::uint64_t moved = 0;
    for (const MigrateWord& word : src) moved += word.migrating() && word.valid();
    migrate_vma_finalize(live.space(), a);
    return moved;
  }
  PageState state(std::size_t page) {
    return live.space().entry(PageIndex::of(VirtualAddress(at + page * kPageSize))).state();
  }
  void fill() {
    for (std::size_t i = 0; i < kPages; ++i) std::memset(at + i * kPageSize, static_cast<int>(i + 1), kPageSize);
  }

  LiveSpace live;
  CoherentDriver driver;
  PageMap* map = nullptr;
  char* at = nullptr;
  std::uint64_t next = 0;
  std::array<MigrateWord, kPages> src{}, dst{};
};

TEST_F(Coherent, PagesStayReachableWithoutAFault) {
  fill();
  ASSERT_EQ(to_device(), kPages);
  EXPECT_EQ(state(3), PageState::kCoherent);
  const std::uint64_t faults = live.space().stats().faults;
  for (std::size_t i = 0; i < kPages; ++i) EXPECT_EQ(at[i * kPageSize + 99], static_cast<char>(i + 1));
  at[0] = 77;
  EXPECT_EQ(live.space().stats().faults, faults);
  EXPECT_EQ(to_ram(), kPages);
  EXPECT_EQ(state(3), PageState::kRam);
  EXPECT_EQ(at[0], 77);
  EXPECT_EQ(at[5 * kPageSize], 6);
  EXPECT_EQ(driver.freed.load(), static_cast<int>(kPages));
  EXPECT_EQ(map->pages_in_use(), 0u);
}

TEST_F(Coherent, HolesArePopulatedInPlace) {
  at[2 * kPageSize] = 9;
  ASSERT_EQ(to_device(), kPages);
  EXPECT_EQ(state(0), PageState::kCoherent);
  EXPECT_EQ(at[0], 0);
  EXPECT_EQ(at[2 * kPageSize], 9);
}

TEST_F(Coherent, OtherOwnersPagesAreLeftAlone) {
  fill();
  ASSERT_EQ(to_device(), kPages);
  int other = 0;
  MigrateVma a = args(kSelectDeviceCoherent);
  a.pgmap_owner = &other;
  ASSERT_TRUE(migrate_vma_setup(live.space(), a));
  EXPECT_EQ(a.cpages, 0u);
  migrate_vma_finalize(live.space(), a);
  EXPECT_EQ(state(0), PageState::kCoherent);
}

TEST_F(Coherent, FailedReturnLeavesThemWhereTheyAre) {
  fill();
  ASSERT_EQ(to_device(), kPages);
  MigrateVma a = args(kSelectDeviceCoherent);
  ASSERT_TRUE(migrate_vma_setup(live.space(), a));
  EXPECT_EQ(a.cpages, kPages);
  migrate_vma_pages(live.space(), a);
  migrate_vma_finalize(live.space(), a);
  EXPECT_EQ(state(7), PageState::kCoherent);
  EXPECT_EQ(at[7 * kPageSize], 8);
  EXPECT_EQ(map->pages_in_use(), kPages);
}

TEST_F(Coherent, UnmappingFreesTheDevicePages) {
  fill();
  ASSERT_EQ(to_device(), kPages);
  munmap(at, 8 * kPageSize);
  madvise(at + 8 * kPageSize, 4 * kPageSize, MADV_DONTNEED);
  EXPECT_EQ(at[8 * kPageSize], 0);
  live.space().pump();
  EXPECT_EQ(map->pages_in_use(), 4u);
}

TEST_F(Coherent, OnePageGoesToRamForALongTermPin) {
  fill();
  ASSERT_EQ(to_device(), kPages);
  const Pfn pfn = map->first() + PageCount(4);
  live.space().page(pfn)->get();
  ASSERT_TRUE(migrate_device_coherent_folio(live.space(), pfn));
  EXPECT_EQ(state(4), PageState::kRam);
  EXPECT_EQ(at[4 * kPageSize], 5);
  EXPECT_EQ(map->pages_in_use(), kPages - 1);
}

}  // namespace
}  // namespace whimbrel::live
