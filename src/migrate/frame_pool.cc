#include "migrate/frame_pool.h"

#include "base/check.h"

namespace whimbrel {

FramePool::FramePool(Mmu& mmu, MemorySource& source, FrameUse use, PageRange window) noexcept
    : mmu_(mmu), source_(source), use_(use), window_(window), pages_(source, window.count.raw()),
      taken_(source, window.count.raw()) {}

Result<FramePool*> FramePool::create(Mmu& mmu, MemorySource& source, FrameUse use, PageCount size) noexcept {
  const Result<PageRange> window =
      mmu.open_window(size, use == FrameUse::kHuge ? WindowKind::kHuge : WindowKind::kSmall);
  if (!window) return std::unexpected(window.error());
  void* memory = source.take(sizeof(FramePool));
  if (memory == nullptr) {
    mmu.close_window(*window);
    return fail(Errc::kNoMemory, 0, "frame pool");
  }
  auto* pool = ::new (memory) FramePool(mmu, source, use, *window);
  MutexLock hold(pool->mutex_);
  if (pool->pages_.empty() || pool->taken_.empty()) {
    pool->mutex_.unlock();
    destroy(pool);
    return fail(Errc::kNoMemory, 0, "frame pool");
  }
  return pool;
}

void FramePool::destroy(FramePool* pool) noexcept {
  if (pool == nullptr) return;
  MemorySource& source = pool->source_;
  pool->mmu_.close_window(pool->window_);
  pool->~FramePool();
  source.give(pool, sizeof(FramePool));
}

bool FramePool::find_run_locked(std::uint64_t count, std::uint64_t align, std::uint64_t* at) noexcept {
  const std::uint64_t size = window_.count.raw();
  for (int pass = 0; pass < 2; ++pass) {
    std::uint64_t i = pass == 0 ? (hint_ + align - 1) / align * align : 0;
    while (i + count <= size) {
      std::uint64_t run = 0;
      while (run < count && !taken_[i + run]) ++run;
      if (run == count) {
        *at = i;
        return true;
      }
      i = (i + run + 1 + align - 1) / align * align;
    }
  }
  return false;
}

Result<PageIndex> FramePool::take(PageCount count) noexcept {
  const bool huge = use_ == FrameUse::kHuge;
  CHECK(huge ? count.raw() == kPagesPerHuge : count.raw() != 0);
  MutexLock hold(mutex_);
  std::uint64_t at = 0;
  if (!find_run_locked(count.raw(), huge ? kPagesPerHuge : 1, &at)) return fail(Errc::kNoMemory, 0, "no free frames");
  for (std::uint64_t i = at; i < at + count.raw(); ++i) {
    taken_[i] = true;
    pages_[i].init_head(0);
  }
  // Landing frames keep their memory: always the lowest free ones, so that few of them ever have any, and those are warm.
  if (use_ != FrameUse::kLanding) hint_ = at + count.raw();
  in_use_.fetch_add(count.raw(), std::memory_order_relaxed);
  return window_.first + PageCount(at);
}

Result<PageIndex> FramePool::take_huge() noexcept {
  CHECK(use_ == FrameUse::kHuge);
  MutexLock hold(mutex_);
  std::uint64_t at = 0;
  if (!find_run_locked(kPagesPerHuge, kPagesPerHuge, &at)) return fail(Errc::kNoMemory, 0, "no free huge frames");
  for (std::uint64_t i = at; i < at + kPagesPerHuge; ++i) taken_[i] = true;
  for (std::uint64_t i = at + 1; i < at + kPagesPerHuge; ++i) pages_[i].init_tail();
  pages_[at].init_head(kHugeOrder);
  hint_ = at + kPagesPerHuge;
  in_use_.fetch_add(kPagesPerHuge, std::memory_order_relaxed);
  return window_.first + PageCount(at);
}

void FramePool::give(PageIndex first, PageCount count) noexcept {
  const PageRange range{first, count};
  CHECK(window_.contains(range));
  // The memory goes before the frames can be taken again: a frame is always handed out empty.
  if (use_ != FrameUse::kLanding) CHECK(mmu_.discard(range).has_value(), "dropping staging memory");
  MutexLock hold(mutex_);
  for (std::uint64_t i = (first - window_.first).raw(), n = count.raw(); n != 0; ++i, --n) {
    CHECK(taken_[i] && pages_[i].refs() == 0, "freeing a frame in use");
    taken_[i] = false;
  }
  in_use_.fetch_sub(count.raw(), std::memory_order_relaxed);
}

void FramePool::reset_after_fork() noexcept {
  mutex_.reset_after_fork();
  MutexLock hold(mutex_);
  for (std::uint64_t i = 0; i < taken_.size(); ++i) {
    taken_[i] = false;
    ::new (&pages_[i]) Page();
  }
  in_use_.store(0, std::memory_order_relaxed);
  hint_ = 0;
  (void)mmu_.discard(window_);
}

}  // namespace whimbrel
