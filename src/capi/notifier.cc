// Interval notifiers, hmm_range_fault, device-exclusive pages.
#include <cerrno>
#include <cstddef>
#include <new>

#include "capi/capi.h"
#include "capi/convert.h"
#include "migrate/exclusive.h"
#include "migrate/range_fault.h"

using namespace whimbrel;
using capi::complain;

static_assert(static_cast<int>(NotifyEvent::kUnmap) == MMU_NOTIFY_UNMAP &&
              static_cast<int>(NotifyEvent::kMigrate) == MMU_NOTIFY_MIGRATE &&
              static_cast<int>(NotifyEvent::kExclusive) == MMU_NOTIFY_EXCLUSIVE);
static_assert(HMM_PFN_VALID == HmmPfn::kValid && HMM_PFN_WRITE == HmmPfn::kWrite && HMM_PFN_ERROR == HmmPfn::kError &&
              HMM_PFN_ORDER_SHIFT == HmmPfn::kOrderShift &&
              (HMM_PFN_DMA_MAPPED | HMM_PFN_P2PDMA | HMM_PFN_P2PDMA_BUS) == HmmPfn::kSticky);
static_assert(sizeof(HmmPfn) == sizeof(unsigned long));

namespace {

// Lives in the driver's mmu_interval_notifier.
class Subscription final : public IntervalNotifier {
 public:
  Subscription(mm_struct& mm, mmu_interval_notifier& driver) noexcept : mm_(mm), driver_(driver) {}
  [[nodiscard]] static Subscription& of(mmu_interval_notifier* driver) noexcept {
    return *std::launder(reinterpret_cast<Subscription*>(driver->whimbrel_private));
  }

  [[nodiscard]] bool invalidate(const NotifierRange& range, std::uint64_t cur_seq) noexcept override {
    const mmu_notifier_range told = told_of(range);
    return driver_.ops->invalidate(&driver_, &told, cur_seq);
  }
  [[nodiscard]] bool invalidate_start(const NotifierRange& range, std::uint64_t cur_seq,
                                      NotifierFinish** finish) noexcept override {
    if (driver_.ops->invalidate_start == nullptr) return invalidate(range, cur_seq);
    const mmu_notifier_range told = told_of(range);
    mmu_interval_notifier_finish* object = nullptr;
    if (!driver_.ops->invalidate_start(&driver_, &told, cur_seq, &object)) return false;
    if (object == nullptr) return true;
    object->notifier = &driver_;
    *finish = ::new (static_cast<void*>(object->whimbrel_private)) NotifierFinish();
    return true;
  }
  void invalidate_finish(NotifierFinish& finish) noexcept override {
    constexpr std::size_t kOffset = offsetof(mmu_interval_notifier_finish, whimbrel_private);
    auto* const object = reinterpret_cast<std::byte*>(&finish) - kOffset;
    driver_.ops->invalidate_finish(reinterpret_cast<mmu_interval_notifier_finish*>(object));
  }

 private:
  [[nodiscard]] mmu_notifier_range told_of(const NotifierRange& range) const noexcept {
    return {&mm_,
            range.start.raw(),
            range.end.raw(),
            range.blockable ? MMU_NOTIFIER_RANGE_BLOCKABLE : 0u,
            static_cast<mmu_notifier_event>(range.event),
            const_cast<void*>(range.owner)};
  }

  mm_struct& mm_;
  mmu_interval_notifier& driver_;
};
static_assert(sizeof(Subscription) <= sizeof(mmu_interval_notifier::whimbrel_private) &&
              alignof(Subscription) <= alignof(unsigned long));
static_assert(sizeof(NotifierFinish) <= sizeof(mmu_interval_notifier_finish::whimbrel_private));

// One pass or two, and whoever has a first one has a second.
bool complete(const mmu_interval_notifier_ops* ops) {
  if (ops == nullptr || (ops->invalidate_start == nullptr) != (ops->invalidate_finish == nullptr)) return false;
  return (ops->invalidate != nullptr) != (ops->invalidate_start != nullptr);
}

}  // namespace

