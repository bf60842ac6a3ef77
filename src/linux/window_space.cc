#include "linux/window_space.h"

#include <sys/mman.h>

#include "base/check.h"
#include "linux/address_space.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

// At least one page of each window's last granule stays inaccessible.
constexpr std::size_t granules_for(PageCount count) { return count.raw() / kPagesPerHuge + 1; }

void* address(PageIndex page) { return reinterpret_cast<void*>(page.address().raw()); }

}  // namespace

WindowSpace::~WindowSpace() {
  if (whole_.empty()) return;
  sys::munmap(address(whole_.first), whole_.count.bytes());
  memory_->give(words_, PageBitmap::words_for(granules()) * 8);
}

Result<void> WindowSpace::reserve(MemorySource& memory, std::uint64_t bytes) noexcept {
  CHECK(whole_.empty(), "the window space is reserved once");
  constexpr std::uint64_t kSmallest = 2 * kHugeSize;
  std::uint64_t size = affordable_address_space(bytes) / kHugeSize * kHugeSize;
  void* base = nullptr;
  for (;; size = size / 2 / kHugeSize * kHugeSize) {
    if (size < kSmallest) return fail(Errc::kNoMemory, 0, "address space for windows (RLIMIT_AS)");
    const Result<void*> mapped = sys::mmap(nullptr, size + kHugeSize, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
    if (mapped) {
      base = *mapped;
      break;
    }
  }
  // Cut to alignment: what is left over at both ends belongs to nobody.
  const std::uint64_t begin = VirtualAddress(base).raw();
  const std::uint64_t aligned = (begin + kHugeSize - 1) & ~(kHugeSize - 1);
  if (aligned > begin) sys::munmap(base, aligned - begin);
  if (aligned + size < begin + size + kHugeSize) {
    sys::munmap(reinterpret_cast<void*>(aligned + size), begin + kHugeSize - aligned);
  }
  const PageRange whole{PageIndex::of(VirtualAddress(aligned)), PageCount(size / kPageSize)};
  (void)sys::munlock(address(whole.first), size);  // after mlockall(MCL_FUTURE) it arrives locked
  (void)sys::madvise(address(whole.first), size, MADV_DONTDUMP);
  words_ = static_cast<std::uint64_t*>(memory.take(PageBitmap::words_for(size / kHugeSize) * 8));
  if (words_ == nullptr) {
    sys::munmap(address(whole.first), size);
    return fail(Errc::kNoMemory, 0, "book-keeping of windows");
  }
  memory_ = &memory;
  whole_ = whole;
  const MutexLock lock(mutex_);
  used_ = PageBitmap(words_);
  return {};
}

Result<PageRange> WindowSpace::open(PageCount count, WindowKind kind) noexcept {
  if (count.raw() == 0) return fail(Errc::kInvalid, 0, "window of no pages");
  const std::size_t needed = granules_for(count);
  std::size_t first = 0;
  {
    const MutexLock lock(mutex_);
    first = used_.find_clear(0, granules(), needed, 1);
    if (first == PageBitmap::kNone) return fail(Errc::kNoMemory, 0, "window space is used up");
    used_.set(first, needed);
  }
  const PageRange window{whole_.first + PageCount(first * kPagesPerHuge), count};
  Result<void> ready =
      sys::madvise(address(window.first), count.bytes(), kind == WindowKind::kHuge ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
  // A kernel without huge pages refuses both words; windows then hold small pages, which is what is left.
  ready = sys::mprotect(address(window.first), count.bytes(), PROT_READ | PROT_WRITE);
  if (!ready) {
    close(window);
    return std::unexpected(ready.error());
  }
  return window;
}

void WindowSpace::close(PageRange window) noexcept {
  CHECK(whole_.contains(window) && window.first.is_huge_aligned() && !window.empty(), "not a window");
  void* const at = address(window.first);
  // Locked by the program's mlockall(): such pages cannot be dropped before they are unlocked.
  if (!sys::madvise(at, window.count.bytes(), MADV_DONTNEED)) {
    (void)sys::munlock(at, window.count.bytes());
    (void)sys::madvise(at, window.count.bytes(), MADV_DONTNEED);
  }
  (void)sys::mprotect(at, window.count.bytes(), PROT_NONE);
  const std::size_t first = (window.first - whole_.first).raw() / kPagesPerHuge;
  const MutexLock lock(mutex_);
  CHECK(used_.test(first), "window closed twice");
  used_.clear(first, granules_for(window.count));
}

}  // namespace whimbrel
