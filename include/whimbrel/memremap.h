/* Device memory: a driver's range of pages, with owner, kind and callbacks (DM-09..DM-14). */
#ifndef WHIMBREL_MEMREMAP_H
#define WHIMBREL_MEMREMAP_H

#include "whimbrel/page.h"

#ifdef __cplusplus
extern "C" {
#endif

/* DM-09. Only these two take part. */
enum memory_type {
  MEMORY_DEVICE_PRIVATE = 1,  /* the CPU cannot reach it: a touch brings the page home */
  MEMORY_DEVICE_COHERENT = 2, /* the CPU can: pages stay mapped in the program, and migrate on request only */
};

typedef unsigned int vm_fault_t;
#define VM_FAULT_OOM 0x1u    /* no memory now: the access is tried again after a moment */
#define VM_FAULT_SIGBUS 0x2u /* the contents cannot be had: SIGBUS for that access; the device keeps them (CF-07) */

#define FAULT_FLAG_WRITE 0x1u

/* What migrate_to_ram() is told (CF-04). The engine's; valid during the call. */
struct vm_fault {
  const struct vm_area_struct *vma; /* the mapping, as it was a moment ago */
  unsigned int flags;               /* FAULT_FLAG_... */
  unsigned long address;            /* the byte touched */
  void *pte;                        /* null: the slot is a 2 MiB one. Otherwise one page may be assumed mapped here */
  struct page *page;                /* the device page touched (head of a 2 MiB slot): locked, with one extra reference,
                                       both kept by the caller. Pass it on as fault_page */
  int thread;                       /* kernel id of the thread that waits; 0: unknown */
};

struct dev_pagemap_ops {
  /* The last reference to a folio went (DM-12): called once for each folio, which still knows its order. Required. May
   * come from finalize, from put_page(), from a thread of the engine, and with the address space's lock held: only
   * book-keeping. Of this interface only what page.h allows in any context. Nothing that waits for a thread that may
   * touch registered memory. */
  void (*folio_free)(struct folio *folio);
  /* A thread of the program touched a private page (CF-02..CF-09). Required for private memory. Migrate at least that page
   * to RAM: migrate_vma_setup() on a range with vmf->address, fault_page = vmf->page, pgmap_owner the page's,
   * MIGRATE_VMA_SELECT_DEVICE_PRIVATE; with MIGRATE_VMA_SELECT_COMPOUND and the aligned 2 MiB when vmf->pte is null.
   * 0: the access is tried again, even if nothing moved. fault_page keeps its lock and its reference (CF-05). Setup that
   * fails is VM_FAULT_SIGBUS, setup that collects nothing is 0 (CF-08). Runs on an engine thread, without locks of the
   * engine; several at a time. Take no lock that you hold anywhere while you migrate (LK-02). */
  vm_fault_t (*migrate_to_ram)(struct vm_fault *vmf);
  /* A large folio of private memory becomes single pages (SPF-05): called for each new piece, ascending, and once with tail
   * null. Then each piece gets a folio_free() of its own. Optional. Context as folio_free(). */
  void (*folio_split)(struct folio *head, struct folio *tail);
};

/* Both ends inclusive, in bytes of frame numbers, as the kernel has it. */
struct range {
  uint64_t start;
  uint64_t end;
};
static inline uint64_t range_len(const struct range *range) { return range->end - range->start + 1; }

struct dev_pagemap {
  enum memory_type type;
  int nr_range;       /* 1 */
  struct range range; /* in: its length is the device's size. out: the frame numbers assigned, times 4096 */
  const struct dev_pagemap_ops *ops;
  void *owner;        /* compared, never followed; several page maps may have the same */
  unsigned long vmemmap_shift; /* 0 */
  void *whimbrel_private;      /* the engine's; 0 before memremap_pages() */
};

#define NUMA_NO_NODE (-1)

/* Makes device memory known and gives it frame numbers. `pgmap` is the caller's, stays where it is and unchanged until
 * memunmap_pages(). `nid` NUMA_NO_NODE. Returns where coherent memory can be reached; null for private memory; an
 * ERR_PTR(): EINVAL what DM-10 rejects; ENODEV no engine runs; EOPNOTSUPP a node; ENOMEM. 64 page maps at a time. */
void *memremap_pages(struct dev_pagemap *pgmap, int nid) WHIMBREL_CALL(memremap_pages);

/* The opposite. New allocations fail from now on; returns when the last page has been freed (DM-14, DT-01): evict first.
 * Callbacks may come until then, none afterwards. Not from a callback. */
void memunmap_pages(struct dev_pagemap *pgmap) WHIMBREL_CALL(memunmap_pages);

/* Base pages of it that are allocated now. */
unsigned long whimbrel_pages_in_use(const struct dev_pagemap *pgmap) __attribute__((visibility("default")));

/* Makes a fresh folio of free pages: locked, one reference, as a destination must be (DM-13). Order 0, or 9 with an aligned
 * head. Which pages are free is the driver's business; one in use stops the process. ENODEV: memunmap_pages() has begun,
 * or the page is not pgmap's. EINVAL: order. ENOMEM. */
int zone_device_folio_init(struct folio *folio, struct dev_pagemap *pgmap, unsigned int order)
    WHIMBREL_CALL(zone_device_folio_init);
static inline int zone_device_page_init(struct page *page, struct dev_pagemap *pgmap, unsigned int order) {
  return zone_device_folio_init((struct folio *)page, pgmap, order);
}

#ifdef __cplusplus
}
#endif
#endif
