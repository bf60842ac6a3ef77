/* Pages and folios: locks, references, sizes, bytes, RAM for contents that come home.
 *
 * A struct page is a name: an address in a table that is not there, one entry for each frame number, so that page + 1 is
 * the next page and page_to_pfn() is arithmetic. Its contents cannot be reached.
 *
 * Frame numbers: a RAM frame's is the address of its bytes / 4096; those of device-private and coherent memory lie above
 * all addresses. A folio is the allocation unit, 1 or 512 pages; lock and references are the folio's.
 *
 * References: one for each slot that maps the page and one for each holder; the last one gone frees the folio, a device
 * folio by its owner's folio_free() (DM-12, DM-17).
 */
#ifndef WHIMBREL_PAGE_H
#define WHIMBREL_PAGE_H

#include "whimbrel/mm.h"

#ifdef __cplusplus
extern "C" {
#endif

struct page {
  unsigned char name_only[64];
};
struct folio {
  struct page page; /* the head page */
};
struct dev_pagemap;

#define WHIMBREL_VMEMMAP 0x0800000000000000UL

static inline struct page *pfn_to_page(unsigned long pfn) {
  return (struct page *)(uintptr_t)(WHIMBREL_VMEMMAP + pfn * sizeof(struct page));
}
static inline unsigned long page_to_pfn(const struct page *page) {
  return ((unsigned long)(uintptr_t)page - WHIMBREL_VMEMMAP) / sizeof(struct page);
}
static inline unsigned long folio_pfn(const struct folio *folio) { return page_to_pfn(&folio->page); }
/* Page n of a folio. */
static inline struct page *folio_page(struct folio *folio, unsigned long n) { return &folio->page + n; }

/* ---- what a page is. Any context, callbacks too. -------------------------------------------------------------------- */

/* The folio that a page belongs to now. A split changes it (SPL-04). */
struct folio *page_folio(struct page *page) WHIMBREL_CALL(page_folio);
/* 0 or 9. */
unsigned int folio_order(const struct folio *folio) WHIMBREL_CALL(folio_order);
static inline unsigned long folio_nr_pages(const struct folio *folio) { return 1UL << folio_order(folio); }
int folio_ref_count(const struct folio *folio) WHIMBREL_CALL(folio_ref_count);
/* Whether a slot maps any page of it. */
bool folio_mapped(struct folio *folio) WHIMBREL_CALL(folio_mapped);
bool is_device_private_page(const struct page *page) WHIMBREL_CALL(is_device_private_page);
bool is_device_coherent_page(const struct page *page) WHIMBREL_CALL(is_device_coherent_page);
static inline bool is_zone_device_page(const struct page *page) {
  return is_device_private_page(page) || is_device_coherent_page(page);
}
/* The device that a page belongs to; null: RAM. */
struct dev_pagemap *page_pgmap(const struct page *page) WHIMBREL_CALL(page_pgmap);
/* Where the bytes of a page can be read and written: frames of RAM and coherent device pages. Of a source page between
 * setup and finalize, of an own destination, of an exclusive page while it is held, of a RAM page that hmm_range_fault()
 * reported (in place). Null: device-private memory; only its driver knows. A source's bytes are read only. */
void *page_address(const struct page *page) WHIMBREL_CALL(page_address);

/* A word of the driver's own for each device page, 0 after each allocation. */
void *zone_device_data(const struct page *page) WHIMBREL_CALL(zone_device_data);
/* ENOMEM. Any context. */
int whimbrel_set_zone_device_data(struct page *page, void *data) __attribute__((visibility("default")));

/* ---- references. Not in callbacks that say so: the last reference gone calls folio_free(). ------------------------------ */

void folio_get(struct folio *folio) WHIMBREL_CALL(folio_get);
/* False: it is free. */
bool folio_try_get(struct folio *folio) WHIMBREL_CALL(folio_try_get);
void folio_put(struct folio *folio) WHIMBREL_CALL(folio_put);
static inline void get_page(struct page *page) { folio_get(page_folio(page)); }
static inline void put_page(struct page *page) { folio_put(page_folio(page)); }

/* ---- the lock ---------------------------------------------------------------------------------------------------------- */

/* Locks of several folios: trylock all but the first (LK-01). */
bool folio_trylock(struct folio *folio) WHIMBREL_CALL(folio_trylock);
/* Waits, by looking again and again: locks are held for the length of a copy. Not in a callback. */
void folio_lock(struct folio *folio) WHIMBREL_CALL(folio_lock);
/* Also wakes program threads that wait for the page (MW-01). Not in a notifier callback. */
void folio_unlock(struct folio *folio) WHIMBREL_CALL(folio_unlock);
bool folio_test_locked(const struct folio *folio) WHIMBREL_CALL(folio_test_locked);
static inline bool trylock_page(struct page *page) { return folio_trylock(page_folio(page)); }
static inline void lock_page(struct page *page) { folio_lock(page_folio(page)); }
static inline void unlock_page(struct page *page) { folio_unlock(page_folio(page)); }

/* Makes 512 folios of one (SPF-01..SPF-05). The caller has it locked and holds one reference; both stay with the first
 * piece. Pieces that nothing maps are freed. EAGAIN: others hold references. EINVAL: order 0, or not locked. ENOMEM. Not in
 * a notifier callback. */
int split_folio(struct folio *folio) WHIMBREL_CALL(split_folio);

/* ---- RAM for contents that come home ------------------------------------------------------------------------------------ */

typedef unsigned int gfp_t;
#define GFP_HIGHUSER_MOVABLE 0u
#define __GFP_ZERO 0x100u

/* A frame of order 0, or 9 (a 2 MiB page), with one reference, not locked: lock it to make it a destination. Contents are
 * undefined without __GFP_ZERO. From a pool whose size is an option of whimbrel_start(): what is in flight uses it, finalize
 * gives it back. Null: none free now. To be filled by the caller only; not for keeping data in. */
struct folio *folio_alloc(gfp_t gfp, unsigned int order) WHIMBREL_CALL(folio_alloc);
static inline struct page *alloc_page(gfp_t gfp) { return (struct page *)folio_alloc(gfp, 0); }
static inline void __free_page(struct page *page) { put_page(page); }

#ifdef __cplusplus
}
#endif
#endif
