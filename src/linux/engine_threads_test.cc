// What both flavours of engine threads promise, and what only raw ones do.
#include "linux/engine_threads.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <lz4.h>
#include <pthread.h>
#include <signal.h>
#include <sys/mman.h>
#include <ucontext.h>
#define ZSTD_STATIC_LINKING_ONLY
#include <zstd.h>

#include <cstring>
#include <memory>

#include "base/mutex.h"
#include "linux/confine_test.h"
#include "linux/libc_engine_threads.h"
#include "linux/raw_engine_threads.h"
#include "linux/reservation.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

enum class Flavour { kRaw, kLibc };

class EngineThreadsTest : public ::testing::TestWithParam<Flavour> {
 protected:
  void SetUp() override {
    if (GetParam() == Flavour::kRaw && !kRawThreadsUsable) GTEST_SKIP() << "raw threads cannot run instrumented code";
    ASSERT_TRUE(memory_.open({.bytes = 64u << 20}));
    threads_ = make({});
  }
  std::unique_ptr<EngineThreads> make(const EngineThreadOptions& options) {
    if (GetParam() == Flavour::kRaw) return std::make_unique<RawEngineThreads>(memory_, options);
    return std::make_unique<LibcEngineThreads>(options);
  }
  // Runs `body` on an engine thread with its own descriptors, to the end.
  template <class F>
  void run_first(F body) {
    const Result<int> n = threads_->start_first([](void* f) { (*static_cast<F*>(f))(); }, &body);
    ASSERT_TRUE(n) << n.error().where;
    threads_->join(*n);
  }

  Reservation memory_;
  std::unique_ptr<EngineThreads> threads_;
};

INSTANTIATE_TEST_SUITE_P(Flavours, EngineThreadsTest, ::testing::Values(Flavour::kRaw, Flavour::kLibc),
                         [](const auto& flavour) { return flavour.param == Flavour::kRaw ? "Raw" : "Libc"; });

TEST_P(EngineThreadsTest, RunsJoinsAndGivesItsMemoryBack) {
  for (int round = 0; round < 50; ++round) {
    std::atomic<int> ran{0};
    run_first([&] { ran = sys::gettid(); });
    EXPECT_NE(ran.load(), 0);
    EXPECT_NE(ran.load(), sys::gettid());
  }
  EXPECT_EQ(memory_.bytes_in_use(), 0u);
}

TEST_P(EngineThreadsTest, AllSignalsAreBlocked) {
  std::uint64_t blocked = 0;
  run_first([&] { sys::call(SYS_rt_sigprocmask, SIG_SETMASK, 0, sys::arg(&blocked), 8); });
  const auto bit = [](int signal) { return std::uint64_t{1} << (signal - 1); };
  // Not to be blocked by anybody, and the two that libc uses among its own threads.
  const std::uint64_t open = bit(SIGKILL) | bit(SIGSTOP) | bit(32) | bit(33);
  EXPECT_EQ(blocked | open, ~std::uint64_t{0});
  sigset_t mine;
  pthread_sigmask(SIG_SETMASK, nullptr, &mine);
  EXPECT_FALSE(sigismember(&mine, SIGTERM)) << "the caller's own mask is restored";
}

TEST_P(EngineThreadsTest, DescriptorTableIsItsOwnAndNearlyEmpty) {
  const int programs = open("/proc/self/stat", O_RDONLY | O_CLOEXEC);
  ASSERT_GT(programs, 2);
  long programs_there = 0;
  int engines = -1;
  run_first([&] {
    programs_there = sys::call(SYS_fcntl, programs, F_GETFD);
    const Result<int> opened = sys::open("/proc/thread-self/maps", O_RDONLY);
    if (opened) engines = *opened;
  });
  EXPECT_EQ(programs_there, -EBADF);
  EXPECT_GE(engines, 0);
  EXPECT_GE(fcntl(programs, F_GETFD), 0) << "the program's stay open";
  char name[64];
  std::snprintf(name, sizeof name, "/proc/self/fd/%d", engines);
  char target[256] = {};
  (void)!readlink(name, target, sizeof target - 1);
  EXPECT_EQ(std::strstr(target, "/maps"), nullptr) << "the engine's do not show in the program's table";
  close(programs);
}

