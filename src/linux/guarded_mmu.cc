#include "linux/guarded_mmu.h"

#include <sys/mman.h>
#include <sys/syscall.h>

#include "base/check.h"
#include "linux/bus_error.h"
#include "linux/clock.h"
#include "linux/guard_signal.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

// While it holds the lock, a thread of the program must not run a signal handler: one that touches an arena would wait for an
// engine that waits for the lock.
class SignalsBlocked {
 public:
  SignalsBlocked() noexcept {
    constexpr std::uint64_t kAll = ~std::uint64_t{0};
    sys::call(SYS_rt_sigprocmask, kSetMask, sys::arg(&kAll), sys::arg(&before_), sizeof before_);
  }
  ~SignalsBlocked() { sys::call(SYS_rt_sigprocmask, kSetMask, sys::arg(&before_), 0, sizeof before_); }
  SignalsBlocked(const SignalsBlocked&) = delete;
  SignalsBlocked& operator=(const SignalsBlocked&) = delete;

 private:
  static constexpr long kSetMask = 2;
  std::uint64_t before_ = 0;
};

constexpr Error kPending{Errc::kEventPending, 0, "a discard of the program"};
constexpr std::uint64_t kOrdinaryMapCount = 65530;
constexpr const char* kCannotDrop = "the memory of an arena cannot be given back";
constexpr std::int64_t kLookAgain = 50'000'000;

}  // namespace

Result<GuardedMmu*> GuardedMmu::create(MemorySource& memory, const Options& options) noexcept {
  void* const place = memory.take(sizeof(GuardedMmu));
  if (place == nullptr) return fail(Errc::kNoMemory, 0, "memory for the page-table driver");
  auto* const mmu = ::new (place) GuardedMmu(memory);
  Result<void> ready = mmu->windows_.reserve(memory, options.window_bytes);
  if (ready) {
    // Tried out at once: a filter may allow less than all of it.
    GuardedArena trial;
    ready = trial.open(memory, kHugeSize);
    const PageRange page{trial.range().first, PageCount(1)};
    if (ready) {
      const std::byte one[kPageSize] = {std::byte{1}};
      trial.fill(page, one);
      ready = trial.open_part(page);
      if (ready) ready = trial.close_part(page);
      if (ready) ready = trial.drop(page);
    }
  }
  if (!ready) {
    mmu->destroy();
    return std::unexpected(ready.error());
  }
  const Result<std::uint64_t> mappings = sys::read_number("/proc/sys/vm/max_map_count");
  // Two mappings for each run, and the rest is the program's.
  mmu->most_open_runs_ =
      options.most_open_runs != 0 ? options.most_open_runs : (mappings ? *mappings : kOrdinaryMapCount) / 8;
  return mmu;
}

void GuardedMmu::destroy() noexcept {
  MemorySource& memory = memory_;
  this->~GuardedMmu();
  memory.give(this, sizeof(GuardedMmu));
}

GuardedMmu::~GuardedMmu() {
  MutexLock hold(mutex_);
  for (std::size_t i = 0; i < arena_count_; ++i) {
    guard_signal::withdraw(arenas_[i]->range());
    if (!close_locked(*arenas_[i], arenas_[i]->range())) continue;  // counted for the process; it goes as a whole in any case
  }
  for (std::size_t i = 0; i < arena_count_; ++i) destroy_from(memory_, arenas_[i]);
}

Result<PageRange> GuardedMmu::map_arena(std::uint64_t bytes) noexcept {
  const SignalsBlocked blocked;
  MutexLock one_at_a_time(asking_);
  wanted_bytes_.store(bytes, std::memory_order_release);
  desk_.bell().advance();
  for (;;) {
    const std::uint32_t seen = wanted_event_.value();
    if (wanted_bytes_.load(std::memory_order_acquire) == 0) return wanted_;
    wanted_event_.wait(seen, kLookAgain);
  }
}

void GuardedMmu::make_wanted_arena() noexcept {
  const std::uint64_t bytes = wanted_bytes_.load(std::memory_order_acquire);
  if (bytes == 0) return;
  wanted_ = make_arena(bytes);
  wanted_bytes_.store(0, std::memory_order_release);
  wanted_event_.advance();
}

