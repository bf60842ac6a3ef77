// munmap, MAP_FIXED over mappings, and mprotect, of memory on the device.
#include <errno.h>
#include <signal.h>

#include "device.h"
#include "memory.h"

MIRROR_CASE(unmap, everything, EACH_KIND) {
  const int node = open_node(kind->node);
  for (unsigned value = 1; value < 20; value++) {
    char* at = map_stamped(0, 64, value);
    EXPECT_ERROR(0, to_device(node, at, 64).error);
    REQUIRE(munmap(at, 64 * DMIRROR_PAGE) == 0);
    EXPECT_SNAPSHOT(kind, node, at, 64, "fault*64");
    EXPECT_EQ(SIGSEGV, touch_read(at));
    EXPECT_ERROR(EINVAL, to_device(node, at, 64).error);
    map_pages(0, 64, READ_WRITE, SMALL_PAGES);
    EXPECT_CONTENTS(at, 64, "0*64");  // never old data
  }
}

MIRROR_CASE(unmap, middle, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 24, 1);
  EXPECT_TO_DEVICE(node, at, 24, "v1*24");
  REQUIRE(munmap(at + 8 * DMIRROR_PAGE, 8 * DMIRROR_PAGE) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 24, "dev*8 fault*8 dev*8");
  EXPECT_EQ(SIGSEGV, touch_read(at + 8 * DMIRROR_PAGE));
  EXPECT_CONTENTS(at, 8, "v1*8");
  EXPECT_CONTENTS(at + 16 * DMIRROR_PAGE, 8, "v1*8");
}

// Each third of a unit on the device goes; both what is left and its neighbours keep their contents.
static void unmap_third(const struct kind* kind, size_t first, size_t pages) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  REQUIRE(munmap(at + first * DMIRROR_PAGE, pages * DMIRROR_PAGE) == 0);
  unsigned char bytes[512];
  EXPECT_ERROR(0, command(node, DMIRROR_SNAPSHOT, at, bytes, 512).error);
  for (size_t i = 0; i < 512; i++) {
    const int gone = i >= first && i < first + pages;
    EXPECT_EQ(gone ? 0xff : kind->coherent ? 0x42 : 0x22, bytes[i]);
  }
  // Touch the ends of what is left first, then read everything.
  for (size_t i = 0; i < 512; i++) {
    if (i >= first && i < first + pages) continue;
    const int at_end = i == 0 || i == 511 || i + 1 == first || i == first + pages;
    if (at_end) EXPECT_EQ(0, touch_read(at + i * DMIRROR_PAGE));
  }
  for (size_t i = 0; i < 512; i++) {
    if (i < first || i >= first + pages) EXPECT_CONTENTS(at + i * DMIRROR_PAGE, 1, "v1");
  }
}

MIRROR_CASE(unmap, first_third_of_a_unit, EACH_KIND) { unmap_third(kind, 0, 170); }
MIRROR_CASE(unmap, middle_third_of_a_unit, EACH_KIND) { unmap_third(kind, 170, 170); }
MIRROR_CASE(unmap, last_third_of_a_unit, EACH_KIND) { unmap_third(kind, 342, 170); }
MIRROR_CASE(unmap, one_page_of_a_unit, EACH_KIND) { unmap_third(kind, 255, 1); }

MIRROR_CASE(unmap, unit_in_two_steps_without_a_touch, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  REQUIRE(munmap(at, 100 * DMIRROR_PAGE) == 0);
  REQUIRE(munmap(at + 100 * DMIRROR_PAGE, 412 * DMIRROR_PAGE) == 0);
  map_pages(0, 512, READ_WRITE, HUGE_PAGES);
  EXPECT_CONTENTS(at, 512, "0*512");
  EXPECT_TO_DEVICE(node, at, 512, "0*512");
}

MIRROR_CASE(unmap, rest_of_a_split_unit_comes_home_on_request, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  REQUIRE(munmap(at + 200 * DMIRROR_PAGE, 100 * DMIRROR_PAGE) == 0);
  stamp(at + 100 * DMIRROR_PAGE, 1, 2);
  stamp(at + 400 * DMIRROR_PAGE, 1, 3);
  EXPECT_TO_SYSTEM(node, at, 200, kind->coherent ? 200 : 199);
  EXPECT_TO_SYSTEM(node, at + 300 * DMIRROR_PAGE, 212, kind->coherent ? 212 : 211);
  EXPECT_CONTENTS(at, 200, "v1*100 v2 v1*99");
  EXPECT_CONTENTS(at + 300 * DMIRROR_PAGE, 212, "v1*100 v3 v1*111");
}