TEST_P(EngineThreadsTest, NumbersToKeepStayOpen) {
  const int base = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 100);
  const int second = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 101);
  const int other = fcntl(STDIN_FILENO, F_DUPFD_CLOEXEC, 103);
  if (base < 0) GTEST_SKIP() << "no standard input to duplicate";
  threads_ = make({.keep = {base, second + 1}});
  long there[3] = {};
  run_first([&] {
    there[0] = sys::call(SYS_fcntl, base, F_GETFD);
    there[1] = sys::call(SYS_fcntl, second, F_GETFD);
    there[2] = sys::call(SYS_fcntl, other, F_GETFD);
  });
  EXPECT_GE(there[0], 0);
  EXPECT_GE(there[1], 0);
  EXPECT_EQ(there[2], -EBADF);
  for (const int fd : {base, second, other}) close(fd);
}

TEST_P(EngineThreadsTest, FurtherThreadsShareTheFirstOnesTable) {
  struct Shared {
    EngineThreads* threads;
    int fd = -1;
    std::atomic<long> seen_by_second{-1};
    int second = -1;
  } shared{threads_.get()};
  const Result<int> first = threads_->start_first(
      [](void* argument) {
        auto* s = static_cast<Shared*>(argument);
        const Result<int> bell = sys::eventfd();
        s->fd = bell ? *bell : -1;
        const Result<int> another = s->threads->start_another(
            [](void* inner) {
              auto* t = static_cast<Shared*>(inner);
              const std::uint64_t one = 1;
              t->seen_by_second = sys::call(SYS_write, t->fd, sys::arg(&one), 8);
            },
            s);
        s->second = another ? *another : -1;
      },
      &shared);
  ASSERT_TRUE(first);
  threads_->join(*first);
  ASSERT_GE(shared.second, 0);
  threads_->join(shared.second);
  EXPECT_EQ(shared.seen_by_second.load(), 8);
}

TEST_P(EngineThreadsTest, ProgramThatClosesEverythingDoesNotReachIt) {
  EXPECT_EQ(test::in_child([&] {
              struct State {
                Event step;
                std::atomic<long> result{-1};
              } state;
              const Result<int> n = threads_->start_first(
                  [](void* argument) {
                    auto* s = static_cast<State*>(argument);
                    const Result<int> fd = sys::open("/proc/thread-self/maps", O_RDONLY);
                    s->step.advance();
                    while (s->step.value() < 2) s->step.wait(1);
                    char byte;
                    s->result = fd ? sys::call(SYS_pread64, *fd, sys::arg(&byte), 1, 0) : -1;
                  },
                  &state);
              if (!n) return 1;
              while (state.step.value() < 1) state.step.wait(0);
              sys::close_range(0, ~0u);
              state.step.advance();
              threads_->join(*n);
              return state.result.load() == 1 ? 0 : 2;
            }),
            0);
}

TEST_P(EngineThreadsTest, PipesOfTheProgramReachTheirEnd) {
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  Event stop;
  const Result<int> n = threads_->start_first(
      [](void* argument) {
        auto* event = static_cast<Event*>(argument);
        event->advance();
        while (event->value() < 2) event->wait(1);
      },
      &stop);
  ASSERT_TRUE(n);
  while (stop.value() < 1) stop.wait(0);  // its table has been cleared
  close(ends[1]);
  char byte;
  EXPECT_EQ(read(ends[0], &byte, 1), 0);
  close(ends[0]);
  stop.advance();
  threads_->join(*n);
}