Result<PageRange> GuardedMmu::make_arena(std::uint64_t bytes) noexcept {
  auto* const arena = make_from<GuardedArena>(memory_);
  if (arena == nullptr) return fail(Errc::kNoMemory, 0, "bookkeeping of an arena");
  Result<void> made = arena->open(memory_, bytes);
  if (made) {
    MutexLock hold(mutex_);
    made = arena_count_ == kMostArenas ? fail(Errc::kNoMemory, 0, "too many arenas") : guard_signal::publish(arena->range(), desk_);
    if (made) {
      std::size_t at = arena_count_++;
      for (; at > 0 && arena->range().first < arenas_[at - 1]->range().first; --at) arenas_[at] = arenas_[at - 1];
      arenas_[at] = arena;
      return arena->range();
    }
  }
  destroy_from(memory_, arena);
  return std::unexpected(made.error());
}

Result<void> GuardedMmu::reopen_in_child() noexcept {
  return fail(Errc::kNotSupported, 0, "guarded arenas in a forked child");
}

GuardedArena* GuardedMmu::arena_of_locked(PageRange range) noexcept {
  for (std::size_t i = 0; i < arena_count_; ++i) {
    if (arenas_[i]->range().contains(range)) return arenas_[i];
  }
  return nullptr;
}

// ---- what is mapped and present ------------------------------------------------------------------------------------

Result<Mapping> GuardedMmu::mapping_at_or_above(PageIndex page) noexcept {
  MutexLock hold(mutex_);
  for (std::size_t i = 0; i < arena_count_; ++i) {
    if (arenas_[i]->range().end() <= page) continue;
    Mapping mapping;
    mapping.range = arenas_[i]->range();
    mapping.flags = Mapping::kReadable | Mapping::kWritable | Mapping::kDontFork | Mapping::kNoHuge;
    return mapping;
  }
  return fail(Errc::kNotFound, 0, "no arena at or above");
}

Result<std::size_t> GuardedMmu::scan(PageRange range, std::span<PageRun> out, PageIndex* scanned) noexcept {
  MutexLock hold(mutex_);
  std::size_t filled = 0;
  if (scanned != nullptr) *scanned = range.end();
  for (std::size_t i = 0; i < arena_count_; ++i) {
    const PageRange part = arenas_[i]->range().intersect(range);
    for (PageIndex at = part.first; at < part.end();) {
      const PageIndex first = arenas_[i]->next_present(PageRange::between(at, part.end()));
      if (first == part.end()) break;
      if (filled == out.size()) {
        if (scanned != nullptr) *scanned = first;
        return filled;
      }
      at = arenas_[i]->next_absent(PageRange::between(first, part.end()));
      out[filled++] = {PageRange::between(first, at), PageRun::kPresent | PageRun::kWritten};
    }
  }
  return filled;
}

Result<void> GuardedMmu::watch(PageRange range) noexcept {
  MutexLock hold(mutex_);
  if (arena_of_locked(range) != nullptr) return {};
  return fail(Errc::kInvalid, 0, "only arenas can be watched without userfaultfd");
}

Result<void> GuardedMmu::unwatch(PageRange range) noexcept {
  wake(range);
  return {};
}

// ---- moving bytes --------------------------------------------------------------------------------------------------

Progress GuardedMmu::move_out_locked(PageIndex to, PageIndex from, PageCount count) noexcept {
  GuardedArena* const arena = arena_of_locked({from, count});
  if (arena == nullptr) return {PageCount(0), true, {Errc::kNotFound, 0, "not in an arena"}};
  const PageRange there = PageRange::between(from, arena->next_absent({from, count}));
  if (!there.empty()) {
    if (!close_locked(*arena, there)) return {PageCount(0), true, {Errc::kNoMemory, 0, "mprotect"}};
    arena->read(there, bytes(to));
    CHECK(arena->drop(there), kCannotDrop);
  }
  if (there.count == count) return {count, false, {}};
  return {there.count, true, {Errc::kNotFound, 0, "nothing there"}};
}

