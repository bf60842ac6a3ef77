// Units of 2 MiB: moved whole, split, refused. Coherent nodes never hold a huge page; the same cases show base pages
// there.
#include <errno.h>

#include "device.h"
#include "memory.h"

MIRROR_CASE(huge, whole_there_and_back, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 2, 1);
  EXPECT_SNAPSHOT(kind, node, at, 1024, "RAM*1024");
  EXPECT_TO_DEVICE(node, at, 1024, "v1*1024");
  EXPECT_SNAPSHOT(kind, node, at, 1024, "DEV*1024");
  EXPECT_TO_SYSTEM(node, at, 1024, 2 * unit_count(kind));
  EXPECT_SNAPSHOT(kind, node, at, 1024, "home*1024");
  EXPECT_CONTENTS(at, 1024, "v1*1024");
}

MIRROR_CASE(huge, one_access_brings_the_unit_home, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_EQ(0, touch_read(at + 300 * DMIRROR_PAGE));
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  stamp(at + 511 * DMIRROR_PAGE, 1, 2);
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_CONTENTS(at, 512, "v1*511 v2");
}

MIRROR_CASE(huge, device_writes_then_fault, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_EQ(0, EXPECT_WRITE(node, at + 100 * DMIRROR_PAGE, 300, 2));
  EXPECT_EQ(0, EXPECT_READ(node, at, 512, "v1*100 v2*300 v1*112"));
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  EXPECT_CONTENTS(at, 512, "v1*100 v2*300 v1*112");
}

MIRROR_CASE(huge, untouched_unit, EACH_KIND) {
  const int node = open_node(kind->node);
  // Whatever the policy for ordinary faults is: an empty aligned unit goes whole.
  char* at = map_pages(0, 1024, READ_WRITE, SMALL_PAGES);
  EXPECT_TO_DEVICE(node, at, 512, "0*512");
  EXPECT_SNAPSHOT(kind, node, at, 520, kind->coherent ? "dev*512 none*8" : "DEV*512 none*8");
  stamp(at + 6 * DMIRROR_PAGE, 1, 4);
  EXPECT_CONTENTS(at, 512, "0*6 v4 0*505");
}

MIRROR_CASE(huge, huge_zero_page, EACH_KIND) {
  map_huge_stamped(1024, 1, 9);  // skips where there are no huge pages
  const int node = open_node(kind->node);
  char* at = map_pages(0, 512, READ_WRITE, HUGE_PAGES);
  EXPECT_EQ(0, touch_read(at + 7 * DMIRROR_PAGE));
  EXPECT_SNAPSHOT(kind, node, at, 512, "zero-RAM*512");
  EXPECT_TO_DEVICE(node, at, 512, "0*512");
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  stamp(at + 9 * DMIRROR_PAGE, 1, 5);
  EXPECT_CONTENTS(at, 512, "0*9 v5 0*502");
}

MIRROR_CASE(huge, part_of_a_huge_zero_page, EACH_KIND) {
  map_huge_stamped(1024, 1, 9);
  const int node = open_node(kind->node);
  char* at = map_pages(0, 512, READ_WRITE, HUGE_PAGES);
  EXPECT_EQ(0, touch_read(at));
  EXPECT_TO_DEVICE(node, at + 10 * DMIRROR_PAGE, 5, "0*5");
  EXPECT_SNAPSHOT(kind, node, at, 512, "zero*10 dev*5 zero*497");
  EXPECT_CONTENTS(at, 512, "0*512");
}

MIRROR_CASE(huge, unaligned_start_never_gets_units, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 2048, READ_WRITE, HUGE_PAGES);
  EXPECT_TO_DEVICE(node, at + DMIRROR_PAGE, 512, "0*512");
  EXPECT_SNAPSHOT(kind, node, at, 520, "none dev*512 none*7");
  EXPECT_TO_DEVICE(node, at + 600 * DMIRROR_PAGE, 1024, "0*1024");
  EXPECT_SNAPSHOT(kind, node, at + 600 * DMIRROR_PAGE, 1024, "dev*1024");
}

