/* A complete driver in C: device memory behind an asynchronous copy engine, as a graphics card has it.
 *
 * Pages travel as 2 MiB units where they can and as single pages otherwise; contents are moved by the copy engine, which
 * takes descriptors from a ring and raises a fence. docs/driver-guide.md explains it step by step.
 */
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#include "whimbrel/hmm.h"

#define UNITS 24UL    /* 2 MiB units of device memory ... */
#define SINGLES 4     /* ... of which this many are handed out as single pages */
#define RING 1024UL

/* ---- the copy engine: descriptors go into a ring, a thread of the "device" works them off ------------------------------- */

struct copy {
  void *to;
  const void *from; /* null: zeros */
  size_t bytes;
};
static struct copy ring[RING];
static unsigned long submitted, completed; /* fences: a copy is done when completed has reached its number */
static bool engine_off;
static pthread_mutex_t ring_lock = PTHREAD_MUTEX_INITIALIZER;
static pthread_cond_t ring_changed = PTHREAD_COND_INITIALIZER;

static unsigned long copy_submit(void *to, const void *from, size_t bytes) {
  pthread_mutex_lock(&ring_lock);
  while (submitted - completed == RING) pthread_cond_wait(&ring_changed, &ring_lock);
  ring[submitted % RING] = (struct copy){to, from, bytes};
  unsigned long fence = ++submitted;
  pthread_cond_broadcast(&ring_changed);
  pthread_mutex_unlock(&ring_lock);
  return fence;
}

static void copy_wait(unsigned long fence) {
  pthread_mutex_lock(&ring_lock);
  while (completed < fence) pthread_cond_wait(&ring_changed, &ring_lock);
  pthread_mutex_unlock(&ring_lock);
}

static void *copy_engine(void *unused) {
  pthread_mutex_lock(&ring_lock);
  for (;;) {
    while (completed == submitted && !engine_off) pthread_cond_wait(&ring_changed, &ring_lock);
    if (completed == submitted) break;
    struct copy copy = ring[completed % RING];
    pthread_mutex_unlock(&ring_lock);
    if (copy.from != NULL) memcpy(copy.to, copy.from, copy.bytes);
    else memset(copy.to, 0, copy.bytes);
    pthread_mutex_lock(&ring_lock);
    completed++;
    pthread_cond_broadcast(&ring_changed);
  }
  pthread_mutex_unlock(&ring_lock);
  return unused;
}

/* ---- device memory: two stacks of free frame numbers ---------------------------------------------------------------------- */

static char *vram; /* private to the device; the program never sees it */
static struct dev_pagemap pgmap;
static unsigned long free_units[UNITS], free_pages[UNITS * HPAGE_PMD_NR];
static size_t unit_count, page_count;
static pthread_mutex_t free_lock = PTHREAD_MUTEX_INITIALIZER;
static atomic_ulong faults, unit_faults, splits;

static unsigned long first_pfn(void) { return pgmap.range.start / PAGE_SIZE; }
static void *vram_of(const struct page *page) { return vram + (page_to_pfn(page) - first_pfn()) * PAGE_SIZE; }

/* The bytes of a page, wherever it is: ours, or a frame of RAM that is on its way. */
static void *bytes_of(const struct page *page) {
  return is_device_private_page(page) ? vram_of(page) : page_address(page);
}

static struct page *vram_alloc(unsigned int order) {
  unsigned long pfn = 0;
  pthread_mutex_lock(&free_lock);
  if (order != 0 && unit_count > 0) pfn = free_units[--unit_count];
  if (order == 0 && page_count > 0) pfn = free_pages[--page_count];
  pthread_mutex_unlock(&free_lock);
  if (pfn == 0 || zone_device_page_init(pfn_to_page(pfn), &pgmap, order) != 0) return NULL;
  return pfn_to_page(pfn); /* locked, one reference: as a destination must be */
}

static void folio_free(struct folio *folio) {
  pthread_mutex_lock(&free_lock);
  if (folio_order(folio) != 0) free_units[unit_count++] = folio_pfn(folio);
  else free_pages[page_count++] = folio_pfn(folio); /* pieces of a split unit stay single pages */
  pthread_mutex_unlock(&free_lock);
}

static void folio_split(struct folio *head, struct folio *tail) {
  (void)head;
  if (tail == NULL) splits++;
}

/* ---- moving pages ------------------------------------------------------------------------------------------------------------ */

static struct page *ram_alloc(unsigned int order) {
  struct folio *folio = folio_alloc(GFP_HIGHUSER_MOVABLE, order);
  if (folio == NULL) return NULL;
  folio_lock(folio);
  return &folio->page;
}