MIRROR_CASE(unmap, mapped_over, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  map_pages(100, 100, READ_WRITE, SMALL_PAGES);
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*100 none*100 dev*312");
  EXPECT_CONTENTS(at + 99 * DMIRROR_PAGE, 3, "v1 0*2");
  EXPECT_TO_DEVICE(node, at + 100 * DMIRROR_PAGE, 100, "0*100");
  EXPECT_CONTENTS(at, 512, "v1*100 0*100 v1*312");
}

MIRROR_CASE(unmap, mapped_over_by_a_file, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  map_file(4, 4, READ_WRITE, MAP_SHARED, stamped_file(4, 9));
  EXPECT_CONTENTS(at, 16, "v1*4 v9@4*4 v1*8");
  EXPECT_READ(node, at + 4 * DMIRROR_PAGE, 4, "v9@4*4");
}

MIRROR_CASE(protect, down_and_up, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev-ro*16");
  EXPECT_CONTENTS(at, 2, "v1*2");
  EXPECT_EQ(SIGSEGV, touch_write(at));
  EXPECT_SNAPSHOT(kind, node, at, 16, kind->coherent ? "dev-ro*16" : "ram-ro*2 dev-ro*14");
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, READ_WRITE) == 0);
  // Rights of pages on a private node come back with the next write only.
  EXPECT_SNAPSHOT(kind, node, at + 2 * DMIRROR_PAGE, 14, kind->coherent ? "dev*14" : "dev-ro*14");
  stamp(at, 3, 2);
  EXPECT_CONTENTS(at, 16, "v2*3 v1*13");
}

MIRROR_CASE(protect, a_forbidden_access_moves_nothing, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, PROT_NONE) == 0);
  EXPECT_EQ(SIGSEGV, touch_read(at));
  EXPECT_SNAPSHOT(kind, node, at, 16, "fault*16");
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_EQ(SIGSEGV, touch_write(at));
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev-ro*16");
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, READ_WRITE) == 0);
  EXPECT_CONTENTS(at, 16, "v1*16");
}

MIRROR_CASE(protect, read_only_pages_come_home_read_only, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, PROT_READ) == 0);
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, READ_WRITE) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev-ro*8 ram*8");
  EXPECT_TO_SYSTEM(node, at, 16, 8);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram-ro*8 ram*8");
  stamp(at, 16, 2);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*16");
}

MIRROR_CASE(protect, whole_unit, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  REQUIRE(mprotect(at, 512 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV-ro*512");
  EXPECT_TO_SYSTEM(node, at, 512, unit_count(kind));
  EXPECT_SNAPSHOT(kind, node, at, 512, kind->coherent ? "ram-ro*512" : "RAM-ro*512");
  EXPECT_EQ(SIGSEGV, touch_write(at));
  REQUIRE(mprotect(at, 512 * DMIRROR_PAGE, READ_WRITE) == 0);
  stamp(at + 5 * DMIRROR_PAGE, 1, 2);
  EXPECT_CONTENTS(at, 512, "v1*5 v2 v1*506");
}

// Part of a unit on the device becomes read-only.
static void protect_part(const struct kind* kind, size_t first, size_t pages) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  REQUIRE(mprotect(at + first * DMIRROR_PAGE, pages * DMIRROR_PAGE, PROT_READ) == 0);
  unsigned char bytes[512];
  EXPECT_ERROR(0, command(node, DMIRROR_SNAPSHOT, at, bytes, 512).error);
  for (size_t i = 0; i < 512; i++) {
    const int protected = i >= first && i < first + pages;
    EXPECT_EQ((kind->coherent ? 0x40 : 0x20) + (protected ? 1 : 2), bytes[i]);
  }
  EXPECT_EQ(SIGSEGV, touch_write(at + first * DMIRROR_PAGE));
  EXPECT_EQ(0, touch_read(at + first * DMIRROR_PAGE));
  EXPECT_TO_SYSTEM(node, at, 512, kind->coherent ? 512 : 511);
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(protect, first_third_of_a_unit, EACH_KIND) { protect_part(kind, 0, 170); }
MIRROR_CASE(protect, middle_third_of_a_unit, EACH_KIND) { protect_part(kind, 170, 170); }
MIRROR_CASE(protect, last_third_of_a_unit, EACH_KIND) { protect_part(kind, 342, 170); }

MIRROR_CASE(protect, unit_made_inaccessible_and_back, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  REQUIRE(mprotect(at, 512 * DMIRROR_PAGE, PROT_NONE) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 512, "fault*512");
  EXPECT_EQ(SIGSEGV, touch_read(at + 3 * DMIRROR_PAGE));
  REQUIRE(mprotect(at, 512 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV-ro*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}
