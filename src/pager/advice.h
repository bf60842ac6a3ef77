// Advice: what the program has said about how it goes through parts of its memory, for whoever decides how much to
// bring for one touch. Without advice the fault thread finds out by itself (Streams).
//
// Thread-safe; the lock is a leaf, and nobody takes it while nothing has been said.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "base/mutex.h"
#include "mm/address.h"

namespace whimbrel {

enum class AccessPattern : std::uint8_t {
  kNormal,      // nothing is known
  kSequential,  // a touch is followed by those behind it: bring a full window at once
  kRandom,      // neighbours of a touched page are of no interest: bring it alone
};

class Advice {
 public:
  // Replaces what was said of the range. kNoMemory: too many ranges; nothing changed.
  [[nodiscard]] Result<void> set(PageRange range, AccessPattern pattern) noexcept EXCLUDES(mutex_);
  // What to bring for a touch of `page`, when something was said of it: `window` and at most `most` pages otherwise.
  [[nodiscard]] PageRange shape(PageIndex page, PageRange window, PageCount most) noexcept EXCLUDES(mutex_) {
    if (count_.load(std::memory_order_relaxed) == 0) return window;
    return shape_advised(page, window, most);
  }
  [[nodiscard]] std::size_t ranges() const noexcept { return count_.load(std::memory_order_relaxed); }
  void reset_after_fork() noexcept { mutex_.reset_after_fork(); }

 private:
  static constexpr std::size_t kMost = 128;
  struct Entry {
    PageRange range;
    AccessPattern pattern = AccessPattern::kNormal;
  };
  [[nodiscard]] bool keep_locked(PageRange part, AccessPattern pattern, std::size_t* used) noexcept REQUIRES(mutex_);
  [[nodiscard]] PageRange shape_advised(PageIndex page, PageRange window, PageCount most) noexcept EXCLUDES(mutex_);

  Mutex mutex_;
  std::atomic<std::size_t> count_{0};
  std::array<Entry, kMost> entries_ GUARDED_BY(mutex_){};
  std::array<Entry, kMost> next_ GUARDED_BY(mutex_){};  // while it is rebuilt
};

}  // namespace whimbrel
