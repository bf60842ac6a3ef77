// Every byte that a snapshot can hold, and that taking one changes nothing.
#include <errno.h>
#include <string.h>

#include "device.h"
#include "memory.h"

MIRROR_CASE(snapshot, every_kind_of_page, EACH_KIND) {
  const int node = open_node(kind->node);
  map_pages(0, 4, PROT_READ, SMALL_PAGES);
  map_pages(4, 4, READ_WRITE, SMALL_PAGES);
  map_pages(8, 4, PROT_NONE, SMALL_PAGES);
  const int file = stamped_file(8, 3);
  map_file(12, 4, READ_WRITE, MAP_SHARED, file);
  map_file(16, 4, PROT_READ, MAP_SHARED, file);
  map_file(20, 4, READ_WRITE, MAP_PRIVATE, file);
  EXPECT_EQ(0, touch_read(window(0)));
  EXPECT_EQ(0, touch_read(window(1)));
  stamp(window(4), 2, 1);
  EXPECT_EQ(0, touch_read(window(6)));
  EXPECT_SNAPSHOT(kind, node, window(0), 12, "zero*2 none*2 ram*2 zero none fault*4");
  for (size_t i = 0; i < 4; i++) {
    EXPECT_EQ(0, touch_write(window(12 + i)));
    EXPECT_EQ(0, touch_read(window(16 + i)));
    EXPECT_EQ(0, touch_read(window(20 + i)));
  }
  EXPECT_EQ(0, touch_write(window(21)));
  EXPECT_SNAPSHOT(kind, node, window(12), 20, "ram*4 ram-ro*5 ram ram-ro*2 fault*8");
}

MIRROR_CASE(snapshot, device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  REQUIRE(mprotect(at + 8 * DMIRROR_PAGE, 8 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_TO_DEVICE(node, at + 4 * DMIRROR_PAGE, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*4 dev*4 dev-ro*4 ram-ro*4");
}

MIRROR_CASE(snapshot, huge_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 2, 1);
  map_pages(1024, 512, READ_WRITE, HUGE_PAGES);
  EXPECT_EQ(0, touch_read(window(1024)));
  EXPECT_TO_DEVICE(node, at + 512 * DMIRROR_PAGE, 512, "v1*512");
  // A query of part of a unit shows its size all the same.
  EXPECT_SNAPSHOT(kind, node, at, 1536, "RAM*512 DEV*512 zero-RAM*512");
  EXPECT_SNAPSHOT(kind, node, at + 510 * DMIRROR_PAGE, 4, "RAM*2 DEV*2");
  EXPECT_SNAPSHOT(kind, node, at + 1022 * DMIRROR_PAGE, 4, "DEV*2 zero-RAM*2");
}

MIRROR_CASE(snapshot, unmapped_parts, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(8, 8, 1) - 8 * DMIRROR_PAGE;
  EXPECT_SNAPSHOT(kind, node, at, 24, "fault*8 ram*8 fault*8");
  REQUIRE(munmap(at + 12 * DMIRROR_PAGE, 2 * DMIRROR_PAGE) == 0);
  EXPECT_TO_DEVICE(node, at + 8 * DMIRROR_PAGE, 4, "v1*4");
  EXPECT_SNAPSHOT(kind, node, at, 24, "fault*8 dev*4 fault*2 ram*2 fault*8");
  EXPECT_SNAPSHOT(kind, node, window(4000), 100, "fault*100");
}

MIRROR_CASE(snapshot, changes_nothing, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 64, READ_WRITE, SMALL_PAGES);
  stamp(at, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_EXCLUSIVE(node, at + 12 * DMIRROR_PAGE, 4, "v1*4");
  for (int i = 0; i < 3; i++) {
    EXPECT_SNAPSHOT(kind, node, at, 64, "dev*8 ram*4 none*52");
    EXPECT_EQ(0, EXPECT_READ(node, at, 8, "v1*8"));  // the device's own table is as it was
    EXPECT_ERROR(EPERM, check_exclusive(node, at + 12 * DMIRROR_PAGE, 4).error);
  }
}

MIRROR_CASE(snapshot, large_range, EACH_KIND) {
  enum { PAGES = 16384 };
  const int node = open_node(kind->node);
  char* at = map_stamped(1000, 2000, 1) - 1000 * DMIRROR_PAGE;
  static unsigned char bytes[PAGES];
  memset(bytes, 0xaa, sizeof bytes);
  EXPECT_ERROR(0, command(node, DMIRROR_SNAPSHOT, at, bytes, PAGES).error);
  for (size_t i = 0; i < PAGES; i++) EXPECT_EQ(i >= 1000 && i < 3000 ? 0x02 : 0xff, bytes[i]);
}

MIRROR_CASE(snapshot, file_shorter_than_its_mapping, EACH_KIND) {
  const int node = open_node(kind->node);
  const int file = stamped_file(8, 9);
  char* at = map_file(0, 16, READ_WRITE, MAP_SHARED, file);
  for (size_t i = 0; i < 8; i++) EXPECT_EQ(0, touch_write(at + i * DMIRROR_PAGE));
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*8 none*8");
}

MIRROR_CASE(snapshot, pages_of_the_other_kind, COHERENT) {
  const int node = open_node(kind->node);
  const int private_node = open_node(0);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_TO_DEVICE(private_node, at + 8 * DMIRROR_PAGE, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*8 none*8");
  const struct kind as_private = {.name = "private", .node = 0, .other = 1, .coherent = false};
  EXPECT_SNAPSHOT(&as_private, private_node, at, 16, "other*8 dev*8");
  EXPECT_ERROR(ENOENT, to_device(private_node, at, 8).error);
  EXPECT_ERROR(ENOENT, to_device(node, at + 8 * DMIRROR_PAGE, 8).error);
  EXPECT_TO_SYSTEM(private_node, at, 8, 0);
  EXPECT_READ(node, at, 16, "v1*16");  // brings the private ones home
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*8 ram*8");
}