MIRROR_CASE(huge, part_goes_to_the_device, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at + 100 * DMIRROR_PAGE, 10, "v1*10");
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*100 dev*10 ram*402");
  EXPECT_TO_SYSTEM(node, at, 512, 10);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(huge, part_comes_home, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_TO_SYSTEM(node, at + 100 * DMIRROR_PAGE, 10, 10);
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*100 ram*10 dev*402");
  EXPECT_TO_SYSTEM(node, at, 512, 502);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(huge, units_and_partial_units_in_one_request, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 4, 1);
  EXPECT_TO_DEVICE(node, at + 512 * DMIRROR_PAGE, 1000, "v1*1000");
  EXPECT_SNAPSHOT(kind, node, at, 2048, "RAM*512 DEV*512 dev*488 ram*24 RAM*512");
  EXPECT_TO_SYSTEM(node, at + 512 * DMIRROR_PAGE, 512, unit_count(kind));
  EXPECT_TO_SYSTEM(node, at + 1000 * DMIRROR_PAGE, 1000, 488);
  EXPECT_SNAPSHOT(kind, node, at, 2048, "RAM*512 home*512 ram*512 RAM*512");
  EXPECT_CONTENTS(at, 2048, "v1*2048");
}

MIRROR_CASE(huge, request_over_parts_of_three_units, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 4, 1);
  EXPECT_TO_DEVICE(node, at + 256 * DMIRROR_PAGE, 1024, "v1*1024");
  EXPECT_SNAPSHOT(kind, node, at, 2048, "ram*256 dev*1024 ram*256 RAM*512");
  EXPECT_TO_SYSTEM(node, at, 2048, 1024);
  EXPECT_CONTENTS(at, 2048, "v1*2048");
}

MIRROR_CASE(huge, counts_units_once, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 2, 1);
  map_pages(1024, 1024, READ_WRITE, HUGE_PAGES);
  EXPECT_TO_DEVICE(node, at, 1536, "v1*1024 0*512");
  EXPECT_SNAPSHOT(kind, node, at, 2048, "DEV*1536 none*512");
  EXPECT_TO_SYSTEM(node, at, 2048, 3);
  EXPECT_SNAPSHOT(kind, node, at, 2048, "RAM*1536 none*512");
  EXPECT_TO_SYSTEM(node, at, 2048, 0);
}

MIRROR_CASE(huge, split_leaves_zero_parts_as_zero_pages, PRIVATE) {
  map_huge_stamped(1024, 1, 9);
  const int node = open_node(kind->node);
  char* at = map_pages(0, 512, READ_WRITE, HUGE_PAGES);
  stamp(at, 1, 1);
  stamp(at + 200 * DMIRROR_PAGE, 3, 2);
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_TO_DEVICE(node, at, 10, "v1 0*9");
  EXPECT_CONTENTS(at, 512, "v1 0*199 v2*3 0*309");
  stamp(at + 300 * DMIRROR_PAGE, 1, 4);
  EXPECT_CONTENTS(at + 299 * DMIRROR_PAGE, 3, "0 v4 0");
}

MIRROR_CASE(huge, many_units_again_and_again, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 4, 1);
  for (unsigned round = 0; round < 10; round++) {
    EXPECT_TO_DEVICE(node, at, 2048, "v1*2048");
    if (round % 2) EXPECT_ERROR(0, to_system(node, at, 2048).error);
    EXPECT_CONTENTS(at, 2048, "v1*2048");
  }
}

MIRROR_CASE(huge, freed_on_the_device, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  for (unsigned value = 2; value < 10; value++) {
    EXPECT_ERROR(0, to_device(node, at, 512).error);
    REQUIRE(madvise(at, 512 * DMIRROR_PAGE, MADV_DONTNEED) == 0);
    EXPECT_SNAPSHOT(kind, node, at, 512, "none*512");
    EXPECT_TO_DEVICE(node, at, 512, "0*512");
    EXPECT_CONTENTS(at, 4, "0*4");
    stamp(at, 512, value);
  }
  EXPECT_CONTENTS(at, 512, "v9*512");
}

MIRROR_CASE(huge, collapsed_after_splitting, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_TO_SYSTEM(node, at, 100, 100);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*100 dev*412");
  if (madvise(at, 512 * DMIRROR_PAGE, ADVISE_COLLAPSE) != 0) skip_case("MADV_COLLAPSE: %s", error_name(errno));
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(huge, collapse_fails_over_a_unit_on_the_device, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT(madvise(at, 512 * DMIRROR_PAGE, ADVISE_COLLAPSE) < 0 && errno == EINVAL);
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}
