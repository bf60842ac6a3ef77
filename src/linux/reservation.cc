#include "linux/reservation.h"

#include <sys/mman.h>

#include <cstring>

#include "base/check.h"
#include "linux/address_space.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr std::size_t kGuardBytes = 64 * 1024;
// Accessible memory grows and shrinks in these steps: one mprotect per 2 MiB.
constexpr std::size_t kStep = kPagesPerHuge;
// A shrinking tail is given up only when it is this long, so that take/give at the edge does not flap.
constexpr std::size_t kSlack = 4 * kStep;
// Freed pages are kept with their old contents up to this many (1 MiB): clearing a page when it is taken again costs
// far less than a system call and a TLB flush per give(). Longer runs go back to the kernel at once.
constexpr std::size_t kMostDirty = 256;
constexpr std::size_t kDirtyRun = 64;

constexpr std::size_t round_up(std::size_t n, std::size_t to) { return (n + to - 1) / to * to; }

}  // namespace

Reservation::~Reservation() { close(); }

void Reservation::close() noexcept {
  if (whole_.empty()) return;
  sys::munmap(reinterpret_cast<void*>(whole_.first.address().raw()), whole_.count.bytes());
  whole_ = PageRange();
  page_limit_ = 0;
  const MutexLock lock(mutex_);
  committed_ = meta_committed_ = lowest_free_ = 0;
  dirty_pages_.store(0, std::memory_order_relaxed);
  pages_in_use_.store(0, std::memory_order_relaxed);
}

