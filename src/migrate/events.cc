// Messages: faults are queued, changes of the address space are applied at once, under the lock that kept everybody
// from acting on the old picture (UE-01..UE-07).
#include "base/check.h"
#include "migrate/address_space.h"

namespace whimbrel {

void AddressSpace::pump() noexcept {
  MutexLock hold(mutex_);
  pump_locked();
}

void AddressSpace::pump_locked() noexcept {
  // A read hands out faults before changes (UE-02): reading until nothing is left, and looking at the faults only
  // afterwards, restores the order. The bound keeps a fault storm from holding the lock for ever.
  Message messages[32];
  for (int round = 0; round < 64; ++round) {
    const std::size_t n = mmu_.read_messages(messages);
    for (std::size_t i = 0; i < n; ++i) apply_locked(messages[i]);
    if (n < 32) return;
  }
}

void AddressSpace::let_events_pass_locked(int tries) noexcept {
  pump_locked();
  if (tries < 3) return;
  constexpr std::int64_t kShort = 2'000, kLong = 50'000;
  clock_.sleep_ns(tries < 8 ? kShort : kLong);
  pump_locked();
}

void AddressSpace::apply_locked(const Message& message) noexcept {
  switch (message.kind) {
    case Message::Kind::kFault:
      queue_fault_locked(message);
      return;
    case Message::Kind::kRemove:
      trace_.add(TraceStep::kMessageRemove, message.range);
      for (const PageRange& lazy : lazy_free_) {
        if (lazy.empty() || !lazy.contains(message.range)) continue;
        notify_start(NotifyEvent::kClear, message.range, nullptr);
        notify_end(NotifyEvent::kClear, message.range, nullptr);
        return;
      }
      // The kernel drops the pages some time after this message was read (UE-03).
      quarantine_locked(message.range);
      drop_range_locked(message.range, NotifyEvent::kClear);
      mmu_.wake(message.range);
      return;
    case Message::Kind::kUnmap:
      trace_.add(TraceStep::kMessageUnmap, message.range);
      drop_range_locked(message.range, NotifyEvent::kUnmap);
      // Whoever waits there sleeps until somebody says so, and then sees what is there now.
      mmu_.wake(message.range);
      return;
    case Message::Kind::kRemap:
      trace_.add(TraceStep::kMessageRemap, message.range, message.to.raw());
      remap_range_locked(message.range, message.to);
      mmu_.wake(message.range);
      mmu_.wake({message.to, message.range.count});
      return;
    case Message::Kind::kFork:
      return;  // never asked for: children open descriptors of their own
  }
}

void AddressSpace::queue_fault_locked(const Message& message) noexcept {
  const PageIndex page = PageIndex::of(message.address);
  if (fault_count_ == kFaultQueue) {
    mmu_.wake({page, PageCount(1)});  // it comes again
    return;
  }
  faults_[(fault_head_ + fault_count_) % kFaultQueue] = {page, message.address, message.write, message.write_protect,
                                                         message.thread};
  ++fault_count_;
  // Whoever pumps on another thread than the server has taken the message from under its nose.
  if (!serving_) {
    serving_ = true;
    mmu_.interrupt();
  }
}

void AddressSpace::begin_serving() noexcept {
  MutexLock hold(mutex_);
  serving_ = true;
  pump_locked();
}

bool AddressSpace::take_fault(PendingFault* out) noexcept {
  MutexLock hold(mutex_);
  if (fault_count_ == 0) {
    serving_ = false;
    return false;
  }
  *out = faults_[fault_head_];
  fault_head_ = (fault_head_ + 1) % kFaultQueue;
  --fault_count_;
  taken_ = out->page;
  taken_waits_ = true;
  return true;
}

void AddressSpace::forget_faults_locked(PageRange pages) noexcept {
  if (taken_waits_ && pages.contains(taken_)) taken_waits_ = false;
  std::size_t kept = 0;
  for (std::size_t i = 0; i < fault_count_; ++i) {
    const PendingFault fault = faults_[(fault_head_ + i) % kFaultQueue];
    if (!pages.contains(fault.page)) faults_[(fault_head_ + kept++) % kFaultQueue] = fault;
  }
  fault_count_ = kept;
}

void AddressSpace::quarantine_locked(PageRange range) noexcept {
  quarantine_[quarantine_next_] = {range, clock_.now_ns() + config_.quarantine_ns};
  quarantine_next_ = (quarantine_next_ + 1) % quarantine_.size();
}

void AddressSpace::end_quarantine(PageRange range) noexcept {
  MutexLock hold(mutex_);
  for (Quarantine& q : quarantine_) {
    if (range.contains(q.range)) q = {};
  }
}

bool AddressSpace::is_quarantined_locked(PageRange range) noexcept {
  const std::int64_t now = clock_.now_ns();
  for (const Quarantine& q : quarantine_) {
    if (q.until_ns > now && q.range.overlaps(range)) return true;
  }
  return false;
}

void AddressSpace::begin_lazy_free(PageRange range) noexcept {
  MutexLock hold(mutex_);
  ignore_removal_locked(range);
}

void AddressSpace::end_lazy_free(PageRange range) noexcept {
  MutexLock hold(mutex_);
  heed_removal_locked(range);
}

void AddressSpace::ignore_removal_locked(PageRange range) noexcept {
  for (PageRange& slot : lazy_free_) {
    if (!slot.empty()) continue;
    slot = range;
    return;
  }
}

void AddressSpace::heed_removal_locked(PageRange range) noexcept {
  for (PageRange& slot : lazy_free_) {
    if (slot != range || slot.empty()) continue;
    slot = {};
    return;
  }
}

void AddressSpace::note_dropped(PageRange range) noexcept {
  MutexLock hold(mutex_);
  pump_locked();
  drop_range_locked(range, NotifyEvent::kClear);
  mmu_.wake(range);
}

void AddressSpace::drop_range_locked(PageRange range, NotifyEvent why) noexcept {
  notify_start(why, range, nullptr);
  PageIndex at = table_.next_used(range.first, range.end());
  while (at < range.end()) {
    PageEntry e = table_.get(at);
    const PageIndex base = at.huge_base();
    const PageRange unit{base, PageCount(kPagesPerHuge)};
    if (e.is_huge() && !range.contains(unit)) {
      CHECK(split_slot_locked(base).has_value(), "no memory to split a huge slot");
      e = table_.get(at);
    }
    const PageCount covered(e.is_huge() ? kPagesPerHuge : 1);
    Page* p = page(e.pfn());
    if (e.is_huge()) {
      CHECK(table_.set_huge(base, PageEntry()).has_value());
    } else {
      table_.update(at, e.after(PageEvent::kDrop));
    }
    stats_.dropped.fetch_add(covered.raw(), std::memory_order_relaxed);
    trace_.add(TraceStep::kDropped, {at, covered}, e.raw());
    if (p != nullptr) {
      p->clear_mapping();
      // A slot on its way holds no mapping reference: its holder frees the page when he finalizes and finds no slot.
      if (e.state() == PageState::kDevice || e.state() == PageState::kCoherent) put_page(head_of(e.pfn()));
      if (e.state() == PageState::kExclusive) put_page(e.pfn());
    }
    at = table_.next_used(at + covered, range.end());
  }
  table_.trim(range);
  notify_end(why, range, nullptr);
}

void AddressSpace::remap_range_locked(PageRange from, PageIndex to) noexcept {
  notify_start(NotifyEvent::kUnmap, from, nullptr);
  // What was at the new place was unmapped by the same call; its own message may still be behind this one, and must then
  // not hit what moves there now. Our entries there are certainly stale.
  drop_range_locked({to, from.count}, NotifyEvent::kUnmap);
  PageIndex at = table_.next_used(from.first, from.end());
  while (at < from.end()) {
    PageEntry e = table_.get(at);
    const PageIndex base = at.huge_base();
    const PageIndex target = to + (at - from.first);
    const bool whole = e.is_huge() && at == base && from.contains(PageRange{base, PageCount(kPagesPerHuge)}) &&
                       target.is_huge_aligned();
    if (e.is_huge() && !whole) {
      CHECK(split_slot_locked(base).has_value(), "no memory to split a huge slot");
      e = table_.get(at);
    }
    Page* p = page(e.pfn());
    if (whole) {
      CHECK(table_.set_huge(base, PageEntry()).has_value());
      CHECK(table_.set_huge(target, e.without(PageEntry::kWaited)).has_value(), "no memory to re-key a huge slot");
    } else {
      table_.update(at, PageEntry());
      CHECK(table_.set(target, e.without(PageEntry::kWaited)).has_value(), "no memory to re-key a slot");
    }
    if (p != nullptr && p->is_mapped()) p->set_mapping(target);
    const PageCount covered(whole ? kPagesPerHuge : 1);
    stats_.remapped.fetch_add(covered.raw(), std::memory_order_relaxed);
    trace_.add(TraceStep::kRemapped, {at, covered}, target.raw());
    at = table_.next_used(at + covered, from.end());
  }
  table_.trim(from);
  for (std::size_t i = 0; i < observer_count_; ++i) observers_[i]->remapped(from, to);
  notify_end(NotifyEvent::kUnmap, from, nullptr);
}

}  // namespace whimbrel
