// The driver inside a whole process: engine threads with a table of their own, programs that close everything, fork,
// have no rights or no descriptors.
#include <fcntl.h>
#include <sys/resource.h>
#include <unistd.h>

#include <fstream>
#include <memory>

#include "base/mutex.h"
#include "linux/mmu_fixture_test.h"
#include "linux/tiny_engine_test.h"
#include "linux/uapi.h"

namespace whimbrel {
namespace {

using test::make_threads;
using test::Memory;
using test::TinyEngine;

// Pages of `home` that do not hold what fill() put there.
int wrong_pages(const Memory& home) {
  int wrong = 0;
  for (std::size_t i = 0; i < home.range().count.raw(); ++i) {
    if (!Memory::holds(home.at(i), Memory::mark(i))) ++wrong;
  }
  return wrong;
}

class MmuProcess : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(memory_.open({.bytes = 64u << 20}));
    home_.fill(0, 64);
  }
  // A child in which nothing of the engine has run yet.
  template <class F>
  int in_child(F body) {
    return test::in_child([&] {
      home_.fill(0, 64);  // written here, its pages are no longer shared with the parent and can move
      return body();
    });
  }
  Reservation memory_;
  Memory home_{64};
};

TEST_F(MmuProcess, PagesComeHomeAlthoughTheProgramClosesAllDescriptors) {
  EXPECT_EQ(in_child([&] {
              TinyEngine engine(memory_, home_);
              if (!engine.start()) return 1;
              close_range(0, ~0u, 0);
              if (wrong_pages(home_) != 0) return 2;
              if (engine.served() == 0) return 3;  // they were not away at all
              engine.stop();
              return wrong_pages(home_) == 0 && engine.wrong == 0 ? 0 : 4;
            }),
            0);
}

TEST_F(MmuProcess, EverythingIsHomeAfterStopping) {
  EXPECT_EQ(in_child([&] {
              TinyEngine engine(memory_, home_);
              if (!engine.start()) return 1;
              engine.stop();
              if (memory_.bytes_in_use() != 0) return 2;
              return wrong_pages(home_) == 0 && engine.wrong == 0 ? 0 : 3;
            }),
            0);
}

TEST_F(MmuProcess, SharedDescriptorsAreHighAndUsableFromProgramThreads) {
  EXPECT_EQ(in_child([&] {
              const Result<UserfaultMmu*> mmu = UserfaultMmu::create(memory_, {.visibility = Visibility::kShared});
              if (!mmu) return 1;
              const Descriptors::Span span = (*mmu)->descriptors().span();
              if (span.first < 500 || span.end - span.first > Descriptors::kCount) return 2;
              for (int fd = span.first; fd < span.end; ++fd) {
                if ((fcntl(fd, F_GETFD) & FD_CLOEXEC) == 0) return 3;
              }
              // An engine thread keeps a duplicate: the program may close its own.
              struct State {
                UserfaultMmu* mmu;
                const Memory* home;
                Event step{};
                bool moved = false;
              } state{*mmu, &home_};
              auto threads = make_threads(memory_, {.keep = span});
              const Result<int> n = threads->start_first(
                  [](void* argument) {
                    auto* s = static_cast<State*>(argument);
                    while (s->step.value() < 1) s->step.wait(0);
                    const Result<PageRange> window = s->mmu->open_window(PageCount(64), WindowKind::kSmall);
                    s->moved = window && s->mmu->watch(s->home->range()) &&
                               !s->mmu->move(window->first, s->home->page(0), PageCount(64), Wake::kNo).failed &&
                               !s->mmu->move(s->home->page(0), window->first, PageCount(64), Wake::kYes).failed &&
                               s->mmu->unwatch(s->home->range());
                  },
                  &state);
              if (!n) return 4;
              std::atomic<bool> program_thread_works{false};
              std::thread program([&] { program_thread_works = (*mmu)->watch(home_.range()).has_value(); });
              program.join();
              if (!program_thread_works) return 5;
              close_range(3, ~0u, 0);
              state.step.advance();
              threads->join(*n);
              return state.moved && wrong_pages(home_) == 0 ? 0 : 6;
            }),
            0);
}

TEST_F(MmuProcess, ForkedChildServesWhatWasAwayAndLeavesTheParentAlone) {
  if (!test::kChildMayStartThreads) GTEST_SKIP() << "ThreadSanitizer cannot start threads in a forked child";
  for (const Visibility visibility : {Visibility::kPrivate, Visibility::kShared}) {
    EXPECT_EQ(in_child([&] {
                TinyEngine engine(memory_, home_, {.visibility = visibility});
                if (!engine.start()) return 1;
                const int child = test::in_child([&] {
                  if (!engine.restart_in_child()) return 11;
                  if (wrong_pages(home_) != 0) return 12;
                  if (engine.served() != 64) return 13;
                  home_.fill(0, 8);
                  std::memset(home_.at(3), 0xff, kPageSize);
                  engine.stop();
                  return engine.wrong == 0 ? 0 : 14;
                });
                if (child != 0) return child < 0 ? 99 : child;
                // The parent's own copy is untouched and still served by the parent.
                if (engine.served() != 0) return 2;
                if (wrong_pages(home_) != 0) return 3;
                if (engine.served() != 64) return 4;
                engine.stop();
                return engine.wrong == 0 ? 0 : 5;
              }),
              0);
  }
}

