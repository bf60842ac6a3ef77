// What the process finds out about its own pages from the kernel.
#include <fcntl.h>
#include <stdio.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"

#define PAGEMAP_PRESENT (1ull << 63)
#define PAGEMAP_SWAPPED (1ull << 62)

static int open_pagemap(void) {
  const int pagemap = open("/proc/self/pagemap", O_RDONLY | O_CLOEXEC);
  REQUIRE(pagemap >= 0);
  return pagemap;
}

static off_t entry_offset(const char* at) { return (off_t)((uintptr_t)at / DMIRROR_PAGE * 8); }

static void expect_entries(int line, const char* at, size_t pages, uint64_t wanted) {
  const int pagemap = open_pagemap();
  for (size_t i = 0; i < pages; i++) {
    uint64_t entry = 0;
    if (pread(pagemap, &entry, sizeof entry, entry_offset(at + i * DMIRROR_PAGE)) != sizeof entry) {
      fail_at(__FILE__, line, "cannot read the entry of page %zu", i);
      break;
    }
    entry &= PAGEMAP_PRESENT | PAGEMAP_SWAPPED;
    if (entry != wanted) {
      fail_at(__FILE__, line, "page %zu is %s%s", i, entry & PAGEMAP_PRESENT ? "present " : "",
              entry & PAGEMAP_SWAPPED ? "swapped" : "not swapped");
      break;
    }
  }
  close(pagemap);
}
#define EXPECT_ENTRIES(at, pages, wanted) expect_entries(__LINE__, (at), (pages), (wanted))

MIRROR_CASE(pagemap, pages_on_a_private_node_are_swapped, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_ENTRIES(at, 16, PAGEMAP_PRESENT);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_ENTRIES(at, 8, PAGEMAP_SWAPPED);
  EXPECT_ENTRIES(at + 8 * DMIRROR_PAGE, 8, PAGEMAP_PRESENT);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*8 ram*8");  // looking moved nothing
  EXPECT_TO_SYSTEM(node, at, 4, 4);
  EXPECT_ENTRIES(at, 4, PAGEMAP_PRESENT);
  EXPECT_ENTRIES(at + 4 * DMIRROR_PAGE, 4, PAGEMAP_SWAPPED);
  EXPECT_CONTENTS(at, 16, "v1*16");
  EXPECT_ENTRIES(at, 16, PAGEMAP_PRESENT);
}

MIRROR_CASE(pagemap, holes_on_a_private_node_are_swapped, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 16, READ_WRITE, SMALL_PAGES);
  EXPECT_ENTRIES(at, 16, 0);
  EXPECT_TO_DEVICE(node, at, 8, "0*8");
  EXPECT_ENTRIES(at, 8, PAGEMAP_SWAPPED);
  EXPECT_ENTRIES(at + 8 * DMIRROR_PAGE, 8, 0);
}

MIRROR_CASE(pagemap, units_on_a_private_node_are_swapped, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_ENTRIES(at, 512, PAGEMAP_SWAPPED);
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
  EXPECT_ENTRIES(at, 512, PAGEMAP_PRESENT);
}

MIRROR_CASE(pagemap, dropped_device_pages_are_empty, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  REQUIRE(madvise(at, 8 * DMIRROR_PAGE, MADV_DONTNEED) == 0);
  EXPECT_ENTRIES(at, 8, 0);
  EXPECT_ENTRIES(at + 8 * DMIRROR_PAGE, 8, PAGEMAP_SWAPPED);
}

MIRROR_CASE(pagemap, pages_on_a_coherent_node_are_present, COHERENT) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_ENTRIES(at, 16, PAGEMAP_PRESENT);
}

MIRROR_CASE(pagemap, read_in_one_piece_and_by_stdio, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at + 4 * DMIRROR_PAGE, 8, "v1*8");
  uint64_t entries[16];
  const int pagemap = open_pagemap();
  REQUIRE(lseek(pagemap, entry_offset(at), SEEK_SET) == entry_offset(at));
  REQUIRE(read(pagemap, entries, sizeof entries) == sizeof entries);
  FILE* file = fopen("/proc/self/pagemap", "rb");
  REQUIRE(file);
  REQUIRE(fseeko(file, entry_offset(at), SEEK_SET) == 0);
  for (size_t i = 0; i < 16; i++) {
    const int out = i >= 4 && i < 12;
    EXPECT_EQ(out, (entries[i] & PAGEMAP_SWAPPED) != 0);
    EXPECT_EQ(!out, (entries[i] & PAGEMAP_PRESENT) != 0);
    uint64_t entry;
    REQUIRE(fread(&entry, sizeof entry, 1, file) == 1);
    EXPECT_EQ(out, (entry & PAGEMAP_SWAPPED) != 0);
  }
  fclose(file);
  close(pagemap);
}
