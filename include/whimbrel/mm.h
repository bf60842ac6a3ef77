/* The address space: starting and stopping the engine, saying which memory drivers may migrate, errors, version.
 *
 * Part of the driver interface; include <whimbrel/hmm.h> to get all of it. C11 and C++.
 *
 * The interface has the kernel's names and shapes, so that what is known about drivers there holds here. Symbols in the
 * library are prefixed (put_page() is whimbrel_put_page there), so the names clash with nothing at link time. What has no
 * counterpart in the kernel, or another signature, has the prefix in its name too.
 *
 * Life:
 *   1. whimbrel_start()            one engine per process: one address space, as every process has one
 *   2. whimbrel_register_range()   the memory that drivers may migrate
 *   3. memremap_pages()            device memory                                              (memremap.h)
 *   4. migrate_vma_setup() ...     pages leave; the program's touches bring them home         (migrate.h)
 *   5. evict, memunmap_pages(), whimbrel_unregister_range(), whimbrel_stop()
 *
 * Units: addresses and lengths are bytes, counts are base pages of 4096 bytes, unless a name says otherwise.
 * Errors: negative errno; whimbrel_error() tells more. Thread-safety: every function may be called from any thread at any
 * time, except where said. Callbacks say what they may call.
 *
 * Three rules that the kernel does not have, because driver and program share a process here:
 *   a. What is handed in (argument blocks, src and dst arrays, pgmaps, notifiers) and the stacks of calling threads must
 *      not lie in registered memory: the engine would wait for itself. Arrays are checked (EINVAL).
 *   b. Engine descriptors are the process's own. A program that closes numbers it does not know (close_range) loses what
 *      is away.
 *   c. There is no mmap lock to take. munmap, mremap and madvise of other threads may come at any moment; the engine asks
 *      the kernel again at every step, and a page whose place is gone is freed.
 */
#ifndef WHIMBREL_MM_H
#define WHIMBREL_MM_H

#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>

