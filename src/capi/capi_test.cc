// The C interface on the real kernel, through libwhimbrel.so as a driver's program has it.
#include <gtest/gtest.h>
#include <setjmp.h>
#include <signal.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <thread>

#include "capi/test_driver.h"

namespace whimbrel::capi {
namespace {

using ::testing::Test;

#if defined(__SANITIZE_THREAD__)
constexpr bool kChildrenMayHaveThreads = false;  // ThreadSanitizer ends a forked child that starts one
#else
constexpr bool kChildrenMayHaveThreads = true;
#endif

class Interface : public Test {
 protected:
  void SetUp() override { ASSERT_EQ(whimbrel_start(nullptr, &mm), 0) << whimbrel_error(); }
  void TearDown() override {
    if (mm != nullptr) {
      EXPECT_EQ(whimbrel_stop(mm), 0) << whimbrel_error();
    }
  }
  [[nodiscard]] whimbrel_counters counters() const {
    whimbrel_counters now{};
    now.struct_size = sizeof now;
    EXPECT_EQ(whimbrel_get_counters(mm, &now), 0);
    return now;
  }
  mm_struct* mm = nullptr;
};

// ---- the engine --------------------------------------------------------------------------------------------------------

TEST_F(Interface, OneEngineForAProcess) {
  mm_struct* other = nullptr;
  EXPECT_EQ(whimbrel_start(nullptr, &other), -EBUSY);
  EXPECT_NE(std::strstr(whimbrel_error(), "runs already (EBUSY)"), nullptr) << whimbrel_error();
  EXPECT_NE(std::strstr(whimbrel_error(), "next: use whimbrel_current_mm()"), nullptr) << whimbrel_error();
  EXPECT_EQ(whimbrel_current_mm(), mm);
  EXPECT_EQ(whimbrel_version(), WHIMBREL_VERSION);
}

TEST_F(Interface, OptionsAreChecked) {
  ASSERT_EQ(whimbrel_stop(mm), 0);
  whimbrel_options options{};
  EXPECT_EQ(whimbrel_start(&options, &mm), -EINVAL);  // no struct_size
  options.struct_size = sizeof options;
  options.threads = 17;
  EXPECT_EQ(whimbrel_start(&options, &mm), -EINVAL);
  options.threads = 1;
  options.landing_bytes = 64 * PAGE_SIZE;
  ASSERT_EQ(whimbrel_start(&options, &mm), 0) << whimbrel_error();
  std::vector<folio*> frames;
  while (folio* f = folio_alloc(GFP_HIGHUSER_MOVABLE, 0)) frames.push_back(f);
  EXPECT_EQ(frames.size(), 64u);
  for (folio* f : frames) folio_put(f);
}

TEST_F(Interface, StopRefusesWhileSomethingIsLeft) {
  {
    TestDriver driver(mm, 2);
    EXPECT_EQ(whimbrel_stop(mm), -EBUSY);
    EXPECT_NE(std::strstr(whimbrel_error(), "memunmap_pages"), nullptr) << whimbrel_error();
  }
  mmu_interval_notifier sub{};
  const mmu_interval_notifier_ops ops{.invalidate = [](mmu_interval_notifier*, const mmu_notifier_range*, unsigned long) { return true; }};
  ASSERT_EQ(mmu_interval_notifier_insert(&sub, mm, 0, PAGE_SIZE, &ops), 0);
  EXPECT_EQ(whimbrel_stop(mm), -EBUSY);
  mmu_interval_notifier_remove(&sub);
}

TEST_F(Interface, RangesAreRegisteredOnceAndExactly) {
  const unsigned long at = 1ul << 40;
  EXPECT_EQ(whimbrel_register_range(mm, at + 1, PAGE_SIZE), -EINVAL);
  EXPECT_EQ(whimbrel_register_range(mm, at, 0), -EINVAL);
  EXPECT_EQ(whimbrel_register_range(mm, at, 8 * PAGE_SIZE), 0);
  EXPECT_EQ(whimbrel_register_range(mm, at + 4 * PAGE_SIZE, 8 * PAGE_SIZE), -EINVAL);
  EXPECT_EQ(whimbrel_unregister_range(mm, at, 4 * PAGE_SIZE), -ENOENT);
  EXPECT_EQ(whimbrel_unregister_range(mm, at, 8 * PAGE_SIZE), 0);
}

// ---- device memory -----------------------------------------------------------------------------------------------------

TEST_F(Interface, MemremapRejectsWhatCannotWork) {  // DM-10
  const dev_pagemap_ops all{[](folio*) {}, [](vm_fault*) -> vm_fault_t { return 0; }, nullptr};
  const dev_pagemap_ops no_free{nullptr, all.migrate_to_ram, nullptr};
  const dev_pagemap_ops no_home{all.folio_free, nullptr, nullptr};
  dev_pagemap good{};
  good.type = MEMORY_DEVICE_PRIVATE;
  good.nr_range = 1;
  good.range = {0, HPAGE_PMD_SIZE - 1};
  good.ops = &all;
  good.owner = this;
  const auto result = [](dev_pagemap map) { return PTR_ERR(memremap_pages(&map, NUMA_NO_NODE)); };
  dev_pagemap bad = good;
  bad.nr_range = 0;
  EXPECT_EQ(result(bad), -EINVAL);
  bad = good, bad.vmemmap_shift = 10;
  EXPECT_EQ(result(bad), -EINVAL);
  bad = good, bad.ops = &no_home;
  EXPECT_EQ(result(bad), -EINVAL);
  bad = good, bad.ops = &no_free;
  EXPECT_EQ(result(bad), -EINVAL);
  bad = good, bad.owner = nullptr;
  EXPECT_EQ(result(bad), -EINVAL);
  bad = good, bad.type = MEMORY_DEVICE_COHERENT, bad.owner = nullptr;
  EXPECT_EQ(result(bad), -EINVAL);
  EXPECT_EQ(PTR_ERR(memremap_pages(&good, 0)), -EOPNOTSUPP);
  ASSERT_FALSE(IS_ERR(memremap_pages(&good, NUMA_NO_NODE)));
  EXPECT_GE(good.range.start, (1ul << 47));  // above every user address
  EXPECT_EQ(range_len(&good.range), HPAGE_PMD_SIZE);
  memunmap_pages(&good);
}

TEST_F(Interface, FreshDevicePagesAreLockedWithOneReference) {  // DM-13
  TestDriver driver(mm, 2);
  page* p = driver.alloc(HPAGE_PMD_ORDER);
  ASSERT_NE(p, nullptr);
  EXPECT_EQ(folio_order(page_folio(p)), 9u);
  EXPECT_EQ(page_folio(p + 7), page_folio(p));
  EXPECT_EQ(page_to_pfn(p + 7), page_to_pfn(p) + 7);
  EXPECT_TRUE(folio_test_locked(page_folio(p)));
  EXPECT_FALSE(trylock_page(p));
  EXPECT_EQ(folio_ref_count(page_folio(p)), 1);
  EXPECT_TRUE(is_device_private_page(p + 511) && is_zone_device_page(p) && !is_device_coherent_page(p));
  EXPECT_EQ(page_pgmap(p + 3), &driver.pgmap);
  EXPECT_EQ(page_address(p), nullptr);
  EXPECT_EQ(zone_device_data(p + 3), nullptr);
  ASSERT_EQ(whimbrel_set_zone_device_data(p + 3, &driver), 0);
  EXPECT_EQ(zone_device_data(p + 3), &driver);
  unlock_page(p);
  put_page(p + 5);
  EXPECT_EQ(driver.frees, 1);
  EXPECT_EQ(whimbrel_pages_in_use(&driver.pgmap), 0u);
  EXPECT_EQ(zone_device_data(p + 3), nullptr);
}

TEST_F(Interface, MemunmapWaitsForTheLastPageAndStopsAllocation) {  // DM-14, DT-03
  TestDriver driver(mm, 2);
  page* p = driver.alloc(0);
  std::atomic<bool> gone{false};
  std::thread remover([&] {
    memunmap_pages(&driver.pgmap);
    gone = true;
  });
  // Teardown has begun when the first allocation is refused; what came before it goes again.
  for (int i = 0; i < 2000; ++i) {
    page* other = driver.alloc(HPAGE_PMD_ORDER);
    if (other == nullptr) break;
    unlock_page(other);
    put_page(other);
    usleep(1000);
  }
  EXPECT_NE(std::strstr(whimbrel_error(), "being removed (ENODEV)"), nullptr) << whimbrel_error();
  usleep(20'000);
  EXPECT_FALSE(gone);
  unlock_page(p);
  put_page(p);
  remover.join();
  EXPECT_TRUE(gone);
}

// ---- the range protocol ------------------------------------------------------------------------------------------------

TEST_F(Interface, PagesLeaveAndComeHomeWhenTouched) {
  TestDriver driver(mm, 4);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), 64), 64) << whimbrel_error();
  EXPECT_EQ(whimbrel_pages_in_use(&driver.pgmap), 64u);
  EXPECT_EQ(counters().collected, 64u);
  EXPECT_EQ(counters().moved, 64u);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
  EXPECT_EQ(driver.faults, 64);
  EXPECT_EQ(driver.in_use_settling_at(0), 0u);
  EXPECT_EQ(driver.frees, 64);
}

