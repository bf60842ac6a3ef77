// Pages in RAM that a fork has left shared: the kernel migrates the one page for everybody, a MOVE refuses it. This
// process gets a copy of its own first, which keeps the readable flavour, so that the device page has it too (UA-06).
#include <cstring>

#include "linux/sys.h"
#include "mirror/session.h"

namespace whimbrel::mirror {
namespace {

// Pages of the run that starts at `at`, shared as the first one is.
std::uint64_t shared_run(Mmu& mmu, PageIndex at, PageIndex end, bool* shared) {
  *shared = mmu.is_shared(at).value_or(false);
  std::uint64_t n = 1;
  while (at + PageCount(n) < end && mmu.is_shared(at + PageCount(n)).value_or(false) == *shared) ++n;
  return n;
}

}  // namespace

void Session::unshare(PageRange range) noexcept {
  if (!forked_.load(std::memory_order_relaxed)) return;
  for (PageIndex at = range.first; at < range.end();) {
    const PageIndex unit_end = at.huge_base() + PageCount(kPagesPerHuge);
    const PageRange part = PageRange::between(at, unit_end < range.end() ? unit_end : range.end());
    at = part.end();
    PageRun runs[kPagesPerHuge];
    MutexLock hold(space_->mutex());
    space_->pump_locked();
    const Result<std::size_t> found = mmu_->scan(part, runs, nullptr);
    for (std::size_t i = 0; found && i < *found; ++i) {
      const std::uint32_t kind = runs[i].kind;
      if ((kind & PageRun::kPresent) == 0 || (kind & (PageRun::kFile | PageRun::kZero)) != 0) continue;
      const bool whole = (kind & PageRun::kHuge) != 0;
      if (whole && runs[i].range.count.raw() != kPagesPerHuge) continue;  // a part of a huge page: the kernel splits it
      for (PageIndex page = runs[i].range.first; page < runs[i].range.end();) {
        bool shared = false;
        const std::uint64_t n = shared_run(*mmu_, page, runs[i].range.end(), &shared);
        if (shared) unshare_run_locked({page, PageCount(n)}, whole && n == kPagesPerHuge);
        page = page + PageCount(n);
      }
    }
  }
}

void Session::unshare_run_locked(PageRange run, bool huge) noexcept {
  if (space_->table().next_used(run.first, run.end()) != run.end()) return;
  // From here on nobody can write, so a copy stays good; whoever touches a page that is gone waits for the lock.
  if (!mmu_->write_protect(run, true, Wake::kNo)) return;
  const Result<Pfn> frame = huge ? space_->alloc_huge_frame() : space_->alloc_frames(run.count);
  if (!frame) return;
  std::byte* const copy = space_->bytes(*frame);
  std::memcpy(copy, reinterpret_cast<const void*>(run.first.address().raw()), run.count.bytes());
  if (discarder_.discard_locked(*space_, run)) {
    PageCount done;
    if (huge) {
      const Progress moved = mmu_->move(run.first, frame->frame(), run.count, Wake::kNo);
      done = moved.done;
      (void)mmu_->write_protect({run.first, done}, true, Wake::kNo);
    }
    for (int tries = 0; done < run.count && tries < 1000; ++tries) {
      const Progress put =
          mmu_->copy(run.first + done, copy + done.bytes(), run.count - done, Wake::kNo, true);
      done += put.done;
      if (!put.failed) break;
      if (put.error.code == Errc::kEventPending) space_->pump_locked();
      else if (put.error.code == Errc::kExists) done += PageCount(1);
      else break;  // unmapped meanwhile
    }
  }
  if (huge) {
    space_->page(*frame)->unlock();
    space_->put_page(*frame);
  } else {
    space_->free_frames(*frame, run.count);
  }
  mmu_->wake(run);
}

}  // namespace whimbrel::mirror
