#include "device.h"

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>

#include "memory.h"
#include "run_list.h"

const char* node_prefix = DMIRROR_DEFAULT_PREFIX;

const char* node_path(unsigned minor) {
  static char path[4096];
  snprintf(path, sizeof path, "%s%u", node_prefix, minor);
  return path;
}

int open_node(unsigned minor) {
  const int node = open(node_path(minor), O_RDWR);
  if (node < 0) {
    fail_at(__FILE__, __LINE__, "cannot open %s: %s", node_path(minor), error_name(errno));
    abandon_case();
  }
  return node;
}

struct reply command(int node, enum dmirror_nr nr, const void* addr, void* ptr, uint64_t npages) {
  struct dmirror_command block = {.addr = (uintptr_t)addr, .ptr = (uintptr_t)ptr, .npages = npages};
  const int result = ioctl(node, DMIRROR_REQUEST(nr), &block);
  if (result < 0) return (struct reply){.error = errno};
  if (result > 0) fail_at(__FILE__, __LINE__, "command %d returned %d; success is 0", (int)nr, result);
  return (struct reply){.error = 0, .cpages = block.cpages, .faults = block.faults};
}

static struct reply command_with_buffer(int node, enum dmirror_nr nr, const void* at, size_t pages) {
  char* buffer = buffer_of(pages);
  const struct reply reply = command(node, nr, at, buffer, pages);
  drop_buffer(buffer, pages);
  return reply;
}

struct reply to_device(int node, const void* at, size_t pages) {
  return command_with_buffer(node, DMIRROR_MIGRATE_TO_DEV, at, pages);
}
struct reply read_and_drop(int node, const void* at, size_t pages) {
  return command_with_buffer(node, DMIRROR_READ, at, pages);
}
struct reply make_exclusive(int node, const void* at, size_t pages) {
  return command_with_buffer(node, DMIRROR_EXCLUSIVE, at, pages);
}

struct reply release_node(int node) {
  const struct reply reply = command(node, DMIRROR_RELEASE, NULL, NULL, 1);
  use_base_pages(node);
  return reply;
}

void use_base_pages(int node) {
  enum { SCRATCH_PAGE = 100001 };  // of the window, away from where cases work and not 2 MiB aligned
  char* scratch = map_stamped(SCRATCH_PAGE, 1, 1);
  EXPECT_ERROR(0, set_flags(node, 2).error);
  EXPECT_ERROR(0, to_device(node, scratch, 1).error);
  EXPECT_ERROR(0, to_system(node, scratch, 1).error);
  munmap(scratch, DMIRROR_PAGE);
}

struct reply stamp_by_device(int node, const void* at, size_t pages, unsigned value) {
  char* buffer = buffer_of(pages);
  for (size_t i = 0; i < pages; i++) stamp_for(buffer + i * DMIRROR_PAGE, (const char*)at + i * DMIRROR_PAGE, value);
  const struct reply reply = device_write(node, at, pages, buffer);
  drop_buffer(buffer, pages);
  return reply;
}

size_t unit_count(const struct kind* kind) { return kind->coherent ? DMIRROR_UNIT_PAGES : 1; }

uint64_t expect_transfer(const char* file, int line, enum dmirror_nr nr, int node, const void* at, size_t pages,
                         const char* contents) {
  static const char* const names[] = {
      [DMIRROR_READ] = "READ", [DMIRROR_MIGRATE_TO_DEV] = "MIGRATE_TO_DEV", [DMIRROR_EXCLUSIVE] = "EXCLUSIVE"};
  char* buffer = buffer_of(pages);
  const struct reply reply = command(node, nr, at, buffer, pages);
  if (reply.error) {
    fail_at(file, line, "%s gave %s, wanted success", names[nr], error_name(reply.error));
  } else {
    if (reply.cpages != pages) expect_equal(file, line, "cpages", pages, reply.cpages);
    if (nr != DMIRROR_READ) expect_equal(file, line, "faults", 0, reply.faults);
    expect_contents_as(file, line, buffer, at, pages, contents);
  }
  drop_buffer(buffer, pages);
  return reply.faults;
}

uint64_t expect_device_write(const char* file, int line, int node, const void* at, size_t pages, unsigned value) {
  const struct reply reply = stamp_by_device(node, at, pages, value);
  expect_error(file, line, "WRITE", 0, reply.error);
  if (!reply.error) expect_equal(file, line, "cpages", pages, reply.cpages);
  return reply.faults;
}

