#include "memory.h"

#include <errno.h>
#include <fcntl.h>
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <string.h>
#include <unistd.h>

#include "harness.h"
#include "page_pattern.h"
#include "run_list.h"

static char* const window_start = (char*)0x200000000000;

char* window(size_t page) { return window_start + page * DMIRROR_PAGE; }

static long position_of(const void* at) { return (long)(((const char*)at - window_start) / DMIRROR_PAGE); }

char* map_pages(size_t page, size_t pages, int protection, enum page_size size) {
  char* at = mmap(window(page), pages * DMIRROR_PAGE, protection, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  REQUIRE(at != MAP_FAILED);
  // Where the kernel knows no huge pages it refuses the advice; small pages then come anyway.
  if (size == SMALL_PAGES) madvise(at, pages * DMIRROR_PAGE, MADV_NOHUGEPAGE);
  if (size == HUGE_PAGES) madvise(at, pages * DMIRROR_PAGE, MADV_HUGEPAGE);
  return at;
}

char* map_stamped(size_t page, size_t pages, unsigned value) {
  char* at = map_pages(page, pages, READ_WRITE, SMALL_PAGES);
  stamp(at, pages, value);
  return at;
}

// Kilobytes of anonymous huge pages in the mapping that starts at `at`.
static unsigned long huge_kilobytes_at(const char* at) {
  FILE* maps = fopen("/proc/self/smaps", "re");
  if (!maps) return 0;
  char line[512];
  unsigned long kilobytes = 0;
  int inside = 0;
  while (fgets(line, sizeof line, maps)) {
    unsigned long start, end;
    if (sscanf(line, "%lx-%lx ", &start, &end) == 2) inside = start <= (uintptr_t)at && (uintptr_t)at < end;
    if (inside && sscanf(line, "AnonHugePages: %lu kB", &kilobytes) == 1) break;
  }
  fclose(maps);
  return kilobytes;
}

static bool huge_pages_wanted_by_host(void) {
  char policy[100] = "[never]";
  FILE* file = fopen("/sys/kernel/mm/transparent_hugepage/enabled", "re");
  if (!file) return false;
  if (!fgets(policy, sizeof policy, file)) policy[0] = '\0';
  fclose(file);
  return !strstr(policy, "[never]");
}

char* map_huge_stamped(size_t page, size_t units, unsigned value) {
  char* at = map_pages(page, units * DMIRROR_UNIT_PAGES, READ_WRITE, HUGE_PAGES);
  stamp(at, units * DMIRROR_UNIT_PAGES, value);
  if (!huge_pages_wanted_by_host()) skip_case("transparent huge pages are off (/sys/kernel/mm/transparent_hugepage)");
  // Where the policy gives them, a stand-in that keeps the program from getting them must not pass by being skipped.
  const unsigned long kilobytes = huge_kilobytes_at(at);
  if (kilobytes < units * 2048) {
    fail_at(__FILE__, __LINE__, "only %lu kB of %zu kB are huge pages, although the host gives them", kilobytes,
            units * 2048);
    abandon_case();
  }
  return at;
}

bool host_maps_zero_page(void) {
  static int known = -1;
  if (known >= 0) return known;
  known = 1;
  const size_t length = DMIRROR_PAGE;
  volatile char* page = mmap(NULL, length, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  REQUIRE(page != MAP_FAILED && pagemap >= 0);
  REQUIRE(*page == 0);
  // Bit 56: the page belongs to this mapping alone, which the zero page never does.
  uint64_t entry = 0;
  const off_t offset = (off_t)((uintptr_t)page / DMIRROR_PAGE * sizeof entry);
  REQUIRE(pread(pagemap, &entry, sizeof entry, offset) == sizeof entry);
  known = !(entry >> 56 & 1);
  close(pagemap);
  munmap((void*)(uintptr_t)page, length);
  return known;
}

int stamped_file(size_t pages, unsigned value) {
  const int file = memfd_create("mirror-client", MFD_CLOEXEC);
  REQUIRE(file >= 0);
  char page[DMIRROR_PAGE];
  for (size_t i = 0; i < pages; i++) {
    stamp_for(page, window(i), value);
    REQUIRE(pwrite(file, page, sizeof page, (off_t)(i * sizeof page)) == sizeof page);
  }
  return file;
}

char* map_file(size_t page, size_t pages, int protection, int flags, int file) {
  char* at = mmap(window(page), pages * DMIRROR_PAGE, protection, flags | MAP_FIXED, file, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}

char* buffer_of(size_t pages) {
  char* buffer = mmap(NULL, pages * DMIRROR_PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_POPULATE, -1, 0);
  REQUIRE(buffer != MAP_FAILED);
  return buffer;
}

void drop_buffer(char* buffer, size_t pages) { munmap(buffer, pages * DMIRROR_PAGE); }

void stamp_for(char* where, const char* as, unsigned value) { page_stamp(where, value, position_of(as)); }

void stamp(char* at, size_t pages, unsigned value) {
  for (size_t i = 0; i < pages; i++) stamp_for(at + i * DMIRROR_PAGE, at + i * DMIRROR_PAGE, value);
}

static _Thread_local sigjmp_buf escape;
static void on_fault(int signal) { siglongjmp(escape, signal); }

// Handlers are in place only during one access: a fault anywhere else must end the case.
static int touch(volatile char* at, int writing) {
  struct sigaction action = {.sa_handler = on_fault, .sa_flags = SA_ONSTACK}, old_segv, old_bus;
  sigaction(SIGSEGV, &action, &old_segv);
  sigaction(SIGBUS, &action, &old_bus);
  const int signal = sigsetjmp(escape, 1);
  if (signal == 0) {
    const char seen = writing ? 0x55 : *at;
    if (writing) *at = seen;
  }
  sigaction(SIGSEGV, &old_segv, NULL);
  sigaction(SIGBUS, &old_bus, NULL);
  return signal;
}

int touch_read(const char* at) { return touch((volatile char*)(uintptr_t)at, 0); }
int touch_write(char* at) { return touch(at, 1); }

void expect_contents_as(const char* file, int line, const char* data, const void* as, size_t pages,
                        const char* contents) {
  static struct run_list list;
  memset(&list, 0, sizeof list);
  for (size_t i = 0; i < pages; i++) {
    char word[PAGE_WORD_SIZE];
    page_describe(data + i * DMIRROR_PAGE, position_of(as) + (long)i, word);
    run_list_add(&list, word);
  }
  const char* got = run_list_text(&list);
  if (strcmp(got, contents) != 0) fail_at(file, line, "the pages hold %s, wanted %s", got, contents);
}

void expect_file(const char* file, int line, int fd, size_t pages, const char* contents) {
  char* buffer = buffer_of(pages);
  const ssize_t got = pread(fd, buffer, pages * DMIRROR_PAGE, 0);
  if (got != (ssize_t)(pages * DMIRROR_PAGE)) {
    fail_at(file, line, "cannot read %zu pages of the file", pages);
  } else {
    expect_contents_as(file, line, buffer, window(0), pages, contents);
  }
  drop_buffer(buffer, pages);
}
