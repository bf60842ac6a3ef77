// The protocol's rules one by one, through the C interface on the real kernel. Each test names the rules it shows.
#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <stdlib.h>

#include <cerrno>
#include <memory>
#include <thread>

#include "capi/test_driver.h"

namespace whimbrel::capi {
namespace {

constexpr unsigned long kSystem = MIGRATE_VMA_SELECT_SYSTEM, kPrivate = MIGRATE_VMA_SELECT_DEVICE_PRIVATE,
                        kCompound = MIGRATE_VMA_SELECT_COMPOUND;
constexpr unsigned long kValid = MIGRATE_PFN_VALID, kMigrate = MIGRATE_PFN_MIGRATE, kWrite = MIGRATE_PFN_WRITE,
                        kUnit = MIGRATE_PFN_COMPOUND;
constexpr unsigned long kFlags = 63;

class Rules : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_EQ(whimbrel_start(nullptr, &mm), 0) << whimbrel_error();
    driver = std::make_unique<TestDriver>(mm, 6);
  }
  void TearDown() override {
    for (folio* f : held) folio_put(f);
    (void)whimbrel_bring_home(mm, 0, 1ul << 47);
    EXPECT_EQ(driver->in_use_settling_at(0), 0u);
    driver.reset();
    EXPECT_EQ(whimbrel_stop(mm), 0) << whimbrel_error();  // no lock, reference or frame is left
  }
  void setup(unsigned long start, std::size_t pages, unsigned long flags) {
    driver->prepare(m, start, pages, flags);
    ASSERT_EQ(migrate_vma_setup(&m.args), 0) << whimbrel_error();
    ASSERT_EQ(m.args.npages, pages);
  }
  void finish(bool to_device, bool huge = true) {
    driver->fill_destinations(m, to_device, huge);
    migrate_vma_pages(&m.args);
    migrate_vma_finalize(&m.args);
  }
  [[nodiscard]] unsigned long count(unsigned long bits) const {
    unsigned long n = 0;
    for (const unsigned long word : m.src) n += (word & kFlags) == bits;
    return n;
  }
  // The device page behind an address, seen by looking; null: none.
  page* device_page(const Memory& memory, std::size_t at) {
    unsigned long word = 0;
    mmu_interval_notifier sub{};
    const mmu_interval_notifier_ops ops{.invalidate = [](mmu_interval_notifier* s, const mmu_notifier_range*, unsigned long seq) {
      mmu_interval_set_seq(s, seq);
      return true;
    }};
    EXPECT_EQ(mmu_interval_notifier_insert(&sub, mm, memory.address(), memory.bytes(), &ops), 0);
    hmm_range range{};
    range.notifier = &sub;
    range.notifier_seq = mmu_interval_read_begin(&sub);
    range.start = memory.address(at);
    range.end = memory.address(at + 1);
    range.hmm_pfns = &word;
    range.dev_private_owner = driver.get();
    EXPECT_EQ(hmm_range_fault(&range), 0) << whimbrel_error();
    mmu_interval_notifier_remove(&sub);
    page* p = hmm_pfn_to_page(word);
    return (word & HMM_PFN_VALID) != 0 && is_device_private_page(p) ? p : nullptr;
  }

  mm_struct* mm = nullptr;
  std::unique_ptr<TestDriver> driver;
  TestDriver::Migration m;
  std::vector<folio*> held;
};

// ---- holes ---------------------------------------------------------------------------------------------------------------

TEST_F(Rules, EachEmptyUnitIsAHoleOfItsOwn) {  // HOL-03, HOL-04
  Memory memory(mm, 3 * HPAGE_PMD_SIZE);
  setup(memory.address(), 3 * HPAGE_PMD_NR, kSystem | kCompound);
  EXPECT_EQ(m.args.cpages, 3u);
  for (std::size_t unit : {0u, 512u, 1024u}) EXPECT_EQ(m.src[unit], kMigrate | kUnit);
  EXPECT_EQ(count(0), 3u * 511u);
  finish(true);
  EXPECT_EQ(driver->in_use_settling_at(1536), 1536u);
  EXPECT_EQ(*memory.at(1000), 0);
}