TEST_F(MmuProcess, ChildNeverClosesNumbersThatTheProgramReused) {
  EXPECT_EQ(in_child([&] {
              const Result<UserfaultMmu*> mmu = UserfaultMmu::create(memory_, {.visibility = Visibility::kShared});
              if (!mmu) return 1;
              const Descriptors::Span span = (*mmu)->descriptors().span();
              for (int fd = span.first; fd < span.end; ++fd) dup2(STDOUT_FILENO, fd);  // the program's from now on
              return test::in_child([&] {
                (*mmu)->reset_after_fork();
                if (!(*mmu)->reopen_in_child()) return 2;
                for (int fd = span.first; fd < span.end; ++fd) {
                  if (fcntl(fd, F_GETFD) < 0) return 3;
                }
                return (*mmu)->watch(home_.range()) ? 0 : 4;
              });
            }),
            0);
}

TEST_F(MmuProcess, FlagsOfMappingsAreStillReadAfterChroot) {
  if (geteuid() != 0) GTEST_SKIP() << "chroot needs root";
  EXPECT_EQ(in_child([&] {
              const Result<UserfaultMmu*> mmu = UserfaultMmu::create(memory_, {});
              if (!mmu) return 1;
              char empty[] = "/tmp/whimbrel-chroot-XXXXXX";
              if (mkdtemp(empty) == nullptr || chroot(empty) != 0 || chdir("/") != 0) return 2;
              if (access("/proc/thread-self/smaps", F_OK) == 0) return 3;
              if (madvise(home_.at(0), home_.bytes(), MADV_DONTFORK) != 0) return 4;
              for (int round = 0; round < 2; ++round) {  // the second reading begins where the first began
                const Result<Mapping> mapping = (*mmu)->detailed_mapping_at_or_above(home_.page(0));
                if (!mapping || mapping->range != home_.range()) return 5;
                if (!mapping->has(Mapping::kDontFork) || mapping->has(Mapping::kFlagsUnknown)) return 6;
              }
              return 0;
            }),
            0);
  // The child could not remove the directory it was in.
}

TEST_F(MmuProcess, WorksWithThreeDescriptorsInAll) {
  if (!kRawThreadsUsable) GTEST_SKIP() << "threads of libc keep standard input, output and error: nothing is left";
  EXPECT_EQ(in_child([&] {
              const rlimit files{3, 3};
              const bool strict = setrlimit(RLIMIT_NOFILE, &files) == 0;
              TinyEngine engine(memory_, home_);
              if (!strict || !engine.start()) return 1;
              if (wrong_pages(home_) != 0 || engine.served() == 0) return 2;
              engine.mmu().interrupt();
              engine.stop();
              rlimit after{};
              getrlimit(RLIMIT_NOFILE, &after);
              return after.rlim_cur == 3 && engine.wrong == 0 ? 0 : 3;
            }),
            0);
}

TEST_F(MmuProcess, LowSoftLimitIsLiftedWhileDescriptorsAreOpened) {
  EXPECT_EQ(in_child([&] {
              const rlimit files{3, 64};
              if (setrlimit(RLIMIT_NOFILE, &files) != 0) return 1;
              TinyEngine engine(memory_, home_);
              if (!engine.start()) return 2;
              if (!engine.mmu().descriptors().has(Descriptors::kProcess)) return 3;
              rlimit after{};
              getrlimit(RLIMIT_NOFILE, &after);
              if (after.rlim_cur != 3) return 4;
              if (wrong_pages(home_) != 0) return 5;
              engine.stop();
              return 0;
            }),
            0);
}

TEST_F(MmuProcess, ProgramThatLocksAllItsMemoryKeepsItsSizeAndItsNewMemoryCanLeave) {
  if (!kRawThreadsUsable) GTEST_SKIP() << "locking would populate the sanitizer's shadow memory";
  EXPECT_EQ(in_child([&] {
              const Result<UserfaultMmu*> made = UserfaultMmu::create(memory_, {});
              if (!made) return 1;
              UserfaultMmu& mmu = **made;
              const Result<PageRange> window = mmu.open_window(PageCount(64), WindowKind::kSmall);
              if (!window) return 2;
              const auto resident_kib = [] {
                std::uint64_t pages = 0;
                std::ifstream("/proc/self/statm") >> pages >> pages;
                return pages * 4;
              };
              const std::uint64_t before = resident_kib();
              if (mlockall(MCL_CURRENT) != 0) return 77;
              if (resident_kib() > before + 64 * 1024) return 3;
              // Populated by the lock; its owner knows it is free.
              Memory fresh(64);
              fresh.fill(0, 64);
              Progress progress = mmu.move(window->first, fresh.page(0), PageCount(64), Wake::kNo);
              if (!progress.failed || progress.error.code != Errc::kExists) return 4;
              if (!mmu.discard(*window)) return 5;
              progress = mmu.move(window->first, fresh.page(0), PageCount(64), Wake::kNo);
              if (progress.failed) return 6;
              return Memory::holds(mmu.bytes(window->first + PageCount(63)), Memory::mark(63)) ? 0 : 7;
            }),
            0);
}