TEST_F(Interface, UnitsTravelWhole) {  // CHP-06, CF-03
  TestDriver driver(mm, 4);
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), HPAGE_PMD_NR), 512) << whimbrel_error();
  EXPECT_EQ(memory.wrong(0, 512), 0u);
  EXPECT_EQ(driver.huge_faults, 1);
  EXPECT_EQ(driver.faults, 1);
  EXPECT_EQ(driver.in_use_settling_at(0), 0u);
  EXPECT_EQ(driver.frees, 1);  // once for the folio, with its order
}

TEST_F(Interface, AUnitGoesInPiecesWhenTheDeviceHasNoRoomForAWhole) {  // DPG-04, SUF
  TestDriver driver(mm, 4);
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), HPAGE_PMD_NR, true, false), 512);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
  EXPECT_EQ(driver.huge_faults, 0);
  EXPECT_EQ(driver.faults, 512);
}

TEST_F(Interface, PartOfAUnitSplitsItWithCallbacksInOrder) {  // SPF-05, CF-10
  TestDriver driver(mm, 4);
  Memory memory(mm, HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), HPAGE_PMD_NR), 512);
  EXPECT_EQ(driver.to_ram(memory.address(8), 4), 4);
  EXPECT_EQ(driver.splits, 511);
  EXPECT_EQ(driver.last_splits, 1);
  EXPECT_EQ(driver.out_of_order, 0);
  EXPECT_EQ(driver.in_use_settling_at(508), 508u);
  EXPECT_EQ(memory.wrong(0, 512), 0u);
}

