// The addresses of the engine's windows: one reservation of its own, cut into granules of 2 MiB.
//
// A window is a mapping of its own inside it, followed by at least one page nobody can access: windows never merge
// with each other, so that registering a whole window splits nothing. All windows of a process lie in one known range,
// which makes "is this page in a window" a comparison.
//
// Thread-safe. Windows are inherited by fork (the child must be able to read the frames in them).
#pragma once

#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "linux/page_bitmap.h"
#include "mm/address.h"
#include "port/mmu.h"

namespace whimbrel {

class WindowSpace {
 public:
  WindowSpace() = default;
  ~WindowSpace();
  WindowSpace(const WindowSpace&) = delete;
  WindowSpace& operator=(const WindowSpace&) = delete;

  // Reserves up to `bytes` of address space, less where RLIMIT_AS asks for it. kNoMemory: not even 4 MiB.
  [[nodiscard]] Result<void> reserve(MemorySource& memory, std::uint64_t bytes) noexcept EXCLUDES(mutex_);

  // A readable and writable, empty window of exactly `count` pages, 2 MiB aligned. kNoMemory: no addresses left.
  [[nodiscard]] Result<PageRange> open(PageCount count, WindowKind kind) noexcept EXCLUDES(mutex_);
  // Takes back what open() returned. Its contents are dropped.
  void close(PageRange window) noexcept EXCLUDES(mutex_);

  [[nodiscard]] PageRange range() const noexcept { return whole_; }
  [[nodiscard]] bool contains(PageIndex page) const noexcept { return whole_.contains(page); }

  // In a forked child, while it has one thread.
  void reset_after_fork() noexcept { mutex_.reset_after_fork(); }

 private:
  [[nodiscard]] std::size_t granules() const noexcept { return whole_.count.raw() / kPagesPerHuge; }

  PageRange whole_;  // constant after reserve()
  Mutex mutex_;
  MemorySource* memory_ = nullptr;
  std::uint64_t* words_ = nullptr;
  PageBitmap used_ GUARDED_BY(mutex_);
};

}  // namespace whimbrel
