// Coherent pages taken out of the program and put back: moved, refused, shared by a fork.
#include "sim/steps/steps.h"

#include "migrate/exclusive.h"

namespace whimbrel::sim {
namespace {

// Drops pages at once: in a world without threads nobody reads of it, and nobody has to.
class AtOnce final : public QuietDiscard {
 public:
  bool discard_locked(AddressSpace& space, PageRange range) noexcept override {
    (void)space;
    ++asked;
    if (works) sim->zap(range);
    return works;
  }
  SimMmu* sim = nullptr;
  bool works = true;
  int asked = 0;
};

AtOnce at_once;

class CoherentSteps : public Steps {
 protected:
  explicit CoherentSteps(bool break_sharing = false)
      : Steps({.staging = PageCount(64), .landing = PageCount(64), .huge = PageCount(kPagesPerHuge),
               .break_sharing = break_sharing, .discard = break_sharing ? nullptr : &at_once}) {
    at_once = {};
    at_once.sim = &sim;
    coherent = space.add_page_map(MemoryType::kCoherent, PageCount(64), &ops, &ops).value();
  }
  void SetUp() override {
    map_unit(false, kPages);
    Migration m = collect(pages(0, kPages), kSelectSystem);
    for (std::uint64_t i = 0; i < kPages; ++i) {
      m.dst[i] = MigrateWord::of(allocate(coherent, 0));
      std::memcpy(space.bytes(m.dst[i].pfn()), space.bytes(m.src[i].pfn()), kPageSize);
    }
    finish(m);
    expect_states(0, kPages, PageState::kCoherent);
    expect_words(0, kPages);
  }
  bool take(std::uint64_t page, std::uint64_t writable = PageEntry::kWritable) {
    MutexLock hold(space.mutex());
    return space.take_coherent_locked(home + PageCount(page), writable);
  }
  [[nodiscard]] bool frame_is_empty(std::uint64_t page) {
    return sim.space().slot(coherent->frame_of(entry(page).pfn())).is_empty();
  }
  // Taken pages go back to where they were.
  void put_back(std::uint64_t page) {
    Migration m(pages(page, 1));
    m.args.npages = 1;
    ASSERT_TRUE(space.page(entry(page).pfn())->try_lock());
    m.src[0] = MigrateWord::of(entry(page).pfn());
    space.page(entry(page).pfn())->get();
    ASSERT_FALSE(space.page(entry(page).pfn())->put());
    migrate_vma_finalize(space, m.args);
    EXPECT_EQ(state(page), PageState::kCoherent);
  }
  static constexpr std::uint64_t kPages = 4;
  PageMap* coherent = nullptr;
};

TEST_F(CoherentSteps, TakenIntoItsOwnFrame) {
  bool said_before = false;
  mmu.before_move([&](PageIndex, PageIndex from) {
    space.lock_is_held();
    said_before = space.table().get(from).state() == PageState::kMigratingHome;
  });
  EXPECT_TRUE(take(1));
  mmu.before_move(nullptr);
  EXPECT_TRUE(said_before);
  EXPECT_EQ(state(1), PageState::kMigratingHome);
  EXPECT_TRUE(entry(1).has(PageEntry::kWritable));
  EXPECT_TRUE(sim.space().slot(home + PageCount(1)).is_empty());
  EXPECT_EQ(word_in(entry(1).pfn()), 1001u);
  put_back(1);
  expect_words(0, kPages);
}

TEST_F(CoherentSteps, OnlyCoherentPagesAreTaken) {
  sim.space().place(home + PageCount(6), Slot{Slot::Kind::kZeroPage, false, nullptr});
  EXPECT_FALSE(take(6));
  EXPECT_EQ(state(6), PageState::kRam);
  EXPECT_TRUE(sim.space().slot(home + PageCount(6)).is_present());
}

TEST_F(CoherentSteps, APinnedPageStays) {
  ASSERT_TRUE(sim.pin(home));
  EXPECT_FALSE(take(0));
  EXPECT_EQ(state(0), PageState::kCoherent);
  EXPECT_EQ(at_once.asked, 0);
  sim.unpin(home);
  expect_words(0, kPages);
}

TEST_F(CoherentSteps, ATransientRefusalIsTriedAgain) {
  mmu.cut_next_move(PageCount(0), Errc::kAgain);
  EXPECT_TRUE(take(0, 0));
  EXPECT_EQ(state(0), PageState::kMigratingHome);
  EXPECT_FALSE(entry(0).has(PageEntry::kWritable));
  put_back(0);
}

TEST_F(CoherentSteps, APageSharedByAForkIsCopiedAndTheOtherKeepsIts) {
  const auto child = sim.fork();
  mmu.set_shared(true);
  auto* const real = reinterpret_cast<std::uint64_t*>(word(2).raw());
  *real = 1002;  // the engine reads the program's own memory
  EXPECT_TRUE(take(2));
  EXPECT_EQ(at_once.asked, 1);
  EXPECT_EQ(state(2), PageState::kMigratingHome);
  EXPECT_TRUE(entry(2).has(PageEntry::kWritable));
  EXPECT_EQ(word_in(entry(2).pfn()), 1002u);
  EXPECT_TRUE(sim.space().slot(home + PageCount(2)).is_empty());
  std::uint64_t kept = 0;
  child->peek(home + PageCount(2), kWordAt, &kept, sizeof kept);
  EXPECT_EQ(kept, 1002u);
  put_back(2);
  expect_words(2, 1);
}

TEST_F(CoherentSteps, ASharedPageThatCannotBeDroppedStays) {
  const auto child = sim.fork();
  mmu.set_shared(true);
  at_once.works = false;
  EXPECT_FALSE(take(2));
  EXPECT_EQ(at_once.asked, 1);
  EXPECT_EQ(state(2), PageState::kCoherent);
  EXPECT_TRUE(frame_is_empty(2));
  expect_words(2, 1);
}

TEST_F(CoherentSteps, CollectedAsARunThatStopsInTheMiddle) {
  mmu.cut_next_move(PageCount(1), Errc::kAgain);
  Migration m(pages(0, kPages));
  m.args.pgmap_owner = &ops;
  m.args.flags = kSelectDeviceCoherent;
  ASSERT_TRUE(migrate_vma_setup(space, m.args).has_value());
  EXPECT_EQ(m.args.cpages, kPages);
  expect_states(0, kPages, PageState::kMigratingHome);
  migrate_vma_finalize(space, m.args);
  expect_states(0, kPages, PageState::kCoherent);
  expect_words(0, kPages);
}

TEST_F(CoherentSteps, ExclusiveAndRevoked) {
  const Pfn pfn = entry(0).pfn();
  const Result<Pfn> got = make_device_exclusive(space, word(0), &ops);
  ASSERT_TRUE(got.has_value());
  EXPECT_EQ(*got, pfn);
  EXPECT_EQ(state(0), PageState::kExclusive);
  release_exclusive(space, pfn);
  EXPECT_TRUE(revoke_exclusive(space, home));
  EXPECT_EQ(state(0), PageState::kCoherent);
  expect_words(0, kPages);
}

TEST_F(CoherentSteps, ExclusiveRefusedLeavesThePageUnlocked) {
  ASSERT_TRUE(sim.pin(home));
  const Result<Pfn> got = make_device_exclusive(space, word(0), &ops);
  EXPECT_FALSE(got.has_value());
  EXPECT_EQ(state(0), PageState::kCoherent);
  EXPECT_FALSE(space.page(entry(0).pfn())->is_locked());
  sim.unpin(home);
}

// Where sharing may be broken, this process gets a copy of its own, and that one goes.
class CoherentUnshared : public CoherentSteps {
 protected:
  CoherentUnshared() : CoherentSteps(true) {}
};

TEST_F(CoherentUnshared, ASharedPageIsCopiedFirst) {
  const auto child = sim.fork();
  EXPECT_TRUE(take(3));
  EXPECT_EQ(state(3), PageState::kMigratingHome);
  EXPECT_EQ(word_in(entry(3).pfn()), 1003u);
  std::uint64_t kept = 0;
  child->peek(home + PageCount(3), kWordAt, &kept, sizeof kept);
  EXPECT_EQ(kept, 1003u);
  put_back(3);
}

}  // namespace
}  // namespace whimbrel::sim
