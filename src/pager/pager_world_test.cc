// The pager on the simulated machine: every order of threads, messages and refusals that a seed leads to, every read of
// the program checked, and nothing left behind in the end.
#include <gtest/gtest.h>

#include <functional>
#include <memory>
#include <random>
#include <string>

#include "migrate/fault.h"
#include "mm/heap_source.h"
#include "pager/pager.h"
#include "port/wake_placement.h"
#include "sim/choices.h"
#include "sim/failures.h"
#include "sim/scheduler.h"
#include "sim/sim_clock.h"
#include "sim/sim_device.h"
#include "sim/sim_mmu.h"
#include "sim/sim_program.h"

namespace whimbrel::sim {
namespace {

constexpr PageIndex kHome{0x40000};
constexpr std::uint64_t kLimitPages = 1024;

struct Setting {
  std::uint32_t failures = 0;
  std::uint64_t device_capacity = 0;  // pages
  std::uint32_t unit_pages = 4;
  bool late = true;  // the device answers later, and not in order
  std::uint64_t arena = 2600, limit = kLimitPages;
  bool streams = false;  // long walks, with room for huge pages
  bool changes_mappings = false;
  bool jumps = false;  // single pages here and there, each toucher going on beside the fault thread
};

class AlwaysBeside final : public WakePlacement {
 public:
  bool begin(std::uint32_t) noexcept override { return true; }
  void end() noexcept override {}
};

class PagerWorld {
 public:
  PagerWorld(std::uint64_t seed, const Setting& setting)
      : setting_(setting), choices_(Choices::random(seed)), random_(seed) {
    EXPECT_TRUE(choices_.next());
    failures_ = std::make_unique<Failures>(choices_, setting.failures, 400);
    failures_->arm(false);
    Scheduler::Options schedule;
    schedule.max_steps = 6'000'000;
    schedule.random_one_in = 12;
    scheduler_ = std::make_unique<Scheduler>(choices_, clock_, schedule);
    mmu_ = std::make_unique<SimMmu>(SimMmu::Options{}, failures_.get());
    SimDevice::Options device;
    device.unit_pages = setting.unit_pages;
    device.capacity_pages = setting.device_capacity;
    device.late = setting.late;
    device_ = std::make_unique<SimDevice>(device, choices_, failures_.get());
    program_ = std::make_unique<SimProgram>(*mmu_);
    AddressSpace::Config config;
    config.staging = PageCount(1024);
    config.landing = PageCount(256);
    config.huge = PageCount(2 * kPagesPerHuge);
    space_ = AddressSpace::create(*mmu_, heap_, clock_, config).value();
    PagerConfig pager;
    pager.ram_bytes = setting.limit * kPageSize;
    pager_ = Pager::create(*space_, *device_, pager).value();
  }
  ~PagerWorld() {
    if (!verdict_.empty()) return;  // left as it lies: threads still hold its locks
    Pager::destroy(pager_);
    AddressSpace::destroy(space_);
  }

  std::string run() {
    program_->mmap({kHome, PageCount(setting_.arena)});
    scheduler_->spawn("fault thread", Role::kService, [this] {
      FaultService service(*space_, pager_, nullptr);
      if (setting_.jumps) service.set_placement(&beside_);
      while (!stop_) {
        (void)mmu_->wait_for_message(-1);
        (void)service.run_once();
      }
    });
    scheduler_->spawn("background", Role::kService, [this] {
      while (!stop_) {
        const std::uint32_t seen = pager_->wake_event().value();
        pager_->wake_event().wait(seen, pager_->background_step());
      }
    });
    if (setting_.failures != 0) program_->tolerate_bus_errors();
    // What is touched before its mapping is watched cannot be held back. Watching begins at half the limit.
    scheduler_->spawn("start", Role::kWorker, [this] {
      for (std::uint64_t i = 0; i < setting_.limit * 5 / 8; ++i) touch(9, i, true);
      for (int i = 0; i < 1000 && stats().watched_pages.load() == 0; ++i) clock_.sleep_ns(1'000'000);
      most_resident_ = 0;
    });
    if (!finished("starting")) return verdict_;
    for (std::uint32_t thread = 1; thread <= 2; ++thread) {
      scheduler_->spawn("program", Role::kWorker, [this, thread] { live(thread); });
    }
    failures_->arm(true);
    if (!finished("running")) return verdict_;
    failures_->arm(false);
    device_->set_gone(false);
    scheduler_->spawn("end", Role::kWorker, [this] { end(); });
    if (!finished("ending")) return verdict_;
    look_for_leftovers();
    for (const std::string& violation : program_->violations()) complain(violation);
    return verdict_;
  }

