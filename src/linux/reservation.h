// Reservation: the engine's own memory. One private range of addresses with guard pages at both ends, nothing of it
// accessible until it is taken, never in a core dump, never merged with a mapping of the program.
//
// Life: open() reserves addresses (no memory, no commit charge); take() makes pages accessible in steps as the highest
// used page rises; give() returns frames to the kernel and, when the tail is free, makes it inaccessible again, so
// that the program's mlockall() finds little to populate. The destructor unmaps everything.
//
// Thread-safe; the only lock is a leaf held for a few hundred instructions. Freed pages are handed out zeroed again.
// Book-keeping is two bits per page inside the reservation itself. Inherited by fork: the child has a copy (call
// reset_after_fork()).
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "linux/page_bitmap.h"
#include "mm/address.h"

namespace whimbrel {

class Reservation final : public MemorySource {
 public:
  struct Options {
    // Address space wanted. Less is taken where RLIMIT_AS leaves less: at most a quarter of what is left under it, so
    // that the program's next allocations do not fail.
    std::uint64_t bytes = std::uint64_t{64} << 30;
    // Ask for huge pages (for stores: their first touches would otherwise cost more than filling them).
    bool huge_pages = false;
  };

  constexpr Reservation() noexcept = default;
  ~Reservation() override;
  Reservation(const Reservation&) = delete;
  Reservation& operator=(const Reservation&) = delete;

  // Once per object, before any other call. kNoMemory: not even kSmallest bytes of address space are to be had.
  static constexpr std::uint64_t kSmallest = std::uint64_t{1} << 20;
  [[nodiscard]] Result<void> open(const Options& options) noexcept;

  // Gives the addresses back; open() may follow. With nothing of it in use any more and no other thread inside.
  void close() noexcept;

  // Requests of 2 MiB and more are aligned to 2 MiB, all others to a page.
  [[nodiscard]] void* take(std::size_t bytes) noexcept override EXCLUDES(mutex_);
  void give(void* memory, std::size_t bytes) noexcept override EXCLUDES(mutex_);
  [[nodiscard]] std::size_t bytes_in_use() const noexcept override {
    return pages_in_use_.load(std::memory_order_relaxed) * kPageSize;
  }

  // Every page that belongs to the reservation, guards and book-keeping included: what the pager must leave alone.
  [[nodiscard]] PageRange range() const noexcept { return whole_; }
  // Bytes that could be taken in all.
  [[nodiscard]] std::size_t capacity() const noexcept { return page_limit_ * kPageSize; }
  // Bytes that are accessible now, whether taken or not.
  [[nodiscard]] std::size_t bytes_committed() const noexcept EXCLUDES(mutex_);

  // In a forked child, while it has one thread: frees the lock that a thread of the parent may have held. At worst the
  // pages of a call that was under way are lost.
  void reset_after_fork() noexcept { mutex_.reset_after_fork(); }

 private:
  [[nodiscard]] bool commit_locked(std::size_t pages) noexcept REQUIRES(mutex_);
  void trim_locked() noexcept REQUIRES(mutex_);
  [[nodiscard]] std::byte* page(std::size_t i) const noexcept { return pages_ + i * kPageSize; }

  // Constant between open() and close().
  PageRange whole_;
  std::byte* meta_ = nullptr;   // both bitmaps, `used` first
  std::byte* pages_ = nullptr;  // 2 MiB aligned
  std::size_t page_limit_ = 0;
  std::size_t bitmap_bytes_ = 0;  // of one bitmap

  mutable Mutex mutex_;
  PageBitmap used_ GUARDED_BY(mutex_);
  PageBitmap dirty_ GUARDED_BY(mutex_);                // free pages that still hold old contents
  std::size_t committed_ GUARDED_BY(mutex_) = 0;       // pages [0, committed_) are accessible
  std::size_t meta_committed_ GUARDED_BY(mutex_) = 0;  // bytes of each bitmap that are accessible
  std::size_t lowest_free_ GUARDED_BY(mutex_) = 0;     // no page below this one is free
  std::atomic<std::size_t> dirty_pages_{0};
  std::atomic<std::size_t> pages_in_use_{0};
};

}  // namespace whimbrel