TEST_F(Interface, SetupSaysNoAsWrittenDown) {  // SET-01, SET-02
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  TestDriver::Migration m;
  const auto setup = [&](auto change) {
    driver.prepare(m, memory.address(), 8, MIGRATE_VMA_SELECT_SYSTEM);
    change();
    return migrate_vma_setup(&m.args);
  };
  EXPECT_EQ(setup([&] { m.args.vma = nullptr; }), -EINVAL);
  EXPECT_EQ(setup([&] { m.args.src = nullptr; }), -EINVAL);
  EXPECT_EQ(setup([&] { m.args.dst = nullptr; }), -EINVAL);
  EXPECT_EQ(setup([&] { m.args.end = m.args.start; }), -EINVAL);
  EXPECT_EQ(setup([&] { m.args.end = m.args.start + 4095; }), -EINVAL);
  EXPECT_EQ(setup([&] { m.vma.vm_end = m.args.start + PAGE_SIZE; }), -EINVAL);
  EXPECT_EQ(setup([&] { m.vma.vm_start = m.args.start + PAGE_SIZE; }), -EINVAL);
  page* device_page = driver.alloc(0);
  unlock_page(device_page);
  EXPECT_EQ(setup([&] { m.args.fault_page = device_page; }), -EINVAL);  // not locked
  put_page(device_page);
  m.args.fault_page = nullptr;
  // Rounded down in place, even when an error follows.
  EXPECT_EQ(setup([&] { m.args.start += 100, m.args.end += 50, m.args.vma = nullptr; }), -EINVAL);
  EXPECT_EQ(m.args.start, memory.address());
  EXPECT_EQ(m.args.end, memory.address() + 8 * PAGE_SIZE);
  // Not registered; and unmapped although the vma says otherwise.
  char* elsewhere = static_cast<char*>(mmap(nullptr, 8 * PAGE_SIZE, PROT_READ | PROT_WRITE,
                                            MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  driver.prepare(m, reinterpret_cast<unsigned long>(elsewhere), 8, MIGRATE_VMA_SELECT_SYSTEM);
  EXPECT_EQ(migrate_vma_setup(&m.args), -EINVAL);
  EXPECT_NE(std::strstr(whimbrel_error(), "whimbrel_register_range"), nullptr) << whimbrel_error();
  munmap(elsewhere, 8 * PAGE_SIZE);
  EXPECT_EQ(setup([&] { munmap(memory.at(0), 4 * PAGE_SIZE); }), -EINVAL);
}

TEST_F(Interface, ArraysInRegisteredMemoryAreRefused) {
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  TestDriver::Migration m;
  driver.prepare(m, memory.address(), 8, MIGRATE_VMA_SELECT_SYSTEM);
  m.args.dst = reinterpret_cast<unsigned long*>(memory.at(100));
  EXPECT_EQ(migrate_vma_setup(&m.args), -EINVAL);
  EXPECT_NE(std::strstr(whimbrel_error(), "registered memory"), nullptr) << whimbrel_error();
}

TEST_F(Interface, FinalizeWithoutThePagesStepPutsEverythingBack) {  // PR-04
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  TestDriver::Migration m;
  driver.prepare(m, memory.address(), 16, MIGRATE_VMA_SELECT_SYSTEM);
  ASSERT_EQ(migrate_vma_setup(&m.args), 0);
  EXPECT_EQ(m.args.cpages, 16u);
  driver.fill_destinations(m, true);
  migrate_vma_finalize(&m.args);
  EXPECT_EQ(whimbrel_pages_in_use(&driver.pgmap), 0u);
  EXPECT_EQ(driver.frees, 16);
  EXPECT_EQ(memory.wrong(0, 16), 0u);
  EXPECT_EQ(driver.faults, 0);
  EXPECT_EQ(counters().restored, 16u);
  migrate_vma_finalize(&m.args);  // a second one does nothing
  EXPECT_NE(std::strstr(whimbrel_error(), "finalized already"), nullptr) << whimbrel_error();
}

TEST_F(Interface, WordsAfterSetupAreExactlyThoseOfTheProtocol) {  // DM-03
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  *memory.at(1) = 1;
  TestDriver::Migration m;
  driver.prepare(m, memory.address(), 4, MIGRATE_VMA_SELECT_SYSTEM);
  ASSERT_EQ(migrate_vma_setup(&m.args), 0);
  EXPECT_EQ(m.src[0], MIGRATE_PFN_MIGRATE);
  EXPECT_EQ(m.src[1] & 63, MIGRATE_PFN_VALID | MIGRATE_PFN_MIGRATE | MIGRATE_PFN_WRITE);
  EXPECT_EQ(static_cast<char*>(page_address(migrate_pfn_to_page(m.src[1])))[0], 1);
  EXPECT_EQ(m.dst, std::vector<unsigned long>(4, 0));  // setup zeroes what it visits
  EXPECT_EQ(m.args.npages, 4u);
  EXPECT_EQ(m.args.cpages, 4u);
  EXPECT_EQ(m.args.end, memory.address(4));
  // A second setup over the same range finds nothing to do (COL-10).
  TestDriver::Migration again;
  driver.prepare(again, memory.address(1), 1, MIGRATE_VMA_SELECT_SYSTEM);
  ASSERT_EQ(migrate_vma_setup(&again.args), 0);
  EXPECT_EQ(again.args.cpages, 0u);
  migrate_vma_finalize(&again.args);
  migrate_vma_pages(&m.args);
  EXPECT_EQ(m.src[0] & MIGRATE_PFN_MIGRATE, 0u);  // DPG-01
  migrate_vma_finalize(&m.args);
}

TEST_F(Interface, PagesMovedByMremapComeHomeWhereTheyAreNow) {  // RM-02
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), 32), 32);
  char* to = static_cast<char*>(mmap(nullptr, 32 * PAGE_SIZE, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  ASSERT_EQ(mremap(memory.at(), 32 * PAGE_SIZE, 32 * PAGE_SIZE, MREMAP_MAYMOVE | MREMAP_FIXED, to), to);
  for (std::size_t i = 0; i < 32; ++i) EXPECT_EQ(to[i * PAGE_SIZE], static_cast<char>(1 + i));
  EXPECT_EQ(counters().remapped, 32u);
  munmap(to, 32 * PAGE_SIZE);
}

TEST_F(Interface, ARefusedFaultIsSigbusAndNothingElse) {  // CF-07
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), 1), 1);
  driver.fault_result = VM_FAULT_SIGBUS;
  static sigjmp_buf s_back;
  struct sigaction action {};
  struct sigaction old {};
  action.sa_handler = [](int) { siglongjmp(s_back, 1); };
  sigaction(SIGBUS, &action, &old);
  static int caught = 0, round = 0;  // not on the stack, which the jump leaves as it is
  for (round = caught = 0; round < 2; ++round) {
    if (sigsetjmp(s_back, 1) == 0) {
      *static_cast<volatile char*>(memory.at());
    } else {
      ++caught;
    }
  }
  EXPECT_EQ(caught, 2);
  EXPECT_EQ(whimbrel_pages_in_use(&driver.pgmap), 1u);  // the device keeps the contents
  driver.fault_result = 0;
  EXPECT_EQ(memory.wrong(0, 8), 0u);  // a later access succeeds
  sigaction(SIGBUS, &old, nullptr);
  EXPECT_EQ(driver.in_use_settling_at(0), 0u);
}

