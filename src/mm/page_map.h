// PageMap: one device's range of frame numbers, with owner, kind and callbacks (the kernel's dev_pagemap, DM-09..DM-14).
//
// Metadata (16 bytes a page) exists only for chunks of 4096 pages that were ever allocated.
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "base/zeroed_table.h"
#include "mm/address.h"
#include "mm/page.h"

namespace whimbrel {

// Numbers as drivers know them (DM-09).
enum class MemoryType : std::uint8_t { kPrivate = 1, kCoherent = 2 };

enum class FaultResult : std::uint8_t {
  kDone,     // the access is retried (even if nothing moved)
  kSigbus,   // the contents cannot be had now: this access gets SIGBUS, the device keeps them
  kOom,      // no memory now: the access is retried after a pause
};

struct FaultContext;  // migrate/fault.h

// What a device's owner does for its pages. Called without engine locks.
class PageMapOps {
 public:
  virtual ~PageMapOps() = default;
  // A thread of the program touched a private page (CF-02..CF-09). The page is locked with one extra reference, both
  // kept by the caller: bring home at least that page with fault_page set.
  [[nodiscard]] virtual FaultResult migrate_to_ram(FaultContext& fault) noexcept = 0;
  // The last reference to a folio went (DM-12): called once per folio, `order` as it was.
  virtual void folio_free(Pfn head, unsigned order) noexcept = 0;
  // A large folio became 512 single pages: called for every new piece, ascending (SPF-05).
  virtual void folio_split(Pfn head, Pfn piece) noexcept { (void)head, (void)piece; }
  // True: migrate_to_ram obeys the rules of the fault thread (no program memory, no program heap, no waiting for the
  // program) and runs right there. False: it runs on a service thread.
  [[nodiscard]] virtual bool serves_inline() const noexcept { return false; }
};

class PageMap {
 public:
  // `owner` is compared, never followed. kInvalid: empty range, no owner, no ops (DM-10).
  [[nodiscard]] static Result<PageMap*> create(MemorySource& source, Pfn first, PageCount count, MemoryType type,
                                               const void* owner, PageMapOps* ops) noexcept;
  static void destroy(PageMap* map) noexcept;

  [[nodiscard]] bool contains(Pfn pfn) const noexcept { return first_ <= pfn && pfn < first_ + count_; }
  [[nodiscard]] Pfn first() const noexcept { return first_; }
  [[nodiscard]] PageCount count() const noexcept { return count_; }
  [[nodiscard]] MemoryType type() const noexcept { return type_; }
  [[nodiscard]] const void* owner() const noexcept { return owner_; }
  [[nodiscard]] PageMapOps& ops() const noexcept { return *ops_; }
  // Coherent memory is real memory: page i of the map is frame window.first + i while the program does not map it. While
  // the program does, the frame lies in the program, and its place here is empty. Empty for private memory.
  [[nodiscard]] PageRange window() const noexcept { return window_; }
  void set_window(PageRange window) noexcept { window_ = window; }
  [[nodiscard]] PageIndex frame_of(Pfn pfn) const noexcept { return window_.first + (pfn - first_); }

  // The page's metadata; null when its chunk was never allocated from.
  [[nodiscard]] Page* find(Pfn pfn) noexcept;
  // The first page at or above `from` whose chunk was ever allocated from; the end of the map when there is none.
  [[nodiscard]] Pfn next_known(Pfn from) noexcept;
  // Makes a fresh folio of 2^order pages at `head`, locked, one reference (DM-13). kNoMemory. Thread-safe.
  [[nodiscard]] Result<Page*> init_folio(Pfn head, unsigned order) noexcept;
  // Pages allocated now (each of an unfree folio counts).
  [[nodiscard]] std::uint64_t pages_in_use() const noexcept { return in_use_.load(std::memory_order_acquire); }
  void note_freed(unsigned order) noexcept { in_use_.fetch_sub(std::uint64_t{1} << order, std::memory_order_acq_rel); }
  [[nodiscard]] std::size_t metadata_bytes() const noexcept;
  // In a forked child: the parent's threads may have been about to count.
  void set_pages_in_use(std::uint64_t pages) noexcept { in_use_.store(pages, std::memory_order_relaxed); }
  void reset_after_fork() noexcept { mutex_.reset_after_fork(); }

  // A map that is no longer known stays in memory until its address space goes: whoever looked it up a moment ago, on the
  // way out of a fault or a finalize, may still read from it.
  void retire(PageMap* behind) noexcept { next_retired_ = behind; }
  [[nodiscard]] PageMap* next_retired() const noexcept { return next_retired_; }

 private:
  static constexpr std::uint64_t kChunkPages = 4096;
  PageMap(MemorySource& source, Pfn first, PageCount count, MemoryType type, const void* owner, PageMapOps* ops) noexcept;

  MemorySource& source_;
  const Pfn first_;
  const PageCount count_;
  const MemoryType type_;
  const void* const owner_;
  PageMapOps* const ops_;
  PageRange window_;  // set once, before the first page exists
  PageMap* next_retired_ = nullptr;
  Mutex mutex_;  // guards the creation of chunks
  // Entries change once, from null, and are read meanwhile: through chunk() only.
  [[nodiscard]] std::atomic_ref<Page*> chunk(std::uint64_t i) noexcept { return std::atomic_ref<Page*>(chunks_[i]); }
  ZeroedTable<Page*> chunks_;
  std::atomic<std::uint64_t> in_use_{0};
  std::atomic<std::uint64_t> chunk_count_{0};
};

}  // namespace whimbrel