TEST_F(Rules, HolesAreCollectedWhateverIsSelectedAndPageByPageWhereNotAligned) {  // HOL-05, DM-07, CTL-02
  Memory memory(mm, 2 * HPAGE_PMD_SIZE);
  setup(memory.address(510), 4, 0);
  EXPECT_EQ(count(kMigrate), 4u);
  EXPECT_EQ(m.args.cpages, 4u);
  finish(false);  // no destinations
  setup(memory.address(510), 514, kSystem | kCompound);
  EXPECT_EQ(count(kMigrate), 2u);               // the partial head
  EXPECT_EQ(m.src[2], kMigrate | kUnit);        // the whole unit
  EXPECT_EQ(m.args.cpages, 3u);
  finish(true);
}

TEST_F(Rules, AHoleIsNotFrozenAndTheCpuMayWin) {  // HOL-06, INS-06, FIN-02
  Memory memory(mm, HPAGE_PMD_SIZE);
  setup(memory.address(), 8, kSystem);
  driver->fill_destinations(m, true);
  *memory.at(3) = 77;  // nobody waits
  migrate_vma_pages(&m.args);
  EXPECT_EQ(m.src[3], 0u);
  EXPECT_EQ(m.src[4], kMigrate);  // INS-07
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(driver->in_use_settling_at(7), 7u);  // the loser's page is free
  EXPECT_EQ(*memory.at(3), 77);
}

TEST_F(Rules, AUnitThatTheCpuHasTouchedIsNoHoleAnyMore) {  // IHP-04, IHP-06
  Memory memory(mm, HPAGE_PMD_SIZE);
  setup(memory.address(), 512, kSystem | kCompound);
  ASSERT_EQ(m.src[0], kMigrate | kUnit);
  driver->fill_destinations(m, true);
  *memory.at(100) = 5;
  migrate_vma_pages(&m.args);
  EXPECT_EQ(m.src[0] & kMigrate, 0u);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(driver->in_use_settling_at(0), 0u);
  EXPECT_EQ(*memory.at(100), 5);
}

TEST_F(Rules, AnEmptyUnitTakesSinglePages) {  // DPG-02 row 2, INS-09
  Memory memory(mm, HPAGE_PMD_SIZE);
  setup(memory.address(), 512, kSystem | kCompound);
  driver->fill_destinations(m, true, false);
  page* dropped = migrate_pfn_to_page(m.dst[9]);
  m.dst[9] = 0;  // a page of the unit without a destination: that one fails
  unlock_page(dropped);
  put_page(dropped);
  migrate_vma_pages(&m.args);
  EXPECT_EQ(count(kMigrate), 511u);
  EXPECT_EQ(m.src[9] & kMigrate, 0u);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(driver->in_use_settling_at(511), 511u);
  EXPECT_EQ(device_page(memory, 9), nullptr);
}

TEST_F(Rules, AHugeDestinationForASinglePageOrHoleIsRefused) {  // DPG-02 row 4, DPG-05
  Memory memory(mm, HPAGE_PMD_SIZE);
  *memory.at(0) = 1;
  setup(memory.address(), 2, kSystem);
  for (int i : {0, 1}) {
    page* to = driver->alloc(HPAGE_PMD_ORDER);
    m.dst[static_cast<std::size_t>(i)] = migrate_pfn(page_to_pfn(to)) | kUnit;
  }
  migrate_vma_pages(&m.args);
  EXPECT_EQ((m.src[0] | m.src[1]) & kMigrate, 0u);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(driver->in_use_settling_at(0), 0u);
  EXPECT_EQ(*memory.at(0), 1);
}

// ---- pages that are there --------------------------------------------------------------------------------------------------