Result<void> Reservation::open(const Options& options) noexcept {
  CHECK(whole_.empty(), "a reservation is opened once");
  std::uint64_t bytes = affordable_address_space(options.bytes) / kHugeSize * kHugeSize;
  void* base = nullptr;
  std::size_t whole_bytes = 0;
  for (;; bytes = bytes / 2 / kPageSize * kPageSize) {
    if (bytes < kSmallest) bytes = affordable_address_space(kSmallest) / kPageSize * kPageSize;
    if (bytes < kSmallest) return fail(Errc::kNoMemory, 0, "address space for the engine (RLIMIT_AS)");
    bitmap_bytes_ = round_up(PageBitmap::words_for(bytes / kPageSize) * 8, kPageSize);
    whole_bytes = kGuardBytes + 2 * bitmap_bytes_ + kGuardBytes + kHugeSize + bytes + kGuardBytes;
    const Result<void*> mapped = sys::mmap(nullptr, whole_bytes, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
    if (mapped) {
      base = *mapped;
      break;
    }
    if (bytes <= kSmallest) return std::unexpected(mapped.error());
  }
  (void)sys::munlock(base, whole_bytes);  // after mlockall(MCL_FUTURE) it arrives locked
  (void)sys::madvise(base, whole_bytes, MADV_DONTDUMP);
  (void)sys::madvise(base, whole_bytes, options.huge_pages ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);

  auto* bytes_at = static_cast<std::byte*>(base);
  whole_ = {PageIndex::of(VirtualAddress(base)), PageCount(whole_bytes / kPageSize)};
  meta_ = bytes_at + kGuardBytes;
  const std::uint64_t first = VirtualAddress(meta_ + 2 * bitmap_bytes_ + kGuardBytes).raw();
  pages_ = bytes_at + (round_up(first, kHugeSize) - VirtualAddress(base).raw());
  page_limit_ = bytes / kPageSize;
  const MutexLock lock(mutex_);
  used_ = PageBitmap(reinterpret_cast<std::uint64_t*>(meta_));
  dirty_ = PageBitmap(reinterpret_cast<std::uint64_t*>(meta_ + bitmap_bytes_));
  return {};
}

// Makes pages [0, pages) and their book-keeping accessible. Each counter moves after its mprotect: a fork in between
// only repeats the call in the child.
bool Reservation::commit_locked(std::size_t pages) noexcept {
  if (pages <= committed_) return true;
  if (pages > page_limit_) return false;
  std::size_t target = round_up(pages, kStep);
  if (target > page_limit_) target = page_limit_;
  const std::size_t meta = round_up(PageBitmap::words_for(target) * 8, kPageSize);
  if (meta > meta_committed_) {
    for (std::byte* bitmap : {meta_, meta_ + bitmap_bytes_}) {
      if (!sys::mprotect(bitmap + meta_committed_, meta - meta_committed_, PROT_READ | PROT_WRITE)) return false;
    }
    meta_committed_ = meta;
  }
  if (!sys::mprotect(page(committed_), (target - committed_) * kPageSize, PROT_READ | PROT_WRITE)) return false;
  committed_ = target;
  return true;
}

// Makes a long free tail inaccessible again.
void Reservation::trim_locked() noexcept {
  const std::size_t end = used_.end_of_set(committed_);
  if (committed_ - end < kSlack) return;
  const std::size_t keep = round_up(end, kStep) + kStep;
  const std::size_t tail = committed_ - keep;
  const std::size_t still_dirty = dirty_.count(keep, tail);
  if (sys::madvise(page(keep), tail * kPageSize, MADV_DONTNEED)) {
    dirty_.clear(keep, tail);
    dirty_pages_.fetch_sub(still_dirty, std::memory_order_relaxed);
  }
  // Lowered first: whoever forks in between sees a tail that is merely committed again.
  committed_ = keep;
  if (!sys::mprotect(page(keep), tail * kPageSize, PROT_NONE)) committed_ = keep + tail;
}

void* Reservation::take(std::size_t bytes) noexcept {
  const std::size_t count = PageCount::from_bytes_rounded_up(bytes == 0 ? 1 : bytes).raw();
  const std::size_t alignment = count >= kPagesPerHuge ? kPagesPerHuge : 1;
  std::size_t first = 0;
  std::size_t dirty = 0;
  std::uint64_t dirty_mask = 0;  // which of the first 64 pages hold old contents
  {
    const MutexLock lock(mutex_);
    first = used_.find_clear(lowest_free_, committed_, count, alignment);
    if (first == PageBitmap::kNone) {
      // The free tail below the edge counts towards a run that crosses it.
      first = round_up(used_.end_of_set(committed_), alignment);
      if (count > page_limit_ || first > page_limit_ - count || !commit_locked(first + count)) return nullptr;
    }
    used_.set(first, count);
    lowest_free_ = used_.next_clear(lowest_free_, committed_);
    dirty = dirty_.count(first, count);
    if (dirty != 0) {
      for (std::size_t i = 0; i < count && i < 64; ++i) {
        if (dirty_.test(first + i)) dirty_mask |= std::uint64_t{1} << i;
      }
      dirty_.clear(first, count);
      dirty_pages_.fetch_sub(dirty, std::memory_order_relaxed);
    }
  }
  pages_in_use_.fetch_add(count, std::memory_order_relaxed);
  if (dirty == 0) return page(first);
  if (count <= 64) {
    for (std::size_t i = 0; i < count; ++i) {
      if ((dirty_mask >> i & 1) != 0) std::memset(page(first + i), 0, kPageSize);
    }
  } else if (!sys::madvise(page(first), count * kPageSize, MADV_DONTNEED)) {
    std::memset(page(first), 0, count * kPageSize);  // locked by the program's mlockall()
  }
  return page(first);
}

void Reservation::give(void* memory, std::size_t bytes) noexcept {
  if (memory == nullptr) return;
  const std::size_t count = PageCount::from_bytes_rounded_up(bytes == 0 ? 1 : bytes).raw();
  const std::size_t first = static_cast<std::size_t>(static_cast<std::byte*>(memory) - pages_) / kPageSize;
  CHECK(first < page_limit_ && count <= page_limit_ - first, "memory given to the wrong source");
  bool keep_contents = count < kDirtyRun && dirty_pages_.load(std::memory_order_relaxed) + count <= kMostDirty;
  // Before the pages are free for others. Refused on locked memory: then they are cleared when taken again.
  if (!keep_contents && !sys::madvise(memory, count * kPageSize, MADV_DONTNEED)) keep_contents = true;

  const MutexLock lock(mutex_);
  CHECK(used_.count(first, count) == count, "memory given twice, or more than was taken");
  used_.clear(first, count);
  if (first < lowest_free_) lowest_free_ = first;
  if (keep_contents) {
    dirty_.set(first, count);
    dirty_pages_.fetch_add(count, std::memory_order_relaxed);
  }
  pages_in_use_.fetch_sub(count, std::memory_order_relaxed);
  trim_locked();
}

std::size_t Reservation::bytes_committed() const noexcept {
  const MutexLock lock(mutex_);
  return committed_ * kPageSize;
}

}  // namespace whimbrel
