// Session: memory that belongs to it.
#include <sys/mman.h>

#include <algorithm>
#include <cerrno>

#include "base/check.h"
#include "capi/complain.h"
#include "linux/guard_signal.h"
#include "linux/sys.h"
#include "session/session.h"

using namespace whimbrel;
using capi::complain;

namespace {

// Addresses cost nothing. The first arena is for most programs; further ones double, so that few are ever needed.
constexpr std::uint64_t kFirstArena = std::uint64_t{4} << 30;
constexpr std::uint64_t kLargestArena = std::uint64_t{1} << 40;

void* address_of(PageRange range) noexcept { return reinterpret_cast<void*>(range.first.address().raw()); }

// Addresses aligned to 2 MiB, with an inaccessible page at either end: so it is a mapping of its own whatever its
// neighbours are.
Result<PageRange> map_private(std::uint64_t bytes) noexcept {
  constexpr int kFlags = MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE;
  const std::uint64_t whole = bytes + 2 * kHugeSize;
  const Result<void*> mapped = sys::mmap(nullptr, whole, PROT_NONE, kFlags);
  if (!mapped) return std::unexpected(mapped.error());
  const auto from = reinterpret_cast<std::uint64_t>(*mapped);
  const std::uint64_t first = (from + kPageSize + kHugeSize - 1) & ~(kHugeSize - 1);
  void* const arena = reinterpret_cast<void*>(first);
  const Result<void> opened = sys::mprotect(arena, bytes, PROT_READ | PROT_WRITE);
  // What lies around it but for one page.
  if (first - kPageSize > from) sys::munmap(*mapped, first - kPageSize - from);
  const std::uint64_t end = first + bytes + kPageSize;
  if (from + whole > end) sys::munmap(reinterpret_cast<void*>(end), from + whole - end);
  if (opened) return PageRange{PageIndex::of(VirtualAddress(first)), PageCount(bytes >> kPageShift)};
  sys::munmap(reinterpret_cast<void*>(first - kPageSize), bytes + 2 * kPageSize);
  return std::unexpected(opened.error());
}

int not_in_a_child(const char* what) noexcept {
  return capi::complain_because(ESRCH, what, "without userfaultfd a forked child inherits nothing of a session",
                                "open a session in the child, or fork before it is opened");
}

}  // namespace

Result<PageRange> whimbrel_session::map_arena(std::uint64_t bytes) noexcept {
  GuardedMmu* const guarded = engine_.guarded();
  return guarded == nullptr ? map_private(bytes) : guarded->map_arena(bytes);
}

// With the pages around it.
void whimbrel_session::unmap_arena(PageRange arena) noexcept {
  sys::munmap(address_of({arena.first - PageCount(1), arena.count}), arena.count.bytes() + 2 * kPageSize);
}

int whimbrel_session::new_arena_locked(PageCount least) noexcept {
  constexpr const char* kWhat = "whimbrel_allocate: no addresses for so much memory";
  const std::uint64_t needed = (least.bytes() + kHugeSize - 1) & ~(kHugeSize - 1);
  std::uint64_t wanted =
      std::max(needed, std::min(kFirstArena << std::min<std::size_t>(ledger_.arenas(), 8), kLargestArena));
  Result<PageRange> arena = map_arena(wanted);
  while (!arena && wanted > needed) {  // RLIMIT_AS, or a kernel that counts all it promises
    wanted = std::max(needed, wanted / 4 & ~(kHugeSize - 1));
    arena = map_arena(wanted);
  }
  if (!arena) return complain(arena.error(), kWhat, "see `ulimit -v` and vm.overcommit_memory");
  const Result<HintResult> managed = ask(HintKind::kManage, *arena);
  if (managed && ledger_.add_arena(*arena)) return 0;
  if (engine_.guarded() == nullptr) unmap_arena(*arena);  // else it goes with the engine
  return managed ? complain(ENOMEM, kWhat) : complain(managed.error(), "whimbrel_allocate");
}

int whimbrel_session::allocate(std::size_t bytes, void** out) noexcept {
  if (bytes == 0) return complain(EINVAL, "whimbrel_allocate: 0 bytes");
  if (was_left_by_fork()) return not_in_a_child("whimbrel_allocate");
  if (bytes > kLargestArena * 64) return complain(ENOMEM, "whimbrel_allocate: no addresses for so much memory");
  if (engine_.guarded() != nullptr && !guard_signal::is_first() && !told_of_handler_.exchange(true)) {
    engine_.tell("another handler of SIGSEGV has been installed over whimbrel's: unless it passes on what it does not know, touches of "
                 "memory that is away end there; next: install it before the first session is opened");
  }
  const PageCount pages = PageCount::from_bytes_rounded_up(bytes);
  const std::uint64_t align = bytes >= kHugeSize ? kPagesPerHuge : 1;
  MutexLock hold(mutex_);
  PageRange place = ledger_.take(pages, align);
  if (place.empty()) {
    if (const int bad = new_arena_locked(pages); bad != 0) return bad;
    place = ledger_.take(pages, align);
  }
  if (place.empty()) return complain(ENOMEM, "whimbrel_allocate: no memory for the bookkeeping");
  *out = address_of(place);
  return 0;
}

