// What the real driver or kernel gets wrong, up to a crash. A stand-in has an obvious right answer: the data is intact
// in every process. Never run on a real kernel unless asked for.
#include <errno.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

MIRROR_CASE(hazard, read_of_own_pages_without_entries, PRIVATE | HAZARD) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "v1*8"));
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro*8");
  EXPECT_EQ(0, EXPECT_READ(node, at, 8, "v1*8"));
}

MIRROR_CASE(hazard, read_behind_a_page_that_went_home, PRIVATE | HAZARD) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_EQ(0, touch_read(at + 3 * DMIRROR_PAGE));
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "v1*8"));
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*3 ram dev*4");
}

MIRROR_CASE(hazard, write_behind_a_page_that_went_home, PRIVATE | HAZARD) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_EQ(0, touch_read(at + 3 * DMIRROR_PAGE));
  EXPECT_WRITE(node, at, 8, 2);
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*3 ram dev*4");
  EXPECT_CONTENTS(at, 8, "v2*8");
}

MIRROR_CASE(hazard, read_after_fork, PRIVATE | HAZARD) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*8");
    end_child();
  }
  EXPECT_READ(node, at, 8, "v1*8");
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(hazard, read_at_the_new_address, PRIVATE | HAZARD) {
  const int node = open_node(kind->node);
  char* from = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, from, 16, "v1*16");
  char* at = mremap(from, 16 * DMIRROR_PAGE, 16 * DMIRROR_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, window(64));
  REQUIRE(at != MAP_FAILED);
  EXPECT_EQ(1, EXPECT_READ(node, at, 16, "v1@64*16"));
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*16");
  EXPECT_WRITE(node, at, 8, 2);
  EXPECT_CONTENTS(at, 16, "v2*8 v1@64*8");
}

MIRROR_CASE(hazard, read_through_a_second_open, PRIVATE | HAZARD) {
  const int first = open_node(kind->node);
  const int second = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(first, at, 8, "v1*8");
  EXPECT_EQ(1, EXPECT_READ(second, at, 8, "v1*8"));
  EXPECT_WRITE(second, at, 8, 2);
  EXPECT_EQ(0, EXPECT_READ(first, at, 8, "v2*8"));
  EXPECT_SNAPSHOT(kind, first, at, 8, "dev*8");
  EXPECT_CONTENTS(at, 8, "v2*8");
}

MIRROR_CASE(hazard, second_open_forgets_pages_that_moved, EACH_KIND | HAZARD) {
  const int first = open_node(kind->node);
  const int second = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_READ(second, at, 8, "v1*8");
  EXPECT_TO_DEVICE(first, at, 8, "v1*8");
  EXPECT_WRITE(first, at, 8, 2);
  EXPECT_READ(second, at, 8, "v2*8");  // not what it held of the old pages
  EXPECT_TO_SYSTEM(first, at, 8, 8);
  stamp(at, 8, 3);
  EXPECT_READ(second, at, 8, "v3*8");
  EXPECT_READ(first, at, 8, "v3*8");
}

MIRROR_CASE(hazard, close_with_a_split_unit_out, PRIVATE | HAZARD) {
  int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_TO_SYSTEM(node, at + 100 * DMIRROR_PAGE, 10, 10);
  EXPECT(close(node) == 0);
  node = open_node(kind->node);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(hazard, release_with_a_split_unit_out, PRIVATE | HAZARD) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  REQUIRE(munmap(at + 200 * DMIRROR_PAGE, 100 * DMIRROR_PAGE) == 0);
  EXPECT_ERROR(0, release_node(node).error);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*200 fault*100 ram*212");
  EXPECT_CONTENTS(at, 200, "v1*200");
  EXPECT_CONTENTS(at + 300 * DMIRROR_PAGE, 212, "v1*212");
}

// A unit that two processes share has to be split while it is moved.
static void split_shared_unit(const struct kind* kind, bool to_the_device) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  if (!to_the_device) EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 512, "v1*512");
    stamp(at, 100, 2);
    EXPECT_CONTENTS(at, 512, "v2*100 v1*412");
    end_child();
  }
  EXPECT_ERROR(0, set_flags(node, DMIRROR_FLAG_FAIL_ALLOC).error);
  // Whether the unit moves or stays is open.
  const int error = to_the_device ? to_device(node, at, 512).error : to_system(node, at, 512).error;
  EXPECT(error == 0 || error == ENOENT || error == ENOMEM);
  pass_turn(&other);
  EXPECT_CONTENTS(at, 512, "v1*512");
  await_child(&other);
  EXPECT_CONTENTS(at, 512, "v1*512");
  stamp(at, 512, 3);
  EXPECT_CONTENTS(at, 512, "v3*512");
}

MIRROR_CASE(hazard, shared_unit_split_on_the_way_out, EACH_KIND | HAZARD) { split_shared_unit(kind, true); }
MIRROR_CASE(hazard, shared_unit_split_on_the_way_home, PRIVATE | HAZARD) { split_shared_unit(kind, false); }
