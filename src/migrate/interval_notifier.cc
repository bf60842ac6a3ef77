#include "migrate/interval_notifier.h"

#include "base/check.h"

namespace whimbrel {

Result<void> NotifierRegistry::insert(IntervalNotifier& sub, VirtualAddress start, std::uint64_t length) noexcept {
  const std::uint64_t last = start.raw() + length - 1;
  if (length == 0 || last < start.raw()) return fail(Errc::kInvalid, 0, "notifier range");
  MutexLock hold(mutex_);
  if (sub.place_ != IntervalNotifier::Place::kNowhere) return fail(Errc::kInvalid, 0, "notifier already subscribed");
  sub.start_ = start;
  sub.last_ = VirtualAddress(last);
  // MN-07: during a bracket the first read_begin() sleeps until it closes.
  if (open_ != 0 && (seq_ & 1) != 0) {
    sub.seq_.store(seq_, std::memory_order_release);
    sub.place_ = IntervalNotifier::Place::kInserting;
    sub.next_ = inserting_;
    inserting_ = &sub;
    return {};
  }
  if (open_ != 0) seq_ |= 1;
  sub.seq_.store(open_ != 0 ? seq_ : seq_ - 1, std::memory_order_release);
  sub.place_ = IntervalNotifier::Place::kListed;
  sub.next_ = list_;
  list_ = &sub;
  return {};
}

void NotifierRegistry::unlink_locked(IntervalNotifier& sub) noexcept {
  for (IntervalNotifier** head : {&list_, &inserting_}) {
    for (IntervalNotifier** at = head; *at != nullptr; at = &(*at)->next_) {
      if (*at != &sub) continue;
      *at = sub.next_;
      sub.next_ = nullptr;
      sub.place_ = IntervalNotifier::Place::kNowhere;
      return;
    }
  }
}

void NotifierRegistry::remove(IntervalNotifier& sub) noexcept {
  mutex_.lock();
  if (sub.place_ == IntervalNotifier::Place::kListed && open_ != 0 && (seq_ & 1) != 0) {
    sub.place_ = IntervalNotifier::Place::kRemoving;
    while (sub.place_ == IntervalNotifier::Place::kRemoving) {
      const std::uint32_t seen = changed_.value();
      mutex_.unlock();
      changed_.wait(seen);
      mutex_.lock();
    }
  } else {
    unlink_locked(sub);
  }
  mutex_.unlock();
}

std::uint64_t NotifierRegistry::read_begin(IntervalNotifier& sub) noexcept {
  for (;;) {
    const std::uint32_t seen = changed_.value();
    std::uint64_t seq = 0;
    {
      MutexLock hold(mutex_);
      seq = sub.seq_.load(std::memory_order_acquire);
      if (seq != seq_) return seq;
    }
    changed_.wait(seen);
  }
}

void NotifierRegistry::invalidate_start(NotifyEvent event, PageRange range, const void* owner) noexcept {
  const NotifierRange told{range.first.address(), range.end().address(), event, owner, true};
  const auto hit = [&](const IntervalNotifier& sub) {
    return sub.start_ < told.end && told.start <= sub.last_;
  };
  IntervalNotifier* first = nullptr;
  std::uint64_t seq = 0;
  {
    MutexLock hold(mutex_);
    ++open_;
    for (IntervalNotifier* sub = list_; sub != nullptr; sub = sub->next_) {
      if (hit(*sub)) seq_ |= 1;
    }
    first = list_;
    seq = seq_;
  }
  if ((seq & 1) == 0) return;
  // The list stands still while the sequence is odd, and our bracket keeps it odd.
  NotifierFinish* finishes = nullptr;
  NotifierFinish** last = &finishes;
  for (IntervalNotifier* sub = first; sub != nullptr; sub = sub->next_) {
    if (!hit(*sub)) continue;
    NotifierFinish* finish = nullptr;
    CHECK(sub->invalidate_start(told, seq, &finish), "a notifier refused a blockable invalidation");
    if (finish == nullptr) continue;
    finish->notifier = sub;
    finish->next = nullptr;
    *last = finish;
    last = &finish->next;
  }
  while (finishes != nullptr) {  // MN-09
    NotifierFinish* const now = finishes;
    finishes = now->next;  // it may be gone after the call
    now->notifier->invalidate_finish(*now);
  }
}

void NotifierRegistry::invalidate_end(NotifyEvent event, PageRange range, const void* owner) noexcept {
  (void)event, (void)range, (void)owner;
  {
    MutexLock hold(mutex_);
    CHECK(open_ != 0, "invalidation bracket closed twice");
    if (--open_ != 0 || (seq_ & 1) == 0) return;
    ++seq_;
    apply_deferred_locked();
  }
  changed_.advance();
}

void NotifierRegistry::apply_deferred_locked() noexcept {
  for (IntervalNotifier** at = &list_; *at != nullptr;) {
    IntervalNotifier* sub = *at;
    if (sub->place_ != IntervalNotifier::Place::kRemoving) {
      at = &sub->next_;
      continue;
    }
    *at = sub->next_;
    sub->next_ = nullptr;
    sub->place_ = IntervalNotifier::Place::kNowhere;
  }
  while (inserting_ != nullptr) {
    IntervalNotifier* sub = inserting_;
    inserting_ = sub->next_;
    sub->next_ = list_;
    sub->place_ = IntervalNotifier::Place::kListed;
    list_ = sub;
  }
}

}  // namespace whimbrel
