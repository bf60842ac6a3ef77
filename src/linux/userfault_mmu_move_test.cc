// Every way a move can end on the real kernel.
#include <fcntl.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <atomic>

#include "linux/mmu_fixture_test.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

using test::Memory;

class MmuMove : public test::MmuTest {};

TEST_F(MmuMove, TakesPagesOutAndBringsThemHomeUnchanged) {
  Memory home(64);
  home.fill(0, 64);
  const PageRange frames = window(64);
  const test::Watched watched(mmu(), home.range());
  EXPECT_COMPLETE(move(frames.first, home.page(0), 64), 64);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_TRUE(Memory::holds(window_bytes(frames, i), Memory::mark(i)));
  EXPECT_COMPLETE(move(home.page(0), frames.first, 64), 64);
  for (std::size_t i = 0; i < 64; ++i) EXPECT_TRUE(Memory::holds(home.at(i), Memory::mark(i)));
  EXPECT_EQ(*window_bytes(frames, 5), std::byte{0}) << "an emptied window page reads as zeros and raises nothing";
  mmu().close_window(frames);
}

TEST_F(MmuMove, StopsAtAHoleAndSaysHowFarItCame) {
  Memory home(16);
  home.fill(0, 7);
  home.fill(8, 8);
  const PageRange frames = window(16);
  const test::Watched watched(mmu(), home.range());
  EXPECT_STOPPED(move(frames.first, home.page(0), 16), 7, kNotFound);
  EXPECT_STOPPED(move(frames.first + PageCount(7), home.page(7), 1), 0, kNotFound);
  EXPECT_COMPLETE(move(frames.first + PageCount(8), home.page(8), 8), 8);
  mmu().close_window(frames);
}

// The kernel moves pages about while it makes room for large ones, and loses count of what it has moved for us then.
TEST_F(MmuMove, CountsWhatReallyMovedWhileTheKernelCompactsMemory) {
  const int compact = ::open("/proc/sys/vm/compact_memory", O_WRONLY | O_CLOEXEC);
  if (compact < 0) GTEST_SKIP() << "/proc/sys/vm/compact_memory cannot be written here (needs root)";
  constexpr std::size_t kPages = 16384, kRun = 48;
  Memory home(kPages);
  home.fill(0, kPages);
  const PageRange frames = window(kRun);
  const test::Watched watched(mmu(), home.range());
  std::atomic<bool> done{false};
  std::thread compactor([&] {
    while (!done) (void)!::write(compact, "1", 1);
  });
  const auto end = std::chrono::steady_clock::now() + std::chrono::seconds(8);
  std::size_t lost = 0, refused = 0, moves = 0, stuck = 0;
  for (std::size_t at = 0; std::chrono::steady_clock::now() < end && lost + stuck == 0; at = (at + 7919) % (kPages - kRun)) {
    const Progress out = move(frames.first, home.page(at), kRun);
    for (std::size_t i = 0; i < out.done.raw(); ++i) {
      lost += Memory::holds(window_bytes(frames, i), Memory::mark(at + i)) ? 0 : 1;
    }
    for (std::size_t i = out.done.raw(); i < kRun; ++i) lost += sys::is_resident(home.page(at + i)).value_or(false) ? 0 : 1;
    refused += out.failed ? 1 : 0;
    ++moves;
    std::size_t back = 0;
    for (int tries = 0; back < out.done.raw() && tries < 100'000; ++tries) {
      back += move(home.page(at + back), frames.first + PageCount(back), out.done.raw() - back).done.raw();
    }
    stuck = out.done.raw() - back;
    EXPECT_TRUE(mmu().discard(frames));
  }
  done = true;
  compactor.join();
  ::close(compact);
  EXPECT_EQ(stuck, 0u) << "pages do not come home";
  EXPECT_EQ(lost, 0u) << "of " << kRun << " pages, in move " << moves << "; " << refused << " were refused in part";
  mmu().close_window(frames);
}

TEST_F(MmuMove, RefusesAnOccupiedDestination) {
  Memory home(4);
  home.fill(0, 4);
  const PageRange frames = window(4);
  *window_bytes(frames, 2) = std::byte{9};
  EXPECT_STOPPED(move(frames.first, home.page(0), 4), 2, kExists);
  EXPECT_TRUE(Memory::holds(home.at(2), Memory::mark(2))) << "the page that stayed is untouched";
  mmu().close_window(frames);
}

