// mremap of memory that is, was or will be on the device.
#include <errno.h>
#include <signal.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

static char* move(char* from, size_t pages, size_t to_page, int flags) {
  char* at =
      mremap(from, pages * DMIRROR_PAGE, pages * DMIRROR_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | flags, window(to_page));
  REQUIRE(at != MAP_FAILED);
  return at;
}

MIRROR_CASE(remap, before_migration, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = move(map_stamped(0, 16, 1), 16, 64, 0);
  EXPECT_TO_DEVICE(node, at, 16, "v1@64*16");
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*16");
  EXPECT_EQ(0, EXPECT_READ(node, at, 16, "v1@64*16"));
  EXPECT_CONTENTS(at, 16, "v1@64*16");
}

MIRROR_CASE(remap, while_on_the_device, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, from, 16, "v1*16");
  EXPECT_WRITE(node, from, 4, 2);
  char* at = move(from, 16, 100, 0);
  EXPECT_SNAPSHOT(kind, node, from, 16, "fault*16");
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*16");
  EXPECT_CONTENTS(at, 16, "v2@100*4 v1@100*12");
  EXPECT_EQ(SIGSEGV, touch_read(from));
}

MIRROR_CASE(remap, moved_pages_come_home_on_request, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, from, 16, "v1*16");
  char* at = move(from, 16, 100, 0);
  EXPECT_ERROR(ENOENT, to_device(node, at, 16).error);  // there already, but no entry at the new address
  EXPECT_TO_SYSTEM(node, at, 16, 16);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*16");
  EXPECT_TO_DEVICE(node, at, 16, "v1@100*16");
}

MIRROR_CASE(remap, away_and_back, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, from, 16, "v1*16");
  move(move(from, 16, 100, 0), 16, 0, 0);
  EXPECT_SNAPSHOT(kind, node, from, 16, "dev*16");
  EXPECT_CONTENTS(from, 16, "v1*16");
}

MIRROR_CASE(remap, part_of_a_mapping, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, from, 16, "v1*16");
  char* at = move(from + 4 * DMIRROR_PAGE, 8, 64, 0);
  EXPECT_SNAPSHOT(kind, node, from, 16, "dev*4 fault*8 dev*4");
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*8");
  EXPECT_CONTENTS(at, 8, "v1@60*8");
  EXPECT_CONTENTS(from, 4, "v1*4");
  EXPECT_CONTENTS(from + 12 * DMIRROR_PAGE, 4, "v1*4");
}

MIRROR_CASE(remap, old_mapping_kept, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, from, 16, "v1*16");
  char* at = move(from, 16, 64, REMAP_DONTUNMAP);
  EXPECT_SNAPSHOT(kind, node, from, 16, "none*16");
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*16");
  EXPECT_CONTENTS(from, 4, "0*4");
  EXPECT_TO_DEVICE(node, from, 16, "0*16");
  EXPECT_CONTENTS(at, 16, "v1@64*16");
  EXPECT_CONTENTS(from, 16, "0*16");
}

MIRROR_CASE(remap, over_device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_stamped(0, 8, 1);
  char* to = map_stamped(64, 8, 2);
  EXPECT_TO_DEVICE(node, from, 8, "v1*8");
  EXPECT_TO_DEVICE(node, to, 8, "v2*8");
  move(from, 8, 64, 0);
  EXPECT_SNAPSHOT(kind, node, to, 8, "dev*8");
  EXPECT_SNAPSHOT(kind, node, from, 8, "fault*8");
  EXPECT_CONTENTS(to, 8, "v1@64*8");
}

MIRROR_CASE(remap, shrink_and_grow, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  REQUIRE(mremap(at, 16 * DMIRROR_PAGE, 8 * DMIRROR_PAGE, 0) == at);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*8 fault*8");
  REQUIRE(mremap(at, 8 * DMIRROR_PAGE, 16 * DMIRROR_PAGE, 0) == at);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*8 none*8");
  EXPECT_CONTENTS(at, 16, "v1*8 0*8");
}

