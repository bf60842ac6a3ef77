/* Interval notifiers: who mirrors a range of the address space elsewhere learns when it changes (MN-01..MN-12).
 *
 * A reader: seq = mmu_interval_read_begin(); look at the address space (hmm_range_fault()); take the driver's lock;
 * mmu_interval_read_retry(seq)? unlock and start over : program the device; unlock.
 *
 * The engine's own changes are announced before they happen. Those of the program (munmap, mremap, madvise) are reported by
 * the kernel while or after they happen, and announced then: a moment late. The thread that made the call may be running
 * already. A device of ours reads and writes engine frames, which stay valid until the bracket has closed.
 *
 * Drivers: who ignores MIGRATE events of his own drops his mappings of what was collected himself, between setup and the
 * copy (PR-07). Who has an object for each range brings the rest home when a part is unmapped (whimbrel_bring_home()), and
 * makes smaller objects (UN-08).
 */
#ifndef WHIMBREL_MMU_NOTIFIER_H
#define WHIMBREL_MMU_NOTIFIER_H

#include "whimbrel/mm.h"

#ifdef __cplusplus
extern "C" {
#endif

/* MN-02. Sources here: UNMAP munmap, mremap. CLEAR madvise, revocation of exclusive pages, splitting. MIGRATE the
 * range protocol. EXCLUSIVE make_device_exclusive(). PROTECTION_VMA, PROTECTION_PAGE, SOFT_DIRTY, RELEASE: never; the kernel
 * tells nobody of mprotect. */
enum mmu_notifier_event {
  MMU_NOTIFY_UNMAP = 0,
  MMU_NOTIFY_CLEAR,
  MMU_NOTIFY_PROTECTION_VMA,
  MMU_NOTIFY_PROTECTION_PAGE,
  MMU_NOTIFY_SOFT_DIRTY,
  MMU_NOTIFY_RELEASE,
  MMU_NOTIFY_MIGRATE,
  MMU_NOTIFY_EXCLUSIVE,
};

/* Bytes, end exclusive; may exceed the subscription (MN-11). */
struct mmu_notifier_range {
  struct mm_struct *mm;
  unsigned long start;
  unsigned long end;
  unsigned int flags;
  enum mmu_notifier_event event;
  void *owner; /* for MIGRATE and EXCLUSIVE only */
};
#define MMU_NOTIFIER_RANGE_BLOCKABLE 1u
static inline bool mmu_notifier_range_blockable(const struct mmu_notifier_range *range) {
  return (range->flags & MMU_NOTIFIER_RANGE_BLOCKABLE) != 0;
}

struct mmu_interval_notifier;

/* What a first pass leaves for the second. The driver's memory, usually inside a struct of his; his again when
 * invalidate_finish() is called with it. */
struct mmu_interval_notifier_finish {
  struct mmu_interval_notifier *notifier; /* filled in by the engine */
  unsigned long whimbrel_private[2];
};

/* In C what is left out is null anyway. */
#ifdef __cplusplus
#define WHIMBREL_NULL_UNLESS_SET = nullptr
#else
#define WHIMBREL_NULL_UNLESS_SET
#endif
struct mmu_interval_notifier_ops {
  /* MN-05: take the driver's lock, mmu_interval_set_seq(), drop the device's mappings of the range completely, unlock,
   * return true. Only an event that is ignored on purpose (own MIGRATE, EXCLUSIVE) may return true without set_seq. Called
   * with the address space's lock held or not: of this interface only mmu_interval_set_seq(); nothing that allocates from
   * registered memory, touches it, or waits for a thread that may (MN-10). All ranges are blockable; false stops the
   * process (MN-08). */
  bool (*invalidate)(struct mmu_interval_notifier *interval_sub, const struct mmu_notifier_range *range,
                     unsigned long cur_seq);
  /* MN-09, instead of invalidate, which is null then: the same in two passes. The first starts the device on dropping its
   * mappings and leaves *finish null when nothing is left to do. Otherwise invalidate_finish() is called with the object when
   * all subscriptions had their first pass, in its order, and waits for the device. Nothing has changed before that is over,
   * where the engine makes the change. */
  bool (*invalidate_start)(struct mmu_interval_notifier *interval_sub, const struct mmu_notifier_range *range,
                           unsigned long cur_seq, struct mmu_interval_notifier_finish **finish) WHIMBREL_NULL_UNLESS_SET;
  void (*invalidate_finish)(struct mmu_interval_notifier_finish *finish) WHIMBREL_NULL_UNLESS_SET;
};
#undef WHIMBREL_NULL_UNLESS_SET

/* A subscription. The driver's memory, usually inside a struct of his; not touched by him while it is inserted. */
struct mmu_interval_notifier {
  const struct mmu_interval_notifier_ops *ops;
  struct mm_struct *mm;
  unsigned long start;
  unsigned long last;
  unsigned long whimbrel_private[12];
};

/* Subscribes to [start, start + length). EOVERFLOW: length 0, or past the end of all addresses. EINVAL: no such address
 * space. Also during an invalidation, but not from a callback (MN-01, MN-07). */
int mmu_interval_notifier_insert(struct mmu_interval_notifier *interval_sub, struct mm_struct *mm, unsigned long start,
                                 unsigned long length, const struct mmu_interval_notifier_ops *ops)
    WHIMBREL_CALL(mmu_interval_notifier_insert);

/* Waits for an invalidation under way; when it returns, no callback runs or will run. Not from a callback. */
void mmu_interval_notifier_remove(struct mmu_interval_notifier *interval_sub)
    WHIMBREL_CALL(mmu_interval_notifier_remove);

/* Sleeps while an invalidation that hit the subscription is open: with nothing held that the callback takes (MN-06). */
unsigned long mmu_interval_read_begin(struct mmu_interval_notifier *interval_sub)
    WHIMBREL_CALL(mmu_interval_read_begin);
/* With the driver's lock held. True: start over. */
bool mmu_interval_read_retry(struct mmu_interval_notifier *interval_sub, unsigned long seq)
    WHIMBREL_CALL(mmu_interval_read_retry);
/* A hint without the lock: true is reliable, false is not. */
bool mmu_interval_check_retry(struct mmu_interval_notifier *interval_sub, unsigned long seq)
    WHIMBREL_CALL(mmu_interval_check_retry);
/* From invalidate() only, with the driver's lock held. */
void mmu_interval_set_seq(struct mmu_interval_notifier *interval_sub, unsigned long cur_seq)
    WHIMBREL_CALL(mmu_interval_set_seq);

#ifdef __cplusplus
}
#endif
#endif