TEST_F(Rules, WhatIsNotSelectedIsLeftAlone) {  // COL-02, DM-07
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 4), 4);
  setup(memory.address(), 8, kSystem);
  EXPECT_EQ(count(0), 4u);
  EXPECT_EQ(count(kValid | kMigrate | kWrite), 4u);
  finish(false);
  setup(memory.address(), 8, kPrivate);
  EXPECT_EQ(count(kValid | kMigrate | kWrite), 4u);
  EXPECT_EQ(count(0), 4u);
  finish(false);
  EXPECT_EQ(driver->in_use_settling_at(0), 0u);
  ASSERT_EQ(driver->to_device(memory.address(), 4), 4);
  driver->prepare(m, memory.address(), 8, kPrivate);
  m.args.pgmap_owner = this;  // another owner
  ASSERT_EQ(migrate_vma_setup(&m.args), 0);
  EXPECT_EQ(m.args.cpages, 0u);
  migrate_vma_finalize(&m.args);
}

TEST_F(Rules, WhatSomebodyHasLockedIsNotWaitedFor) {  // COL-04, CHP-05
  Memory memory(mm, 2 * HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 512), 512);
  ASSERT_EQ(driver->to_device(memory.address(512), 4, false), 4);
  page* unit = device_page(memory, 0);
  page* single = device_page(memory, 513);
  ASSERT_TRUE(unit != nullptr && single != nullptr);
  lock_page(unit);
  lock_page(single);
  setup(memory.address(), 512, kPrivate | kCompound);
  EXPECT_EQ(m.args.cpages, 0u);
  migrate_vma_finalize(&m.args);
  setup(memory.address(512), 4, kPrivate);
  EXPECT_EQ(m.args.cpages, 3u);
  EXPECT_EQ(m.src[1], 0u);
  finish(false);
  unlock_page(unit);
  unlock_page(single);
  EXPECT_EQ(memory.wrong(0, 516), 0u);
}

TEST_F(Rules, AToucherWaitsForTheLockAndRunsOnWhenItIsFree) {  // CF-02, CF-13, MW-01
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 1), 1);
  page* p = device_page(memory, 0);
  lock_page(p);
  std::atomic<int> done{0};
  std::vector<std::thread> touchers;
  for (int i = 0; i < 3; ++i) {
    touchers.emplace_back([&] {
      EXPECT_EQ(*static_cast<volatile char*>(memory.at()), 1);
      ++done;
    });
  }
  usleep(30'000);
  EXPECT_EQ(done, 0);
  EXPECT_EQ(driver->faults, 0);
  unlock_page(p);
  for (std::thread& t : touchers) t.join();
  EXPECT_EQ(driver->faults, 1);  // one migration for all
}

TEST_F(Rules, AToucherWaitsFromSetupToFinalizeAndNotLonger) {  // SET-06, MW-01, FIN-07
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  setup(memory.address(), 4, kSystem);
  std::atomic<bool> done{false};
  std::thread toucher([&] {
    *static_cast<volatile char*>(memory.at(2)) = 9;
    done = true;
  });
  usleep(30'000);
  EXPECT_FALSE(done);
  driver->fill_destinations(m, true);
  migrate_vma_pages(&m.args);
  usleep(10'000);
  EXPECT_FALSE(done);
  migrate_vma_finalize(&m.args);
  toucher.join();
  EXPECT_EQ(*memory.at(2), 9);
  EXPECT_EQ(memory.at(2)[1], 3);
}

TEST_F(Rules, AStrayReferenceIsFoundInThePagesStep) {  // CHK-03, DPG-12, FIN-03
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 2), 2);
  page* p = device_page(memory, 1);
  get_page(p);
  setup(memory.address(), 2, kPrivate);
  driver->fill_destinations(m, false);
  migrate_vma_pages(&m.args);
  EXPECT_NE(m.src[0] & kMigrate, 0u);
  EXPECT_EQ(m.src[1] & (kValid | kMigrate), kValid);  // tried, failed, will be restored
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(driver->in_use_settling_at(1), 1u);
  put_page(p);
  EXPECT_EQ(memory.wrong(0, 2), 0u);
}

TEST_F(Rules, AUnitThatIsReferencedCannotBeSplit) {  // COL-03, SPL-03, SPF-01, UN-06
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 512), 512);
  folio* f = page_folio(device_page(memory, 0));
  folio_get(f);
  setup(memory.address(), 8, kPrivate);  // a part of it
  EXPECT_EQ(m.args.cpages, 0u);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(folio_order(f), 9u);
  EXPECT_EQ(driver->splits, 0);
  folio_put(f);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
}