TEST_P(EngineThreadsTest, CompressorsAndCopiesWork) {
  struct Work {
    std::byte* from;
    std::byte* packed;
    std::byte* back;
    std::byte* scratch;
    std::size_t scratch_bytes;
    std::size_t zstd = 0;
    int lz4 = 0;
    bool equal = false;
  } work{};
  constexpr std::size_t kBytes = 64 * 1024;
  work.from = static_cast<std::byte*>(memory_.take(kBytes));
  work.packed = static_cast<std::byte*>(memory_.take(2 * kBytes));
  work.back = static_cast<std::byte*>(memory_.take(kBytes));
  work.scratch_bytes = 4 << 20;
  work.scratch = static_cast<std::byte*>(memory_.take(work.scratch_bytes));
  for (std::size_t i = 0; i < kBytes; ++i) work.from[i] = static_cast<std::byte>((i * i) >> 7 & 0x3f);
  const Result<int> n = threads_->start_first(
      [](void* argument) {
        auto* w = static_cast<Work*>(argument);
        const auto chars = [](std::byte* p) { return reinterpret_cast<char*>(p); };
        ZSTD_CCtx* out = ZSTD_initStaticCCtx(w->scratch, w->scratch_bytes / 2);
        ZSTD_DCtx* in = ZSTD_initStaticDCtx(w->scratch + w->scratch_bytes / 2, w->scratch_bytes / 2);
        w->zstd = ZSTD_compressCCtx(out, w->packed, 2 * kBytes, w->from, kBytes, 1);
        const std::size_t got = ZSTD_decompressDCtx(in, w->back, kBytes, w->packed, w->zstd);
        w->equal = got == kBytes && std::memcmp(w->from, w->back, kBytes) == 0;
        std::memset(w->back, 0, kBytes);
        w->lz4 = LZ4_compress_fast_extState(w->scratch, chars(w->from), chars(w->packed), kBytes, 2 * kBytes, 1);
        const int bytes = LZ4_decompress_safe(chars(w->packed), chars(w->back), w->lz4, kBytes);
        w->equal = w->equal && bytes == static_cast<int>(kBytes) && std::memcmp(w->from, w->back, kBytes) == 0;
        std::memcpy(w->packed, w->back, kBytes);
        w->equal = w->equal && std::memcmp(w->from, w->packed, kBytes) == 0;
      },
      &work);
  ASSERT_TRUE(n);
  threads_->join(*n);
  EXPECT_TRUE(work.equal);
  EXPECT_GT(work.zstd, 0u);
  EXPECT_LT(work.zstd, kBytes);
  EXPECT_GT(work.lz4, 0);
}

TEST_P(EngineThreadsTest, ForkedChildForgetsThemAndStartsItsOwn) {
  if (!test::kChildMayStartThreads) GTEST_SKIP() << "ThreadSanitizer cannot start threads in a forked child";
  Event stop;
  const Result<int> n = threads_->start_first(
      [](void* argument) {
        auto* event = static_cast<Event*>(argument);
        while (event->value() < 1) event->wait(0);
      },
      &stop);
  ASSERT_TRUE(n);
  EXPECT_EQ(test::in_child([&] {
              threads_->forget_after_fork();
              int ran = 0;
              const Result<int> mine = threads_->start_first([](void* r) { *static_cast<int*>(r) = 1; }, &ran);
              if (!mine) return 1;
              threads_->join(*mine);
              return ran == 1 && memory_.bytes_in_use() == 0 ? 0 : 2;
            }),
            0);
  stop.advance();
  threads_->join(*n);
}

TEST_P(EngineThreadsTest, RefusesMoreThanItCanHold) {
  Event stop;
  std::vector<int> running;
  for (;;) {
    const Result<int> n = threads_->start_first(
        [](void* argument) {
          auto* event = static_cast<Event*>(argument);
          while (event->value() < 1) event->wait(0);
        },
        &stop);
    if (!n) {
      EXPECT_EQ(n.error().code, Errc::kAgain);
      break;
    }
    running.push_back(*n);
    ASSERT_NE(threads_->thread_id(*n) == 0 && GetParam() == Flavour::kRaw, true);
  }
  EXPECT_EQ(running.size(), static_cast<std::size_t>(EngineThreads::kMost));
  stop.advance();
  for (const int n : running) threads_->join(n);
}

