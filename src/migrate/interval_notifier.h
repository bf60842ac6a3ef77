// Interval notifiers: who mirrors a range of the address space elsewhere learns before (where that is possible) and while
// it changes, and can tell whether what he has looked up is still true (MN-01..MN-12).
//
// Life of a mirror of a range:
//   1. insert() a subscription.
//   2. seq = read_begin(); look at the address space (hmm_range_fault); take your own lock; read_retry(seq)? drop the
//      lock and start over : program the device; drop the lock.
//   3. invalidate() is called for every change: take your own lock, set_seq(), drop the device's mappings, return true.
//   4. remove(). When it returns no callback runs or will run.
//
// Changes made by the engine itself are announced before they happen. Those the program makes (munmap, mremap,
// DONTNEED) are reported by the kernel during or after the change, and announced then: a device of ours reads and writes
// through the engine's frames, which stay valid until the bracket has ended.
//
// Thread-safe. Callbacks may be called with the address space's lock held: they must not call into the space.
#pragma once

#include <atomic>
#include <cstdint>

#include "migrate/address_space.h"

namespace whimbrel {

struct NotifierRange {
  VirtualAddress start, end;  // bytes, page aligned, end exclusive; may exceed the subscription
  NotifyEvent event = NotifyEvent::kClear;
  const void* owner = nullptr;  // meaningful for kMigrate and kExclusive only
  bool blockable = true;
};

class IntervalNotifier;

// What a first pass leaves for the second (MN-09). Whoever returns one keeps it until its invalidate_finish() is called.
struct NotifierFinish {
  NotifierFinish* next = nullptr;  // the registry's
  IntervalNotifier* notifier = nullptr;
};

class IntervalNotifier {
 public:
  virtual ~IntervalNotifier() = default;
  // cur_seq goes to set_seq() unless the event is ignored on purpose (own kMigrate, kExclusive). False is for
  // non-blockable ranges only.
  [[nodiscard]] virtual bool invalidate(const NotifierRange& range, std::uint64_t cur_seq) noexcept = 0;
  // MN-09: the same in two passes. An object in *finish has invalidate_finish() called once all subscriptions had their
  // first pass, in its order: so several devices drop their mappings at the same time and are waited for together.
  [[nodiscard]] virtual bool invalidate_start(const NotifierRange& range, std::uint64_t cur_seq,
                                              NotifierFinish** finish) noexcept {
    (void)finish;
    return invalidate(range, cur_seq);
  }
  virtual void invalidate_finish(NotifierFinish& finish) noexcept { (void)finish; }
  void set_seq(std::uint64_t cur_seq) noexcept { seq_.store(cur_seq, std::memory_order_release); }

  [[nodiscard]] VirtualAddress start() const noexcept { return start_; }
  [[nodiscard]] VirtualAddress last() const noexcept { return last_; }  // inclusive

 private:
  friend class NotifierRegistry;
  VirtualAddress start_, last_;
  std::atomic<std::uint64_t> seq_{0};
  IntervalNotifier* next_ = nullptr;
  enum class Place : std::uint8_t { kNowhere, kListed, kInserting, kRemoving } place_ = Place::kNowhere;
};

class NotifierRegistry final : public SpaceObserver {
 public:
  // kInvalid: length 0 or past the end of the address space (EOVERFLOW for drivers), or subscribed already.
  [[nodiscard]] Result<void> insert(IntervalNotifier& sub, VirtualAddress start, std::uint64_t length) noexcept
      EXCLUDES(mutex_);
  // Waits for an invalidation under way. Not from a callback.
  void remove(IntervalNotifier& sub) noexcept EXCLUDES(mutex_);

  // Sleeps while an invalidation that hit the subscription is open. Not with anything held that the callback takes.
  [[nodiscard]] std::uint64_t read_begin(IntervalNotifier& sub) noexcept EXCLUDES(mutex_);
  // With the user's lock held: true: start over.
  [[nodiscard]] bool read_retry(const IntervalNotifier& sub, std::uint64_t seq) const noexcept {
    return sub.seq_.load(std::memory_order_acquire) != seq;
  }
  // A hint without the lock: true is reliable, false is not.
  [[nodiscard]] bool check_retry(const IntervalNotifier& sub, std::uint64_t seq) const noexcept {
    return read_retry(sub, seq);
  }

  void invalidate_start(NotifyEvent event, PageRange range, const void* owner) noexcept override EXCLUDES(mutex_);
  void invalidate_end(NotifyEvent event, PageRange range, const void* owner) noexcept override EXCLUDES(mutex_);

 private:
  void apply_deferred_locked() noexcept REQUIRES(mutex_);
  void unlink_locked(IntervalNotifier& sub) noexcept REQUIRES(mutex_);

  Mutex mutex_;
  Event changed_;                                          // advanced when the sequence moves on
  std::uint64_t seq_ GUARDED_BY(mutex_) = 2;               // even: idle (MN-04)
  std::uint64_t open_ GUARDED_BY(mutex_) = 0;              // brackets
  IntervalNotifier* list_ GUARDED_BY(mutex_) = nullptr;    // stable while the sequence is odd
  IntervalNotifier* inserting_ GUARDED_BY(mutex_) = nullptr;
};

}  // namespace whimbrel
