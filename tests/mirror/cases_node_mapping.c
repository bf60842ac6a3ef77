// mmap of a node: zeroed memory that was mapped in directly.
#include <errno.h>
#include <signal.h>

#include "device.h"
#include "memory.h"

static char* map_node(int node, size_t page, size_t pages, int protection) {
  char* at = mmap(window(page), pages * DMIRROR_PAGE, protection, MAP_PRIVATE | MAP_FIXED, node, 0);
  REQUIRE(at != MAP_FAILED);
  return at;
}

MIRROR_CASE(node_mapping, zeroed_and_all_present, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_node(node, 0, 8, READ_WRITE);
  EXPECT_SNAPSHOT(kind, node, at, 10, "ram-ro*8 fault*2");
  EXPECT_CONTENTS(at, 8, "0*8");
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "0*8"));
}

MIRROR_CASE(node_mapping, becomes_ordinary_when_written, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_node(node, 0, 8, READ_WRITE);
  stamp(at, 4, 1);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*4 ram-ro*4");
  EXPECT_READ(node, at, 8, "v1*4 0*4");
  EXPECT_WRITE(node, at, 8, 2);
  EXPECT_CONTENTS(at, 8, "v2*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*8");
}

MIRROR_CASE(node_mapping, cannot_migrate, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_node(node, 0, 8, READ_WRITE);
  EXPECT_ERROR(EINVAL, to_device(node, at, 8).error);
  EXPECT_ERROR(EINVAL, to_system(node, at, 8).error);
  stamp(at, 8, 1);
  EXPECT_ERROR(EINVAL, to_device(node, at, 8).error);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(node_mapping, can_be_exclusive_when_writable, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_node(node, 0, 4, READ_WRITE);
  EXPECT_EXCLUSIVE(node, at, 2, "0*2");
  EXPECT_SNAPSHOT(kind, node, at, 4, "none*2 ram-ro*2");
  EXPECT_CONTENTS(at, 4, "0*4");
  EXPECT_ERROR(EFAULT, make_exclusive(node, map_node(node, 8, 4, PROT_READ), 1).error);
}

MIRROR_CASE(node_mapping, read_only, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_node(node, 0, 4, PROT_READ);
  EXPECT_CONTENTS(at, 4, "0*4");
  EXPECT_EQ(SIGSEGV, touch_write(at));
  EXPECT_ERROR(EPERM, stamp_by_device(node, at, 1, 1).error);
  EXPECT_SNAPSHOT(kind, node, at, 4, "ram-ro*4");
}

MIRROR_CASE(node_mapping, several_share_nothing, EACH_KIND) {
  const int node = open_node(kind->node);
  char* first = map_node(node, 0, 4, READ_WRITE);
  char* second = map_node(node, 16, 4, READ_WRITE);
  stamp(first, 4, 1);
  EXPECT_CONTENTS(second, 4, "0*4");
  EXPECT_CONTENTS(first, 4, "v1*4");
}

MIRROR_CASE(node_mapping, any_offset_and_any_place, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = mmap(NULL, 8 * DMIRROR_PAGE, READ_WRITE, MAP_PRIVATE, node, 77 * DMIRROR_PAGE);
  REQUIRE(at != MAP_FAILED);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram-ro*8");
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "0*8"));
  EXPECT(munmap(at, 8 * DMIRROR_PAGE) == 0);
}

MIRROR_CASE(node_mapping, read_over_mixed_memory, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  map_node(node, 8, 8, READ_WRITE);
  map_stamped(16, 8, 2);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_EQ(1, EXPECT_READ(node, at + 8 * DMIRROR_PAGE, 16, "0*8 v2*8"));
  EXPECT_ERROR(EINVAL, to_device(node, at + 4 * DMIRROR_PAGE, 16).error);
  EXPECT_CONTENTS(at, 24, "v1*8 0*8 v2*8");
}
