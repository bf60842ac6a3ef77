// The device writes memory of the process.
#include <errno.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

MIRROR_CASE(write, memory, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_EQ(1, EXPECT_WRITE(node, at, 64, 2));
  EXPECT_EQ(0, EXPECT_WRITE(node, at, 32, 3));
  EXPECT_CONTENTS(at, 64, "v3*32 v2*32");
  EXPECT_SNAPSHOT(kind, node, at, 64, "ram*64");
}

MIRROR_CASE(write, hole, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 256, READ_WRITE, SMALL_PAGES);
  EXPECT_EQ(1, EXPECT_WRITE(node, at, 1, 1));
  EXPECT_EQ(0, EXPECT_WRITE(node, at, 1, 2));
  EXPECT_EQ(1, EXPECT_WRITE(node, at, 100, 3));
  EXPECT_EQ(1, EXPECT_WRITE(node, at, 200, 4));
  EXPECT_SNAPSHOT(kind, node, at, 256, "ram*200 none*56");
  EXPECT_CONTENTS(at, 256, "v4*200 0*56");
}

MIRROR_CASE(write, zero_page_is_replaced, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 8, READ_WRITE, SMALL_PAGES);
  EXPECT_CONTENTS(at, 8, "0*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "zero*8");
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "0*8"));
  // The entry from the read does not allow writing the zero page.
  EXPECT_EQ(host_maps_zero_page() ? 1 : 0, EXPECT_WRITE(node, at, 8, 3));
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*8");
  EXPECT_CONTENTS(at, 8, "v3*8");
}

MIRROR_CASE(write, read_only_memory, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_ERROR(EPERM, stamp_by_device(node, at, 8, 2).error);
  EXPECT_CONTENTS(at, 8, "v1*8");
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, READ_WRITE) == 0);
  EXPECT_WRITE(node, at, 8, 2);
  EXPECT_CONTENTS(at, 8, "v2*8");
}

MIRROR_CASE(write, unreadable_memory, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_NONE) == 0);
  EXPECT_ERROR(EFAULT, stamp_by_device(node, at, 8, 2).error);
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, READ_WRITE) == 0);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(write, a_prefix_stays_when_a_later_page_fails, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 64, READ_WRITE, SMALL_PAGES);
  map_pages(64, 64, PROT_READ, SMALL_PAGES);
  EXPECT_ERROR(EPERM, stamp_by_device(node, at, 128, 5).error);
  EXPECT_CONTENTS(at, 64, "0*64");  // nothing had an entry: the first round failed before any page was written
  EXPECT_ERROR(EPERM, stamp_by_device(node, at + 60 * DMIRROR_PAGE, 8, 6).error);
  EXPECT_CONTENTS(at + 56 * DMIRROR_PAGE, 8, "0*4 v6*4");
}

