// Page operations: one ioctl each, repeated while it makes progress, with the errno of the page that stopped it.
#include <linux/userfaultfd.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/uio.h>

#include <cerrno>

#include "base/check.h"
#include "linux/sys.h"
#include "linux/uapi.h"
#include "linux/userfault_mmu.h"

namespace whimbrel {
namespace {

constexpr std::uint64_t at(PageIndex page) { return page.address().raw(); }
void* pointer(PageIndex page) { return reinterpret_cast<void*>(at(page)); }

// What one ioctl over [done, count) pages did: its result and the bytes it says it has completed.
struct Step {
  long raw;
  std::int64_t bytes;
};

// Repeats `step(first, pages)` while it makes progress. The kernel tells why a page was refused only when it is the
// first one of a call: a call that stopped part-way answers EAGAIN, and the next one tells.
template <class StepFunction, class ErrorFunction>
Progress advance(PageCount count, StepFunction step, ErrorFunction error_of) {
  PageCount done;
  while (done < count) {
    const Step result = step(done, count - done);
    if (result.bytes > 0) done += PageCount(static_cast<std::uint64_t>(result.bytes) >> kPageShift);
    if (result.raw >= 0) {
      DCHECK(done == count);
      return {count, false, {}};
    }
    if (result.bytes > 0 || result.raw == -EINTR) continue;
    return {done, true, error_of(static_cast<int>(-result.raw))};
  }
  return {done, false, {}};
}

}  // namespace

// An unread event (or one whose originator is still at work) makes every page operation refuse, whatever its range,
// and before its arguments are looked at. So an operation on nothing tells: EAGAIN, or EINVAL for the empty range.
bool UserfaultMmu::event_pending() noexcept {
  uffdio_zeropage nothing{};
  return sys::call(SYS_ioctl, userfault(), static_cast<long>(UFFDIO_ZEROPAGE), sys::arg(&nothing)) == -EAGAIN;
}

Error UserfaultMmu::page_error(int sys_errno, const char* where) noexcept {
  Errc code = sys::errc_of(sys_errno);
  if (sys_errno == EAGAIN && event_pending()) code = Errc::kEventPending;
  return {code, sys_errno, where};
}

Result<void> UserfaultMmu::register_range(PageRange range, std::uint64_t mode) noexcept {
  uffdio_register request{};
  request.range = {at(range.first), range.count.bytes()};
  request.mode = mode;
  const long raw = sys::call(SYS_ioctl, userfault(), static_cast<long>(UFFDIO_REGISTER), sys::arg(&request));
  if (raw >= 0) return {};
  const int error = static_cast<int>(-raw);
  // Busy here means that another descriptor owns a part of the range: it will not go away by waiting.
  return fail(error == EBUSY ? Errc::kExists : sys::errc_of(error), error, "UFFDIO_REGISTER");
}

Result<void> UserfaultMmu::unregister_range(PageRange range) noexcept {
  uffdio_range request{at(range.first), range.count.bytes()};
  const Result<long> answer = sys::ioctl(userfault(), UFFDIO_UNREGISTER, &request, "UFFDIO_UNREGISTER");
  if (!answer) return std::unexpected(answer.error());
  return {};
}

Result<void> UserfaultMmu::watch(PageRange range) noexcept {
  for (const PageRange& never : never_watched_) {
    if (never.empty() || !range.overlaps(never)) continue;
    // Around it; the parts may meet another such range.
    const PageRange before = PageRange::between(range.first, never.first);
    const PageRange after = PageRange::between(never.end(), range.end());
    if (!before.empty()) {
      if (const Result<void> watched = watch(before); !watched) return watched;
    }
    return after.empty() ? Result<void>{} : watch(after);
  }
  return register_range(range, UFFDIO_REGISTER_MODE_MISSING | (abilities_.write_protect ? UFFDIO_REGISTER_MODE_WP : 0));
}

void UserfaultMmu::never_watch(PageRange range) noexcept {
  for (PageRange& slot : never_watched_) {
    if (!slot.empty()) continue;
    slot = range;
    return;
  }
  CHECK(false, "too many ranges that are never to be watched");
}

Result<void> UserfaultMmu::unwatch(PageRange range) noexcept { return unregister_range(range); }

Progress UserfaultMmu::move_watched(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept {
  PageCount moved;
  for (;;) {
    const Progress progress = advance(
        count - moved,
        [&](PageCount done, PageCount left) {
          done += moved;
          uapi::UffdioMove move{at(to + done), at(from + done), left.bytes(), wake == Wake::kNo ? uapi::kMoveDontWake : 0,
                                0};
          const long raw = sys::call(SYS_ioctl, userfault(), static_cast<long>(uapi::kUffdioMove), sys::arg(&move));
          return Step{raw, move.move};
        },
        [&](int error) { return page_error(error, "UFFDIO_MOVE"); });
    moved += progress.done;
    if (!progress.failed || !has_moved(to + moved, from + moved)) return {moved, progress.failed, progress.error};
    moved += PageCount(1);
    if (wake == Wake::kYes) this->wake({to + moved - PageCount(1), PageCount(1)});
    if (moved == count) return {moved, false, {}};
  }
}

// Linux 6.18 moves some pages more than it says when it meets one that is being migrated (memory compaction), and then finds
// its own work in the way: EEXIST. Measured: some times a second with /proc/sys/vm/compact_memory written all the time. Taken
// for refused, such a page would be lost: its frame is given back. What is refused for another reason is where it was.
bool UserfaultMmu::has_moved(PageIndex to, PageIndex from) noexcept {
  const Result<bool> there = sys::is_resident(to);
  if (!there || !*there) return false;
  const Result<bool> here = sys::is_resident(from);
  return here && !*here;
}

Progress UserfaultMmu::move(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept {
  const PageRange window{to, count};
  if (!windows_.contains(to)) return move_watched(to, from, count, wake);
  const bool watched = watched_part_.contains(window);
  for (bool unlocked = false;; unlocked = true) {
    // Missing faults only: write-protect markers must not arise in windows, since they block moves.
    const Result<void> registered = watched ? Result<void>{} : register_range(window, UFFDIO_REGISTER_MODE_MISSING);
    if (!registered) return {PageCount(0), true, registered.error()};
    const Progress progress = move_watched(to, from, count, wake);
    CHECK(watched || unregister_range(window), "a window cannot be taken back from userfaultfd");
    // The program's mlockall() locks windows too, and pages move only between places that agree. Its own memory was
    // locked as well, but what it maps later is not.
    if (progress.failed && progress.done.raw() == 0 && progress.error.code == Errc::kInvalid && !unlocked &&
        sys::munlock(pointer(to), count.bytes())) {
      continue;
    }
    return progress;
  }
}

Result<void> UserfaultMmu::begin_moves_into(PageRange part) noexcept {
  DCHECK(watched_part_.empty());
  const Result<void> registered = register_range(part, UFFDIO_REGISTER_MODE_MISSING);
  if (registered) watched_part_ = part;
  return registered;
}

void UserfaultMmu::end_moves_into(PageRange part) noexcept {
  if (watched_part_.empty()) return;
  watched_part_ = {};
  CHECK(unregister_range(part), "a window cannot be taken back from userfaultfd");
}

Progress UserfaultMmu::copy(PageIndex to, const std::byte* from, PageCount count, Wake wake,
                            bool write_protected) noexcept {
  const std::uint64_t mode =
      (wake == Wake::kNo ? UFFDIO_COPY_MODE_DONTWAKE : 0) | (write_protected ? UFFDIO_COPY_MODE_WP : 0);
  return advance(
      count,
      [&](PageCount done, PageCount left) {
        uffdio_copy copy{at(to + done), VirtualAddress(from + done.bytes()).raw(), left.bytes(), mode, 0};
        const long raw = sys::call(SYS_ioctl, userfault(), static_cast<long>(UFFDIO_COPY), sys::arg(&copy));
        return Step{raw, copy.copy};
      },
      [&](int error) { return page_error(error, "UFFDIO_COPY"); });
}

Progress UserfaultMmu::zero(PageIndex to, PageCount count, Wake wake) noexcept {
  return advance(
      count,
      [&](PageCount done, PageCount left) {
        uffdio_zeropage zero{{at(to + done), left.bytes()}, wake == Wake::kNo ? UFFDIO_ZEROPAGE_MODE_DONTWAKE : 0, 0};
        const long raw = sys::call(SYS_ioctl, userfault(), static_cast<long>(UFFDIO_ZEROPAGE), sys::arg(&zero));
        return Step{raw, zero.zeropage};
      },
      [&](int error) { return page_error(error, "UFFDIO_ZEROPAGE"); });
}

Result<void> UserfaultMmu::write_protect(PageRange range, bool protect, Wake wake) noexcept {
  if (!abilities_.write_protect) return fail(Errc::kNotSupported, 0, "UFFDIO_WRITEPROTECT");
  uffdio_writeprotect request{};
  request.range = {at(range.first), range.count.bytes()};
  // Setting wakes nobody, and the kernel refuses the two words together.
  request.mode = protect ? UFFDIO_WRITEPROTECT_MODE_WP
                         : (wake == Wake::kNo ? UFFDIO_WRITEPROTECT_MODE_DONTWAKE : std::uint64_t{0});
  for (;;) {
    const long raw = sys::call(SYS_ioctl, userfault(), static_cast<long>(UFFDIO_WRITEPROTECT), sys::arg(&request));
    if (raw >= 0) return {};
    if (raw != -EINTR) return std::unexpected(page_error(static_cast<int>(-raw), "UFFDIO_WRITEPROTECT"));
  }
}

Result<void> UserfaultMmu::poison(PageRange range) noexcept {
  if (!abilities_.poison) return fail(Errc::kNotSupported, 0, "UFFDIO_POISON");
  const Progress progress = advance(
      range.count,
      [&](PageCount done, PageCount left) {
        uapi::UffdioPoison poison{{at(range.first + done), left.bytes()}, 0, 0};
        const long raw = sys::call(SYS_ioctl, userfault(), static_cast<long>(uapi::kUffdioPoison), sys::arg(&poison));
        return Step{raw, poison.updated};
      },
      [&](int error) { return page_error(error, "UFFDIO_POISON"); });
  if (progress.failed) return std::unexpected(progress.error);
  return {};
}

void UserfaultMmu::wake(PageRange range) noexcept {
  uffdio_range request{at(range.first), range.count.bytes()};
  sys::call(SYS_ioctl, userfault(), static_cast<long>(UFFDIO_WAKE), sys::arg(&request));
}

Result<void> UserfaultMmu::discard(PageRange range) noexcept {
  for (bool unlocked = false;;) {
    const Result<void> dropped = sys::madvise(pointer(range.first), range.count.bytes(), MADV_DONTNEED);
    if (dropped) return {};
    const int error = dropped.error().sys;
    if (error == EINTR || error == EAGAIN) continue;
    // The program's mlockall() caught the window, and locked pages are not dropped. A frame must always be freeable.
    if (error == EINVAL && !unlocked && windows_.contains(range.first)) {
      unlocked = true;
      if (sys::munlock(pointer(range.first), range.count.bytes())) continue;
    }
    // Here out of memory means that a part of the range is not mapped; the rest was dropped.
    return fail(error == ENOMEM ? Errc::kNotFound : dropped.error().code, error, "madvise(MADV_DONTNEED)");
  }
}

Result<void> UserfaultMmu::advise_huge(PageRange range) noexcept {
  for (;;) {
    const Result<void> advised = sys::madvise(pointer(range.first), range.count.bytes(), MADV_HUGEPAGE);
    if (advised) return {};
    const int error = advised.error().sys;
    if (error == EINTR || error == EAGAIN) continue;
    return fail(error == ENOMEM ? Errc::kNotFound : advised.error().code, error, "madvise(MADV_HUGEPAGE)");
  }
}

Result<void> UserfaultMmu::discard_many(std::span<const PageRange> ranges) noexcept {
  constexpr std::size_t kBatch = 128;  // 2 KiB of stack; the price of the call is spread thin enough
  std::size_t next = 0;
  while (next < ranges.size()) {
    const bool batching = ranges.size() - next > 1 && fds_.has(Descriptors::kProcess) &&
                          !no_process_madvise_.load(std::memory_order_relaxed);
    if (!batching) {
      const Result<void> dropped = discard(ranges[next]);
      if (!dropped) return dropped;
      ++next;
      continue;
    }
    iovec batch[kBatch];
    std::size_t count = 0;
    for (; count < kBatch && next + count < ranges.size(); ++count) {
      batch[count] = {pointer(ranges[next + count].first), ranges[next + count].count.bytes()};
    }
    const Result<std::size_t> advised = sys::process_madvise(fds_[Descriptors::kProcess], batch, count, MADV_DONTNEED);
    if (!advised && advised.error().sys == EINTR) continue;
    if (!advised) {
      // Either this range is at fault, and the single call fails as well, or the batched call is: older kernels take
      // only hints there, and it needs a main thread that is alive.
      const Result<void> dropped = discard(ranges[next]);
      if (!dropped) return dropped;
      no_process_madvise_.store(true, std::memory_order_relaxed);
      ++next;
      continue;
    }
    // Stopped part-way: the range where it stopped is repeated, which is harmless.
    std::size_t left = *advised;
    while (count > 0 && left >= ranges[next].count.bytes()) {
      left -= ranges[next].count.bytes();
      ++next;
      --count;
    }
    if (count > 0) {
      const Result<void> dropped = discard(ranges[next]);
      if (!dropped) return dropped;
      ++next;
    }
  }
  return {};
}

Result<void> UserfaultMmu::populate(PageRange range, bool write) noexcept {
  const int advice = write ? uapi::kMadvPopulateWrite : uapi::kMadvPopulateRead;
  for (;;) {
    const Result<void> done = sys::madvise(pointer(range.first), range.count.bytes(), advice);
    if (done) return {};
    const int error = done.error().sys;
    if (error == EINTR || error == EAGAIN) continue;
    if (error == ENOMEM) {
      // Means both "no memory" and "not mapped": look.
      const Result<Mapping> mapping = mapping_at_or_above(range.first);
      const bool mapped = mapping && mapping->range.contains(range);
      return fail(mapped ? Errc::kNoMemory : Errc::kNotFound, error, "madvise(MADV_POPULATE)");
    }
    return fail(done.error().code, error, "madvise(MADV_POPULATE)");
  }
}

void UserfaultMmu::read_window(PageRange pages, std::byte* to) noexcept {
  // Window pages are never away, so this cannot wait for us. What the kernel refuses (a filter, an odd kernel) is read
  // in place.
  const iovec local{to, pages.count.bytes()};
  const iovec remote{bytes(pages.first), pages.count.bytes()};
  const long got = sys::call(SYS_process_vm_readv, sys::call(SYS_getpid), sys::arg(&local), 1, sys::arg(&remote), 1, 0);
  if (got == static_cast<long>(pages.count.bytes())) return;
  __builtin_memcpy(to, bytes(pages.first), pages.count.bytes());
}

Result<void> UserfaultMmu::read_program(PageIndex page, std::byte* to) noexcept {
  // Through /proc/…/mem and not by process_vm_readv: that one waits for a page that is away, and the thread that would
  // bring it home may be the caller.
  if (!fds_.has(Descriptors::kMemory)) return fail(Errc::kNotSupported, 0, "/proc/thread-self/mem");
  for (;;) {
    const Result<std::size_t> got = sys::pread(fds_[Descriptors::kMemory], to, kPageSize, at(page));
    if (got && *got == kPageSize) return {};
    if (got) return fail(Errc::kNotFound, 0, "read of program memory");
    if (got.error().sys == EINTR) continue;
    const bool absent = got.error().sys == EIO || got.error().sys == EFAULT;
    return fail(absent ? Errc::kNotFound : got.error().code, got.error().sys, "read of program memory");
  }
}

}  // namespace whimbrel
