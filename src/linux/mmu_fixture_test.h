// For tests: a UserfaultMmu over the test's own process, and memory to work on.
#pragma once

#include <gtest/gtest.h>
#include <sys/mman.h>

#include <chrono>
#include <cstring>
#include <functional>
#include <thread>
#include <vector>

#include "linux/confine_test.h"
#include "linux/reservation.h"
#include "linux/userfault_mmu.h"

namespace whimbrel::test {

inline PageIndex page_of(const void* p) { return PageIndex::of(VirtualAddress(p)); }

// Private anonymous memory on a 2 MiB boundary with inaccessible pages around it, so that it never merges with
// anything. Unmapped at the end.
class Memory {
 public:
  explicit Memory(std::size_t pages, int protection = PROT_READ | PROT_WRITE, int advice = MADV_NOHUGEPAGE)
      : pages_(pages) {
    whole_ = static_cast<std::byte*>(
        mmap(nullptr, whole_bytes(), PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0));
    const auto raw = reinterpret_cast<std::uintptr_t>(whole_);
    begin_ = whole_ + ((raw + kHugeSize) / kHugeSize * kHugeSize - raw);
    madvise(begin_, bytes(), advice);
    mprotect(begin_, bytes(), protection);
  }
  ~Memory() { munmap(whole_, whole_bytes()); }
  Memory(const Memory&) = delete;
  Memory& operator=(const Memory&) = delete;

  [[nodiscard]] std::byte* at(std::size_t page) const { return begin_ + page * kPageSize; }
  [[nodiscard]] PageIndex page(std::size_t i) const { return page_of(at(i)); }
  [[nodiscard]] PageRange range() const { return {page(0), PageCount(pages_)}; }
  [[nodiscard]] PageRange range(std::size_t first, std::size_t count) const { return {page(first), PageCount(count)}; }
  [[nodiscard]] std::size_t bytes() const { return pages_ * kPageSize; }
  // Fills page i with bytes that tell i.
  void fill(std::size_t first, std::size_t count) const {
    for (std::size_t i = first; i < first + count; ++i) std::memset(at(i), mark(i), kPageSize);
  }
  static int mark(std::size_t page) { return static_cast<int>(page % 250) + 1; }
  static bool holds(const std::byte* bytes, int value) {
    for (std::size_t i = 0; i < kPageSize; ++i) {
      if (std::to_integer<int>(bytes[i]) != value) return false;
    }
    return true;
  }

 private:
  [[nodiscard]] std::size_t whole_bytes() const { return bytes() + 2 * kHugeSize; }
  std::size_t pages_;
  std::byte* whole_;
  std::byte* begin_;
};

// Keeps a range watched, and stops before its memory is unmapped: that would wait for a reader of the message.
class Watched {
 public:
  Watched(UserfaultMmu& mmu, PageRange range) : mmu_(mmu), range_(range) { EXPECT_TRUE(mmu.watch(range)); }
  ~Watched() { (void)mmu_.unwatch(range_); }
  Watched(const Watched&) = delete;
  Watched& operator=(const Watched&) = delete;

 private:
  UserfaultMmu& mmu_;
  PageRange range_;
};

class MmuTest : public ::testing::Test {
 protected:
  void SetUp() override { open({}); }
  void TearDown() override { UserfaultMmu::destroy(mmu_); }

  void open(UserfaultMmu::Options options) {
    UserfaultMmu::destroy(mmu_);
    mmu_ = nullptr;
    if (memory_.range().empty()) {
      ASSERT_TRUE(memory_.open({.bytes = 64u << 20}));
    }
    const Result<UserfaultMmu*> made = UserfaultMmu::create(memory_, options);
    ASSERT_TRUE(made) << made.error().where << " " << made.error().sys;
    mmu_ = *made;
  }
  UserfaultMmu& mmu() { return *mmu_; }

  PageRange window(std::size_t pages, WindowKind kind = WindowKind::kSmall) {
    const Result<PageRange> opened = mmu().open_window(PageCount(pages), kind);
    EXPECT_TRUE(opened);
    return opened ? *opened : PageRange{};
  }
  std::byte* window_bytes(PageRange window, std::size_t page) { return mmu().bytes(window.first + PageCount(page)); }

  Progress move(PageIndex to, PageIndex from, std::size_t pages) {
    return mmu().move(to, from, PageCount(pages), Wake::kYes);
  }
  // The next message; fails the test when none comes.
  Message next_message() {
    Message message;
    for (int tries = 0; tries < 100; ++tries) {
      if (mmu().wait_for_message(100'000'000) && mmu().read_messages({&message, 1}) == 1) return message;
    }
    ADD_FAILURE() << "no message came";
    return message;
  }
  // Repeats an operation while an address-space event is being finished by the thread that caused it.
  template <class F>
  Progress settled(F operation) {
    for (;;) {
      const Progress progress = operation();
      const bool again = progress.error.code == Errc::kEventPending || progress.error.code == Errc::kAgain;
      if (!progress.failed || !again) return progress;
      std::this_thread::yield();
    }
  }

  Reservation memory_;
  UserfaultMmu* mmu_ = nullptr;
};

// Progress in one line: "4 pages" or "4 pages, then busy (16)".
inline std::string text(const Progress& progress) {
  std::string line = std::to_string(progress.done.raw()) + " pages";
  if (progress.failed) {
    line += std::string(", then ") + errc_name(progress.error.code) + " (" + std::to_string(progress.error.sys) + ")";
  }
  return line;
}

#define EXPECT_COMPLETE(progress, pages)                                   \
  do {                                                                     \
    const ::whimbrel::Progress whimbrel_p = (progress);                    \
    EXPECT_FALSE(whimbrel_p.failed) << ::whimbrel::test::text(whimbrel_p); \
    EXPECT_EQ(whimbrel_p.done.raw(), std::size_t{pages});                  \
  } while (false)

#define EXPECT_STOPPED(progress, pages, kind)                                                       \
  do {                                                                                              \
    const ::whimbrel::Progress whimbrel_p = (progress);                                             \
    EXPECT_TRUE(whimbrel_p.failed);                                                                 \
    EXPECT_EQ(whimbrel_p.done.raw(), std::size_t{pages}) << ::whimbrel::test::text(whimbrel_p);     \
    EXPECT_EQ(whimbrel_p.error.code, ::whimbrel::Errc::kind) << ::whimbrel::test::text(whimbrel_p); \
  } while (false)

#define EXPECT_REFUSED(result, kind)                                                        \
  do {                                                                                      \
    const auto whimbrel_r = (result);                                                       \
    ASSERT_FALSE(whimbrel_r);                                                               \
    EXPECT_EQ(whimbrel_r.error().code, ::whimbrel::Errc::kind)                              \
        << ::whimbrel::errc_name(whimbrel_r.error().code) << " " << whimbrel_r.error().sys; \
  } while (false)

}  // namespace whimbrel::test