TEST_F(Rules, SplitFolioKeepsLockAndReferenceOnTheFirstPiece) {  // SPF-03, SPF-05
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 512), 512);
  folio* f = page_folio(device_page(memory, 0));
  EXPECT_EQ(split_folio(f), -EINVAL);  // not locked
  folio_get(f);
  folio_lock(f);
  EXPECT_EQ(split_folio(f), 0) << whimbrel_error();
  EXPECT_EQ(folio_order(f), 0u);
  EXPECT_TRUE(folio_test_locked(f));
  EXPECT_EQ(folio_ref_count(f), 2);
  EXPECT_FALSE(folio_test_locked(page_folio(device_page(memory, 5))));
  EXPECT_EQ(split_folio(f), -EINVAL);  // a single page
  folio_unlock(f);
  folio_put(f);
  EXPECT_EQ(driver->splits, 511);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
  EXPECT_EQ(driver->huge_faults, 0);
}

TEST_F(Rules, AUnitWithDestinationsForSomeOfItsPages) {  // DPG-04, SUF-03, DPG-01
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  setup(memory.address(), 512, kSystem | kCompound);
  if (m.args.cpages != 1) GTEST_SKIP() << "no huge page to be had here";
  EXPECT_EQ(m.src[0] & kFlags, kValid | kMigrate | kUnit | kWrite);
  for (std::size_t i = 100; i < 110; ++i) {
    page* to = driver->alloc(0);
    std::memcpy(driver->bytes(to), page_address(migrate_pfn_to_page(m.src[0]) + i), PAGE_SIZE);
    m.dst[i] = migrate_pfn(page_to_pfn(to));
  }
  page* first = driver->alloc(0);
  std::memcpy(driver->bytes(first), page_address(migrate_pfn_to_page(m.src[0])), PAGE_SIZE);
  m.dst[0] = migrate_pfn(page_to_pfn(first));  // the head's destination says that it is to be split
  migrate_vma_pages(&m.args);
  EXPECT_EQ(count(kValid | kMigrate | kWrite), 11u);
  EXPECT_EQ(count(kValid | kWrite), 501u);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(driver->in_use_settling_at(11), 11u);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
}

TEST_F(Rules, ReadOnlyMemoryIsAcceptedAndStays) {  // SET-04, SET-05, UA-04
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  mprotect(memory.at(), memory.bytes(), PROT_READ);
  setup(memory.address(), 8, kSystem);
  EXPECT_EQ(m.args.cpages, 0u);
  migrate_vma_finalize(&m.args);
  mprotect(memory.at(), memory.bytes(), PROT_NONE);
  setup(memory.address(), 8, kSystem);
  migrate_vma_finalize(&m.args);
  mprotect(memory.at(), memory.bytes(), PROT_READ | PROT_WRITE);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
}

TEST_F(Rules, AFaultInTheMiddleOfASplitUnitKeepsItsPage) {  // CF-10, SPL-04, FIN-08
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 512), 512);
  munmap(memory.at(), 100 * PAGE_SIZE);  // base slots of a folio that stays large
  EXPECT_EQ(memory.wrong(300, 1), 0u);
  EXPECT_EQ(driver->splits, 511);
  EXPECT_EQ(driver->faults, 1);
  EXPECT_EQ(driver->in_use_settling_at(411), 411u);
  EXPECT_EQ(memory.wrong(100, 412), 0u);
}

// ---- changes of the address space --------------------------------------------------------------------------------------------

TEST_F(Rules, PartOfAUnitUnmappedFreesNothingYet) {  // UN-04, UN-05, PM-04
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 512), 512);
  munmap(memory.at(100), 100 * PAGE_SIZE);
  usleep(20'000);
  EXPECT_EQ(driver->splits, 0);
  EXPECT_EQ(driver->frees, 0);
  EXPECT_EQ(driver->in_use_settling_at(512), 512u);
  munmap(memory.at(), 100 * PAGE_SIZE);
  munmap(memory.at(200), 312 * PAGE_SIZE);
  EXPECT_EQ(driver->in_use_settling_at(0), 0u);
  EXPECT_EQ(driver->frees, 1);  // once, with its order
  EXPECT_EQ(driver->splits, 0);
}