TEST_F(MmuProcess, OrdinaryUserGetsAWorkingEngineInUserMode) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  if (test::sysctl_number("/proc/sys/vm/unprivileged_userfaultfd") != 0) {
    GTEST_SKIP() << "vm.unprivileged_userfaultfd is not 0";
  }
  EXPECT_EQ(in_child([&] {
              test::become_nobody();
              TinyEngine engine(memory_, home_);
              if (!engine.start()) return 1;
              if (engine.rung() != Rung::kUserModeOnly || engine.mmu().abilities().kernel_faults) return 2;
              int ends[2];
              if (pipe(ends) != 0) return 3;
              // A system call on an away page fails instead of being served; the page is not harmed.
              if (write(ends[1], home_.at(5), 10) != -1 || errno != EFAULT) return 4;
              if (wrong_pages(home_) != 0 || engine.served() == 0) return 5;
              engine.stop();
              return engine.wrong == 0 ? 0 : 6;
            }),
            0);
  EXPECT_EQ(in_child([&] {
              test::become_nobody();
              TinyEngine engine(memory_, home_, {.allow_user_mode_only = false});
              const Result<void> started = engine.start();
              return !started && started.error().code == Errc::kNotPermitted ? 0 : 1;
            }),
            0);
}

TEST_F(MmuProcess, ProcessWithoutItsProcFilesStillScans) {
  if (geteuid() != 0) GTEST_SKIP() << "needs root to become somebody else";
  EXPECT_EQ(in_child([&] {
              test::become_nobody();
              prctl(PR_SET_DUMPABLE, 0);  // as after setuid: pagemap and mem now belong to root
              const Result<UserfaultMmu*> mmu = UserfaultMmu::create(memory_, {});
              if (!mmu) return 1;
              if ((*mmu)->descriptors().has(Descriptors::kPagemap)) return 2;
              munmap(home_.at(20), 4 * kPageSize);
              madvise(home_.at(30), 2 * kPageSize, MADV_DONTNEED);
              if (!(*mmu)->populate(home_.range(0, 20), true)) return 3;  // shared with the parent until written
              PageRun runs[8];
              PageIndex scanned;
              const Result<std::size_t> count = (*mmu)->scan(home_.range(), runs, &scanned);
              if (!count || *count != 3 || scanned != home_.range().end()) return 4;
              if (runs[0].range != home_.range(0, 20) || runs[1].range != home_.range(24, 6)) return 5;
              if (runs[2].range != home_.range(32, 32)) return 6;
              std::byte page[kPageSize];
              const Result<void> got = (*mmu)->read_program(home_.page(0), page);
              return !got && got.error().code == Errc::kNotSupported ? 0 : 7;
            }),
            0);
}

TEST_F(MmuProcess, FilteredMoveIsAnErrorOrAnAbilityLess) {
  EXPECT_EQ(in_child([&] {
              test::deny_ioctl(uapi::kUffdioMove, EPERM);
              const Result<UserfaultMmu*> refused = UserfaultMmu::create(memory_, {});
              if (refused || refused.error().code != Errc::kNotPermitted) return 1;
              const Result<UserfaultMmu*> made = UserfaultMmu::create(memory_, {.require_move = false});
              if (!made || (*made)->abilities().move) return 2;
              if (!(*made)->watch(home_.range())) return 3;
              const Result<PageRange> window = (*made)->open_window(PageCount(1), WindowKind::kSmall);
              if (!window) return 4;
              const Progress progress = (*made)->move(window->first, home_.page(0), PageCount(1), Wake::kNo);
              return progress.failed && progress.error.code == Errc::kNotPermitted ? 0 : 5;
            }),
            0);
}

TEST_F(MmuProcess, SecondDriverMayNotTakeWatchedMemory) {
  EXPECT_EQ(in_child([&] {
              const Result<UserfaultMmu*> a = UserfaultMmu::create(memory_, {});
              const Result<UserfaultMmu*> b = UserfaultMmu::create(memory_, {});
              if (!a || !b || !(*a)->watch(home_.range()) || !(*a)->watch(home_.range())) return 1;
              const Result<void> refused = (*b)->watch(home_.range());
              if (refused || refused.error().code != Errc::kExists) return 2;
              void* file = mmap(nullptr, kPageSize, PROT_READ, MAP_PRIVATE, ::open("/proc/self/exe", O_RDONLY), 0);
              const Result<void> of_file = (*a)->watch({test::page_of(file), PageCount(1)});
              return !of_file && of_file.error().code == Errc::kInvalid ? 0 : 3;
            }),
            0);
}

}  // namespace
}  // namespace whimbrel