#ifdef __cplusplus
extern "C" {
#endif

/* The interface this header describes: major << 16 | minor << 8 | patch. Within a major version a newer library runs
 * programs built for an older header. */
#define WHIMBREL_VERSION 0x000100u

/* The symbol behind a name of the interface. */
#define WHIMBREL_CALL(name) __asm__("whimbrel_" #name) __attribute__((visibility("default")))

#ifndef PAGE_SHIFT
#define PAGE_SHIFT 12
#endif
#ifndef PAGE_SIZE
#define PAGE_SIZE (1UL << PAGE_SHIFT)
#endif
#define HPAGE_PMD_ORDER 9
#define HPAGE_PMD_NR (1UL << HPAGE_PMD_ORDER)
#define HPAGE_PMD_SIZE (PAGE_SIZE << HPAGE_PMD_ORDER) /* 2 MiB: a huge page, a unit */

/* The address space. Opaque. */
struct mm_struct;

/* A mapping, as it was when it was looked up (DM-08). The caller's own; nothing needs to be given back. Setup compares its
 * range with it and asks the kernel again. */
struct vm_area_struct {
  unsigned long vm_start; /* first byte */
  unsigned long vm_end;   /* one past the last byte */
  unsigned long vm_flags; /* VM_... */
  struct mm_struct *vm_mm;
};
#define VM_READ 0x1UL
#define VM_WRITE 0x2UL
#define VM_EXEC 0x4UL
#define VM_SHARED 0x8UL
/* Private anonymous memory: what can leave. Everything else stays (HOL-02, DPG-06). */
#define WHIMBREL_VM_ANON 0x100UL

struct whimbrel_options {
  size_t struct_size;    /* sizeof(struct whimbrel_options) of the caller; what a newer library adds is 0 */
  unsigned int flags;    /* 0 */
  unsigned int threads;  /* threads that run migrate_to_ram(): 1..16; 0: 2 */
  size_t staging_bytes;  /* addresses for pages on their way out, a bound on what is in flight; 0: 32 MiB */
  size_t landing_bytes;  /* RAM for base pages on their way home (alloc_page()); 0: 8 MiB */
  size_t huge_bytes;     /* addresses for 2 MiB pages on their way, both directions; 0: 32 MiB */
};

/* What happened since the start. Counts of base pages, unless said otherwise. */
struct whimbrel_counters {
  size_t struct_size;       /* in: sizeof(struct whimbrel_counters) of the caller */
  unsigned long collected;  /* taken out of the program by setup */
  unsigned long moved;      /* given a new identity by the pages step */
  unsigned long inserted;   /* holes filled with device pages */
  unsigned long restored;   /* put back where they were */
  unsigned long dropped;    /* device pages whose place the program unmapped or discarded */
  unsigned long remapped;   /* device pages that moved with their mapping */
  unsigned long split;      /* large folios split */
  unsigned long faults;     /* touches looked at: messages, not pages */
  unsigned long waits;      /* touches that had to wait for a migration under way */
  unsigned long busy;       /* pages that refused to move: pinned, or shared after a fork */
};

/* Starts the engine of this process. `options` may be null. The engine has one thread that reads fault messages and
 * options->threads threads that run migrate_to_ram(); their signals are blocked.
 * EBUSY: started already. EPERM, ENOSYS: no userfaultfd to be had, or one that does not do what is needed (`whimbrel
 * doctor` tells what to change). EINVAL: options. ENOMEM. */
int whimbrel_start(const struct whimbrel_options *options, struct mm_struct **mm)
    __attribute__((visibility("default")));

/* Stops it; `mm` is invalid afterwards. All page maps must be gone, all notifiers removed, no migration in flight and no
 * other thread inside the library: EBUSY (and nothing is changed) otherwise. Exclusive pages are given back. */
int whimbrel_stop(struct mm_struct *mm) __attribute__((visibility("default")));

/* The address space of the engine that runs; null: none. In a forked child: none, until it starts one of its own. */
struct mm_struct *whimbrel_current_mm(void) __attribute__((visibility("default")));

/* Lets drivers migrate pages of [start, start + length), whatever is mapped there now or later: at most 64 ranges, page
 * aligned. Costs nothing until something is migrated; then untouched memory of that mapping within the range is filled by
 * the engine. EINVAL: not aligned, empty, or overlapping a registered range. ENOMEM: too many. */
int whimbrel_register_range(struct mm_struct *mm, unsigned long start, unsigned long length)
    __attribute__((visibility("default")));

/* The opposite, for exactly a range that was registered: brings home what is away in it and leaves its memory to the
 * kernel again. ENOENT: not registered. EIO: some pages cannot be brought home (their driver refuses); the range stays
 * registered. Not from a callback. */
int whimbrel_unregister_range(struct mm_struct *mm, unsigned long start, unsigned long length)
    __attribute__((visibility("default")));

/* Touches every page of the range that is away, as the program would, until all are home; what is being migrated is waited
 * for (HR-16, DT-01). Returns the number of pages it touched, or EIO: a driver refuses. Not from a callback, and not
 * between setup and finalize. */
long whimbrel_bring_home(struct mm_struct *mm, unsigned long start, unsigned long length)
    __attribute__((visibility("default")));

/* Looks up the mapping that contains addr. ENOENT: none. The kernel's vma_lookup(), with the result in the caller's
 * memory. */
int whimbrel_find_vma(struct mm_struct *mm, unsigned long addr, struct vm_area_struct *vma)
    __attribute__((visibility("default")));

/* Fills what *counters has room for. EINVAL: struct_size. */
int whimbrel_get_counters(struct mm_struct *mm, struct whimbrel_counters *counters)
    __attribute__((visibility("default")));

/* What the last call of this thread that failed had to say, and what can be done about it. Never null; valid until the
 * thread's next call. */
const char *whimbrel_error(void) __attribute__((visibility("default")));

/* WHIMBREL_VERSION of the library that is loaded. */
unsigned int whimbrel_version(void) __attribute__((visibility("default")));

/* fork: the child gets its memory complete and no engine (FK-01, FK-13): before the fork everything that is away is
 * brought home by its drivers, and nothing leaves until it is over (setup finds nothing meanwhile, make_device_exclusive()
 * answers EBUSY). Between setup and finalize a thread must not fork. Only fork() is seen: a raw clone() that copies the
 * address space gives the child zeros for what is away. */

/* Errors in pointers, as the kernel does it. */
static inline void *ERR_PTR(long error) { return (void *)(uintptr_t)error; }
static inline long PTR_ERR(const void *ptr) { return (long)(uintptr_t)ptr; }
static inline bool IS_ERR(const void *ptr) { return (uintptr_t)ptr >= (uintptr_t)-4095; }

#ifdef __cplusplus
}
#endif
#endif