/* Fills dst[] for everything that migrates: a destination, and a copy on its way. Returns the fence to wait for. */
static unsigned long send(const unsigned long *src, unsigned long *dst, unsigned long n, bool to_device) {
  unsigned long fence = 0;
  for (unsigned long i = 0; i < n; i++) {
    const struct page *from = migrate_pfn_to_page(src[i]);
    if (!(src[i] & MIGRATE_PFN_MIGRATE) || (from == NULL && !to_device)) continue;
    unsigned long left = src[i] & MIGRATE_PFN_COMPOUND ? HPAGE_PMD_NR : 1;
    unsigned int order = left > 1 ? HPAGE_PMD_ORDER : 0;
    struct page *to = to_device ? vram_alloc(order) : ram_alloc(order);
    if (to == NULL && order != 0) { /* no 2 MiB in one piece: 512 single pages do as well */
      order = 0;
      to = to_device ? vram_alloc(0) : ram_alloc(0);
    }
    for (unsigned long k = 0; to != NULL; to = to_device ? vram_alloc(0) : ram_alloc(0)) {
      fence = copy_submit(bytes_of(to), from == NULL ? NULL : bytes_of(from + k), PAGE_SIZE << order);
      dst[i + k] = migrate_pfn(page_to_pfn(to)) | (order != 0 ? MIGRATE_PFN_COMPOUND : 0);
      k += 1UL << order;
      if (k >= left) break;
    }
    i += left - 1;
  }
  return fence;
}

static int migrate(struct vm_area_struct *vma, unsigned long start, unsigned long end, bool to_device,
                   struct page *fault_page, unsigned long *moved) {
  unsigned long src[HPAGE_PMD_NR], dst[HPAGE_PMD_NR];
  struct migrate_vma args = {.vma = vma, .src = src, .dst = dst, .start = start, .end = end, .pgmap_owner = &pgmap,
                             .fault_page = fault_page};
  args.flags = MIGRATE_VMA_SELECT_COMPOUND |
               (to_device ? MIGRATE_VMA_SELECT_SYSTEM : MIGRATE_VMA_SELECT_DEVICE_PRIVATE);
  int error = migrate_vma_setup(&args);
  if (error != 0) return error;
  unsigned long fence = send(src, dst, args.npages, to_device);
  migrate_vma_pages(&args); /* identities change while contents are still on their way */
  for (unsigned long i = 0; i < args.npages; i++) {
    if (src[i] & MIGRATE_PFN_MIGRATE) *moved += src[i] & MIGRATE_PFN_COMPOUND ? HPAGE_PMD_NR : 1;
  }
  copy_wait(fence); /* whoever touches one of these pages waits until finalize */
  migrate_vma_finalize(&args);
  return 0;
}

static vm_fault_t migrate_to_ram(struct vm_fault *vmf) {
  unsigned long size = vmf->pte == NULL ? HPAGE_PMD_SIZE : PAGE_SIZE;
  unsigned long start = vmf->address & ~(size - 1), moved = 0;
  struct vm_area_struct vma = *vmf->vma;
  faults++;
  if (vmf->pte == NULL) unit_faults++;
  return migrate(&vma, start, start + size, false, vmf->page, &moved) != 0 ? VM_FAULT_SIGBUS : 0;
}

static const struct dev_pagemap_ops ops = {folio_free, migrate_to_ram, folio_split};

/* Sends what it can of [start, end), 2 MiB at a time. Returns base pages, or an error. */
static long populate(struct mm_struct *mm, unsigned long start, unsigned long end) {
  unsigned long moved = 0;
  for (unsigned long at = start; at < end; at = (at | (HPAGE_PMD_SIZE - 1)) + 1) {
    struct vm_area_struct vma;
    int error = whimbrel_find_vma(mm, at, &vma);
    unsigned long stop = (at | (HPAGE_PMD_SIZE - 1)) + 1;
    if (error == 0) error = migrate(&vma, at, stop < end ? stop : end, true, NULL, &moved);
    if (error != 0) return error;
  }
  return (long)moved;
}

/* Brings everything home by frame numbers; returns the base pages that are still there. */
static unsigned long evict(void) {
  for (unsigned long unit = 0; unit < UNITS; unit++) {
    unsigned long src[HPAGE_PMD_NR] = {0}, dst[HPAGE_PMD_NR] = {0};
    migrate_device_range(src, first_pfn() + unit * HPAGE_PMD_NR, HPAGE_PMD_NR);
    unsigned long fence = send(src, dst, HPAGE_PMD_NR, false);
    migrate_device_pages(src, dst, HPAGE_PMD_NR);
    copy_wait(fence);
    migrate_device_finalize(src, dst, HPAGE_PMD_NR);
  }
  return whimbrel_pages_in_use(&pgmap);
}