  [[nodiscard]] std::uint64_t most_resident() const { return most_resident_; }
  [[nodiscard]] PagerStats& stats() { return pager_->stats(); }

 private:
  // What a thread of the program does: it walks, jumps about, and (its own quarter each) remaps and discards.
  void live(std::uint32_t thread) {
    const std::uint64_t half = setting_.arena / 2;
    for (int round = 0; round < 12; ++round) {
      const std::uint64_t from = random_() % setting_.arena;
      if (setting_.streams && thread == 1) {
        for (std::uint64_t i = 0; i < setting_.arena / 3; ++i) touch(thread, (from + i) % setting_.arena, round % 3 == 0);
        continue;
      }
      if (setting_.jumps && thread == 1) {
        for (int i = 0; i < 400; ++i) touch(thread, random_() % setting_.arena, random_() % 4 == 0);
        continue;
      }
      switch (random_() % (setting_.changes_mappings ? 6 : 3)) {
        case 0:
          for (std::uint64_t i = 0; i < 700; ++i) touch(thread, (from + i) % setting_.arena, true);
          break;
        case 1:
          for (std::uint64_t i = 0; i < 700; ++i) touch(thread, (from + i) % setting_.arena, false);
          break;
        case 2:
          for (int i = 0; i < 150; ++i) touch(thread, random_() % setting_.arena, random_() % 2 == 0);
          break;
        case 3: {
          const std::uint64_t first = (thread - 1) * half + random_() % (half - 300);
          (void)program_->dontneed({kHome + PageCount(first), PageCount(1 + random_() % 300)});
          break;
        }
        case 4: {
          const std::uint64_t first = (thread - 1) * half + random_() % (half - 300);
          const PageRange range{kHome + PageCount(first), PageCount(1 + random_() % 300)};
          program_->mmap(range);  // as MAP_FIXED: what was there is gone
          break;
        }
        case 5: {
          const std::uint64_t first = (thread - 1) * half + random_() % (half - 200);
          const PageRange range{kHome + PageCount(first), PageCount(1 + random_() % 200)};
          const PageIndex away = kHome + PageCount(0x10000 * thread + 512);
          if (program_->mremap(range, away)) (void)program_->mremap({away, range.count}, range.first);
          break;
        }
      }
      note_residency();
    }
  }
  void touch(std::uint32_t thread, std::uint64_t page, bool write) {
    const VirtualAddress address((kHome + PageCount(page)).address().raw() + 8 * (page % 512));
    std::uint64_t value = 0;
    if (write) {
      (void)program_->write(thread, address, ++next_value_);
    } else {
      (void)program_->read(thread, address, &value);
    }
    if (++touches_ % 64 == 0) note_residency();
    clock_.sleep_ns(5'000);  // a program does something with a page
  }
  void note_residency() { most_resident_ = std::max(most_resident_, present()); }
  std::uint64_t present() {
    std::uint64_t n = 0;
    for (std::uint64_t i = 0; i < setting_.arena; ++i) {
      n += mmu_->space().slot(kHome + PageCount(i)).frame != nullptr ? 1 : 0;
    }
    return n;
  }

  void end() {
    for (const VirtualAddress address : program_->model().written()) {
      std::uint64_t value = 0;
      if (program_->model().allows(address, false)) (void)program_->read(1, address, &value);
    }
    space_->pump();
    const Result<void> home = pager_->bring_all_home();
    if (!home) complain(std::string("not everything came home: ") + errc_name(home.error().code));
    // Counted is what the last scan knew of: one that sees the mappings as they ended up.
    (void)pager_->scan_step();
    pager_->recount();
    if (pager_->resident().raw() != present()) {
      complain("counted " + std::to_string(pager_->resident().raw()) + " resident, there are " +
               std::to_string(present()));
    }
    stop_ = true;
    for (int i = 0; i < 8; ++i) {
      mmu_->interrupt();
      pager_->wake_event().advance();
      scheduler_->yield();
    }
  }

  bool finished(const char* phase) {
    const Scheduler::Outcome outcome = scheduler_->run();
    if (outcome == Scheduler::Outcome::kFinished) return true;
    complain(std::string(outcome == Scheduler::Outcome::kDeadlock ? "deadlock" : "livelock?") + " while " + phase +
             ":\n" + scheduler_->describe());
    return false;
  }

  void look_for_leftovers() {
    space_->check_invariants();
    const auto none = [this](std::uint64_t n, const char* what) {
      if (n != 0) complain(std::to_string(n) + " " + what);
    };
    none(mmu_->userfault().parked(), "threads still wait for a page");
    none(device_->reserved_pages(), "device slots reserved at the end");
    {
      MutexLock hold(space_->mutex());
      none(space_->table().used_pages(), "slots away at the end");
    }
    for (const FrameUse use : {FrameUse::kStaging, FrameUse::kLanding, FrameUse::kHuge}) {
      none(space_->pool(use).in_use(), "frames in use at the end");
    }
  }
  void complain(const std::string& what) { verdict_ += (verdict_.empty() ? "" : "\n") + what; }

  const Setting setting_;
  Choices choices_;
  std::mt19937_64 random_;
  SimClock clock_;
  AlwaysBeside beside_;
  std::unique_ptr<Failures> failures_;
  std::unique_ptr<Scheduler> scheduler_;
  std::unique_ptr<SimMmu> mmu_;
  std::unique_ptr<SimDevice> device_;
  std::unique_ptr<SimProgram> program_;
  HeapSource heap_;
  AddressSpace* space_ = nullptr;
  Pager* pager_ = nullptr;
  bool stop_ = false;
  std::uint64_t next_value_ = 0, touches_ = 0, most_resident_ = 0;
  std::string verdict_;
};

void run_worlds(const Setting& setting, std::uint64_t worlds, const std::function<void(PagerWorld&)>& check) {
  for (std::uint64_t seed = 1; seed <= worlds; ++seed) {
    PagerWorld world(seed, setting);
    const std::string verdict = world.run();
    ASSERT_EQ(verdict, "") << "seed " << seed;
    check(world);
    if (::testing::Test::HasFailure()) FAIL() << "seed " << seed;
  }
}

TEST(PagerWorld, MemoryIsWhatItShouldBeAndTheLimitHolds) {
  run_worlds({}, 8, [](PagerWorld& world) {
    EXPECT_GT(world.stats().pages_out.load(), 500u);
    EXPECT_GT(world.stats().pages_home.load(), 100u);
    EXPECT_LE(world.most_resident(), kLimitPages + kLimitPages / 20)
        << world.stats().over_limit << " faults over the limit, " << world.stats().back_pressure << " made room, "
        << world.stats().pages_out << " out, " << world.stats().scans << " scans, " << world.stats().recounts
        << " counts, " << world.stats().holes << " holes, counted at most " << world.stats().peak_resident_pages;
  });
}

TEST(PagerWorld, SinglePageUnits) {
  Setting setting;
  setting.unit_pages = 1;
  run_worlds(setting, 4, [](PagerWorld& world) { EXPECT_GT(world.stats().pages_out.load(), 500u); });
}

TEST(PagerWorld, MappingsChangeMeanwhile) {
  Setting setting;
  setting.changes_mappings = true;
  run_worlds(setting, 12, [](PagerWorld& world) { EXPECT_GT(world.stats().pages_out.load(), 100u); });
}

// The fault thread takes, the background stores: see EvictionHandoff.
TEST(PagerWorld, TouchesHereAndThere) {
  Setting setting;
  setting.jumps = true;
  std::uint64_t handed_over = 0;
  run_worlds(setting, 12, [&](PagerWorld& world) {
    handed_over += world.stats().handed_over.load();
    EXPECT_LE(world.most_resident(), kLimitPages + kLimitPages / 20)
        << world.stats().over_limit << " faults over the limit, " << world.stats().back_pressure << " made room, "
        << world.stats().handed_over << " handed over, " << world.stats().pages_out << " out, " << world.stats().holes
        << " holes, " << world.stats().faults << " faults, counted at most " << world.stats().peak_resident_pages;
  });
  EXPECT_GT(handed_over, 100u);
}

TEST(PagerWorld, TouchesHereAndThereWhileMappingsChange) {
  Setting setting;
  setting.jumps = true;
  setting.changes_mappings = true;
  std::uint64_t handed_over = 0;
  run_worlds(setting, 12, [&](PagerWorld& world) { handed_over += world.stats().handed_over.load(); });
  EXPECT_GT(handed_over, 30u);
}

TEST(PagerWorld, TouchesHereAndThereWhileCallsFail) {
  Setting setting;
  setting.jumps = true;
  setting.changes_mappings = true;
  setting.failures = 40;
  std::uint64_t handed_over = 0;
  run_worlds(setting, 12, [&](PagerWorld& world) { handed_over += world.stats().handed_over.load(); });
  EXPECT_GT(handed_over, 20u);
}

// Units come home as one huge page each, while somebody else changes what is mapped there.
void run_streams(Setting setting, std::uint64_t worlds) {
  setting.streams = true;
  setting.limit = 16 * kPagesPerHuge;
  setting.arena = 28 * kPagesPerHuge;
  std::uint64_t huge_home = 0, huge_filled = 0, helped = 0;
  run_worlds(setting, worlds, [&](PagerWorld& world) {
    huge_home += world.stats().huge_home.load();
    huge_filled += world.stats().huge_filled.load();
    helped += world.stats().helped_pages.load();
    if (setting.failures == 0 && !setting.changes_mappings) {
      EXPECT_LE(world.most_resident(), setting.limit + setting.limit / 20);
    }
  });
  EXPECT_GT(huge_filled, worlds);
  EXPECT_GT(huge_home, worlds);
  // Only what is done within the call can be shared between two.
  if (setting.late) EXPECT_EQ(helped, 0u);
  else EXPECT_GT(helped, kPagesPerHuge);
}

TEST(PagerWorld, StreamsOfHugePages) { run_streams({}, 3); }

TEST(PagerWorld, StreamsOfHugePagesLoadedByTwoThreads) {
  Setting setting;
  setting.late = false;
  setting.changes_mappings = true;
  setting.failures = 40;
  run_streams(setting, 3);
}

TEST(PagerWorld, StreamsOfHugePagesWhileMappingsChange) {
  Setting setting;
  setting.changes_mappings = true;
  run_streams(setting, 3);
}

TEST(PagerWorld, StreamsOfHugePagesWhileCallsFail) {
  Setting setting;
  setting.changes_mappings = true;
  setting.failures = 40;
  run_streams(setting, 3);
}

TEST(PagerWorld, ADeviceWithTooLittleRoom) {
  Setting setting;
  setting.device_capacity = 600;
  run_worlds(setting, 5, [](PagerWorld& world) { EXPECT_GT(world.stats().device_full.load(), 0u); });
}

TEST(PagerWorld, CallsFailNowAndThen) {
  Setting setting;
  setting.failures = 40;
  setting.changes_mappings = true;
  run_worlds(setting, 12, [](PagerWorld&) {});
}

}  // namespace
}  // namespace whimbrel::sim
