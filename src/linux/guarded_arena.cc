#include "linux/guarded_arena.h"

#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/syscall.h>

#include <cerrno>
#include <cstring>

#include "base/check.h"
#include "linux/sys.h"
#include "linux/uapi.h"

namespace whimbrel {
namespace {

constexpr unsigned kCloseOnExec = 1, kNeverExecutable = 8;  // of memfd_create(2)

void* address(PageRange range) noexcept { return reinterpret_cast<void*>(range.first.address().raw()); }

Result<void*> map_at(void* where, std::uint64_t bytes, int protection, int flags, int fd) noexcept {
  const long raw = sys::call(SYS_mmap, sys::arg(where), static_cast<long>(bytes), protection, flags, fd, 0);
  if (raw < 0 && raw > -4096) return fail(sys::errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "mmap");
  return reinterpret_cast<void*>(raw);
}

// Memory without a name; -1: a kernel or a filter without it, or files may not be so large here.
int shared_memory(std::uint64_t bytes) noexcept {
  const Result<sys::Limit> files = sys::limit(RLIMIT_FSIZE);
  if (!files || files->soft < bytes) return -1;  // to try would be a signal
  long fd = sys::call(SYS_memfd_create, sys::arg("whimbrel-arena"), kCloseOnExec | kNeverExecutable);
  if (fd == -EINVAL) fd = sys::call(SYS_memfd_create, sys::arg("whimbrel-arena"), kCloseOnExec);
  if (fd < 0) return -1;
  if (sys::truncate(static_cast<int>(fd), bytes)) return static_cast<int>(fd);
  sys::close(static_cast<int>(fd));
  return -1;
}

}  // namespace

Result<void> GuardedArena::open(MemorySource& memory, std::uint64_t bytes) noexcept {
  CHECK(reserved_ == nullptr && bytes % kHugeSize == 0 && bytes != 0, "an arena is opened once");
  const std::size_t words = PageBitmap::words_for(bytes / kPageSize);
  words_ = static_cast<std::uint64_t*>(memory.take(2 * words * sizeof *words_));
  if (words_ == nullptr) return fail(Errc::kNoMemory, 0, "bookkeeping of an arena");
  memory_ = &memory;
  present_ = PageBitmap(words_);
  open_ = PageBitmap(words_ + words);
  range_.count = PageCount(bytes / kPageSize);
  const Result<void> mapped = map(bytes);
  if (!mapped) close();
  return mapped;
}

// The engine's view first, and the program's as another view of the same memory over reserved addresses, with at least one
// page at either end that nobody can touch.
Result<void> GuardedArena::map(std::uint64_t bytes) noexcept {
  const std::uint64_t whole = bytes + 2 * kHugeSize;
  const Result<void*> reserved = sys::mmap(nullptr, whole, PROT_NONE, MAP_PRIVATE | MAP_NORESERVE);
  if (!reserved) return std::unexpected(reserved.error());
  reserved_ = *reserved;
  reserved_bytes_ = whole;
  const std::uint64_t first = (VirtualAddress(reserved_).raw() + kPageSize + kHugeSize - 1) & ~(kHugeSize - 1);
  range_.first = PageIndex::of(VirtualAddress(first));

  const int fd = shared_memory(bytes);
  const int kind = MAP_SHARED | MAP_NORESERVE | (fd < 0 ? MAP_ANONYMOUS : 0);
  // Without rights: after mlockall(MCL_FUTURE) it would be filled whole at once.
  Result<void*> engine = map_at(nullptr, bytes, PROT_NONE, kind, fd);
  Result<void*> program = engine;
  if (engine && fd >= 0) program = map_at(address(range_), bytes, PROT_NONE, kind | MAP_FIXED, fd);
  memory_file_ = fd;
  if (!engine) return std::unexpected(engine.error());
  engine_view_ = static_cast<std::byte*>(*engine);
  if (fd < 0) {
    // An old size of 0 makes another view of shared memory.
    const long raw = sys::call(SYS_mremap, sys::arg(engine_view_), 0, static_cast<long>(bytes), MREMAP_MAYMOVE | MREMAP_FIXED,
                               sys::arg(address(range_)));
    if (raw < 0) program = fail(sys::errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "mremap");
  }
  if (!program) return std::unexpected(program.error());
  for (void* view : {static_cast<void*>(engine_view_), address(range_)}) {
    (void)sys::munlock(view, bytes);
    // A child that wrote to shared memory would write to its parent's.
    if (const Result<void> kept = sys::madvise(view, bytes, MADV_DONTFORK); !kept) return kept;
  }
  (void)sys::madvise(engine_view_, bytes, MADV_DONTDUMP);
  return sys::mprotect(engine_view_, bytes, PROT_READ | PROT_WRITE);
}

void GuardedArena::close() noexcept {
  if (reserved_ != nullptr) sys::munmap(reserved_, reserved_bytes_);
  if (engine_view_ != nullptr) sys::munmap(engine_view_, range_.count.bytes());
  if (memory_file_ >= 0) sys::close(memory_file_);
  if (words_ != nullptr) memory_->give(words_, 2 * PageBitmap::words_for(range_.count.raw()) * sizeof *words_);
  reserved_ = nullptr;
  engine_view_ = nullptr;
  memory_file_ = -1;
  words_ = nullptr;
  range_ = {};
  open_runs_ = 0;
  uncertain_ = false;
}

void GuardedArena::fill(PageRange range, const std::byte* from) noexcept {
  if (from != nullptr && !transfer(SYS_pwrite64, range, const_cast<std::byte*>(from))) {
    std::memcpy(view(range.first), from, range.count.bytes());
    // Only unmaps them from this view: else they would count twice in what tools show of the process.
    (void)sys::madvise(view(range.first), range.count.bytes(), MADV_DONTNEED);
  }
  present_.set(at(range.first), range.count.raw());
}

void GuardedArena::read(PageRange range, std::byte* to) const noexcept {
  // A system call copies without the faults of touching page by page what was given back a moment ago.
  if (range.count.raw() > 1) (void)sys::madvise(to, range.count.bytes(), uapi::kMadvPopulateWrite);
  if (transfer(SYS_pread64, range, to)) return;
  std::memcpy(to, view(range.first), range.count.bytes());
}

// The whole of it by system calls. False: it has to be copied another way.
bool GuardedArena::transfer(long call, PageRange range, std::byte* buffer) const noexcept {
  if (memory_file_ < 0) return false;
  std::uint64_t done = 0;
  const std::uint64_t from = PageCount(at(range.first)).bytes();
  while (done < range.count.bytes()) {
    const long moved = sys::call(call, memory_file_, sys::arg(buffer + done), static_cast<long>(range.count.bytes() - done),
                                 static_cast<long>(from + done));
    if (moved == -EINTR) continue;
    if (moved <= 0) return false;
    done += static_cast<std::uint64_t>(moved);
  }
  return true;
}

Result<void> GuardedArena::drop(PageRange range) noexcept {
  DCHECK(open_.count(at(range.first), range.count.raw()) == 0);
  void* const where = view(range.first);
  Result<void> gone = sys::madvise(where, range.count.bytes(), MADV_REMOVE);
  if (!gone) {
    // Caught by the program's mlockall(), and what is locked is not dropped.
    (void)sys::munlock(where, range.count.bytes());
    gone = sys::madvise(where, range.count.bytes(), MADV_REMOVE);
  }
  if (gone) present_.clear(at(range.first), range.count.raw());
  return gone;
}

// Runs of open pages that begin in [from, end).
std::size_t GuardedArena::starts(std::size_t from, std::size_t end) const noexcept {
  std::size_t count = 0;
  std::size_t i = from;
  if (from > 0 && open_.test(from - 1)) i = open_.next_clear(from, end);
  for (i = open_.next_set(i, end); i < end; i = open_.next_set(open_.next_clear(i, end), end)) ++count;
  return count;
}

void GuardedArena::mark_open(PageRange range, bool open) noexcept {
  const std::size_t first = at(range.first);
  const std::size_t pages = range_.count.raw();
  const std::size_t end = first + range.count.raw() < pages ? first + range.count.raw() + 1 : pages;
  open_runs_ -= starts(first, end);
  if (open) {
    open_.set(first, range.count.raw());
  } else {
    open_.clear(first, range.count.raw());
  }
  open_runs_ += starts(first, end);
}

Result<void> GuardedArena::open_part(PageRange range) noexcept {
  DCHECK(present_.count(at(range.first), range.count.raw()) == range.count.raw());
  const Result<void> opened = sys::mprotect(address(range), range.count.bytes(), PROT_READ | PROT_WRITE);
  if (opened) mark_open(range, true);
  // Else the program has a fault for each page.
  if (opened && range.count.raw() > 1) (void)sys::madvise(address(range), range.count.bytes(), uapi::kMadvPopulateRead);
  uncertain_ = uncertain_ || !opened;
  return opened;
}

Result<void> GuardedArena::close_part(PageRange range) noexcept {
  if (!uncertain_ && next_open(range) == range.end()) return {};
  const Result<void> closed = sys::mprotect(address(range), range.count.bytes(), PROT_NONE);
  if (closed) mark_open(range, false);
  uncertain_ = uncertain_ || !closed;
  return closed;
}

}  // namespace whimbrel