void expect_to_system(const char* file, int line, int node, const void* at, size_t pages, uint64_t cpages) {
  const struct reply reply = to_system(node, at, pages);
  expect_error(file, line, "MIGRATE_TO_SYS", 0, reply.error);
  if (reply.error) return;
  expect_equal(file, line, "cpages", cpages, reply.cpages);
  expect_equal(file, line, "faults", 0, reply.faults);
}

// Marks a wanted byte that stands for the zero page: the huge one looks like other read-only RAM.
enum { ZERO_PAGE = 0x100 };

static unsigned snapshot_byte(const struct kind* kind, const char* word, const char* file, int line) {
  static const struct {
    const char* word;
    unsigned on_private, on_coherent;
  } table[] = {
      {"none", 0x00, 0x00},
      {"fault", 0xff, 0xff},
      {"zero", ZERO_PAGE | 0x11, ZERO_PAGE | 0x11},
      {"zero-RAM", ZERO_PAGE | 0x05, ZERO_PAGE | 0x05},
      {"ram", 0x02, 0x02},
      {"ram-ro", 0x01, 0x01},
      {"RAM", 0x06, 0x06},
      {"RAM-ro", 0x05, 0x05},
      {"dev", 0x22, 0x42},
      {"dev-ro", 0x21, 0x41},
      {"DEV", 0x26, 0x42},
      {"DEV-ro", 0x25, 0x41},
      {"home", 0x06, 0x02},
      {"other", 0x52, 0x52},
      {"other-ro", 0x51, 0x51},
  };
  for (size_t i = 0; i < sizeof table / sizeof *table; i++) {
    if (strcmp(word, table[i].word) == 0) return kind->coherent ? table[i].on_coherent : table[i].on_private;
  }
  fail_at(file, line, "the case has a word '%s' that no snapshot has", word);
  abandon_case();
}

// Turns "dev*4 ram" into bytes; returns how many.
static size_t expand_snapshot(const struct kind* kind, const char* words, unsigned* bytes, size_t room,
                              const char* file, int line) {
  size_t used = 0;
  while (*words) {
    char word[40];
    int length = 0;
    if (sscanf(words, " %39[^ *]%n", word, &length) != 1) break;
    words += length;
    unsigned long count = 1;
    if (*words == '*') {
      char* end;
      count = strtoul(words + 1, &end, 10);
      words = end;
    }
    for (; count > 0 && used < room; count--) bytes[used++] = snapshot_byte(kind, word, file, line);
  }
  return used;
}

// On a host without the zero page RAM may stand where it should be.
static bool acceptable(unsigned wanted, unsigned char got) {
  if ((wanted & 0xff) == got) return true;
  if (!(wanted & ZERO_PAGE) || host_maps_zero_page()) return false;
  const unsigned size = wanted & DMIRROR_PROT_PMD;
  return got == (size | DMIRROR_PROT_WRITE) || got == (size | DMIRROR_PROT_READ);
}

static bool all_acceptable(const unsigned* wanted, const unsigned char* got, size_t count) {
  for (size_t i = 0; i < count; i++) {
    if (!acceptable(wanted[i], got[i])) return false;
  }
  return true;
}

static const char* fold_bytes(const unsigned char* bytes, size_t count, struct run_list* list) {
  memset(list, 0, sizeof *list);
  for (size_t i = 0; i < count; i++) {
    char word[8];
    snprintf(word, sizeof word, "%02x", bytes[i]);
    run_list_add(list, word);
  }
  return run_list_text(list);
}

void expect_snapshot(const char* file, int line, const struct kind* kind, int node, const void* at, size_t pages,
                     const char* words) {
  enum { MOST = 1 << 16 };
  static unsigned wanted[MOST];
  static unsigned char got[MOST], wanted_bytes[MOST];
  if (expand_snapshot(kind, words, wanted, MOST, file, line) != pages) {
    fail_at(file, line, "the case wants a snapshot of %zu pages and names another number: %s", pages, words);
    return;
  }
  const struct reply reply = command(node, DMIRROR_SNAPSHOT, at, got, pages);
  expect_error(file, line, "SNAPSHOT", 0, reply.error);
  if (reply.error) return;
  expect_equal(file, line, "cpages", pages, reply.cpages);
  expect_equal(file, line, "faults", 0, reply.faults);
  if (all_acceptable(wanted, got, pages)) return;
  for (size_t i = 0; i < pages; i++) wanted_bytes[i] = (unsigned char)wanted[i];
  static struct run_list folded_wanted, folded_got;
  fail_at(file, line, "the snapshot is %s, wanted %s (%s)", fold_bytes(got, pages, &folded_got),
          fold_bytes(wanted_bytes, pages, &folded_wanted), words);
}
