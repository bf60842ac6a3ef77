// FramePool: frames of RAM that the engine holds outside the program's sight, each with its Page.
//
// Three pools serve an address space:
//   staging  frames stolen from the program by MOVE. They are read out and then freed, never filled with anything else:
//            somebody (a pipe, a socket) may still hold the physical page.
//   landing  buffers that device contents are loaded into before they are COPYed home. Ordinary memory, used again and
//            again.
//   huge     2 MiB units for both directions: stolen huge pages, and fresh huge pages to be filled and MOVEd home.
//
// Thread-safe.
#pragma once

#include <cstdint>

#include "base/memory_source.h"
#include "base/mutex.h"
#include "mm/page.h"
#include "port/mmu.h"

namespace whimbrel {

enum class FrameUse : std::uint8_t { kStaging, kLanding, kHuge };

class FramePool {
 public:
  // The window costs addresses, not memory, until frames are used. kHuge pools hand out whole units of 512.
  [[nodiscard]] static Result<FramePool*> create(Mmu& mmu, MemorySource& source, FrameUse use, PageCount size) noexcept;
  static void destroy(FramePool* pool) noexcept;

  // `count` consecutive frames, each an order-0 folio, locked, one reference. kNoMemory when no such run is free. From a
  // kHuge pool only an aligned unit of 512: to be filled as one huge page, and given to the program page by page.
  [[nodiscard]] Result<PageIndex> take(PageCount count) noexcept;
  // One aligned unit as an order-9 folio, locked, one reference. Only from a kHuge pool.
  [[nodiscard]] Result<PageIndex> take_huge() noexcept;
  // Gives frames back. All references are gone already (put_page): called by the address space. Staging and huge frames
  // lose their memory.
  void give(PageIndex first, PageCount count) noexcept;

  [[nodiscard]] bool contains(PageIndex frame) const noexcept { return window_.contains(frame); }
  [[nodiscard]] Page* page(PageIndex frame) noexcept {
    return window_.contains(frame) ? &pages_[(frame - window_.first).raw()] : nullptr;
  }
  [[nodiscard]] PageRange window() const noexcept { return window_; }
  [[nodiscard]] FrameUse use() const noexcept { return use_; }
  // Frames taken now.
  [[nodiscard]] std::uint64_t in_use() const noexcept { return in_use_.load(std::memory_order_relaxed); }
  // In a forked child: every frame is free again (its holder does not exist here) and its memory dropped.
  void reset_after_fork() noexcept;

 private:
  FramePool(Mmu& mmu, MemorySource& source, FrameUse use, PageRange window) noexcept;
  [[nodiscard]] bool find_run_locked(std::uint64_t count, std::uint64_t align, std::uint64_t* at) noexcept
      REQUIRES(mutex_);

  Mmu& mmu_;
  MemorySource& source_;
  const FrameUse use_;
  const PageRange window_;
  SourceArray<Page> pages_;
  Mutex mutex_;
  SourceArray<bool> taken_ GUARDED_BY(mutex_);
  std::uint64_t hint_ GUARDED_BY(mutex_) = 0;
  std::atomic<std::uint64_t> in_use_{0};
};

}  // namespace whimbrel