TEST_F(Rules, UnmappedUnderAMigrationIsFreed) {  // UN-07, UA-10
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  setup(memory.address(), 8, kSystem);
  driver->fill_destinations(m, true);
  munmap(memory.at(2), 2 * PAGE_SIZE);
  migrate_vma_pages(&m.args);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(driver->in_use_settling_at(6), 6u);
  EXPECT_EQ(memory.wrong(0, 2) + memory.wrong(4, 4), 0u);
  ASSERT_EQ(driver->to_device(memory.address(100), 8), 8);
  setup(memory.address(100), 8, kPrivate);
  driver->fill_destinations(m, false);
  munmap(memory.at(102), 2 * PAGE_SIZE);
  char* over = static_cast<char*>(mmap(memory.at(102), 2 * PAGE_SIZE, PROT_READ | PROT_WRITE,
                                       MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0));
  over[0] = 1;
  migrate_vma_pages(&m.args);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(over[0], 1);  // the new mapping's page is not overwritten
  EXPECT_EQ(over[1], 0);
  EXPECT_EQ(memory.wrong(100, 2) + memory.wrong(104, 4), 0u);
}

TEST_F(Rules, MovedUnderAMigrationItComesHomeWhereItIs) {  // RM-01, RM-02, RM-08
  Memory memory(mm, HPAGE_PMD_SIZE), target(mm, HPAGE_PMD_SIZE);
  memory.fill();
  setup(memory.address(), 8, kSystem);
  driver->fill_destinations(m, true);
  ASSERT_EQ(mremap(memory.at(), 8 * PAGE_SIZE, 8 * PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, target.at()), target.at());
  migrate_vma_pages(&m.args);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(driver->in_use_settling_at(8), 8u);
  EXPECT_EQ(target.wrong(0, 8), 0u);
}

TEST_F(Rules, DiscardedPagesReadAsZerosAtOnce) {  // MA-01, UE-03
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  for (int round = 0; round < 20; ++round) {
    ASSERT_GE(driver->to_device(memory.address(), 64), 0);
    madvise(memory.at(), 64 * PAGE_SIZE, MADV_DONTNEED);
    for (std::size_t i = 0; i < 64; ++i) ASSERT_EQ(memory.at(i)[round], 0) << round;
    std::memset(memory.at(), 1, 64 * PAGE_SIZE);
  }
}

TEST_F(Rules, FilesAndSharedMemoryStay) {  // HOL-02, DPG-06, INS-01
  char name[] = "/tmp/whimbrel-rules-XXXXXX";
  const int fd = mkstemp(name);
  unlink(name);
  ASSERT_EQ(ftruncate(fd, 16 * PAGE_SIZE), 0);
  for (const int flags : {MAP_SHARED | MAP_ANONYMOUS, MAP_SHARED, MAP_PRIVATE}) {
    char* at = static_cast<char*>(mmap(nullptr, 16 * PAGE_SIZE, PROT_READ | PROT_WRITE, flags,
                                       (flags & MAP_ANONYMOUS) != 0 ? -1 : fd, 0));
    const auto start = reinterpret_cast<unsigned long>(at);
    ASSERT_EQ(whimbrel_register_range(mm, start, 16 * PAGE_SIZE), 0);
    *static_cast<volatile char*>(at);  // a page of the file, and holes behind it
    setup(start, 16, kSystem);
    EXPECT_EQ(m.args.cpages, 0u) << flags;
    migrate_vma_finalize(&m.args);
    at[5] = 1;
    EXPECT_EQ(at[5], 1);
    EXPECT_EQ(whimbrel_unregister_range(mm, start, 16 * PAGE_SIZE), 0);
    munmap(at, 16 * PAGE_SIZE);
  }
  close(fd);
}

