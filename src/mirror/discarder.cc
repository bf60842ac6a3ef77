#include "mirror/discarder.h"

#include <sys/mman.h>

#include "linux/sys.h"
#include "mirror/session.h"

namespace whimbrel::mirror {

void Discarder::body(void* self) noexcept {
  auto* const mine = static_cast<Discarder*>(self);
  for (std::uint32_t seen = 0;; ++seen) {
    while (mine->wanted_.value() == seen) mine->wanted_.wait(seen);
    const PageRange range = mine->range_;
    void* const at = reinterpret_cast<void*>(range.first.address().raw());
    mine->dropped_ = sys::madvise(at, range.count.bytes(), MADV_DONTNEED).has_value();
    mine->done_.store(true, std::memory_order_release);
    mine->finished_.advance();
  }
}

bool Discarder::discard_locked(AddressSpace& space, PageRange range) noexcept {
  constexpr std::int64_t kLookAgainNs = 30'000;
  space.lock_is_held();
  if (!started_) {
    started_ = Session::of(space).start_thread(&Discarder::body, this).has_value();
    if (!started_) return false;
  }
  space.ignore_removal_locked(range);
  range_ = range;
  done_.store(false, std::memory_order_release);
  wanted_.advance();
  while (!done_.load(std::memory_order_acquire)) {
    const std::uint32_t seen = finished_.value();
    space.pump_locked();
    if (!done_.load(std::memory_order_acquire)) finished_.wait(seen, kLookAgainNs);
  }
  space.heed_removal_locked(range);
  return dropped_;
}

void Discarder::reset_after_fork() noexcept {
  started_ = false;
  wanted_.reset_after_fork();
  finished_.reset_after_fork();
}

}  // namespace whimbrel::mirror