MIRROR_CASE(remap, grown_by_moving_where_the_kernel_likes, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_stamped(0, 16, 1);
  map_pages(16, 1, PROT_NONE, SMALL_PAGES);  // in the way
  EXPECT_TO_DEVICE(node, from, 16, "v1*16");
  char* at = mremap(from, 16 * DMIRROR_PAGE, 64 * DMIRROR_PAGE, MREMAP_MAYMOVE);
  REQUIRE(at != MAP_FAILED && at != from);
  EXPECT_SNAPSHOT(kind, node, at, 64, "dev*16 none*48");
  expect_contents_as(__FILE__, __LINE__, at, from, 16, "v1*16");
}

MIRROR_CASE(remap, unit_to_an_aligned_address, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, from, 512, "v1*512");
  char* at = move(from, 512, 1024, 0);
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  stamp(at + 6 * DMIRROR_PAGE, 1, 2);
  EXPECT_CONTENTS(at, 512, "v1@1024*6 v2 v1@1024*505");
  if (!kind->coherent) EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
}

MIRROR_CASE(remap, unit_to_an_unaligned_address, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, from, 512, "v1*512");
  char* at = move(from, 512, 1100, 0);
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*512");
  EXPECT_EQ(0, touch_read(at + 100 * DMIRROR_PAGE));
  EXPECT_SNAPSHOT(kind, node, at, 512, kind->coherent ? "dev*512" : "dev*100 ram dev*411");
  EXPECT_TO_SYSTEM(node, at, 512, kind->coherent ? 512 : 511);
  EXPECT_CONTENTS(at, 512, "v1@1100*512");
}

MIRROR_CASE(remap, part_of_a_unit, EACH_KIND) {
  static const struct { size_t first, pages; } parts[] = {{0, 100}, {100, 50}, {412, 100}, {0, 511}, {1, 511}};
  const int node = open_node(kind->node);
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    const size_t first = parts[i].first, pages = parts[i].pages;
    char* from = map_huge_stamped(0, 1, 1);
    EXPECT_TO_DEVICE(node, from, 512, "v1*512");
    char* at = move(from + first * DMIRROR_PAGE, pages, 1300, 0);
    // Both parts still hold everything, whichever is touched first.
    for (size_t page = 0; page < 512; page++) {
      const size_t reversed = 511 - page;
      const int moved = reversed >= first && reversed < first + pages;
      char* where = moved ? at + (reversed - first) * DMIRROR_PAGE : from + reversed * DMIRROR_PAGE;
      expect_contents_as(__FILE__, __LINE__, where, window(reversed), 1, "v1");
    }
    if (first > 0) EXPECT_TO_SYSTEM(node, from, first, kind->coherent ? first : 0);
    REQUIRE(munmap(at, pages * DMIRROR_PAGE) == 0);
  }
}

MIRROR_CASE(remap, unit_with_the_old_mapping_kept, EACH_KIND) {
  const int node = open_node(kind->node);
  char* from = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, from, 512, "v1*512");
  char* at = move(from, 512, 1024, REMAP_DONTUNMAP);
  EXPECT_SNAPSHOT(kind, node, from, 512, "none*512");
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  EXPECT_CONTENTS(at, 512, "v1@1024*512");
  EXPECT_TO_DEVICE(node, from, 512, "0*512");
  EXPECT_CONTENTS(from, 512, "0*512");
}

MIRROR_CASE(remap, unit_shrunk, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  REQUIRE(mremap(at, 512 * DMIRROR_PAGE, 200 * DMIRROR_PAGE, 0) == at);
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*200 fault*312");
  REQUIRE(mremap(at, 200 * DMIRROR_PAGE, 400 * DMIRROR_PAGE, 0) == at);
  EXPECT_CONTENTS(at, 400, "v1*200 0*200");
}

MIRROR_CASE(remap, between_migrations, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 32, 1);
  for (size_t round = 0; round < 20; round++) {
    EXPECT_ERROR(0, to_device(node, at, 32).error);
    at = move(at, 32, (round + 1) % 2 * 64 + round, 0);
    EXPECT_EQ(0, touch_read(at + round * DMIRROR_PAGE));
    EXPECT_ERROR(0, to_system(node, at, 32).error);
  }
  expect_contents_as(__FILE__, __LINE__, at, window(0), 32, "v1*32");
}