// ---- the frame-range protocol -------------------------------------------------------------------------------------------

TEST_F(Interface, EvictionByFrameNumbersEmptiesTheDevice) {  // PR-02, RNG-01, PFN-01
  TestDriver driver(mm, 4);
  Memory memory(mm, 2 * HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), HPAGE_PMD_NR), 512);
  ASSERT_EQ(driver.to_device(memory.address(512), 64, false), 64);
  const unsigned long pages = 4 * HPAGE_PMD_NR;
  for (const bool by_list : {false, true}) {
    TestDriver::Migration m;
    m.src.assign(pages, 0);
    m.dst.assign(pages, 0);
    m.args.npages = pages;
    if (by_list) {
      for (unsigned long i = 0; i < pages; ++i) m.src[i] = driver.pgmap.range.start / PAGE_SIZE + i;
      EXPECT_EQ(migrate_device_pfns(m.src.data(), pages), 0);
    } else {
      EXPECT_EQ(migrate_device_range(m.src.data(), driver.pgmap.range.start / PAGE_SIZE, pages), 0);
    }
    driver.fill_destinations(m, false);
    migrate_device_pages(m.src.data(), m.dst.data(), pages);
    EXPECT_EQ(TestDriver::migrated(m), by_list ? 0u : 576u);
    migrate_device_finalize(m.src.data(), m.dst.data(), pages);
  }
  EXPECT_EQ(driver.in_use_settling_at(0), 0u);
  EXPECT_EQ(memory.wrong(0, 576), 0u);
  EXPECT_EQ(driver.faults, 0);
}

