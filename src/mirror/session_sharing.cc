// Pages in RAM that a fork has left shared: the kernel migrates the one page for everybody, a MOVE refuses it. This
// process gets a copy of its own first, which keeps the readable flavour, so that the device page has it too (UA-06).
// A huge page would be split by that, so it is copied here.
#include <sys/syscall.h>
#include <sys/uio.h>

#include "base/syscall.h"
#include "linux/sys.h"
#include "migrate/exclusive.h"
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

// Bytes of the program that are there; nothing is faulted in.
bool read_pages(PageRange range, std::byte* to) {
  const iovec local{to, range.count.bytes()};
  const iovec remote{reinterpret_cast<void*>(range.first.address().raw()), range.count.bytes()};
  return sys::call(SYS_process_vm_readv, sys::getpid(), sys::arg(&local), 1, sys::arg(&remote), 1) ==
         static_cast<long>(range.count.bytes());
}

}  // namespace

void Session::unshare(PageRange range) noexcept {
  if (!forked_.load(std::memory_order_relaxed)) return;
  for (PageIndex at = range.first; at < range.end();) {
    const PageIndex unit_end = at.huge_base() + PageCount(kPagesPerHuge);
    const PageRange part = PageRange::between(at, unit_end < range.end() ? unit_end : range.end());
    at = part.end();
    PageRun runs[kPagesPerHuge];
    const Result<std::size_t> found = mmu_->scan(part, runs, nullptr);
    for (std::size_t i = 0; found && i < *found; ++i) {
      const std::uint32_t kind = runs[i].kind;
      if ((kind & PageRun::kPresent) == 0 || (kind & (PageRun::kFile | PageRun::kZero)) != 0) continue;
      const PageRange run = runs[i].range;
      if ((kind & PageRun::kHuge) != 0 && run.count.raw() == kPagesPerHuge && mmu_->is_shared(run.first).value_or(false)) {
        MutexLock hold(space_->mutex());
        space_->pump_locked();
        unshare_unit_locked(run);
        continue;
      }
      for (PageIndex page = run.first; page < run.end();) {
        bool shared = false;
        const std::uint64_t n = shared_run(*mmu_, page, run.end(), &shared);
        // What is protected was shared once: even with nobody left to share it, it moves only after a write.
        if (shared || (kind & PageRun::kWritten) == 0) own_run({page, PageCount(n)});
        page = page + PageCount(n);
      }
    }
  }
}

void Session::announce_file_pages(PageRange range) noexcept {
  const Result<Mapping> mapping = mmu_->mapping_at_or_above(range.first);
  if (!mapping || !mapping->range.contains(range) || !mapping->has(Mapping::kFileBacked) || mapping->inode == 0) return;
  PageRun runs[64];
  const Result<std::size_t> found = mmu_->scan(range, runs, nullptr);
  for (std::size_t i = 0; found && i < *found; ++i) {
    if ((runs[i].kind & (PageRun::kPresent | PageRun::kFile)) != (PageRun::kPresent | PageRun::kFile)) continue;
    const std::uint64_t page = (mapping->file_offset >> kPageShift) + (runs[i].range.first - mapping->range.first).raw();
    for (PageIndex at;;) {
      const Result<Mapping> other = mmu_->mapping_at_or_above(at);
      if (!other) break;
      at = other->range.end();
      if (!other->has(Mapping::kFileBacked) || other->inode != mapping->inode) continue;
      const std::uint64_t first = other->file_offset >> kPageShift;
      const std::uint64_t from = page > first ? page - first : 0;
      const std::uint64_t to = page + runs[i].range.count.raw() > first ? page + runs[i].range.count.raw() - first : 0;
      if (from >= to) continue;
      const PageRange there =
          PageRange::between(other->range.first + PageCount(from), other->range.first + PageCount(to)).intersect(other->range);
      if (there.empty() || there.overlaps(range)) continue;
      space_->notify_start(NotifyEvent::kClear, there, nullptr);
      space_->notify_end(NotifyEvent::kClear, there, nullptr);
    }
  }
}

void Session::note_exclusive_unit(PageIndex base) noexcept {
  MutexLock hold(mutex_);
  for (const PageIndex known : exclusive_units_) {
    if (known == base) return;
  }
  for (PageIndex& slot : exclusive_units_) {
    if (slot != PageIndex()) continue;
    slot = base;
    return;
  }
}

void Session::revoke_split_exclusives(PageRange range) noexcept {
  for (PageIndex base = range.first.huge_base(); base < range.end(); base = base + PageCount(kPagesPerHuge)) {
    bool known = false;
    {
      MutexLock hold(mutex_);
      for (PageIndex& slot : exclusive_units_) {
        if (slot == PageIndex() || slot != base) continue;
        known = true;
        slot = PageIndex();
      }
    }
    if (!known) continue;
    for (PageIndex at = base; at < base + PageCount(kPagesPerHuge); ++at) {
      if (space_->entry(at).state() != PageState::kExclusive || !revoke_exclusive(*space_, at)) continue;
      MutexLock hold(space_->mutex());
      (void)space_->protect_locked({at, PageCount(1)});
    }
  }
}

void Session::own_run(PageRange run) noexcept {
  (void)mmu_->write_protect(run, false, Wake::kYes);
  (void)mmu_->populate(run, true);  // the kernel copies what is shared, and leaves in place what is not
  MutexLock hold(space_->mutex());
  (void)space_->protect_locked(run);
}

void Session::unshare_unit_locked(PageRange unit) noexcept {
  if (space_->table().next_used(unit.first, unit.end()) != unit.end()) return;
  // From here on nobody can write, so a copy stays good; whoever touches a page that is gone waits for the lock.
  if (!space_->protect_locked(unit)) return;
  const Result<Pfn> frame = space_->alloc_huge_frame();
  if (!frame) return;
  std::byte* const copy = space_->bytes(*frame);
  if (read_pages(unit, copy) && discarder_.discard_locked(*space_, unit)) {
    PageCount done = mmu_->move(unit.first, frame->frame(), unit.count, Wake::kNo).done;
    (void)space_->protect_locked({unit.first, done});
    for (int tries = 0; done < unit.count && tries < 1000; ++tries) {
      const Progress put = mmu_->copy(unit.first + done, copy + done.bytes(), unit.count - done, Wake::kNo, true);
      done += put.done;
      if (!put.failed) break;
      if (put.error.code == Errc::kEventPending) space_->pump_locked();
      else if (put.error.code == Errc::kExists) done += PageCount(1);
      else break;  // unmapped meanwhile
    }
  }
  space_->page(*frame)->unlock();
  space_->put_page(*frame);
  mmu_->wake(unit);
}

void Session::bring_coherent_home(PageRange range) noexcept {
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = mmu_->mapping_at_or_above(at);
    if (!mapping || mapping->range.first >= range.end()) return;
    if (at < mapping->range.first) at = mapping->range.first;
    const PageIndex unit_end = at.huge_base() + PageCount(kPagesPerHuge);
    const PageRange part = PageRange::between(at, unit_end).intersect(mapping->range).intersect(range);
    for (Node* node : nodes_) {
      if (node->coherent() && node->map().pages_in_use() != 0) node->bring_home(part);
    }
    at = part.end();
  }
}

}  // namespace whimbrel::mirror