// pthread_exit() unwinds the stack, and the test framework catches everything on its way: go from a fresh stack.
[[noreturn]] void leave_main_thread() {
  static ucontext_t context;
  static std::byte stack[64 * 1024];
  getcontext(&context);
  context.uc_stack.ss_sp = stack;
  context.uc_stack.ss_size = sizeof stack;
  context.uc_link = nullptr;
  makecontext(
      &context, [] { pthread_exit(nullptr); }, 0);
  setcontext(&context);
  _exit(99);
}

class RawThreads : public ::testing::Test {
 protected:
  void SetUp() override {
    if (!kRawThreadsUsable) GTEST_SKIP() << "raw threads cannot run instrumented code";
    ASSERT_TRUE(memory_.open({.bytes = 64u << 20}));
  }
  static void sleep_for_ever(void*) {
    for (;;) sys::call(SYS_pause);
  }
  Reservation memory_;
};

TEST_F(RawThreads, ProcessEndsWithItsLastOwnThread) {
  EXPECT_EQ(test::in_child([&] {
              auto* threads = new RawEngineThreads(memory_, {});
              if (!threads->start_first(sleep_for_ever, nullptr)) return 1;
              leave_main_thread();  // the engine thread alone must not keep the process
            }),
            0);
  EXPECT_EQ(test::in_child([&] {
              auto* threads = new RawEngineThreads(memory_, {});
              if (!threads->start_first(sleep_for_ever, nullptr)) return 1;
              return 7;
            }),
            7);
}

TEST_F(RawThreads, StackOverflowHitsTheGuard) {
  EXPECT_EQ(test::in_child([&] {
              auto* threads = new RawEngineThreads(memory_, {.stack_bytes = 64 * 1024});
              const Result<int> n = threads->start_first(
                  [](void*) {
                    for (std::size_t depth = 0; depth < 80 * 1024; depth += 1024) {
                      volatile char* at = static_cast<volatile char*>(__builtin_frame_address(0)) - depth;
                      *at = 1;
                    }
                  },
                  nullptr);
              if (n) threads->join(*n);
              return 0;
            }),
            -SIGSEGV);
}

TEST_F(RawThreads, ThreadPointerAndGuardsAreInPlace) {
  struct Words {
    std::uint64_t self, thread, protector, guard, base;
  } seen{}, mine{};
  const auto look = [](void* argument) {
    auto* w = static_cast<Words*>(argument);
    __asm__("movq %%fs:0, %0" : "=r"(w->self));
    __asm__("movq %%fs:0x10, %0" : "=r"(w->thread));
    __asm__("movq %%fs:0x28, %0" : "=r"(w->protector));
    __asm__("movq %%fs:0x30, %0" : "=r"(w->guard));
    w->base = w->self;
  };
  look(&mine);
  RawEngineThreads threads(memory_, {});
  const Result<int> n = threads.start_first(look, &seen);
  ASSERT_TRUE(n);
  threads.join(*n);
  EXPECT_EQ(seen.self, seen.thread);
  EXPECT_NE(seen.self, mine.self);
  EXPECT_TRUE(memory_.range().contains(PageIndex::of(VirtualAddress(seen.self))));
  EXPECT_EQ(seen.protector, mine.protector);
  EXPECT_EQ(seen.guard, mine.guard);
}

TEST_F(RawThreads, LibcDoesNotKnowThem) {
  // In a child, where libc starts from one thread: a signal to the process is handled by the program's thread, and
  // libc's own calls across all threads (setuid) do not wait for ours.
  EXPECT_EQ(test::in_child([&] {
              auto* threads = new RawEngineThreads(memory_, {});
              const Result<int> n = threads->start_first(sleep_for_ever, nullptr);
              if (!n) return 1;
              static std::atomic<int> handled_by{0};
              signal(SIGUSR1, [](int) { handled_by = sys::gettid(); });
              kill(getpid(), SIGUSR1);
              for (int i = 0; i < 1000 && handled_by.load() == 0; ++i) usleep(1000);
              if (handled_by.load() != sys::gettid()) return 2;
              if (setuid(getuid()) != 0) return 3;
              return 0;
            }),
            0);
}

}  // namespace
}  // namespace whimbrel