TEST_F(Rules, ZeroPagesAreHolesWhenRamIsSelected) {  // COL-02, UA-07
  Memory memory(mm, HPAGE_PMD_SIZE);
  for (std::size_t i = 0; i < 8; ++i) EXPECT_EQ(*static_cast<volatile char*>(memory.at(i)), 0);  // zero pages from here on
  setup(memory.address(), 8, kSystem);
  const bool zero_pages = count(kMigrate) == 8;
  EXPECT_EQ(count(zero_pages ? kMigrate : kValid | kMigrate | kWrite), 8u);
  finish(true);
  EXPECT_EQ(driver->in_use_settling_at(8), 8u);
  EXPECT_EQ(memory.at(3)[9], 0);
  if (!zero_pages) GTEST_SKIP() << "this kernel maps real pages where empty ones are read";
}

TEST_F(Rules, DeviceWritesFireNothing) {  // MN-12, PR-03
  static std::atomic<int> calls;
  calls = 0;
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 1), 1);
  page* p = device_page(memory, 0);
  mmu_interval_notifier sub{};
  const mmu_interval_notifier_ops ops{.invalidate = [](mmu_interval_notifier* s, const mmu_notifier_range*, unsigned long seq) {
    ++calls;
    mmu_interval_set_seq(s, seq);
    return true;
  }};
  ASSERT_EQ(mmu_interval_notifier_insert(&sub, mm, memory.address(), memory.bytes(), &ops), 0);
  std::memset(driver->bytes(p), 42, PAGE_SIZE);
  EXPECT_EQ(calls, 0);
  mmu_interval_notifier_remove(&sub);
  EXPECT_EQ(*memory.at(), 42);  // the latest device data
}

TEST_F(Rules, WhatIsOnItsWayIsNothingToASnapshotAndWaitedForByARequest) {  // MW-03
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  mmu_interval_notifier sub{};
  const mmu_interval_notifier_ops ops{.invalidate = [](mmu_interval_notifier* s, const mmu_notifier_range*, unsigned long seq) {
    mmu_interval_set_seq(s, seq);
    return true;
  }};
  ASSERT_EQ(mmu_interval_notifier_insert(&sub, mm, memory.address(), memory.bytes(), &ops), 0);
  setup(memory.address(), 2, kSystem);
  unsigned long words[2] = {~0ul >> 6, 0};
  hmm_range range{};
  range.notifier = &sub;
  range.start = memory.address();
  range.end = memory.address(2);
  range.hmm_pfns = words;
  range.notifier_seq = mmu_interval_read_begin(&sub);
  EXPECT_EQ(hmm_range_fault(&range), 0) << whimbrel_error();
  EXPECT_EQ(words[0], 0u);
  std::atomic<bool> done{false};
  std::thread asker([&] {
    range.default_flags = HMM_PFN_REQ_FAULT;
    int error = -EBUSY;
    while (error == -EBUSY) {
      range.notifier_seq = mmu_interval_read_begin(&sub);
      error = hmm_range_fault(&range);
    }
    EXPECT_EQ(error, 0);
    done = true;
  });
  usleep(30'000);
  EXPECT_FALSE(done);
  finish(true);
  asker.join();
  EXPECT_EQ(words[0] & HMM_PFN_VALID, HMM_PFN_VALID);
  EXPECT_EQ(page_address(hmm_pfn_to_page(words[1])), memory.at(1));  // foreign to an asker without an owner: home
  mmu_interval_notifier_remove(&sub);
}

TEST_F(Rules, AdviceMovesNothingAndLocksBringHome) {  // MA-03, MA-04, MA-05, MA-12
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 64), 64);
  for (const int advice : {MADV_COLD, MADV_PAGEOUT, MADV_WILLNEED}) {
    EXPECT_EQ(madvise(memory.at(), 64 * PAGE_SIZE, advice), 0);
    EXPECT_EQ(whimbrel_pages_in_use(&driver->pgmap), 64u) << advice;
  }
  EXPECT_EQ(driver->faults, 0);
  EXPECT_EQ(madvise(memory.at(), 16 * PAGE_SIZE, MADV_POPULATE_READ), 0);
  EXPECT_EQ(driver->in_use_settling_at(48), 48u);
  EXPECT_EQ(mlock(memory.at(16), 16 * PAGE_SIZE), 0);
  EXPECT_EQ(driver->in_use_settling_at(32), 32u);
  munlock(memory.at(16), 16 * PAGE_SIZE);
  EXPECT_EQ(memory.wrong(0, 64), 0u);
}