TEST_F(Interface, CoherentPagesStayReachableAndGoToRamForAPin) {  // COH-01
  TestDriver driver(mm, 2, MEMORY_DEVICE_COHERENT);
  ASSERT_NE(driver.mapped, nullptr);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), 16, false), 16);
  EXPECT_EQ(memory.wrong(0, 16), 0u);
  EXPECT_EQ(driver.faults, 0);
  page* p = pfn_to_page(driver.pgmap.range.start / PAGE_SIZE);
  get_page(p);
  EXPECT_EQ(migrate_device_coherent_folio(page_folio(p)), 0) << whimbrel_error();
  EXPECT_EQ(driver.in_use_settling_at(15), 15u);
  EXPECT_EQ(memory.wrong(0, 16), 0u);
  EXPECT_EQ(driver.to_ram(memory.address(), 16), 15);
}

// ---- notifiers, range fault, exclusive ---------------------------------------------------------------------------------

struct Watcher {
  mmu_interval_notifier sub{};
  std::atomic<int> events[8] = {};
  std::atomic<void*> owner{nullptr};
  static bool invalidate(mmu_interval_notifier* sub, const mmu_notifier_range* range, unsigned long cur_seq) {
    auto* self = reinterpret_cast<Watcher*>(sub);
    mmu_interval_set_seq(sub, cur_seq);
    if (range->event == MMU_NOTIFY_MIGRATE) self->owner = range->owner;
    ++self->events[range->event];
    return mmu_notifier_range_blockable(range);
  }
  static constexpr mmu_interval_notifier_ops kOps{.invalidate = invalidate};
};

