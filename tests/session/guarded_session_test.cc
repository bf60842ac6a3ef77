// What is particular to sessions on guarded arenas, on the real kernel: what is lost is refused or said, what the program does
// with signals and with its mappings goes on working, and nothing it cannot know of is in its way.
#include <fcntl.h>
#include <gtest/gtest.h>
#include <signal.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <chrono>
#include <cstdlib>
#include <cstring>
#include <fstream>
#include <string>
#include <thread>
#include <vector>

#include "whimbrel/whimbrel.hpp"

namespace {

constexpr std::size_t kMiB = std::size_t{1} << 20;
constexpr std::size_t kPage = 4096;
constexpr std::size_t kWords = kPage / sizeof(std::uint64_t);

using Words = whimbrel::array<std::uint64_t>;

class Guarded : public testing::Test {
 protected:
  void SetUp() override {
    setenv("WHIMBREL_RUNG", "guarded", 1);
    GTEST_FLAG_SET(death_test_style, "threadsafe");
  }
};

std::size_t words_of(std::size_t bytes) { return bytes / sizeof(std::uint64_t); }

void fill(std::span<std::uint64_t> words, std::uint64_t salt) {
  for (std::size_t i = 0; i < words.size(); ++i) words[i] = i / kWords * 1'000'003 + i % 7 + salt;
}
std::size_t wrong(std::span<const std::uint64_t> words, std::uint64_t salt) {
  std::size_t bad = 0;
  for (std::size_t i = 0; i < words.size(); ++i) bad += words[i] != i / kWords * 1'000'003 + i % 7 + salt ? 1 : 0;
  return bad;
}

TEST_F(Guarded, TheRungIsChosenByTheEnvironmentAndSaid) {
  {
    whimbrel::session session({.ram = 8 * kMiB});
    EXPECT_STREQ(session.rung(), "guarded arenas");
    EXPECT_EQ(session.notice(), "");
  }
  setenv("WHIMBREL_RUNG", "sideways", 1);
  whimbrel_session_options options{sizeof options, 8 * kMiB, 0, nullptr, 0};
  whimbrel_session* session = nullptr;
  EXPECT_EQ(whimbrel_session_open(&options, &session), -EINVAL);
  EXPECT_NE(std::strstr(whimbrel_error(), "\"guarded\""), nullptr) << whimbrel_error();
}

TEST_F(Guarded, AdoptingIsRefusedWithWhatToDo) {
  whimbrel::session session({.ram = 8 * kMiB});
  void* memory = mmap(nullptr, kMiB, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  EXPECT_EQ(whimbrel_adopt(session.handle(), memory, kMiB), -EOPNOTSUPP);
  EXPECT_NE(std::strstr(whimbrel_error(), "whimbrel_allocate"), nullptr) << whimbrel_error();
  EXPECT_NE(std::strstr(whimbrel_error(), "whimbrel doctor"), nullptr) << whimbrel_error();
  munmap(memory, kMiB);
}

TEST_F(Guarded, SystemCallsOnAwayMemoryFailUntilItIsHome) {
  whimbrel::session session({.ram = 8 * kMiB});
  Words a(session, words_of(4 * kMiB));
  fill(a.span(), 1);
  const int file = open("/proc/self/exe", O_RDONLY | O_CLOEXEC);
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  ASSERT_EQ(session.migrate(a.span()).moved, 1024u);
  EXPECT_EQ(read(file, a.data(), kPage), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(write(pipe_ends[1], a.data() + kWords, kPage), -1);
  EXPECT_EQ(errno, EFAULT);
  EXPECT_EQ(session.prefetch(a.subspan(kWords, kWords)).moved, 1u);
  EXPECT_EQ(write(pipe_ends[1], a.data() + kWords, kPage), static_cast<ssize_t>(kPage));
  std::uint64_t back[kWords];
  ASSERT_EQ(read(pipe_ends[0], back, sizeof back), static_cast<ssize_t>(kPage));
  EXPECT_EQ(back[0], 1'000'003u + 1 + kWords % 7);
  {
    const whimbrel::pin_guard pin = session.pin(a.subspan(0, kWords));
    EXPECT_EQ(read(file, a.data(), kPage), static_cast<ssize_t>(kPage));
    EXPECT_EQ(std::memcmp(a.data(), "\177ELF", 4), 0);
  }
  EXPECT_EQ(session.migrate(a.span()).refused, 0u);
  EXPECT_EQ(std::memcmp(a.data(), "\177ELF", 4), 0) << "what the system call has written is what came home";
  close(file);
  close(pipe_ends[0]);
  close(pipe_ends[1]);
}

#if !defined(__SANITIZE_THREAD__)
TEST_F(Guarded, AForkedChildIsToldAndTheParentGoesOn) {
  whimbrel::session session({.ram = 4 * kMiB});
  Words a(session, words_of(12 * kMiB));
  fill(a.span(), 2);
  int said[2];
  ASSERT_EQ(pipe(said), 0);
  pid_t child = fork();
  if (child == 0) {
    void* memory = nullptr;
    if (whimbrel_allocate(session.handle(), 1, &memory) != -ESRCH) _exit(1);
    if (std::strstr(whimbrel_error(), "next: open a session in the child") == nullptr) _exit(2);
    if (whimbrel_migrate(session.handle(), a.data(), kPage, nullptr) != -ESRCH) _exit(3);
    if (whimbrel_discard(session.handle(), a.data(), kPage) != -ESRCH) _exit(4);
    whimbrel::session mine({.ram = 4 * kMiB});
    Words b(mine, words_of(12 * kMiB));
    fill(b.span(), 3);
    if (wrong(b.span(), 3) != 0) _exit(5);
    dup2(said[1], 2);
    volatile std::uint64_t first = a[0];
    _exit(first == 2 ? 6 : 7);
  }
  int status = 0;
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
  child = static_cast<pid_t>(syscall(SYS_fork));  // behind libc's back: no handlers
  if (child == 0) {
    alarm(20);
    dup2(said[1], 2);
    volatile std::uint64_t first = a[0];
    _exit(first == 2 ? 6 : 7);
  }
  waitpid(child, &status, 0);
  EXPECT_TRUE(WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV) << status;
  close(said[1]);
  char text[512] = "";
  EXPECT_GT(read(said[0], text, sizeof text - 1), 0);
  EXPECT_NE(std::strstr(text, "forked process"), nullptr) << text;
  close(said[0]);
  EXPECT_EQ(wrong(a.span(), 2), 0u);
  fill(a.span(), 4);
  EXPECT_EQ(wrong(a.span(), 4), 0u);
  EXPECT_EQ(session.migrate(a.span()).refused, 0u) << "nothing is shared with a child";
}
#endif

// ---- signals of the program ------------------------------------------------------------------------------------------------

volatile int* volatile g_null = nullptr;

void end_well(int, siginfo_t* info, void*) { _exit(info->si_addr == nullptr ? 42 : 43); }

void handle_segv() {
  struct sigaction mine {};
  mine.sa_sigaction = end_well;
  mine.sa_flags = SA_SIGINFO;
  sigaction(SIGSEGV, &mine, nullptr);
}

using GuardedDeathTest = Guarded;

TEST_F(GuardedDeathTest, AnEarlierHandlerHearsOfAllOtherAddresses) {
  EXPECT_EXIT(
      {
        handle_segv();
        whimbrel::session session({.ram = 4 * kMiB});
        Words a(session, words_of(12 * kMiB));
        fill(a.span(), 2);
        if (wrong(a.span(), 2) != 0) _exit(1);
        *g_null = 1;
      },
      testing::ExitedWithCode(42), "");
}

#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
TEST_F(GuardedDeathTest, WithoutOneTheProgramEndsAsItAlwaysDid) {
  EXPECT_EXIT(
      {
        whimbrel::session session({.ram = 4 * kMiB});
        Words a(session, words_of(12 * kMiB));
        fill(a.span(), 2);
        *g_null = 1;
      },
      testing::KilledBySignal(SIGSEGV), "");
  EXPECT_EXIT(
      {
        whimbrel::session session({.ram = 4 * kMiB});
        raise(SIGSEGV);
      },
      testing::KilledBySignal(SIGSEGV), "");
}
#endif

TEST_F(GuardedDeathTest, RightsThatTheProgramTookAwayAreNotWaitedFor) {
  EXPECT_EXIT(
      {
        struct sigaction mine {};
        mine.sa_handler = [](int) { _exit(44); };
        sigaction(SIGSEGV, &mine, nullptr);
        alarm(20);
        whimbrel::session session({.ram = 4 * kMiB});
        Words a(session, words_of(kMiB));
        fill(a.span(), 2);
        mprotect(a.data(), kPage, PROT_READ);
        a[0] = 1;
        _exit(1);
      },
      testing::ExitedWithCode(44), "");
}

// A sanitizer's own handler, which is the earlier one there, exits with a report.
struct EndedBySegv {
  bool operator()(int status) const {
#if defined(__SANITIZE_ADDRESS__)
    return WIFEXITED(status) && WEXITSTATUS(status) == 1;
#elif defined(__SANITIZE_THREAD__)
    return WIFSIGNALED(status) || (WIFEXITED(status) && WEXITSTATUS(status) == 66);
#else
    return WIFSIGNALED(status) && WTERMSIG(status) == SIGSEGV;
#endif
  }
};

TEST_F(GuardedDeathTest, AHandlerThatComesLaterIsNoticedAndMayPassOn) {
  EXPECT_EXIT(
      {
        whimbrel::session session({.ram = 4 * kMiB});
        Words a(session, words_of(12 * kMiB));
        fill(a.span(), 2);
        static struct sigaction before {};
        struct sigaction mine {};
        mine.sa_sigaction = [](int signal, siginfo_t* info, void* context) { before.sa_sigaction(signal, info, context); };
        mine.sa_flags = SA_SIGINFO | SA_NODEFER;
        sigaction(SIGSEGV, &mine, &before);
        if (wrong(a.span(), 2) != 0) _exit(2);
        if (!session.notice().empty()) _exit(3);
        Words b(session, kWords);
        if (session.notice().find("SIGSEGV") == std::string::npos) _exit(4);
        *g_null = 1;
      },
      EndedBySegv(), "");
}

std::uint64_t* g_table = nullptr;
std::atomic<std::size_t> g_handled{0}, g_bad{0};

// Touches memory that is away, on whatever thread, in the middle of whatever it does.
void look_at_table(int) {
  const std::size_t n = g_handled.fetch_add(1);
  const std::size_t page = n * 7919 % (8 * kMiB / kPage);
  if (g_table[page * kWords] != page * 1'000'003 + page * kWords % 7 + 5) g_bad.fetch_add(1);
}

TEST_F(Guarded, SignalHandlersMayTouchWhatIsAwayAtAnyMoment) {
  whimbrel::session session({.ram = 4 * kMiB});
  Words a(session, words_of(8 * kMiB));
  fill(a.span(), 5);
  g_table = a.data();
  struct sigaction mine {};
  mine.sa_handler = look_at_table;
  mine.sa_flags = SA_RESTART;
  sigaction(SIGALRM, &mine, nullptr);
  const itimerval often{{0, 700}, {0, 700}};
  setitimer(ITIMER_REAL, &often, nullptr);
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(3);
  std::size_t bad = 0;
  while (std::chrono::steady_clock::now() < end) {
    Words b(session, words_of(3 * kMiB));  // freed again: discards, and touches of fresh memory
    fill(b.span(), 6);
    bad += wrong(b.span(), 6);
    session.discard(b.span());
    for (std::size_t i = 0; i < b.size(); i += kWords) bad += b[i] != 0 ? 1 : 0;
  }
  const itimerval never{};
  setitimer(ITIMER_REAL, &never, nullptr);
  signal(SIGALRM, SIG_IGN);
  EXPECT_EQ(bad, 0u);
  EXPECT_EQ(g_bad.load(), 0u);
  EXPECT_GT(g_handled.load(), 100u);
  EXPECT_EQ(wrong(a.span(), 5), 0u);
}

// ---- the kernel's limits -----------------------------------------------------------------------------------------------------

std::size_t mappings() {
  std::ifstream maps("/proc/self/maps");
  std::string line;
  std::size_t lines = 0;
  while (std::getline(maps, line)) ++lines;
  return lines;
}

TEST_F(Guarded, ScatteredPagesDoNotUseUpTheMappings) {
  std::ifstream limit("/proc/sys/vm/max_map_count");
  std::size_t most = 0;
  limit >> most;
  ASSERT_GT(most, 0u);
  if (most > 300'000) GTEST_SKIP() << "vm.max_map_count is larger than what this test can use up";
  const std::size_t pages = most * 3 / 8;  // that many runs would take three quarters of all mappings
  whimbrel::session session({.ram = 4 * pages * kPage, .device = "lz4"});
  Words a(session, 2 * pages * kWords);
  session.advise(a.span(), whimbrel::advice::random);
  for (std::size_t i = 0; i < 2 * pages; ++i) a[i * kWords] = i + 1;
  std::size_t moved = 0;
  for (std::size_t i = 1; i < 2 * pages; i += 2) moved += session.migrate(a.subspan(i * kWords, kWords)).moved;
  EXPECT_EQ(moved, pages);
  const std::size_t now = mappings();
  EXPECT_LT(now, most / 4 + 1000);
  EXPECT_GT(now, most / 8) << "the test does not reach the limit";
  const std::uint64_t faults = session.stats().faults;
  std::size_t bad = 0;
  for (std::size_t i = 0; i < 2 * pages; i += 2) bad += a[i * kWords] != i + 1 ? 1 : 0;
  EXPECT_EQ(session.stats().faults, faults) << "what was only closed needs no engine";
  for (std::size_t i = 0; i < 2 * pages; ++i) bad += a[i * kWords] != i + 1 ? 1 : 0;
  EXPECT_EQ(bad, 0u);
}

TEST_F(Guarded, WhatIsAwayTakesNoRam) {
  const auto resident = [] {
    std::ifstream status("/proc/self/status");
    std::string word;
    std::size_t kilobytes = 0;
    while (status >> word && word != "VmRSS:") {
    }
    status >> kilobytes;
    return kilobytes * 1024;
  };
  whimbrel::session session({.ram = 8 * kMiB});
  [[maybe_unused]] const std::size_t before = resident();
  Words a(session, words_of(96 * kMiB));
  fill(a.span(), 7);
  EXPECT_EQ(wrong(a.span(), 7), 0u);
#if !defined(__SANITIZE_THREAD__) && !defined(__SANITIZE_ADDRESS__)
  // The budget, frames on their way, and a store that takes little of data like this. Not everything counted twice.
  EXPECT_LT(resident(), before + 40 * kMiB);
#endif
}

}  // namespace