int mmu_interval_notifier_insert(mmu_interval_notifier* sub, mm_struct* mm, unsigned long start, unsigned long length,
                                 const mmu_interval_notifier_ops* ops) {
  if (mm == nullptr || mm != capi::current()) return complain(EINVAL, "mmu_interval_notifier_insert: no such address space");
  if (!complete(ops)) return complain(EINVAL, "mmu_interval_notifier_insert: no invalidate");
  if (length == 0 || start + length - 1 < start) {
    return complain(EOVERFLOW, "mmu_interval_notifier_insert: an empty range, or one past the end of all addresses");
  }
  sub->ops = ops;
  sub->mm = mm;
  sub->start = start;
  sub->last = start + length - 1;
  auto* mine = ::new (static_cast<void*>(sub->whimbrel_private)) Subscription(*mm, *sub);
  const Result<void> done = mm->notifiers().insert(*mine, VirtualAddress(start), length);
  if (!done) return complain(done.error(), "mmu_interval_notifier_insert");
  mm->subscriptions.fetch_add(1);
  return 0;
}

void mmu_interval_notifier_remove(mmu_interval_notifier* sub) {
  mm_struct* mm = capi::current();
  if (mm == nullptr || mm != sub->mm) return;  // in a forked child: the parent's (FK-01)
  mm->notifiers().remove(Subscription::of(sub));
  sub->mm = nullptr;
  mm->subscriptions.fetch_sub(1);
}

unsigned long mmu_interval_read_begin(mmu_interval_notifier* sub) {
  return sub->mm->notifiers().read_begin(Subscription::of(sub));
}
bool mmu_interval_read_retry(mmu_interval_notifier* sub, unsigned long seq) {
  return sub->mm->notifiers().read_retry(Subscription::of(sub), seq);
}
bool mmu_interval_check_retry(mmu_interval_notifier* sub, unsigned long seq) {
  return sub->mm->notifiers().check_retry(Subscription::of(sub), seq);
}
void mmu_interval_set_seq(mmu_interval_notifier* sub, unsigned long cur_seq) { Subscription::of(sub).set_seq(cur_seq); }

int hmm_range_fault(hmm_range* range) {
  mm_struct* mm = capi::current();
  if (range->notifier == nullptr || mm == nullptr || range->notifier->mm != mm) {
    return complain(EINVAL, "hmm_range_fault: no notifier of this address space", "mmu_interval_notifier_insert()");
  }
  if (range->hmm_pfns == nullptr || range->start < range->notifier->start || range->end - 1 > range->notifier->last) {
    return complain(EINVAL, "hmm_range_fault: no array, or a range that is not inside the subscription");
  }
  HmmRange to;
  to.registry = &mm->notifiers();
  to.notifier = &Subscription::of(range->notifier);
  to.notifier_seq = range->notifier_seq;
  to.start = VirtualAddress(range->start);
  to.end = VirtualAddress(range->end);
  to.pfns = reinterpret_cast<HmmPfn*>(range->hmm_pfns);
  to.default_flags = range->default_flags;
  to.pfn_flags_mask = range->pfn_flags_mask;
  to.dev_private_owner = range->dev_private_owner;
  to.watch_within = mm->registered(PageRange::touching(to.start, to.end));
  const Result<void> done = hmm_range_fault(mm->space(), to);
  return done ? 0 : complain(done.error(), "hmm_range_fault");
}

page* make_device_exclusive(mm_struct* mm, unsigned long addr, void* owner, folio** foliop) {
  const auto failed = [](int error) { return static_cast<page*>(ERR_PTR(error)); };
  if (mm == nullptr || mm != capi::current() || foliop == nullptr) {
    return failed(complain(EINVAL, "make_device_exclusive: no such address space"));
  }
  const PageRange one{PageIndex(addr >> kPageShift), PageCount(1)};
  if (mm->registered(one).empty()) {
    return failed(complain(EINVAL, "make_device_exclusive: not in a registered range", "whimbrel_register_range()"));
  }
  if (!mm->outbound().enter()) return failed(complain(EBUSY, "make_device_exclusive: a fork is under way"));
  Result<Pfn> frame = make_device_exclusive(mm->space(), VirtualAddress(addr), owner);
  // The mapping did not fit at that moment. Looked at again: read-only now, or it stays so, for locked memory does not move.
  for (int tries = 0; !frame && frame.error().code == Errc::kInvalid && tries < 3; ++tries) {
    frame = make_device_exclusive(mm->space(), VirtualAddress(addr), owner);
  }
  mm->outbound().leave();
  if (!frame && frame.error().code == Errc::kInvalid) {
    return failed(complain(EBUSY, "make_device_exclusive: the mapping is locked, or changes all the time", "munlock()"));
  }
  if (!frame) return failed(complain(frame.error(), "make_device_exclusive"));
  *foliop = capi::folio_of(*frame);
  return capi::page_of(*frame);
}
