// Notifiers, range fault and exclusive pages on the real kernel.
#include "migrate/range_fault.h"

#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include <cerrno>
#include <cstring>

#include "migrate/exclusive.h"
#include "tests/live/live_space.h"
#include "tests/live/ram_driver.h"

namespace whimbrel::live {
namespace {

class Watcher final : public IntervalNotifier {
 public:
  bool invalidate(const NotifierRange& range, std::uint64_t seq) noexcept override {
    set_seq(seq);
    ++calls;
    last_event = range.event;
    last_owner = range.owner;
    return true;
  }
  std::atomic<int> calls{0};
  NotifyEvent last_event{};
  const void* last_owner = nullptr;
};

class RangeFault : public ::testing::Test {
 protected:
  void SetUp() override {
    ASSERT_TRUE(live.space().add_observer(&registry));
    at = map_memory(kHugeSize);
    ASSERT_TRUE(registry.insert(watcher, VirtualAddress(at), kHugeSize));
  }
  void TearDown() override {
    live.stop_fault_thread();
    registry.remove(watcher);
    live.space().check_invariants();
  }
  Result<void> look(std::size_t pages, std::uint64_t request, const void* owner = nullptr) {
    for (int tries = 0;; ++tries) {
      const Result<void> seen = look_once(pages, request, owner);
      // A page that comes home is an invalidation itself: begin anew, as every caller must (HR-09).
      if (seen || seen.error().code != Errc::kBusy || tries == 100) return seen;
    }
  }
  Result<void> look_once(std::size_t pages, std::uint64_t request, const void* owner) {
    words.assign(pages, HmmPfn());
    HmmRange range;
    range.registry = &registry;
    range.notifier = &watcher;
    range.notifier_seq = registry.read_begin(watcher);
    range.start = VirtualAddress(at);
    range.end = VirtualAddress(at + pages * kPageSize);
    range.pfns = words.data();
    range.default_flags = request;
    range.dev_private_owner = owner;
    range.watch_within = {PageIndex::of(VirtualAddress(at)), PageCount(kPagesPerHuge)};
    return hmm_range_fault(live.space(), range);
  }