void whimbrel_session::free(void* memory) noexcept {
  const PageIndex first = PageIndex::of(VirtualAddress(memory));
  PageRange piece;
  {
    MutexLock hold(mutex_);
    piece = ledger_.piece_at(first);
    CHECK(!piece.empty() && VirtualAddress(memory).is_page_aligned(),
          "whimbrel_free: not the start of memory that this session has allocated");
    ledger_.remove_pins_in(piece, [this](PageRange pin_range) {
      const Result<HintQueue::Ticket> ticket = engine_.hints().submit(HintKind::kUnpin, pin_range);
      if (ticket) engine_.hints().forget(*ticket);
    });
  }
  (void)discard(piece);
  if (advised_.load(std::memory_order_relaxed)) {
    const Result<HintQueue::Ticket> normal = engine_.hints().submit(HintKind::kNormal, piece);
    if (normal) engine_.hints().forget(*normal);
  }
  // Nobody gets the place before its contents are gone.
  MutexLock hold(mutex_);
  ledger_.give(first);
}

int whimbrel_session::discard(PageRange range) noexcept {
  if (was_left_by_fork()) return not_in_a_child("whimbrel_discard");
  GuardedMmu* const guarded = engine_.guarded();
  const Result<void> gone = guarded == nullptr ? sys::madvise(address_of(range), range.count.bytes(), MADV_DONTNEED)
                                               : guarded->discard(range);
  if (!gone) return complain(gone.error(), "whimbrel_discard", "unlock the memory first");
  // Until it has heard that the pages are gone, the engine does not dare to move new ones out of there.
  const Result<HintQueue::Ticket> ticket = engine_.hints().submit(HintKind::kDiscarded, range);
  if (ticket) engine_.hints().forget(*ticket);
  return 0;
}

std::size_t whimbrel_session::size_of(const void* memory) noexcept {
  if (!VirtualAddress(memory).is_page_aligned()) return 0;
  MutexLock hold(mutex_);
  return ledger_.piece_at(PageIndex::of(VirtualAddress(memory))).count.bytes();
}

bool whimbrel_session::owns(PageRange range) noexcept {
  MutexLock hold(mutex_);
  return ledger_.owns(range);
}

bool whimbrel_session::is_manageable(PageRange range) noexcept {
  std::uint32_t bits[HintQueue::kReportPages];
  for (PageIndex at = range.first; at < range.end();) {
    const PageRange part{at, PageCount(std::min((range.end() - at).raw(), std::uint64_t{HintQueue::kReportPages}))};
    if (!ask(HintKind::kReport, part, bits)) return false;
    for (std::uint64_t i = 0; i < part.count.raw(); ++i) {
      if ((bits[i] & PageReport::kManaged) == 0) return false;
    }
    at = part.end();
  }
  return true;
}

int whimbrel_session::adopt(PageRange range) noexcept {
  constexpr const char* kWhat = "whimbrel_adopt";
  if (engine_.guarded() != nullptr) {
    return complain(EOPNOTSUPP, "whimbrel_adopt: without userfaultfd only memory of whimbrel_allocate() can be managed",
                    "allocate it, or see `whimbrel doctor` for how to get userfaultfd");
  }
  MutexLock hold(mutex_);
  if (ledger_.overlaps_known(range)) {
    return complain(EINVAL, "whimbrel_adopt: a part of it belongs to the session already");
  }
  if (!ledger_.add_adopted(range)) return complain(ENOMEM, kWhat);
  const Result<HintResult> managed = ask(HintKind::kManage, range);
  if (managed && is_manageable(range)) return 0;
  (void)ask(HintKind::kUnmanage, range);
  (void)ledger_.remove_adopted(range);
  if (!managed) return complain(managed.error(), kWhat);
  return complain(EOPNOTSUPP,
                  "whimbrel_adopt: not private anonymous writable memory, or locked, or watched by somebody else",
                  "memory of mmap(MAP_PRIVATE | MAP_ANONYMOUS), or a large malloc()");
}

int whimbrel_session::release(PageRange range) noexcept {
  MutexLock hold(mutex_);
  if (!ledger_.remove_adopted(range)) {
    return complain(ENOENT, "whimbrel_release: not an adopted range", "give exactly what was adopted");
  }
  const Result<HintResult> home = ask(HintKind::kUnmanage, range);
  if (home) {
    ledger_.remove_pins_in(range, [](PageRange) {});
    return 0;
  }
  (void)ledger_.add_adopted(range);  // there is room: it has just left
  return complain(home.error(), "whimbrel_release");
}

int whimbrel_session::pin(PageRange range, HintResult* result) noexcept {
  constexpr const char* kWhat = "whimbrel_pin";
  {
    MutexLock hold(mutex_);
    if (!ledger_.add_pin(range)) return complain(ENOMEM, kWhat);
  }
  const Result<HintResult> done = ask(HintKind::kPin, range);
  if (done) *result = *done;
  if (done && !done->failed) return 0;
  {
    MutexLock hold(mutex_);
    (void)ledger_.remove_pin(range);
  }
  return complain(done ? done->error : done.error(), kWhat, "pin less, unpin something, or raise the budget");
}

int whimbrel_session::unpin(PageRange range) noexcept {
  {
    MutexLock hold(mutex_);
    if (!ledger_.remove_pin(range))
      return complain(ENOENT, "whimbrel_unpin: no such pin", "give exactly a pinned range");
  }
  const Result<HintResult> done = ask(HintKind::kUnpin, range);
  return done ? 0 : complain(done.error(), "whimbrel_unpin");
}
