// What the driver says about mappings and presence, compared with what the test set up and between its own ways of
// asking.
#include <fcntl.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include <fstream>

#include "linux/mmu_fixture_test.h"
#include "linux/proc_maps.h"
#include "linux/uapi.h"

namespace whimbrel {
namespace {

using test::Memory;
using test::Watched;

class MmuMap : public test::MmuTest {
 protected:
  Mapping detailed(PageIndex page) {
    const Result<Mapping> mapping = mmu().detailed_mapping_at_or_above(page);
    EXPECT_TRUE(mapping);
    return mapping ? *mapping : Mapping{};
  }
  Mapping quick(PageIndex page) {
    const Result<Mapping> mapping = mmu().mapping_at_or_above(page);
    EXPECT_TRUE(mapping);
    return mapping ? *mapping : Mapping{};
  }
};

constexpr std::uint32_t kQuickFlags = Mapping::kReadable | Mapping::kWritable | Mapping::kExecutable |
                                      Mapping::kShared | Mapping::kFileBacked | Mapping::kHeap | Mapping::kStack |
                                      Mapping::kKernelOwned;

TEST_F(MmuMap, PlainMemoryIsPrivateAnonymous) {
  Memory home(5);
  const Mapping mapping = quick(home.page(2));
  EXPECT_EQ(mapping.range, home.range());
  EXPECT_TRUE(mapping.is_private_anonymous());
  EXPECT_TRUE(mapping.has(Mapping::kReadable | Mapping::kWritable | Mapping::kFlagsUnknown));
  EXPECT_FALSE(mapping.has_any(Mapping::kExecutable | Mapping::kShared | Mapping::kHeap));
}

TEST_F(MmuMap, FindsTheNextMappingAboveAndTheEnd) {
  Memory home(5);
  munmap(home.at(1), 2 * kPageSize);
  EXPECT_EQ(quick(home.page(1)).range, home.range(3, 2));
  const PageIndex top(std::uint64_t{1} << 46);
  EXPECT_REFUSED(mmu().mapping_at_or_above(top), kNotFound);
  EXPECT_REFUSED(mmu().detailed_mapping_at_or_above(top), kNotFound);
}

TEST_F(MmuMap, FilesSharedMemoryStackHeapAndKernelPagesAreToldApart) {
  const int fd = static_cast<int>(syscall(SYS_memfd_create, "whimbrel test with a long name to be asked for", 0));
  ASSERT_EQ(ftruncate(fd, 8 * kPageSize), 0);
  void* file = mmap(nullptr, 4 * kPageSize, PROT_READ, MAP_PRIVATE, fd, 3 * kPageSize);
  const Mapping of_file = quick(test::page_of(file));
  EXPECT_TRUE(of_file.has(Mapping::kFileBacked));
  EXPECT_FALSE(of_file.is_private_anonymous());
  EXPECT_EQ(of_file.file_offset, 3 * kPageSize);
  EXPECT_NE(of_file.inode, 0u);
  munmap(file, 4 * kPageSize);
  close(fd);
  void* shared = mmap(nullptr, kPageSize, PROT_READ, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  EXPECT_TRUE(quick(test::page_of(shared)).has(Mapping::kShared));
  munmap(shared, kPageSize);
  int local = 0;
  EXPECT_TRUE(quick(test::page_of(&local)).has(Mapping::kStack));
  void* const heap = sbrk(static_cast<intptr_t>(kPageSize));  // there is none yet where malloc does without
  EXPECT_TRUE(quick(test::page_of(heap)).has(Mapping::kHeap));
}

TEST_F(MmuMap, DetailedFlagsAreThoseThatWereAdvised) {
  const struct {
    int advice;
    std::uint32_t flag;
  } cases[] = {{MADV_WIPEONFORK, Mapping::kWipeOnFork},
               {MADV_DONTFORK, Mapping::kDontFork},
               {MADV_HUGEPAGE, Mapping::kHugeAdvised},
               {MADV_NOHUGEPAGE, Mapping::kNoHuge}};
  for (const auto& c : cases) {
    SCOPED_TRACE(c.advice);
    Memory home(4, PROT_READ | PROT_WRITE, c.advice);
    const Mapping mapping = detailed(home.page(0));
    EXPECT_EQ(mapping.range, home.range());
    EXPECT_TRUE(mapping.has(c.flag));
    EXPECT_FALSE(mapping.has_any(Mapping::kFlagsUnknown));
    for (const auto& other : cases) {
      if (other.flag != c.flag) {
        EXPECT_FALSE(mapping.has(other.flag)) << other.advice;
      }
    }
  }
}

TEST_F(MmuMap, LockedAndWatchedMappingsShow) {
  Memory home(4);
  EXPECT_FALSE(detailed(home.page(0)).has_any(Mapping::kLocked | Mapping::kWatchedMissing));
  {
    const Watched watched(mmu(), home.range());
    EXPECT_TRUE(detailed(home.page(0)).has(Mapping::kWatchedMissing));
  }
  // Not by libc's function, which sanitizers turn into nothing.
  if (syscall(SYS_mlock, home.at(0), home.bytes()) != 0) GTEST_SKIP() << "mlock is not permitted: " << strerror(errno);
  EXPECT_TRUE(detailed(home.page(0)).has(Mapping::kLocked));
}

// Every mapping it is told of from `start` on.
class Collector final : public MappingSink {
 public:
  explicit Collector(std::size_t most) : most_(most) { seen_.reserve(most); }
  bool take(std::span<const Mapping> some) noexcept override {
    for (const Mapping& mapping : some) seen_.push_back(mapping);
    return seen_.size() < most_;
  }
  [[nodiscard]] const std::vector<Mapping>& seen() const { return seen_; }

 private:
  const std::size_t most_;
  std::vector<Mapping> seen_;
};

TEST_F(MmuMap, OneWalkShowsEachOfManyMappingsOnceInSmallHandfuls) {
  constexpr std::size_t kMany = 2000;
  Memory home(kMany);
  for (std::size_t i = 0; i < kMany; i += 2) ASSERT_EQ(mprotect(home.at(i), kPageSize, PROT_READ), 0);
  Mapping room[7];
  Collector all(kMany + 2000);
  ASSERT_TRUE(mmu().walk_detailed_mappings(home.page(5), room, all));
  ASSERT_GE(all.seen().size(), kMany - 5);
  for (std::size_t i = 5; i < kMany; ++i) {
    const Mapping& mapping = all.seen()[i - 5];
    ASSERT_EQ(mapping.range, home.range(i, 1)) << i;
    ASSERT_EQ(mapping.has(Mapping::kWritable), i % 2 != 0) << i;
    ASSERT_FALSE(mapping.has(Mapping::kFlagsUnknown));
  }
  Collector some(20);
  ASSERT_TRUE(mmu().walk_detailed_mappings(home.page(0), room, some));
  EXPECT_EQ(some.seen().size(), 21u) << "enough after three handfuls";
}

TEST_F(MmuMap, EveryWayOfAskingAgreesOnTheWholeProcess) {
  std::vector<Mapping> all(1000);
  std::vector<Mapping> text;
  text.reserve(1000);  // nothing may change the mappings between the two readings
  const Result<std::size_t> count = mmu().detailed_mappings(PageIndex(0), all);
  ASSERT_TRUE(count);
  // The text of maps, which older kernels leave as the only way.
  const int fd = ::open("/proc/self/maps", O_RDONLY | O_CLOEXEC);
  LineReader lines(fd);
  std::string_view line;
  while (lines.next(line)) {
    Mapping mapping;
    ASSERT_TRUE(parse_mapping_line(line, mapping)) << line;
    if (!line.ends_with("[vsyscall]")) text.push_back(mapping);  // in the kernel's half
  }
  close(fd);
  ASSERT_GT(*count, 20u);
  all.resize(*count);
  ASSERT_EQ(text.size(), all.size());
  bool kernel_owned = false;
  for (std::size_t i = 0; i < all.size(); ++i) {
    SCOPED_TRACE(i);
    EXPECT_EQ(text[i].range, all[i].range);
    EXPECT_EQ(text[i].flags & kQuickFlags, all[i].flags & kQuickFlags);
    EXPECT_EQ(text[i].inode, all[i].inode);
    kernel_owned = kernel_owned || all[i].has(Mapping::kKernelOwned);
    const Mapping asked = quick(all[i].range.first);
    EXPECT_EQ(asked.range, all[i].range);
    EXPECT_EQ(asked.flags & kQuickFlags, all[i].flags & kQuickFlags);
    EXPECT_EQ(asked.inode, all[i].inode);
    EXPECT_EQ(asked.file_offset, all[i].file_offset);
  }
  EXPECT_TRUE(kernel_owned);
}

TEST_F(MmuMap, ScanTellsRunsAndLeavesHolesOut) {
  Memory home(64);
  home.fill(0, 3);
  home.fill(10, 20);
  home.fill(63, 1);
  std::vector<PageRun> runs(16);
  PageIndex scanned;
  const Result<std::size_t> count = mmu().scan(home.range(), runs, &scanned);
  ASSERT_TRUE(count);
  ASSERT_EQ(*count, 3u);
  EXPECT_EQ(scanned, home.range().end());
  EXPECT_EQ(runs[0].range, home.range(0, 3));
  EXPECT_EQ(runs[1].range, home.range(10, 20));
  EXPECT_EQ(runs[2].range, home.range(63, 1));
  for (int i = 0; i < 3; ++i) EXPECT_EQ(runs[i].kind, PageRun::kPresent | PageRun::kWritten);
}

TEST_F(MmuMap, ScanGoesOnWhereItsBufferWasFull) {
  Memory home(400);
  for (std::size_t i = 0; i < 400; i += 2) home.fill(i, 1);
  for (const std::size_t room : {1u, 7u, 64u, 100u, 300u}) {
    SCOPED_TRACE(room);
    std::vector<PageRun> runs(room);
    std::size_t found = 0;
    PageIndex at = home.page(0);
    while (at < home.range().end()) {
      const Result<std::size_t> count = mmu().scan(PageRange::between(at, home.range().end()), runs, &at);
      ASSERT_TRUE(count);
      for (std::size_t i = 0; i < *count; ++i, ++found) ASSERT_EQ(runs[i].range, home.range(2 * found, 1));
    }
    EXPECT_EQ(found, 200u);
  }
}

TEST_F(MmuMap, PagesThatAreAwayAreHolesEvenInAProtectedSpan) {
  Memory home(8);
  home.fill(0, 8);
  const PageRange frames = window(2);
  const Watched watched(mmu(), home.range());
  EXPECT_COMPLETE(move(frames.first, home.page(3), 2), 2);
  if (mmu().abilities().write_protect) {
    ASSERT_TRUE(mmu().write_protect(home.range(), true, Wake::kNo));
  }
  PageRun runs[8];
  const Result<std::size_t> count = mmu().scan(home.range(), runs, nullptr);
  ASSERT_TRUE(count && *count == 2);
  EXPECT_EQ(runs[0].range, home.range(0, 3));
  EXPECT_EQ(runs[1].range, home.range(5, 3));
  EXPECT_EQ(runs[0].kind & PageRun::kWritten, mmu().abilities().write_protect ? 0u : PageRun::kWritten);
  EXPECT_COMPLETE(move(home.page(3), frames.first, 2), 2);
  mmu().close_window(frames);
}

TEST_F(MmuMap, PagesThatAForkHasSharedAreToldApartWhenAskedFor) {
  Memory home(600);
  home.fill(0, 600);
  int hold[2];
  ASSERT_EQ(pipe(hold), 0);
  const pid_t child = fork();
  if (child == 0) {
    close(hold[1]);
    char byte;
    (void)!read(hold[0], &byte, 1);
    _exit(0);
  }
  close(hold[0]);
  home.fill(10, 20);   // written: this process's own again
  home.fill(300, 1);
  PageRun runs[16];
  Result<std::size_t> count = mmu().scan(home.range(), runs, nullptr);
  ASSERT_TRUE(count && *count == 1) << "nobody has asked";
  EXPECT_EQ(runs[0].kind & PageRun::kShared, 0u);
  ASSERT_TRUE(mmu().report_sharing(true));
  count = mmu().scan(home.range(), runs, nullptr);
  ASSERT_TRUE(count && *count == 5);
  EXPECT_EQ(runs[1].range, home.range(10, 20));
  EXPECT_EQ(runs[3].range, home.range(300, 1));
  for (std::size_t i = 0; i < 5; ++i) EXPECT_EQ((runs[i].kind & PageRun::kShared) != 0, i % 2 == 0) << i;
  // A buffer that is too small: the rest is told the next time.
  std::size_t found = 0;
  for (PageIndex at = home.page(0); at < home.range().end(); found += *count) {
    count = mmu().scan(PageRange::between(at, home.range().end()), {runs, 2}, &at);
    ASSERT_TRUE(count && *count != 0);
  }
  EXPECT_EQ(found, 5u);
  close(hold[1]);
  waitpid(child, nullptr, 0);
  count = mmu().scan(home.range(), runs, nullptr);
  ASSERT_TRUE(count && *count == 1);
  EXPECT_EQ(runs[0].kind & PageRun::kShared, 0u) << "nobody else has them now";
  ASSERT_TRUE(mmu().report_sharing(false));
}

// The same questions on a kernel without the newer calls, played by a filter.
TEST_F(MmuMap, OlderKernelsAreAskedInOlderWays) {
  Memory home(600);
  home.fill(5, 300);
  home.fill(400, 7);
  EXPECT_EQ(test::in_child([&] {
              test::deny_ioctl(uapi::kPagemapScan, ENOTTY);
              test::deny_ioctl(uapi::kProcmapQuery, ENOTTY);
              PageRun runs[4];
              PageIndex scanned;
              // The inherited descriptors are the parent's: open new ones.
              if (!mmu().reopen_in_child()) return 1;
              Result<std::size_t> count = mmu().scan(home.range(), runs, &scanned);
              if (!count || *count != 2 || scanned != home.range().end()) return 2;
              if (runs[0].range != home.range(5, 300) || runs[1].range != home.range(400, 7)) return 3;
              if ((runs[0].kind & PageRun::kPresent) == 0) return 4;
              count = mmu().scan(home.range(), {runs, 1}, &scanned);
              if (!count || *count != 1 || scanned != home.page(400)) return 5;
              const Result<Mapping> mapping = mmu().mapping_at_or_above(home.page(7));
              if (!mapping || mapping->range != home.range()) return 6;
              return 0;
            }),
            0);
}

TEST(ProcMaps, ReadsLinesOfEveryShape) {
  Mapping m;
  ASSERT_TRUE(parse_mapping_line("7f00a0000000-7f00a0003000 rw-p 00000000 00:00 0 ", m));
  EXPECT_EQ(m.range.first, PageIndex(0x7f00a0000));
  EXPECT_EQ(m.range.count, PageCount(3));
  EXPECT_EQ(m.flags, Mapping::kReadable | Mapping::kWritable | Mapping::kFlagsUnknown);
  ASSERT_TRUE(parse_mapping_line("00400000-00401000 r-xs 00002000 fd:01 1234567                 /usr/bin/a b", m));
  EXPECT_TRUE(m.has(Mapping::kShared | Mapping::kExecutable | Mapping::kFileBacked));
  EXPECT_EQ(m.inode, 1234567u);
  EXPECT_EQ(m.file_offset, 0x2000u);
  ASSERT_TRUE(parse_mapping_line("ffffffffff600000-ffffffffff601000 --xp 00000000 00:00 0    [vsyscall]", m));
  EXPECT_TRUE(m.has(Mapping::kKernelOwned));
  for (const char* line : {"", "Size:   12 kB", "VmFlags: rd wr", "7f00-7f", "7f00-8000 rw", "7f00-8000 rw-p 0 0 0",
                           "zz-8000 rw-p 00000000 00:00 0"}) {
    EXPECT_FALSE(parse_mapping_line(line, m)) << line;
  }
  m.flags = Mapping::kFlagsUnknown;
  EXPECT_FALSE(parse_vm_flags("Rss: 4 kB", m));
  ASSERT_TRUE(parse_vm_flags("VmFlags: rd wr mr mw me lo ac wf dc um ??", m));
  EXPECT_EQ(m.flags, Mapping::kLocked | Mapping::kWipeOnFork | Mapping::kDontFork | Mapping::kWatchedMissing);
}

TEST(ProcMaps, LongLinesAreCutAndTheNextOnesIntact) {
  char name[] = "/tmp/whimbrel-lines-XXXXXX";
  const int fd = mkstemp(name);
  ASSERT_GE(fd, 0);
  unlink(name);
  const std::string longest(20000, 'x');
  const std::string contents = "first\n" + longest + "\n\nlast without newline?\nend\n";
  ASSERT_EQ(write(fd, contents.data(), contents.size()), static_cast<ssize_t>(contents.size()));
  LineReader lines(fd);
  std::string_view line;
  ASSERT_TRUE(lines.next(line));
  EXPECT_EQ(line, "first");
  ASSERT_TRUE(lines.next(line));
  EXPECT_EQ(line.substr(0, 100), longest.substr(0, 100));
  ASSERT_TRUE(lines.next(line));
  EXPECT_EQ(line, "");
  ASSERT_TRUE(lines.next(line));
  EXPECT_EQ(line, "last without newline?");
  ASSERT_TRUE(lines.next(line));
  EXPECT_EQ(line, "end");
  EXPECT_FALSE(lines.next(line));
  EXPECT_FALSE(lines.failed());
  close(fd);
}

}  // namespace
}  // namespace whimbrel