MIRROR_CASE(write, takes_rights_from_the_mapping_as_it_is_now, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_WRITE(node, at, 16, 2);
  REQUIRE(mprotect(at, 4 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_ERROR(EPERM, stamp_by_device(node, at, 4, 3).error);
  EXPECT_CONTENTS(at, 16, "v2*16");
  EXPECT_WRITE(node, at + 8 * DMIRROR_PAGE, 8, 4);
  EXPECT_CONTENTS(at, 16, "v2*8 v4*8");
}

MIRROR_CASE(write, huge_page, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_EQ(1, EXPECT_WRITE(node, at, 512, 2));
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_CONTENTS(at, 512, "v2*512");
}

MIRROR_CASE(write, shared_file, EACH_KIND) {
  const int node = open_node(kind->node);
  const int file = stamped_file(16, 9);
  char* at = map_file(0, 16, READ_WRITE, MAP_SHARED, file);
  EXPECT_WRITE(node, at + 2 * DMIRROR_PAGE, 4, 3);
  EXPECT_FILE(file, 16, "v9*2 v3*4 v9*10");
  EXPECT_CONTENTS(at, 16, "v9*2 v3*4 v9*10");
}

MIRROR_CASE(write, private_file, EACH_KIND) {
  const int node = open_node(kind->node);
  const int file = stamped_file(16, 9);
  char* at = map_file(0, 16, READ_WRITE, MAP_PRIVATE, file);
  EXPECT_WRITE(node, at, 4, 3);
  EXPECT_CONTENTS(at, 16, "v3*4 v9*12");
  EXPECT_FILE(file, 16, "v9*16");
}

MIRROR_CASE(write, read_only_private_file, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_file(0, 8, PROT_READ, MAP_PRIVATE, stamped_file(8, 9));
  EXPECT_ERROR(EPERM, stamp_by_device(node, at, 2, 4).error);
  EXPECT_READ(node, at, 8, "v9*8");
}

MIRROR_CASE(write, two_mappings_of_one_file_see_it, EACH_KIND) {
  const int node = open_node(kind->node);
  const int file = stamped_file(8, 9);
  char* first = map_file(0, 8, READ_WRITE, MAP_SHARED, file);
  char* second = map_file(16, 8, READ_WRITE, MAP_SHARED, file);
  EXPECT_READ(node, second, 8, "v9@16*8");
  EXPECT_WRITE(node, second, 4, 2);
  EXPECT_CONTENTS(first, 8, "v2@-16*4 v9*4");
  EXPECT_ERROR(ENOENT, to_device(node, first, 8).error);
  REQUIRE(munmap(first, 8 * DMIRROR_PAGE) == 0);
  EXPECT_READ(node, second, 8, "v2*4 v9@16*4");
}

MIRROR_CASE(write, shared_memory_reaches_the_other_process, EACH_KIND) {
  char* at = map_file(0, 8, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
  stamp(at, 8, 1);
  struct partner other = start_child();
  if (other.in_child) {
    // The child mirrors its own space; the memory is everybody's.
    const int node = open_node(kind->node);
    EXPECT_READ(node, at, 8, "v1*8");
    EXPECT_WRITE(node, at, 8, 2);
    EXPECT_CONTENTS(at, 8, "v2*8");
    end_child();
  }
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v2*8");
}

MIRROR_CASE(write, in_a_child_stays_in_the_child, EACH_KIND) {
  char* at = map_stamped(0, 8, 1);
  struct partner other = start_child();
  if (other.in_child) {
    const int node = open_node(kind->node);
    EXPECT_SNAPSHOT(kind, node, at, 8, "ram-ro*8");
    EXPECT_WRITE(node, at, 8, 2);
    EXPECT_CONTENTS(at, 8, "v2*8");
    end_child();
  }
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(write, in_the_parent_stays_in_the_parent, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*8");
    stamp(at + DMIRROR_PAGE, 1, 3);
    end_child();
  }
  EXPECT_WRITE(node, at, 4, 2);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*4 ram-ro*4");
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v2*4 v1*4");
}

MIRROR_CASE(write, own_device_page_stays, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  EXPECT_EQ(0, EXPECT_WRITE(node, at, 64, 2));
  EXPECT_SNAPSHOT(kind, node, at, 64, "dev*64");
  EXPECT_EQ(0, EXPECT_READ(node, at, 64, "v2*64"));
  EXPECT_CONTENTS(at, 64, "v2*64");
}

MIRROR_CASE(write, readable_own_device_page, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_READ) == 0);
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, READ_WRITE) == 0);
  // The kernel refuses; writing it after all is fine too, but never half of it.
  const int error = stamp_by_device(node, at, 8, 2).error;
  EXPECT(error == EFAULT || error == 0);
  EXPECT_CONTENTS(at, 8, error ? "v1*8" : "v2*8");
}

MIRROR_CASE(write, to_a_hole_that_went_to_the_device, PRIVATE | HAZARD) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 8, READ_WRITE, SMALL_PAGES);
  EXPECT_TO_DEVICE(node, at, 8, "0*8");
  EXPECT_EQ(1, EXPECT_WRITE(node, at, 8, 3));  // the entry from migrating a hole is read-only
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*8");
  EXPECT_CONTENTS(at, 8, "v3*8");
}