TEST_F(Rules, RightsAreThoseOfTheMapping) {  // CF-01, MP-03, MP-04
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 8), 8);
  static sigjmp_buf s_back;
  struct sigaction action {};
  struct sigaction old {};
  action.sa_handler = [](int) { siglongjmp(s_back, 1); };
  sigaction(SIGSEGV, &action, &old);
  const auto dies = [](volatile char* at, bool write) {
    if (sigsetjmp(s_back, 1) != 0) return true;
    if (write) *at = 1;
    else (void)*at;
    return false;
  };
  mprotect(memory.at(), 8 * PAGE_SIZE, PROT_NONE);
  EXPECT_TRUE(dies(memory.at(), false));
  EXPECT_EQ(whimbrel_pages_in_use(&driver->pgmap), 8u);
  mprotect(memory.at(), 8 * PAGE_SIZE, PROT_READ);
  EXPECT_TRUE(dies(memory.at(1), true));
  EXPECT_EQ(whimbrel_pages_in_use(&driver->pgmap), 8u);
  EXPECT_FALSE(dies(memory.at(2), false));  // home, and still read-only
  EXPECT_EQ(driver->in_use_settling_at(7), 7u);
  EXPECT_TRUE(dies(memory.at(2), true));
  mprotect(memory.at(), 8 * PAGE_SIZE, PROT_READ | PROT_WRITE);
  sigaction(SIGSEGV, &old, nullptr);
  EXPECT_EQ(memory.wrong(0, 8), 0u);
  *memory.at(2) = 9;
  EXPECT_EQ(*memory.at(2), 9);
}

// ---- by frame number -----------------------------------------------------------------------------------------------------------

TEST_F(Rules, FreeLockedAndTailFramesAreNotTaken) {  // PLK-01, PLK-02, RNG-03
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 3), 3);
  page* locked = device_page(memory, 1);
  lock_page(locked);
  const unsigned long first = driver->pgmap.range.start / PAGE_SIZE;
  m.src.assign(8, ~0ul);
  m.dst.assign(8, 0);
  m.args.npages = 8;
  EXPECT_EQ(migrate_device_range(m.src.data(), first, 8), 0);
  EXPECT_EQ(count(kValid | kMigrate), 2u);  // never WRITE
  EXPECT_EQ(count(0), 6u);
  driver->fill_destinations(m, false);
  migrate_device_pages(m.src.data(), m.dst.data(), 8);
  migrate_device_finalize(m.src.data(), m.dst.data(), 8);
  unlock_page(locked);
  EXPECT_EQ(driver->in_use_settling_at(1), 1u);
  EXPECT_EQ(memory.wrong(0, 3), 0u);
}

TEST_F(Rules, AFolioThatDoesNotFitEndsTheRange) {  // RNG-01
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 512), 512);
  const unsigned long head = page_to_pfn(device_page(memory, 0));
  m.src.assign(16, ~0ul);
  m.dst.assign(16, 0);
  EXPECT_EQ(migrate_device_range(m.src.data(), head, 16), 0);
  EXPECT_EQ(m.src, std::vector<unsigned long>(16, 0));
  migrate_device_finalize(m.src.data(), m.dst.data(), 16);
  EXPECT_FALSE(folio_test_locked(page_folio(pfn_to_page(head))));
  EXPECT_EQ(folio_ref_count(page_folio(pfn_to_page(head))), 1);
}