  LiveSpace live;
  RamDriver driver{live.space(), 4 * kPagesPerHuge};
  NotifierRegistry registry;
  Watcher watcher;
  char* at = nullptr;
  std::vector<HmmPfn> words;
};

TEST_F(RangeFault, SnapshotTellsPresentFromAbsentWithoutFaulting) {
  at[kPageSize] = 1;
  ASSERT_TRUE(look(3, 0));
  EXPECT_EQ(words[0].raw(), 0u);
  EXPECT_TRUE(words[1].valid() && words[1].writable());
  EXPECT_EQ(words[1].pfn().raw(), VirtualAddress(at).raw() / kPageSize + 1);
  EXPECT_EQ(words[2].raw(), 0u);
}

TEST_F(RangeFault, RequestsFaultPagesIn) {
  ASSERT_TRUE(look(4, HmmPfn::kReqFault | HmmPfn::kReqWrite));
  for (const HmmPfn& word : words) EXPECT_TRUE(word.valid() && word.writable());
}

TEST_F(RangeFault, OwnDevicePagesAreReportedForeignOnesComeHome) {
  at[0] = 5;
  ASSERT_EQ(driver.to_device(at, kPageSize), 1u);
  ASSERT_TRUE(look(1, HmmPfn::kReqFault, &driver));
  EXPECT_TRUE(words[0].valid() && words[0].pfn().is_device());
  ASSERT_TRUE(look(1, 0));
  EXPECT_EQ(words[0].raw(), 0u);
  ASSERT_TRUE(look(1, HmmPfn::kReqFault));
  EXPECT_TRUE(words[0].valid() && !words[0].pfn().is_device());
  EXPECT_EQ(at[0], 5);
}

TEST_F(RangeFault, UnmappedAndReadOnlyMemoryIsAnError) {
  mprotect(at, kPageSize, PROT_READ);
  const Result<void> write = look(1, HmmPfn::kReqFault | HmmPfn::kReqWrite);
  ASSERT_FALSE(write);
  EXPECT_EQ(write.error().code, Errc::kNotPermitted);
  mprotect(at, kPageSize, PROT_NONE);
  ASSERT_TRUE(look(2, 0));
  EXPECT_TRUE(words[0].error());
  EXPECT_EQ(words[1].raw(), 0u);
  const Result<void> read = look(1, HmmPfn::kReqFault);
  ASSERT_FALSE(read);
  EXPECT_EQ(read.error().code, Errc::kFault);
}

TEST_F(RangeFault, MemoryOfTheProgramsOwnUserfaultfdIsNotWaitedFor) {  // HR-17
  const int own = static_cast<int>(syscall(SYS_userfaultfd, O_CLOEXEC));
  if (own < 0) GTEST_SKIP() << "no second userfaultfd: " << strerror(errno);
  uffdio_api api{};
  api.api = UFFD_API;
  ASSERT_EQ(ioctl(own, UFFDIO_API, &api), 0);
  uffdio_register ours{};
  ours.range = {VirtualAddress(at).raw(), 4 * kPageSize};
  ours.mode = UFFDIO_REGISTER_MODE_MISSING;
  ASSERT_EQ(ioctl(own, UFFDIO_REGISTER, &ours), 0);
  ASSERT_TRUE(look(8, 0));  // a snapshot faults nothing
  EXPECT_EQ(words[0].raw(), 0u);
  const Result<void> wanted = look(1, HmmPfn::kReqFault);
  ASSERT_FALSE(wanted);
  EXPECT_EQ(wanted.error().code, Errc::kFault);
  close(own);
  EXPECT_TRUE(look(1, HmmPfn::kReqFault));
}

TEST_F(RangeFault, AnInvalidationMakesTheSequenceStale) {
  const std::uint64_t seq = registry.read_begin(watcher);
  EXPECT_FALSE(registry.read_retry(watcher, seq));
  at[0] = 1;
  ASSERT_EQ(driver.to_device(at, kPageSize), 1u);
  EXPECT_TRUE(registry.read_retry(watcher, seq));
  EXPECT_GE(watcher.calls.load(), 1);
  EXPECT_EQ(watcher.last_event, NotifyEvent::kMigrate);
  EXPECT_EQ(watcher.last_owner, &driver);
  const int before = watcher.calls;
  munmap(at + kPageSize, kPageSize);
  EXPECT_GT(watcher.calls.load(), 0);
  (void)before;
  EXPECT_FALSE(registry.read_retry(watcher, registry.read_begin(watcher)));
}

TEST_F(RangeFault, ExclusivePagesBelongToTheDeviceUntilTouched) {
  at[0] = 1;
  const Result<Pfn> frame = make_device_exclusive(live.space(), VirtualAddress(at), &driver);
  ASSERT_TRUE(frame.has_value());
  EXPECT_EQ(live.space().entry(PageIndex::of(VirtualAddress(at))).state(), PageState::kExclusive);
  live.space().bytes(*frame)[0] = std::byte{42};  // the device writes
  std::thread toucher([&] { EXPECT_EQ(at[0], 42); });  // waits until the device lets go
  usleep(20'000);
  EXPECT_EQ(live.space().entry(PageIndex::of(VirtualAddress(at))).state(), PageState::kExclusive);
  release_exclusive(live.space(), *frame);
  toucher.join();
  EXPECT_EQ(live.space().entry(PageIndex::of(VirtualAddress(at))).state(), PageState::kRam);
  EXPECT_EQ(watcher.last_event, NotifyEvent::kClear);
  EXPECT_EQ(live.space().pool(FrameUse::kStaging).in_use(), 0u);
}

TEST_F(RangeFault, ExclusiveNeedsWritablePrivateMemory) {
  char* shared = static_cast<char*>(mmap(nullptr, kPageSize, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0));
  EXPECT_EQ(make_device_exclusive(live.space(), VirtualAddress(shared), &driver).error().code, Errc::kNotSupported);
  mprotect(at, kPageSize, PROT_READ);
  EXPECT_EQ(make_device_exclusive(live.space(), VirtualAddress(at), &driver).error().code, Errc::kFault);
  const Result<Pfn> hole = make_device_exclusive(live.space(), VirtualAddress(at + kPageSize), &driver);
  ASSERT_TRUE(hole.has_value());
  release_exclusive(live.space(), *hole);
  revoke_all_exclusive(live.space());
  EXPECT_EQ(live.space().pool(FrameUse::kStaging).in_use(), 0u);
  EXPECT_EQ(at[kPageSize], 0);
}

}  // namespace
}  // namespace whimbrel::live