TEST_F(Interface, NotifiersHearWhatHappensInTheirRangeOnly) {  // MN-01..MN-06, PR-06
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  Watcher here, elsewhere;
  EXPECT_EQ(mmu_interval_notifier_insert(&here.sub, mm, memory.address(), 0, &Watcher::kOps), -EOVERFLOW);
  EXPECT_EQ(mmu_interval_notifier_insert(&here.sub, nullptr, memory.address(), PAGE_SIZE, &Watcher::kOps), -EINVAL);
  ASSERT_EQ(mmu_interval_notifier_insert(&here.sub, mm, memory.address(), 16 * PAGE_SIZE, &Watcher::kOps), 0);
  ASSERT_EQ(mmu_interval_notifier_insert(&elsewhere.sub, mm, memory.address(16), 16 * PAGE_SIZE, &Watcher::kOps), 0);
  unsigned long seq = mmu_interval_read_begin(&here.sub);
  EXPECT_FALSE(mmu_interval_read_retry(&here.sub, seq));
  ASSERT_EQ(driver.to_device(memory.address(), 8), 8);
  EXPECT_TRUE(mmu_interval_read_retry(&here.sub, seq) && mmu_interval_check_retry(&here.sub, seq));
  EXPECT_EQ(here.events[MMU_NOTIFY_MIGRATE], 1);
  EXPECT_EQ(here.owner, &driver);
  seq = mmu_interval_read_begin(&here.sub);
  // What the program does is announced a moment late.
  const auto settles = [](const std::atomic<int>& count, int expected) {
    for (int i = 0; i < 2000 && count != expected; ++i) usleep(1000);
    return count == expected;
  };
  munmap(memory.at(2), PAGE_SIZE);
  EXPECT_TRUE(settles(here.events[MMU_NOTIFY_UNMAP], 1));
  EXPECT_TRUE(mmu_interval_read_retry(&here.sub, seq));
  madvise(memory.at(3), PAGE_SIZE, MADV_DONTNEED);
  EXPECT_TRUE(settles(here.events[MMU_NOTIFY_CLEAR], 1));
  for (const auto& count : elsewhere.events) EXPECT_EQ(count, 0);
  mmu_interval_notifier_remove(&here.sub);
  mmu_interval_notifier_remove(&elsewhere.sub);
}

// A driver with two passes: the second says that it was called for its own object.
struct SlowWatcher {
  mmu_interval_notifier sub{};
  mmu_interval_notifier_finish finish{};
  int started = 0, finished = 0;
  static bool start(mmu_interval_notifier* sub, const mmu_notifier_range*, unsigned long seq,
                    mmu_interval_notifier_finish** finish) {
    auto& self = *reinterpret_cast<SlowWatcher*>(sub);
    mmu_interval_set_seq(sub, seq);
    ++self.started;
    *finish = &self.finish;
    return true;
  }
  static void end(mmu_interval_notifier_finish* finish) {
    auto& self = *reinterpret_cast<SlowWatcher*>(finish->notifier);
    self.finished += &self.finish == finish && self.finished + 1 == self.started;
  }
  static constexpr mmu_interval_notifier_ops kOps{nullptr, start, end};
};

TEST_F(Interface, ANotifierInTwoPasses) {  // MN-09
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  SlowWatcher slow;
  const mmu_interval_notifier_ops half{nullptr, SlowWatcher::start, nullptr};
  const mmu_interval_notifier_ops both{[](mmu_interval_notifier*, const mmu_notifier_range*, unsigned long) { return true; },
                                       SlowWatcher::start, SlowWatcher::end};
  EXPECT_EQ(mmu_interval_notifier_insert(&slow.sub, mm, memory.address(), PAGE_SIZE, &half), -EINVAL);
  EXPECT_EQ(mmu_interval_notifier_insert(&slow.sub, mm, memory.address(), PAGE_SIZE, &both), -EINVAL);
  ASSERT_EQ(mmu_interval_notifier_insert(&slow.sub, mm, memory.address(), PAGE_SIZE, &SlowWatcher::kOps), 0);
  const unsigned long seq = mmu_interval_read_begin(&slow.sub);
  ASSERT_EQ(driver.to_device(memory.address(), 8), 8);
  EXPECT_TRUE(mmu_interval_read_retry(&slow.sub, seq));
  EXPECT_EQ(slow.started, 1);
  EXPECT_EQ(slow.finished, 1);
  mmu_interval_notifier_remove(&slow.sub);
}

