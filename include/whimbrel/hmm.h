/* The driver interface of whimbrel, whole: the kernel's device-memory migration, in a process.
 *
 *   mm.h            the address space: start, stop, register memory, errors
 *   page.h          pages and folios
 *   memremap.h      device memory and its callbacks
 *   migrate.h       migrate_vma_*, migrate_device_*
 *   mmu_notifier.h  interval notifiers
 *   this file       what stands behind a range (hmm_range_fault), device-exclusive pages
 *
 * docs/driver-guide.md is a tutorial; examples/ has complete drivers. Ids in comments (SET-02) are those of
 * docs/conformance.md.
 */
#ifndef WHIMBREL_HMM_H
#define WHIMBREL_HMM_H

#include "whimbrel/migrate.h"
#include "whimbrel/mm.h"
#include "whimbrel/mmu_notifier.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Words of hmm_pfns[] (HR-02). On input VALID is REQ_FAULT and WRITE is REQ_WRITE: an output array used again asks for
 * what it says, unless pfn_flags_mask is 0 (HR-04). */
#define HMM_PFN_VALID (1UL << 63)
#define HMM_PFN_WRITE (1UL << 62)
#define HMM_PFN_ERROR (1UL << 61)
#define HMM_PFN_REQ_FAULT HMM_PFN_VALID
#define HMM_PFN_REQ_WRITE HMM_PFN_WRITE
#define HMM_PFN_DMA_MAPPED (1UL << 60) /* the driver's own three: kept as they are */
#define HMM_PFN_P2PDMA (1UL << 59)
#define HMM_PFN_P2PDMA_BUS (1UL << 58)
#define HMM_PFN_ORDER_SHIFT 53
#define HMM_PFN_FLAGS (~((1UL << HMM_PFN_ORDER_SHIFT) - 1))

/* For VALID words. The frame number of a RAM page in place is its virtual page number, that of the shared zero page 0:
 * device and program share the addresses. page_address() says where the bytes are. No reference comes with it (HR-11). */
static inline struct page *hmm_pfn_to_page(unsigned long hmm_pfn) { return pfn_to_page(hmm_pfn & ~HMM_PFN_FLAGS); }
/* Order of the mapping: 0 or 9. */
static inline unsigned int hmm_pfn_to_map_order(unsigned long hmm_pfn) {
  return (unsigned int)(hmm_pfn >> HMM_PFN_ORDER_SHIFT) & 0x1f;
}

/* HR-01. The caller's. */
struct hmm_range {
  struct mmu_interval_notifier *notifier;
  unsigned long notifier_seq;  /* of mmu_interval_read_begin() */
  unsigned long start;         /* page aligned, within the subscription */
  unsigned long end;
  unsigned long *hmm_pfns;     /* a word for each page */
  unsigned long default_flags; /* HR-03: the request of a page is (word & pfn_flags_mask) | default_flags */
  unsigned long pfn_flags_mask;
  void *dev_private_owner;     /* whose private pages are reported and not faulted; null: nobody's */
};
#define HMM_RANGE_DEFAULT_TIMEOUT 1000 /* milliseconds: how long callers should try again on EBUSY */

/* What stands behind the range now; faults in what is asked for and is not there (HR-01..HR-16). Valid as long as the
 * notifier's sequence says so. EINVAL: empty, unaligned, or no notifier. EBUSY: collision, begin the read again (HR-09).
 * EPERM: write wanted where the mapping forbids it. EFAULT: nothing there, or it cannot be had. Words before the failing
 * page are results, from it on they are still requests (HR-10). May sleep; not from a callback, and not while holding
 * what an invalidate() callback takes. */
int hmm_range_fault(struct hmm_range *range) WHIMBREL_CALL(hmm_range_fault);

/* Takes a page away from the CPU for a while (EX-01..EX-10): the device alone reaches its bytes, at page_address(). The
 * folio comes locked and with one reference, both the caller's: until he drops them nobody gets the page back; afterwards
 * the next touch takes it, and everybody hears CLEAR. An ERR_PTR(): EFAULT no writable mapping; EOPNOTSUPP not anonymous
 * memory; EBUSY pinned or locked, or a fork is under way; EINVAL not in a registered range; ENOMEM. Not from a callback. */
struct page *make_device_exclusive(struct mm_struct *mm, unsigned long addr, void *owner, struct folio **foliop)
    WHIMBREL_CALL(make_device_exclusive);

#ifdef __cplusplus
}
#endif
#endif
