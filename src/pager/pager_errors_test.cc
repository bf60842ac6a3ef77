// The pager on the real kernel with a device that fails.
#include <setjmp.h>

#include <vector>

#include "pager/live_pager_test.h"

namespace whimbrel::live {
namespace {

using Command = LivePager::Command;

TEST(PagerLive, ARamDeviceThatIsFullLosesNothing) {
  NEEDS_RAW_THREADS();
  LiveOptions options = with_ram(16 * kMiB, DeviceKind::kRam);
  options.device_capacity = 12 * kMiB;
  LivePager& live = LivePager::start(options);
  ProgramMemory memory(64 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  EXPECT_GT(get(live.stats().device_full), 0u);
  EXPECT_GT(get(live.stats().pages_out), 0u);
  EXPECT_GT(get(live.stats().resident_pages) * kPageSize, 40 * kMiB) << "what has no place stays";
  const auto full = static_cast<std::uint32_t>(Pager::Notice::kDeviceFull);
  EXPECT_EQ(live.pager().take_notices() & full, full);
  EXPECT_EQ(live.pager().take_notices() & full, 0u) << "said once";
  live.stop();
}

TEST(PagerLive, ADeviceThatFailsToStoreLosesNothing) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB));
  live.device().fail_stores = true;
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  EXPECT_EQ(get(live.stats().pages_out), 0u);
  EXPECT_GT(get(live.stats().device_errors), 0u);
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.device().fail_stores = false;
  for (int i = 0; i < 1000 && get(live.stats().resident_pages) * kPageSize > 17 * kMiB; ++i) usleep(10'000);
  EXPECT_LE(get(live.stats().resident_pages) * kPageSize, 17 * kMiB) << "it recovers by itself";
  EXPECT_EQ(wrong_in(memory, 1), 0u);
  live.stop();
}

sigjmp_buf g_escape;
volatile sig_atomic_t g_touching = 0;
volatile sig_atomic_t g_bus_errors = 0;
void* volatile g_bus_address = nullptr;
void on_bus_error(int, siginfo_t* info, void*) {
  g_bus_errors = g_bus_errors + 1;
  g_bus_address = info->si_addr;
  if (g_touching == 0) return;
  g_touching = 0;
  siglongjmp(g_escape, 1);
}

TEST(PagerLive, ALoadThatFailsIsABusErrorForThatPageAndNothingElseIsHurt) {
  NEEDS_RAW_THREADS();
  LivePager& live = LivePager::start(with_ram(16 * kMiB));
  ProgramMemory memory(40 * kMiB);
  for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
  live.command(Command::kEvictRange, memory.range(0, 256));
  ASSERT_FALSE(is_present(memory.page(10)));
  struct sigaction action {};
  struct sigaction before {};
  action.sa_sigaction = on_bus_error;
  action.sa_flags = SA_SIGINFO;
  sigaction(SIGBUS, &action, &before);
  alarm(60);
  live.device().fail_loads = true;
  static int rounds = 0;  // not on the stack, which the jump leaves as it is
  for (rounds = 0; rounds < 3; ++rounds) {
    volatile std::uint64_t* const word = memory.page(10) + 77;
    const int before_this = g_bus_errors;
    volatile bool went_through = false;
    g_touching = 1;
    if (sigsetjmp(g_escape, 1) == 0) {
      (void)*word;
      went_through = true;
    }
    EXPECT_FALSE(went_through);
    EXPECT_EQ(g_bus_address, static_cast<const volatile void*>(word));
    EXPECT_EQ(g_bus_errors, before_this + 1) << "one signal for one access";
  }
  // A system call that needs the page fails; nobody waits for ever.
  int ends[2];
  ASSERT_EQ(pipe(ends), 0);
  EXPECT_EQ(write(ends[1], memory.page(200), kPageSize), -1);
  EXPECT_EQ(errno, EFAULT);
  live.device().fail_loads = false;
  EXPECT_GT(get(live.stats().load_errors), 0u);
  const int so_far = g_bus_errors;
  std::size_t wrong = 0;
  for (std::size_t i = 0; i < memory.pages(); ++i) wrong += i == 200 ? 0 : memory.wrong_words(i, 1);
  EXPECT_EQ(wrong, 0u) << "that page too, now that the device works";
  EXPECT_EQ(g_bus_errors, so_far);
  alarm(0);
  live.stop();
  sigaction(SIGBUS, &before, nullptr);
}

TEST(PagerLive, ALoadThatFailsEndsAProgramThatBlocksTheSignal) {
  NEEDS_RAW_THREADS();
  const pid_t child = fork();
  if (child == 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    LivePager& live = LivePager::start(with_ram(16 * kMiB));
    ProgramMemory memory(40 * kMiB);
    for (std::size_t i = 0; i < memory.pages(); ++i) memory.write(i, 1);
    live.command(Command::kEvictRange, memory.range(0, 256));
    sigset_t bus;
    sigemptyset(&bus);
    sigaddset(&bus, SIGBUS);
    sigprocmask(SIG_BLOCK, &bus, nullptr);
    live.device().fail_loads = true;
    alarm(20);
    (void)*static_cast<volatile std::uint64_t*>(memory.page(10));
    _exit(1);
  }
  int status = 0;
  waitpid(child, &status, 0);
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGBUS) << "as with a fault of the machine";
}

}  // namespace
}  // namespace whimbrel::live