TEST_F(MmuMove, RefusesMappingsThatDoNotFit) {
  Memory read_only(2);
  read_only.fill(0, 2);
  ASSERT_EQ(mprotect(read_only.at(0), read_only.bytes(), PROT_READ), 0);
  Memory plain(2);
  plain.fill(0, 2);
  const PageRange frames = window(2);
  EXPECT_STOPPED(move(frames.first, read_only.page(0), 2), 0, kInvalid);
  void* shared = mmap(nullptr, 2 * kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  std::memset(shared, 1, 2 * kPageSize);
  EXPECT_STOPPED(move(frames.first, test::page_of(shared), 2), 0, kInvalid);
  munmap(shared, 2 * kPageSize);
  Memory unwatched(2);
  EXPECT_STOPPED(move(unwatched.page(0), plain.page(0), 2), 0, kInvalid);
  EXPECT_STOPPED(move(frames.first, PageIndex(16), 2), 0, kNotFound);  // nothing is mapped that low
  mmu().close_window(frames);
}

TEST_F(MmuMove, PageSharedByForkIsBusyUntilPopulatedForWriting) {
  Memory home(4);
  home.fill(0, 4);
  const PageRange frames = window(4);
  int hold[2];
  ASSERT_EQ(pipe(hold), 0);
  const pid_t child = fork();
  if (child == 0) {
    char byte;
    close(hold[1]);
    (void)!read(hold[0], &byte, 1);  // ends when the parent lets go
    _exit(0);
  }
  close(hold[0]);
  EXPECT_STOPPED(move(frames.first, home.page(0), 4), 0, kBusy);
  ASSERT_TRUE(mmu().populate(home.range(0, 2), true));
  EXPECT_STOPPED(move(frames.first, home.page(0), 4), 2, kBusy);
  close(hold[1]);
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, 0), child);
  EXPECT_STOPPED(move(frames.first + PageCount(2), home.page(2), 2), 0, kBusy);  // the exit alone does not help
  ASSERT_TRUE(mmu().populate(home.range(2, 2), true));
  EXPECT_COMPLETE(move(frames.first + PageCount(2), home.page(2), 2), 2);
  mmu().close_window(frames);
}

TEST_F(MmuMove, PinnedPageIsBusyAndMovesAfterTheUnpin) {
  Memory home(3);
  home.fill(0, 3);
  const PageRange frames = window(3);
  io_uring_params parameters{};
  const int ring = static_cast<int>(syscall(SYS_io_uring_setup, 4, &parameters));
  if (ring < 0) GTEST_SKIP() << "io_uring is not available: " << strerror(errno);
  iovec pinned{home.at(1), kPageSize};
  ASSERT_EQ(syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &pinned, 1), 0);
  EXPECT_STOPPED(move(frames.first, home.page(0), 3), 1, kBusy);
  ASSERT_EQ(syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, nullptr, 0), 0);
  Progress progress{};
  for (int tries = 0; tries < 200; ++tries) {  // the kernel lets go of the pin a little later
    progress = move(frames.first + PageCount(1), home.page(1), 2);
    if (!progress.failed) break;
    std::this_thread::sleep_for(std::chrono::milliseconds(5));
  }
  EXPECT_COMPLETE(progress, 2);
  close(ring);
  mmu().close_window(frames);
}

TEST_F(MmuMove, MarkerInTheSourceIsNoPage) {
  if (!mmu().abilities().poison) GTEST_SKIP() << "this kernel has no UFFDIO_POISON";
  Memory home(4);
  home.fill(0, 2);
  const PageRange frames = window(4);
  const test::Watched watched(mmu(), home.range());
  ASSERT_TRUE(mmu().poison(home.range(2, 2)));
  EXPECT_STOPPED(move(frames.first, home.page(0), 4), 2, kFault);
  mmu().close_window(frames);
}

TEST_F(MmuMove, DoesNotCrossIntoANeighbouringMapping) {
  Memory home(8);
  home.fill(0, 8);
  ASSERT_EQ(madvise(home.at(4), 4 * kPageSize, MADV_DONTFORK), 0);  // splits the mapping in two
  const PageRange frames = window(8);
  EXPECT_STOPPED(move(frames.first, home.page(0), 8), 0, kInvalid);
  EXPECT_COMPLETE(move(frames.first, home.page(0), 4), 4);
  mmu().close_window(frames);
}

