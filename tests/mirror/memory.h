// Memory of a case: a window of addresses of its own, contents that name themselves, accesses whose signals are
// results.
#ifndef TESTS_MIRROR_MEMORY_H
#define TESTS_MIRROR_MEMORY_H

#include <stdbool.h>
#include <stddef.h>
#include <sys/mman.h>

#include "dmirror_abi.h"

enum { READ_WRITE = PROT_READ | PROT_WRITE };

// Newer advice and flags than the C library's headers may know.
enum {
  ADVISE_COLD = 20,
  ADVISE_PAGEOUT = 21,
  ADVISE_POPULATE_READ = 22,
  ADVISE_POPULATE_WRITE = 23,
  ADVISE_DONTNEED_LOCKED = 24,
  ADVISE_COLLAPSE = 25,
  ADVISE_GUARD_INSTALL = 102,
  ADVISE_GUARD_REMOVE = 103,
  REMAP_DONTUNMAP = 4
};

// Address of page number `page` of the window. The window starts 2 MiB aligned, far from what the kernel places by
// itself, and nothing is mapped in it at first.
char* window(size_t page);

enum page_size { SMALL_PAGES, HUGE_PAGES, DEFAULT_PAGES };  // MADV_NOHUGEPAGE, MADV_HUGEPAGE, no advice

// Maps private anonymous memory at that page of the window, replacing what is there. Failure ends the case.
char* map_pages(size_t page, size_t pages, int protection, enum page_size size);

// The same, writable and stamped with `value` by the CPU.
char* map_stamped(size_t page, size_t pages, unsigned value);

// `units` units of 2 MiB from `page` (a multiple of 512), stamped, and really mapped by 2 MiB entries. Skips the case
// where huge pages are off; where they are on and do not come, the case fails.
char* map_huge_stamped(size_t page, size_t units, unsigned value);

// Whether reading an empty page maps the shared zero page. Some hosts give a real page at once; then a snapshot may
// show RAM where it would show the zero page, and a device that has read a page may write it without a fault round.
bool host_maps_zero_page(void);

// A file in memory of that many pages, stamped as if it were mapped at the start of the window.
int stamped_file(size_t pages, unsigned value);

// Maps a file at that page of the window.
char* map_file(size_t page, size_t pages, int protection, int flags, int file);

// A populated buffer outside the window. Failure ends the case.
char* buffer_of(size_t pages);
void drop_buffer(char* buffer, size_t pages);

// Stamps pages in place with the pattern of `value` and of their own position in the window.
void stamp(char* at, size_t pages, unsigned value);

// Stamps the page at `where` as if it lay at `as`.
void stamp_for(char* where, const char* as, unsigned value);

// The CPU reads or writes the first bytes of a page. Returns 0, or the signal that answered.
int touch_read(const char* at);
int touch_write(char* at);

// The CPU reads these pages. Contents are named as seen from their address (page_pattern.h): "v1*8 0*4 v2@64".
#define EXPECT_CONTENTS(at, pages, contents) expect_contents_as(__FILE__, __LINE__, (at), (at), (pages), (contents))
// Pages at `data`, named as seen from `as`.
void expect_contents_as(const char* file, int line, const char* data, const void* as, size_t pages,
                        const char* contents);

// A file's pages, named as if it were mapped at the start of the window.
#define EXPECT_FILE(fd, pages, contents) expect_file(__FILE__, __LINE__, (fd), (pages), (contents))
void expect_file(const char* file, int line, int fd, size_t pages, const char* contents);

#endif