/* ---- a program that uses it --------------------------------------------------------------------------------------------------- */

#define CHECK(condition)                                                                             \
  do {                                                                                               \
    if (!(condition)) {                                                                              \
      fprintf(stderr, "line %d: %s is not so; %s\n", __LINE__, #condition, whimbrel_error());        \
      exit(1);                                                                                       \
    }                                                                                                \
  } while (0)

static size_t count_wrong(const unsigned long *memory, size_t words, unsigned long seed) {
  size_t wrong = 0;
  for (size_t i = 0; i < words; i++) wrong += memory[i] != i * 0x9e3779b97f4a7c15UL + seed;
  return wrong;
}

int main(void) {
  const size_t bytes = 16 * HPAGE_PMD_SIZE, words = bytes / sizeof(unsigned long);
  char *reserved = mmap(NULL, bytes + HPAGE_PMD_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  CHECK(reserved != MAP_FAILED);
  unsigned long start = ((unsigned long)reserved + HPAGE_PMD_SIZE - 1) & ~(HPAGE_PMD_SIZE - 1);
  unsigned long *memory = (unsigned long *)start;
  madvise(memory, bytes, MADV_HUGEPAGE);
  for (size_t i = 0; i < words; i++) memory[i] = i * 0x9e3779b97f4a7c15UL;

  struct mm_struct *mm;
  CHECK(whimbrel_start(NULL, &mm) == 0);
  CHECK(whimbrel_register_range(mm, start, bytes) == 0);
  vram = mmap(NULL, UNITS * HPAGE_PMD_SIZE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  pthread_t engine;
  CHECK(vram != MAP_FAILED && pthread_create(&engine, NULL, copy_engine, NULL) == 0);
  pgmap = (struct dev_pagemap){.type = MEMORY_DEVICE_PRIVATE, .nr_range = 1, .ops = &ops, .owner = &pgmap,
                               .range = {0, UNITS * HPAGE_PMD_SIZE - 1}};
  CHECK(!IS_ERR(memremap_pages(&pgmap, NUMA_NO_NODE)));
  for (unsigned long unit = UNITS; unit-- > SINGLES;) free_units[unit_count++] = first_pfn() + unit * HPAGE_PMD_NR;
  for (unsigned long i = SINGLES * HPAGE_PMD_NR; i-- > 0;) free_pages[page_count++] = first_pfn() + i;

  CHECK(populate(mm, start, start + bytes) == (long)(bytes / PAGE_SIZE)); /* everything goes ... */
  CHECK(whimbrel_pages_in_use(&pgmap) == bytes / PAGE_SIZE);
  CHECK(count_wrong(memory, words, 0) == 0); /* ... and comes home by being read */
  unsigned long touches = faults;
  printf("%zu MiB out and home by %lu faults, %lu of them for 2 MiB at once\n", bytes >> 20, touches, unit_faults);
  CHECK(touches > 0 && unit_faults * HPAGE_PMD_NR + (touches - unit_faults) == bytes / PAGE_SIZE);

  CHECK(populate(mm, start, start + bytes) == (long)(bytes / PAGE_SIZE));
  memory[5] += 1; /* writing brings home too */
  CHECK(migrate(&(struct vm_area_struct){start, start + bytes, VM_READ | VM_WRITE, mm}, start + HPAGE_PMD_SIZE + 7 * PAGE_SIZE,
                start + HPAGE_PMD_SIZE + 9 * PAGE_SIZE, false, NULL, &(unsigned long){0}) == 0); /* two pages of a unit */
  CHECK(evict() == 0);
  CHECK(faults > touches && memory[5] == 5 * 0x9e3779b97f4a7c15UL + 1);
  memory[5] -= 1;
  CHECK(count_wrong(memory, words, 0) == 0);
  struct whimbrel_counters counters = {.struct_size = sizeof counters};
  CHECK(whimbrel_get_counters(mm, &counters) == 0 && counters.collected == 2 * bytes / PAGE_SIZE);
  CHECK(counters.moved >= 4 * bytes / PAGE_SIZE && counters.restored == 0);
  printf("%lu units split, %lu copies, evicted without a fault\n", (unsigned long)splits, completed);

  memunmap_pages(&pgmap);
  CHECK(whimbrel_unregister_range(mm, start, bytes) == 0);
  CHECK(whimbrel_stop(mm) == 0);
  pthread_mutex_lock(&ring_lock);
  engine_off = true;
  pthread_cond_broadcast(&ring_changed);
  pthread_mutex_unlock(&ring_lock);
  pthread_join(engine, NULL);
  return 0;
}
