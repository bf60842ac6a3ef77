// Steps: the engine on a simulated machine, driven by hand, one step of the protocol after the other, so that a test can look
// at the slots in between. No threads: nothing here may wait.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <map>
#include <vector>

#include "migrate/fault.h"
#include "migrate/migrate_vma.h"
#include "mm/heap_source.h"
#include "sim/sim_clock.h"
#include "sim/sim_program.h"
#include "sim/steps/scripted_mmu.h"

namespace whimbrel::sim {

// A device of which nothing but frame numbers and one word of each page exists.
class StepsDevice final : public PageMapOps {
 public:
  FaultResult migrate_to_ram(FaultContext& fault) noexcept override {
    return serve ? serve(fault) : FaultResult::kSigbus;
  }
  void folio_free(Pfn head, unsigned order) noexcept override {
    (void)head;
    freed += std::uint64_t{1} << order;
  }
  // Asked between two looks at the slot, without the lock: where others may come in between.
  bool serves_inline() const noexcept override {
    if (in_between) in_between();
    return true;
  }

  std::function<FaultResult(FaultContext&)> serve;
  std::function<void()> in_between;
  std::uint64_t freed = 0;  // pages
};

// The caller's arrays of one migration.
struct Migration {
  explicit Migration(PageRange range) : src(range.count.raw()), dst(range.count.raw()) {
    args.start = range.first.address();
    args.end = range.end().address();
    args.src = src.data();
    args.dst = dst.data();
  }
  std::vector<MigrateWord> src, dst;
  MigrateVma args;
};

class Steps : public ::testing::Test {
 protected:
  explicit Steps(AddressSpace::Config config = {.staging = PageCount(1024), .landing = PageCount(1024),
                                                .huge = PageCount(4 * kPagesPerHuge)})
      : space(*AddressSpace::create(mmu, heap_, clock_, config).value()) {
    // The engine may read a page of the program that is there, so the addresses must exist.
    constexpr std::size_t kBytes = 2 * kHugeSize;
    memory_ = mmap(nullptr, kBytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
    EXPECT_NE(memory_, MAP_FAILED);
    home = (PageIndex::of(VirtualAddress(memory_)) + PageCount(kPagesPerHuge - 1)).huge_base();
    device = space.add_page_map(MemoryType::kPrivate, PageCount(8 * kPagesPerHuge), this, &ops).value();
  }
  ~Steps() override { munmap(memory_, 2 * kHugeSize); }

  // Everything that is away is dropped; nothing may be left of it.
  void TearDown() override {
    space.check_invariants();
    space.note_dropped(unit());
    for (const FrameUse use : {FrameUse::kStaging, FrameUse::kLanding, FrameUse::kHuge}) {
      EXPECT_EQ(space.pool(use).in_use(), 0u);
    }
    EXPECT_EQ(device->pages_in_use(), 0u);
    sim.space().check_invariants();
    AddressSpace::destroy(&space);
  }

  // ---- the program -----------------------------------------------------------------------------------------------
  [[nodiscard]] PageRange unit() const { return {home, PageCount(kPagesPerHuge)}; }
  [[nodiscard]] PageRange pages(std::uint64_t first, std::uint64_t count) const {
    return {home + PageCount(first), PageCount(count)};
  }
  [[nodiscard]] VirtualAddress word(std::uint64_t page) const {
    return VirtualAddress((home + PageCount(page)).address().raw() + kWordAt);
  }
  // Maps one unit, as one huge page or as small ones, and writes page i's word: 1000 + i.
  void map_unit(bool huge, std::uint64_t written = kPagesPerHuge) {
    program.mmap(unit(), Mapping::kReadable | Mapping::kWritable | (huge ? Mapping::kHugeAdvised : 0u));
    for (std::uint64_t i = 0; i < written; ++i) ASSERT_EQ(program.write(1, word(i), 1000 + i), Access::kDone);
    ASSERT_EQ(sim.space().is_huge(home), huge);
  }
  // Pages of the range are there, with what was written to them.
  void expect_words(std::uint64_t first, std::uint64_t count) {
    for (std::uint64_t i = first; i < first + count; ++i) {
      std::uint64_t got = 0;
      ASSERT_TRUE(sim.space().slot(home + PageCount(i)).is_present()) << i;
      ASSERT_EQ(program.read(1, word(i), &got), Access::kDone) << i;
      ASSERT_EQ(got, 1000 + i) << i;
    }
  }

  // ---- the engine --------------------------------------------------------------------------------------------------
  [[nodiscard]] PageEntry entry(std::uint64_t page) { return space.entry(home + PageCount(page)); }
  [[nodiscard]] PageState state(std::uint64_t page) { return entry(page).state(); }
  void expect_states(std::uint64_t first, std::uint64_t count, PageState wanted) {
    for (std::uint64_t i = first; i < first + count; ++i) ASSERT_EQ(state(i), wanted) << "page " << i;
  }
  // The kernel tells of a move of the program's memory; applied with the next messages.
  void tell_of_remap(PageRange from, PageIndex to) {
    Message event;
    event.kind = Message::Kind::kRemap;
    event.range = from;
    event.to = to;
    sim.userfault().publish(sim.userfault().begin_change(), event);
  }
  void set_entry(std::uint64_t page, PageEntry value) {
    MutexLock hold(space.mutex());
    space.table().update(home + PageCount(page), value);
  }

  // ---- the driver ----------------------------------------------------------------------------------------------------
  [[nodiscard]] Migration collect(PageRange range, std::uint64_t flags) {
    Migration m(range);
    m.args.pgmap_owner = this;
    m.args.flags = flags;
    EXPECT_TRUE(migrate_vma_setup(space, m.args).has_value());
    return m;
  }
  [[nodiscard]] Pfn allocate(PageMap* map, unsigned order) {
    const std::uint64_t count = std::uint64_t{1} << order;
    next_[map] = (next_[map] + count - 1) / count * count;
    const Pfn pfn = map->first() + PageCount(next_[map]);
    next_[map] += count;
    EXPECT_TRUE(map->init_folio(pfn, order).has_value());
    return pfn;
  }
  [[nodiscard]] std::uint64_t word_in(Pfn frame) {
    std::uint64_t value = 0;
    std::memcpy(&value, space.bytes(frame) + kWordAt, sizeof value);
    return value;
  }
  // A device page, or a unit of them, for every entry that is migrating, with the contents.
  void give_device_pages(Migration& m) {
    for (std::uint64_t i = 0; i < m.src.size(); ++i) {
      if (!m.src[i].migrating() || !m.src[i].valid()) continue;
      const Pfn to = allocate(device, m.src[i].compound() ? kHugeOrder : 0);
      for (std::uint64_t j = 0; j < m.src[i].pages().raw(); ++j) {
        stored_[(to + PageCount(j)).raw()] = word_in(m.src[i].pfn() + PageCount(j));
      }
      m.dst[i] = MigrateWord::of(to).with(m.src[i].compound() ? MigrateWord::kCompound : 0);
    }
  }
  // A frame, or a huge one, with the contents.
  void give_frames(Migration& m) {
    for (std::uint64_t i = 0; i < m.src.size(); ++i) {
      if (!m.src[i].migrating() || !m.src[i].valid()) continue;
      const bool huge = m.src[i].compound();
      const Pfn to = huge ? space.alloc_huge_frame().value() : space.alloc_frames(PageCount(1)).value();
      for (std::uint64_t j = 0; j < m.src[i].pages().raw(); ++j) {
        const std::uint64_t value = stored_.at((m.src[i].pfn() + PageCount(j)).raw());
        std::memcpy(space.bytes(to + PageCount(j)) + kWordAt, &value, sizeof value);
      }
      m.dst[i] = MigrateWord::of(to).with(huge ? MigrateWord::kCompound : 0);
    }
  }
  void finish(Migration& m) {
    migrate_vma_pages(space, m.args);
    migrate_vma_finalize(space, m.args);
  }
  // The whole way to the device.
  void send_to_device(PageRange range, bool compound) {
    Migration m = collect(range, kSelectSystem | (compound ? kSelectCompound : 0));
    ASSERT_EQ(m.args.cpages, compound ? 1 : range.count.raw());
    give_device_pages(m);
    finish(m);
    expect_states((range.first - home).raw(), range.count.raw(), PageState::kDevice);
    ASSERT_EQ(entry((range.first - home).raw()).is_huge(), compound);
  }

  static constexpr std::size_t kWordAt = 64;
  SimMmu sim{SimMmu::Options{}};
  ScriptedMmu mmu{sim};
  SimProgram program{sim};
  StepsDevice ops;
  PageMap* device = nullptr;
  PageIndex home;

 private:
  SimClock clock_;
  HeapSource heap_;
  void* memory_ = nullptr;
  std::map<PageMap*, std::uint64_t> next_;
  std::map<std::uint64_t, std::uint64_t> stored_;  // word of each device page

 protected:
  AddressSpace& space;  // last: made of the others
};

}  // namespace whimbrel::sim
