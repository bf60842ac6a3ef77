/* The migration protocol: by virtual range (PR-01) and by frame range (PR-02).
 *
 *   setup      freezes pages: they are locked, unmapped, stable; touchers wait. Holes are reported, not frozen.
 *   driver     puts locked destinations into dst[] and copies (at any time between setup and finalize, PR-03)
 *   pages      the destination becomes the page; what cannot loses MIGRATE in src[]
 *   finalize   slots are usable again, with the destination or the source; locks and references go
 *
 * finalize follows each setup that returned 0, exactly once; pages may be left out when dst[] is all 0 (PR-04). Nothing
 * promises that a page moves: look at MIGRATE in src[i] after each step (PR-08). Between setup and finalize touchers wait:
 * be quick (MW-02), and wait for nobody who may touch that memory (DRV-03).
 *
 * Drivers: write nothing to src[], and to dst[] between setup and pages only (DM-04). The destination of a hole is cleared
 * by you (INS-08). A destination is never the fault page (FIN-06). Your device's own mapping of a page that comes home is
 * gone before you start to copy, or late writes of the device are lost (CF-12).
 */
#ifndef WHIMBREL_MIGRATE_H
#define WHIMBREL_MIGRATE_H

#include "whimbrel/memremap.h"

#ifdef __cplusplus
extern "C" {
#endif

/* Words of src[] and dst[] (DM-01..DM-06). */
#define MIGRATE_PFN_VALID (1UL << 0)    /* the upper bits are a frame number */
#define MIGRATE_PFN_MIGRATE (1UL << 1)  /* src: still migrating */
#define MIGRATE_PFN_WRITE (1UL << 3)    /* src: was writable. dst: a hint for the driver; never read here */
#define MIGRATE_PFN_COMPOUND (1UL << 4) /* stands for a whole 2 MiB unit; the 511 words behind it are 0 */
#define MIGRATE_PFN_SHIFT 6

static inline unsigned long migrate_pfn(unsigned long pfn) { return (pfn << MIGRATE_PFN_SHIFT) | MIGRATE_PFN_VALID; }
/* Null: no page (DM-02). */
static inline struct page *migrate_pfn_to_page(unsigned long word) {
  return (word & MIGRATE_PFN_VALID) != 0 ? pfn_to_page(word >> MIGRATE_PFN_SHIFT) : NULL;
}

enum migrate_vma_direction {
  MIGRATE_VMA_SELECT_SYSTEM = 1 << 0,          /* RAM, zero pages as holes */
  MIGRATE_VMA_SELECT_DEVICE_PRIVATE = 1 << 1,  /* private pages of pgmap_owner */
  MIGRATE_VMA_SELECT_DEVICE_COHERENT = 1 << 2, /* coherent pages of pgmap_owner */
  MIGRATE_VMA_SELECT_COMPOUND = 1 << 3,        /* the caller copes with 2 MiB units */
};

/* The argument block (DM-08): the kernel's layout. The caller's; unchanged by him from setup to finalize but for dst[]. */
struct migrate_vma {
  struct vm_area_struct *vma; /* the one mapping that contains the range; read by setup only */
  unsigned long *dst;         /* (end - start) / PAGE_SIZE words each; setup zeroes what it visits */
  unsigned long *src;
  unsigned long cpages;       /* out of setup: entries migrating; a 2 MiB unit counts 1 */
  unsigned long npages;       /* out of setup: entries written */
  unsigned long start;        /* rounded down to a page by setup */
  unsigned long end;          /* the same; then rewritten to start + npages * PAGE_SIZE */
  void *pgmap_owner;
  unsigned long flags;        /* MIGRATE_VMA_SELECT_... */
  struct page *fault_page;    /* vmf->page in migrate_to_ram(), null otherwise */
};
#ifdef __cplusplus
static_assert(sizeof(struct migrate_vma) == 80, "layout of struct migrate_vma");
#else
_Static_assert(sizeof(struct migrate_vma) == 80, "layout of struct migrate_vma");
#endif

/* SET-01..SET-06. 0, even when nothing can be migrated (cpages 0); EINVAL what SET-02 lists, and here also: a range that
 * is not inside one registered range, or not inside one mapping any more; arrays in registered memory; no engine. May
 * sleep. Locks the pages it collects; none other is held on return. */
int migrate_vma_setup(struct migrate_vma *args) WHIMBREL_CALL(migrate_vma_setup);

/* DPG-01..DPG-14, INS, IHP, SUF. Destinations are locked and have one reference, which finalize drops (DM-05). Private
 * memory of a device, coherent memory, or a frame of folio_alloc(); 2 MiB destinations carry COMPOUND, and 0 behind it. */
void migrate_vma_pages(struct migrate_vma *migrate) WHIMBREL_CALL(migrate_vma_pages);

/* FIN-01..FIN-08. Without the pages step everything stays where it was (PR-04). A second one, or one without a setup, does
 * nothing and leaves a message. */
void migrate_vma_finalize(struct migrate_vma *migrate) WHIMBREL_CALL(migrate_vma_finalize);

/* Frame-range protocol: src[] receives a word for each of npages frame numbers from `start`, which is the head of a folio
 * (RNG-01, RNG-02). Always 0; what is free, busy or pinned has no MIGRATE. */
int migrate_device_range(unsigned long *src_pfns, unsigned long start, unsigned long npages)
    WHIMBREL_CALL(migrate_device_range);
/* The same for the frame numbers that src[] holds on entry (not shifted), in any order (PFN-01). */
int migrate_device_pfns(unsigned long *src_pfns, unsigned long npages) WHIMBREL_CALL(migrate_device_pfns);
void migrate_device_pages(unsigned long *src_pfns, unsigned long *dst_pfns, unsigned long npages)
    WHIMBREL_CALL(migrate_device_pages);
void migrate_device_finalize(unsigned long *src_pfns, unsigned long *dst_pfns, unsigned long npages)
    WHIMBREL_CALL(migrate_device_finalize);

/* Moves one coherent page to RAM, wherever it is mapped; consumes the caller's reference in every outcome (COH-01..03).
 * EBUSY: it stays where it is. EINVAL: not a coherent page. */
int migrate_device_coherent_folio(struct folio *folio) WHIMBREL_CALL(migrate_device_coherent_folio);

#ifdef __cplusplus
}
#endif
#endif
