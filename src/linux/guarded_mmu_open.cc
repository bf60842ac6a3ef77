// Openness within what the kernel allows of mappings.
#include <atomic>

#include "linux/guarded_mmu.h"

namespace whimbrel {
namespace {

// Of all engines of the process: they share its mappings.
std::atomic<std::uint64_t> g_open_runs{0};

// A part with fewer runs than this is not worth closing: it is in use as a whole.
constexpr std::size_t kScattered = 4;

}  // namespace

void GuardedMmu::count_runs_locked(std::size_t before, const GuardedArena& arena) noexcept {
  g_open_runs.fetch_add(arena.open_runs() - before, std::memory_order_relaxed);  // also downwards, modulo 2^64
}

// Closes the next part of 2 MiB that has many runs. False: a whole turn has found none.
bool GuardedMmu::close_scattered_locked(PageIndex keep) noexcept {
  const auto try_in = [&](GuardedArena& arena, PageRange part) REQUIRES(mutex_) {
    for (PageIndex at = arena.next_open(part); at < part.end();) {
      const PageRange unit = part.intersect({at.huge_base(), PageCount(kPagesPerHuge)});
      if (!unit.contains(keep) && kScattered <= arena.open_runs_in(unit)) {
        const std::size_t before = arena.open_runs();
        const bool closed = arena.close_part(unit).has_value();
        count_runs_locked(before, arena);
        hand_ = unit.end();
        if (closed) return true;
      }
      at = arena.next_open(PageRange::between(unit.end(), part.end()));
    }
    return false;
  };
  for (int turn = 0; turn < 2; ++turn) {
    for (std::size_t i = 0; i < arena_count_; ++i) {
      const PageRange range = arenas_[i]->range();
      const PageRange part = turn == 0 ? PageRange::between(hand_ < range.first ? range.first : hand_, range.end())
                                       : PageRange::between(range.first, hand_ < range.end() ? hand_ : range.end());
      if (!part.empty() && try_in(*arenas_[i], part)) return true;
    }
  }
  return false;
}

void GuardedMmu::limit_open_runs_locked(PageIndex keep) noexcept {
  while (most_open_runs_ < g_open_runs.load(std::memory_order_relaxed) && close_scattered_locked(keep)) {
  }
}

void GuardedMmu::open_locked(GuardedArena& arena, PageRange range) noexcept {
  for (int tries = 0; tries < 64; ++tries) {
    const std::size_t before = arena.open_runs();
    const bool opened = arena.open_part(range).has_value();
    count_runs_locked(before, arena);
    if (opened) break;
    // The program has used up its mappings in another way.
    if (!close_scattered_locked(range.first)) break;
  }
  limit_open_runs_locked(range.first);
}

bool GuardedMmu::close_locked(GuardedArena& arena, PageRange range) noexcept {
  for (int tries = 0; tries < 64; ++tries) {
    const std::size_t before = arena.open_runs();
    const bool closed = arena.close_part(range).has_value();
    count_runs_locked(before, arena);
    if (closed) {
      limit_open_runs_locked(PageIndex());  // a hole in a run makes two of it
      return true;
    }
    if (!close_scattered_locked(PageIndex())) break;
  }
  return false;
}

std::size_t GuardedMmu::open_runs() noexcept {
  MutexLock hold(mutex_);
  std::size_t runs = 0;
  for (std::size_t i = 0; i < arena_count_; ++i) runs += arenas_[i]->open_runs();
  return runs;
}

}  // namespace whimbrel