Progress GuardedMmu::fill_locked(PageIndex to, const std::byte* from, PageCount count) noexcept {
  GuardedArena* const arena = arena_of_locked({to, count});
  if (arena == nullptr) return {PageCount(0), true, {Errc::kNotFound, 0, "not in an arena"}};
  const PageRange empty = PageRange::between(to, arena->next_present({to, count}));
  if (!empty.empty()) {
#ifndef WHIMBREL_BREAK_WRITE_BEFORE_OPEN
    arena->fill(empty, from);
    open_locked(*arena, empty);
#else
    // Wrong on purpose: the race test is built a second time with this, and has to find it.
    arena->fill(empty, nullptr);
    open_locked(*arena, empty);
    SystemClock().sleep_ns(20'000);
    if (from != nullptr) arena->fill(empty, from);
#endif
  }
  if (empty.count == count) return {count, false, {}};
  return {empty.count, true, {Errc::kExists, 0, "there already"}};
}

Progress GuardedMmu::move(PageIndex to, PageIndex from, PageCount count, Wake wake) noexcept {
  Progress progress;
  {
    MutexLock hold(mutex_);
    if (removal_count_.load(std::memory_order_relaxed) != 0) return {PageCount(0), true, kPending};
    if (windows_.contains(to)) return move_out_locked(to, from, count);
    progress = fill_locked(to, bytes(from), count);
  }
  // The frames are empty now, as after any move.
  if (progress.done.raw() != 0) (void)discard({from, progress.done});
  if (wake == Wake::kYes && progress.done.raw() != 0) this->wake({to, progress.done});
  return progress;
}

Progress GuardedMmu::copy(PageIndex to, const std::byte* from, PageCount count, Wake wake, bool) noexcept {
  // What is empty reads as zeros: no need to write them.
  bool zeros = true;
  const auto* const words = reinterpret_cast<const std::uint64_t*>(from);
  for (std::size_t i = 0; zeros && i < count.bytes() / sizeof *words; ++i) zeros = words[i] == 0;
  Progress progress;
  {
    MutexLock hold(mutex_);
    if (removal_count_.load(std::memory_order_relaxed) != 0) return {PageCount(0), true, kPending};
    progress = fill_locked(to, zeros ? nullptr : from, count);
  }
  if (wake == Wake::kYes && progress.done.raw() != 0) this->wake({to, progress.done});
  return progress;
}

Progress GuardedMmu::zero(PageIndex to, PageCount count, Wake wake) noexcept {
  Progress progress;
  {
    MutexLock hold(mutex_);
    if (removal_count_.load(std::memory_order_relaxed) != 0) return {PageCount(0), true, kPending};
    progress = fill_locked(to, nullptr, count);
  }
  if (wake == Wake::kYes && progress.done.raw() != 0) this->wake({to, progress.done});
  return progress;
}

Result<void> GuardedMmu::write_protect(PageRange, bool, Wake) noexcept {
  return fail(Errc::kNotSupported, 0, "write protection of guarded arenas");
}

Result<void> GuardedMmu::raise_bus_error(std::uint32_t thread, VirtualAddress address) noexcept {
  if (!desk_.waits(thread, {PageIndex::of(address), PageCount(1)})) return {};  // left by way of another signal
  return send_bus_error(thread, address);
}

Result<void> GuardedMmu::poison(PageRange range) noexcept {
  desk_.condemn(range);
  return {};
}

Result<void> GuardedMmu::discard(PageRange range) noexcept {
  if (windows_.contains(range.first)) {
    void* const where = bytes(range.first);
    if (sys::madvise(where, range.count.bytes(), MADV_DONTNEED)) return {};
    // The program's mlockall() caught the window, and locked pages are not dropped.
    (void)sys::munlock(where, range.count.bytes());
    return sys::madvise(where, range.count.bytes(), MADV_DONTNEED);
  }
  const SignalsBlocked blocked;
  std::uint64_t mine = 0;
  for (;;) {
    const std::uint32_t seen = removals_event_.value();
    {
      MutexLock hold(mutex_);
      if (mine != 0 && mine <= removals_read_) return {};
      const std::uint32_t count = removal_count_.load(std::memory_order_relaxed);
      if (mine == 0 && count < kMostRemovals) {
        GuardedArena* const arena = arena_of_locked(range);
        if (arena == nullptr) return fail(Errc::kNotFound, 0, "not in an arena");
        for (PageIndex at = arena->next_present(range); at < range.end();) {
          const PageRange run = PageRange::between(at, arena->next_absent(PageRange::between(at, range.end())));
          if (!close_locked(*arena, run)) return fail(Errc::kNoMemory, 0, "mprotect");
          CHECK(arena->drop(run), kCannotDrop);
          at = arena->next_present(PageRange::between(run.end(), range.end()));
        }
        removals_[count] = range;
        removal_count_.store(count + 1, std::memory_order_release);
        mine = ++removals_made_;
      }
    }
    desk_.bell().advance();
    removals_event_.wait(seen, kLookAgain);
  }
}

Result<void> GuardedMmu::discard_many(std::span<const PageRange> ranges) noexcept {
  for (const PageRange& range : ranges) {
    if (const Result<void> dropped = discard(range); !dropped) return dropped;
  }
  return {};
}

Result<void> GuardedMmu::populate(PageRange range, bool) noexcept {
  MutexLock hold(mutex_);
  GuardedArena* const arena = arena_of_locked(range);
  if (arena != nullptr && arena->next_absent(range) == range.end()) return {};
  return fail(Errc::kNotFound, 0, "populate");
}

Result<void> GuardedMmu::read_program(PageIndex page, std::byte* to) noexcept {
  MutexLock hold(mutex_);
  GuardedArena* const arena = arena_of_locked({page, PageCount(1)});
  if (arena == nullptr || !arena->is_present(page)) return fail(Errc::kNotFound, 0, "nothing there");
  arena->read({page, PageCount(1)}, to);
  return {};
}

// ---- messages ------------------------------------------------------------------------------------------------------

bool GuardedMmu::wait_for_message(std::int64_t nanoseconds) noexcept {
  const std::uint32_t seen = desk_.bell().value();
  make_wanted_arena();
  if (has_unread()) return true;
  if (!interrupted_.exchange(false, std::memory_order_acquire) && nanoseconds != 0) desk_.bell().wait(seen, nanoseconds);
  make_wanted_arena();
  return has_unread();
}

void GuardedMmu::interrupt() noexcept {
  interrupted_.store(true, std::memory_order_release);
  desk_.bell().advance();
}

bool GuardedMmu::has_unread() noexcept {
  return removal_count_.load(std::memory_order_acquire) != 0 || desk_.has_untaken();
}

// Whether the touch needs nothing but to be repeated: it is there, or it is no memory of ours any more.
bool GuardedMmu::is_answered_locked(const FaultDesk::Touch& touch) noexcept {
  const PageIndex page = PageIndex::of(touch.address);
  const PageRange one{page, PageCount(1)};
  GuardedArena* const arena = arena_of_locked(one);
  if (arena == nullptr) {
    desk_.wake(one);
    return true;
  }
  if (!arena->is_present(page)) return false;
  if (arena->is_open(page) && !arena->is_uncertain()) {
    desk_.was_open(touch);
    return true;
  }
  // Closed to save mappings. What is there around it is likely to be wanted as well.
  const PageRange unit = arena->range().intersect({page.huge_base(), PageCount(kPagesPerHuge)});
  PageIndex first = page;
  while (unit.first < first && arena->is_present(first - PageCount(1))) first = first - PageCount(1);
  const PageRange run = PageRange::between(first, arena->next_absent(PageRange::between(page, unit.end())));
  open_locked(*arena, run);
  desk_.wake(run);
  return true;
}

std::size_t GuardedMmu::read_messages(std::span<Message> out) noexcept {
  std::size_t filled = 0;
  MutexLock hold(mutex_);
  std::uint32_t removals = removal_count_.load(std::memory_order_relaxed);
  if (removals != 0) {
    const std::uint32_t taken = removals < out.size() ? removals : static_cast<std::uint32_t>(out.size());
    for (; filled < taken; ++filled) {
      out[filled].kind = Message::Kind::kRemove;
      out[filled].range = removals_[filled];
    }
    for (std::uint32_t i = taken; i < removals; ++i) removals_[i - taken] = removals_[i];
    removals_read_ += taken;
    removal_count_.store(removals - taken, std::memory_order_release);
    removals_event_.advance();
  }
  FaultDesk::Touch touch;
  while (filled < out.size() && desk_.take(&touch)) {
    if (is_answered_locked(touch)) continue;
    Message& message = out[filled++];
    message = {};
    message.kind = Message::Kind::kFault;
    message.write = touch.write;
    message.thread = touch.thread;
    message.address = touch.address;
    message.range = {PageIndex::of(touch.address), PageCount(1)};
  }
  return filled;
}

}  // namespace whimbrel