TEST_F(MmuMove, WholeHugePageMovesHugeBothWays) {
  Memory home(512, PROT_READ | PROT_WRITE, MADV_HUGEPAGE);
  home.fill(0, 512);
  PageRun run;
  const auto is_huge = [&](PageRange range) {
    const Result<std::size_t> runs = mmu().scan(range, {&run, 1}, nullptr);
    return runs && *runs == 1 && run.range == range && (run.kind & PageRun::kHuge) != 0;
  };
  if (!is_huge(home.range()))
    GTEST_SKIP() << "the kernel gave no huge page (transparent_hugepage is never, or none is free)";
  const PageRange frames = window(512, WindowKind::kHuge);
  EXPECT_TRUE(frames.first.is_huge_aligned());
  const test::Watched watched(mmu(), home.range());
  EXPECT_COMPLETE(move(frames.first, home.page(0), 512), 512);
  EXPECT_TRUE(is_huge(frames));
  EXPECT_COMPLETE(move(home.page(0), frames.first, 512), 512);
  EXPECT_TRUE(is_huge(home.range()));
  for (std::size_t i = 0; i < 512; ++i) EXPECT_TRUE(Memory::holds(home.at(i), Memory::mark(i)));
  // The other way to come home: a fresh huge page is written in the window and moved.
  ASSERT_TRUE(mmu().discard(frames));
  std::memset(window_bytes(frames, 0), 0x3c, kHugeSize);
  EXPECT_TRUE(is_huge(frames));
  ASSERT_TRUE(mmu().unwatch(home.range()));
  ASSERT_TRUE(mmu().discard(home.range()));
  ASSERT_TRUE(mmu().watch(home.range()));
  EXPECT_COMPLETE(move(home.page(0), frames.first, 512), 512);
  EXPECT_TRUE(is_huge(home.range()));
  EXPECT_TRUE(Memory::holds(home.at(511), 0x3c));
  mmu().close_window(frames);
}

TEST_F(MmuMove, WindowLockedByTheProgramIsUnlocked) {
  Memory home(4);
  home.fill(0, 4);
  const PageRange frames = window(4);
  if (syscall(SYS_mlock2, window_bytes(frames, 0), frames.count.bytes(), MLOCK_ONFAULT) != 0) {
    GTEST_SKIP() << "mlock is not permitted: " << strerror(errno);
  }
  EXPECT_COMPLETE(move(frames.first, home.page(0), 4), 4);
  ASSERT_EQ(syscall(SYS_mlock2, window_bytes(frames, 0), frames.count.bytes(), 0), 0);
  ASSERT_TRUE(mmu().discard(frames));
  EXPECT_EQ(*window_bytes(frames, 3), std::byte{0});
  ASSERT_EQ(syscall(SYS_mlock2, window_bytes(frames, 0), frames.count.bytes(), 0), 0);
  mmu().close_window(frames);
  const PageRange again = window(4);
  EXPECT_EQ(*window_bytes(again, 0), std::byte{0});
  mmu().close_window(again);
}

TEST_F(MmuMove, TwoThreadsMoveIntoOneWindowSideBySide) {
  constexpr std::size_t kPages = 512;
  Memory home(kPages);
  home.fill(0, kPages);
  const PageRange frames = window(kPages);
  const test::Watched watched(mmu(), home.range());
  for (int round = 0; round < 20; ++round) {
    std::atomic<int> failures{0};
    const auto half = [&](std::size_t first) {
      for (std::size_t i = first; i < first + kPages / 2; i += 16) {
        if (move(frames.first + PageCount(i), home.page(i), 16).failed) ++failures;
        for (std::size_t k = i; k < i + 16; ++k) {
          if (!Memory::holds(window_bytes(frames, k), Memory::mark(k))) ++failures;
        }
        if (move(home.page(i), frames.first + PageCount(i), 16).failed) ++failures;
        // Drops nothing of the other half and raises no message that nobody would read.
        if (!mmu().discard({frames.first + PageCount(i), PageCount(16)})) ++failures;
      }
    };
    std::thread other([&] { half(kPages / 2); });
    half(0);
    other.join();
    ASSERT_EQ(failures.load(), 0);
    for (std::size_t i = 0; i < kPages; ++i) ASSERT_TRUE(Memory::holds(home.at(i), Memory::mark(i)));
  }
  mmu().close_window(frames);
}

}  // namespace
}  // namespace whimbrel