TEST_F(Rules, FrameNumbersInAnyOrder) {  // PFN-01
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 8), 8);
  m.src = {page_to_pfn(device_page(memory, 6)), 0, page_to_pfn(device_page(memory, 2))};
  m.dst.assign(3, 0);
  m.args.npages = 3;
  EXPECT_EQ(migrate_device_pfns(m.src.data(), 3), 0);
  EXPECT_EQ(count(kValid | kMigrate), 2u);
  driver->fill_destinations(m, false);
  migrate_device_pages(m.src.data(), m.dst.data(), 3);
  migrate_device_finalize(m.src.data(), m.dst.data(), 3);
  EXPECT_EQ(driver->in_use_settling_at(6), 6u);
  EXPECT_EQ(memory.wrong(0, 8), 0u);
}

TEST_F(Rules, AUnitNeedsAHugeDestinationWithoutAMapping) {  // DPG-04, DT-05
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 512), 512);
  const unsigned long head = page_to_pfn(device_page(memory, 0));
  m.src.assign(512, 0);
  m.dst.assign(512, 0);
  m.args.npages = 512;
  EXPECT_EQ(migrate_device_range(m.src.data(), head, 512), 0);
  ASSERT_EQ(m.src[0] & kFlags, kValid | kMigrate | kUnit);
  driver->fill_destinations(m, false, false);
  migrate_device_pages(m.src.data(), m.dst.data(), 512);
  EXPECT_EQ(m.src[0] & (kMigrate | kUnit), 0u);
  migrate_device_finalize(m.src.data(), m.dst.data(), 512);
  EXPECT_EQ(driver->in_use_settling_at(512), 512u);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
  EXPECT_EQ(driver->huge_faults, 1);  // it was put back whole
}

TEST_F(Rules, UnmappedPagesThatAreHeldCanBeEvicted) {  // RNG-04
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 1), 1);
  page* p = device_page(memory, 0);
  get_page(p);
  munmap(memory.at(), PAGE_SIZE);
  for (int i = 0; i < 2000 && folio_mapped(page_folio(p)); ++i) usleep(1000);
  m.src = {page_to_pfn(p)};
  m.dst = {0};
  m.args.npages = 1;
  EXPECT_EQ(migrate_device_pfns(m.src.data(), 1), 0);
  driver->fill_destinations(m, false);
  migrate_device_pages(m.src.data(), m.dst.data(), 1);
  EXPECT_EQ(m.src[0] & kMigrate, 0u);  // our own reference is one too many
  migrate_device_finalize(m.src.data(), m.dst.data(), 1);
  EXPECT_EQ(driver->frees, 0);
  put_page(p);
  EXPECT_EQ(driver->in_use_settling_at(0), 0u);
}

class CoherentRules : public Rules {
 protected:
  void SetUp() override {
    ASSERT_EQ(whimbrel_start(nullptr, &mm), 0) << whimbrel_error();
    driver = std::make_unique<TestDriver>(mm, 2, MEMORY_DEVICE_COHERENT);
  }
  void TearDown() override {
    driver.reset();
    EXPECT_EQ(whimbrel_stop(mm), 0) << whimbrel_error();
  }
};

TEST_F(CoherentRules, ACoherentPageThatIsHeldStays) {  // COH-01, COH-02, COH-03
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver->to_device(memory.address(), 1, false), 1);
  page* p = pfn_to_page(driver->pgmap.range.start / PAGE_SIZE);
  get_page(p);
  get_page(p);
  EXPECT_EQ(migrate_device_coherent_folio(page_folio(p)), -EBUSY);  // consumes one
  EXPECT_EQ(folio_ref_count(page_folio(p)), 2);
  EXPECT_FALSE(folio_test_locked(page_folio(p)));
  EXPECT_EQ(memory.wrong(0, 1), 0u);
  EXPECT_EQ(migrate_device_coherent_folio(page_folio(p)), 0);
  EXPECT_EQ(driver->in_use_settling_at(0), 0u);
  EXPECT_EQ(memory.wrong(0, 1), 0u);
  folio* ram = folio_alloc(GFP_HIGHUSER_MOVABLE, 0);
  EXPECT_EQ(migrate_device_coherent_folio(ram), -EINVAL);
  folio_put(ram);
}

}  // namespace
}  // namespace whimbrel::capi