TEST_F(Interface, RangeFaultReportsOwnPagesAndBringsOthersHome) {  // HR-05, HR-12, HR-16
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), 2), 2);
  Watcher watcher;
  ASSERT_EQ(mmu_interval_notifier_insert(&watcher.sub, mm, memory.address(), memory.bytes(), &Watcher::kOps), 0);
  unsigned long words[4] = {};
  hmm_range range{};
  range.notifier = &watcher.sub;
  range.start = memory.address();
  range.end = memory.address(4);
  range.hmm_pfns = words;
  range.default_flags = HMM_PFN_REQ_FAULT;
  range.dev_private_owner = &driver;
  range.notifier_seq = mmu_interval_read_begin(&watcher.sub);
  ASSERT_EQ(hmm_range_fault(&range), 0) << whimbrel_error();
  EXPECT_TRUE(is_device_private_page(hmm_pfn_to_page(words[0])));
  EXPECT_EQ(page_address(hmm_pfn_to_page(words[2])), memory.at(2));
  EXPECT_EQ(words[2] & (HMM_PFN_VALID | HMM_PFN_WRITE | HMM_PFN_ERROR), HMM_PFN_VALID | HMM_PFN_WRITE);
  EXPECT_EQ(driver.faults, 0);
  range.dev_private_owner = nullptr;  // everybody's pages are foreign: bring them home
  long error = -EBUSY;
  while (error == -EBUSY) {
    range.notifier_seq = mmu_interval_read_begin(&watcher.sub);
    error = hmm_range_fault(&range);
  }
  ASSERT_EQ(error, 0) << whimbrel_error();
  EXPECT_EQ(page_address(hmm_pfn_to_page(words[0])), memory.at(0));
  EXPECT_EQ(driver.in_use_settling_at(0), 0u);
  EXPECT_EQ(memory.wrong(0, 4), 0u);
  range.end = range.start;
  EXPECT_EQ(hmm_range_fault(&range), -EINVAL);  // HR-14
  range.end = memory.address(4);
  mprotect(memory.at(), memory.bytes(), PROT_READ);
  range.default_flags |= HMM_PFN_REQ_WRITE;
  range.notifier_seq = mmu_interval_read_begin(&watcher.sub);
  EXPECT_EQ(hmm_range_fault(&range), -EPERM);  // HR-06
  mprotect(memory.at(), memory.bytes(), PROT_NONE);
  EXPECT_EQ(hmm_range_fault(&range), -EFAULT);  // HR-15
  mprotect(memory.at(), memory.bytes(), PROT_READ | PROT_WRITE);
  mmu_interval_notifier_remove(&watcher.sub);
}

TEST_F(Interface, AnExclusivePageIsTheDevicesUntilItIsTouched) {  // EX-01..EX-04
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  Watcher watcher;
  ASSERT_EQ(mmu_interval_notifier_insert(&watcher.sub, mm, memory.address(), memory.bytes(), &Watcher::kOps), 0);
  folio* held = nullptr;
  page* p = make_device_exclusive(mm, memory.address(3) + 17, this, &held);
  ASSERT_FALSE(IS_ERR(p)) << whimbrel_error();
  EXPECT_EQ(watcher.events[MMU_NOTIFY_EXCLUSIVE], 1);
  EXPECT_TRUE(folio_test_locked(held));
  std::atomic<bool> touched{false};
  std::thread toucher([&] {
    EXPECT_EQ(*static_cast<volatile char*>(memory.at(3)), 99);
    touched = true;
  });
  usleep(20'000);
  EXPECT_FALSE(touched);  // EX-02: nobody gets it while it is held
  static_cast<char*>(page_address(p))[0] = 99;
  folio_unlock(held);
  folio_put(held);
  toucher.join();
  EXPECT_GE(watcher.events[MMU_NOTIFY_CLEAR], 1);
  EXPECT_EQ(PTR_ERR(make_device_exclusive(mm, memory.address() + memory.bytes(), this, &held)), -EINVAL);
  mprotect(memory.at(8), PAGE_SIZE, PROT_READ);
  EXPECT_EQ(PTR_ERR(make_device_exclusive(mm, memory.address(8), this, &held)), -EFAULT);
  mprotect(memory.at(8), PAGE_SIZE, PROT_READ | PROT_WRITE);
  if (mlock(memory.at(9), PAGE_SIZE) == 0) {
    EXPECT_EQ(PTR_ERR(make_device_exclusive(mm, memory.address(9), this, &held)), -EBUSY);
    munlock(memory.at(9), PAGE_SIZE);
  }
  mmu_interval_notifier_remove(&watcher.sub);
}

// ---- the process --------------------------------------------------------------------------------------------------------

TEST_F(Interface, AForkedChildHasItsMemoryWholeAndNoEngine) {  // FK-01, FK-13, EX-05
  TestDriver driver(mm, 4);
  Memory memory(mm, 2 * HPAGE_PMD_SIZE, true);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), HPAGE_PMD_NR), 512);
  ASSERT_EQ(driver.to_device(memory.address(512), 64, false), 64);
  mprotect(memory.at(512), 8 * PAGE_SIZE, PROT_NONE);  // what cannot be touched must come home too
  folio* held = nullptr;
  ASSERT_FALSE(IS_ERR(make_device_exclusive(mm, memory.address(700), this, &held)));
  folio_unlock(held);
  folio_put(held);
  const pid_t child = fork();
  if (child == 0) {
    mprotect(memory.at(512), 8 * PAGE_SIZE, PROT_READ | PROT_WRITE);
    int bad = memory.wrong(0, 1024) != 0 ? 1 : 0;
    if (whimbrel_current_mm() != nullptr) bad |= 2;
    TestDriver::Migration m;
    driver.prepare(m, memory.address(), 8, MIGRATE_VMA_SELECT_SYSTEM);
    if (migrate_vma_setup(&m.args) != -EINVAL) bad |= 4;
    if (!kChildrenMayHaveThreads) _exit(bad);
    mm_struct* own = nullptr;
    if (whimbrel_start(nullptr, &own) != 0) bad |= 8;
    if (bad == 0 && whimbrel_register_range(own, memory.address(), memory.bytes()) != 0) bad |= 16;
    if (bad == 0) {
      TestDriver mine(own, 2);
      if (mine.to_device(memory.address(600), 8, false) != 8 || memory.wrong(0, 1024) != 0) bad |= 32;
    }
    if (bad == 0 && whimbrel_stop(own) != 0) bad |= 64;
    _exit(bad);
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 0);
  mprotect(memory.at(512), 8 * PAGE_SIZE, PROT_READ | PROT_WRITE);
  EXPECT_EQ(driver.in_use_settling_at(0), 0u);
  EXPECT_EQ(memory.wrong(0, 1024), 0u);
  // After it pages leave again: those shared with the child get a copy of their own first.
  EXPECT_EQ(driver.to_device(memory.address(900), 8, false), 8);
  EXPECT_EQ(memory.wrong(0, 1024), 0u);
}

TEST_F(Interface, AnUnregisteredRangeIsTheKernelsAgain) {
  TestDriver driver(mm, 2);
  char* at = static_cast<char*>(mmap(nullptr, HPAGE_PMD_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
  const auto start = reinterpret_cast<unsigned long>(at);
  ASSERT_EQ(whimbrel_register_range(mm, start, HPAGE_PMD_SIZE), 0);
  std::memset(at, 5, 64 * PAGE_SIZE);
  ASSERT_EQ(driver.to_device(start, 64, false), 64);
  EXPECT_EQ(whimbrel_unregister_range(mm, start, HPAGE_PMD_SIZE), 0) << whimbrel_error();
  EXPECT_EQ(driver.in_use_settling_at(0), 0u);
  const unsigned long faults = counters().faults;
  EXPECT_EQ(at[0], 5);
  at[100 * PAGE_SIZE] = 1;  // a hole: no message any more
  EXPECT_EQ(counters().faults, faults);
  munmap(at, HPAGE_PMD_SIZE);
}

TEST_F(Interface, BringHomeCountsItsTouchesAndReportsARefusal) {
  TestDriver driver(mm, 2);
  Memory memory(mm, HPAGE_PMD_SIZE);
  memory.fill();
  ASSERT_EQ(driver.to_device(memory.address(), 8), 8);
  EXPECT_EQ(whimbrel_bring_home(mm, memory.address(), 4 * PAGE_SIZE), 4);
  EXPECT_EQ(driver.in_use_settling_at(4), 4u);
  driver.fault_result = VM_FAULT_SIGBUS;
  EXPECT_EQ(whimbrel_bring_home(mm, memory.address(), memory.bytes()), -EIO);
  munmap(memory.at(), 8 * PAGE_SIZE);
  driver.fault_result = 0;
}

TEST_F(Interface, HolesOfManagedMemoryAreZeroAndHugeWhereWanted) {
  TestDriver driver(mm, 4);
  Memory memory(mm, 2 * HPAGE_PMD_SIZE, true);
  *memory.at(512) = 1;
  ASSERT_GE(driver.to_device(memory.address(512), HPAGE_PMD_NR), 1);  // watched from now on
  EXPECT_EQ(*memory.at(5), 0);
  *memory.at(6) = 1;
  EXPECT_EQ(*memory.at(7), 0);
  EXPECT_EQ(*memory.at(512), 1);
}

}  // namespace
}  // namespace whimbrel::capi
