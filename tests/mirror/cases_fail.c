// Allocation failures, injected by FAIL_ALLOC: they hit the next allocation of this open, once.
#include <errno.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

static void fail_next_allocation(int node) { EXPECT_ERROR(0, set_flags(node, DMIRROR_FLAG_FAIL_ALLOC).error); }

MIRROR_CASE(fail, one_base_page_stays_at_home, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  fail_next_allocation(node);
  EXPECT_ERROR(ENOENT, to_device(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram dev*7");
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*8");
  EXPECT_CONTENTS(at, 16, "v1*16");
}

MIRROR_CASE(fail, one_hole_stays_a_hole, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 16, READ_WRITE, SMALL_PAGES);
  fail_next_allocation(node);
  EXPECT_ERROR(ENOENT, to_device(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, "none dev*7 none*8");
  EXPECT_CONTENTS(at, 16, "0*16");
}

MIRROR_CASE(fail, a_unit_goes_as_base_pages, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 2, 1);
  fail_next_allocation(node);
  EXPECT_TO_DEVICE(node, at, 1024, "v1*1024");
  EXPECT_SNAPSHOT(kind, node, at, 1024, "dev*512 DEV*512");
  for (size_t i = 0; i < 512; i += 73) EXPECT_EQ(0, touch_read(at + i * DMIRROR_PAGE));
  EXPECT_TO_SYSTEM(node, at, 1024, 504 + 1);
  EXPECT_SNAPSHOT(kind, node, at, 1024, "ram*512 RAM*512");
  EXPECT_CONTENTS(at, 1024, "v1*1024");
}

MIRROR_CASE(fail, an_empty_unit_goes_as_base_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 512, READ_WRITE, DEFAULT_PAGES);
  fail_next_allocation(node);
  EXPECT_TO_DEVICE(node, at, 512, "0*512");
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*512");
  EXPECT_TO_SYSTEM(node, at, 512, 512);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*512");
  EXPECT_CONTENTS(at, 512, "0*512");
}

MIRROR_CASE(fail, a_huge_zero_page_goes_as_base_pages, EACH_KIND) {
  map_huge_stamped(1024, 1, 9);
  const int node = open_node(kind->node);
  char* at = map_pages(0, 512, READ_WRITE, HUGE_PAGES);
  EXPECT_EQ(0, touch_read(at));
  fail_next_allocation(node);
  EXPECT_TO_DEVICE(node, at, 512, "0*512");
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*512");
  stamp(at + 4 * DMIRROR_PAGE, 1, 7);
  EXPECT_CONTENTS(at, 512, "0*4 v7 0*507");
}

MIRROR_CASE(fail, part_of_a_unit, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  fail_next_allocation(node);
  EXPECT_ERROR(ENOENT, to_device(node, at + 10 * DMIRROR_PAGE, 10).error);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*11 dev*9 ram*492");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(fail, base_pages_cannot_come_home, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT_WRITE(node, at, 8, 2);
  fail_next_allocation(node);
  EXPECT_ERROR(ENOMEM, to_system(node, at, 16).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*16");
  EXPECT_TO_SYSTEM(node, at, 16, 16);
  EXPECT_CONTENTS(at, 16, "v2*8 v1*8");
}

MIRROR_CASE(fail, a_unit_comes_home_as_base_pages, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_WRITE(node, at, 256, 2);
  fail_next_allocation(node);
  EXPECT_TO_SYSTEM(node, at, 512, 512);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*512");
  EXPECT_CONTENTS(at, 512, "v2*256 v1*256");
}

MIRROR_CASE(fail, part_of_a_unit_cannot_come_home, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  fail_next_allocation(node);
  EXPECT_ERROR(ENOMEM, to_system(node, at + 10 * DMIRROR_PAGE, 10).error);
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*512");
  EXPECT_TO_SYSTEM(node, at + 10 * DMIRROR_PAGE, 10, 10);
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(fail, a_later_block_keeps_earlier_ones_home, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  map_stamped(512, 512, 2);
  EXPECT_TO_DEVICE(node, at, 1024, "v1*512 v2*512");
  // The first block is a unit and takes the failure: base pages instead. The second one succeeds.
  fail_next_allocation(node);
  EXPECT_TO_SYSTEM(node, at, 1024, 1024);
  EXPECT_CONTENTS(at, 1024, "v1*512 v2*512");
}

MIRROR_CASE(fail, a_cpu_access_succeeds_in_the_end, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  fail_next_allocation(node);
  EXPECT_EQ(0, touch_read(at + 5 * DMIRROR_PAGE));
  stamp(at, 1, 2);
  EXPECT_CONTENTS(at, 16, "v2 v1*15");
}

MIRROR_CASE(fail, a_cpu_access_to_a_unit_succeeds_in_the_end, PRIVATE) {
  const int node = open_node(kind->node);
  for (int writing = 0; writing < 2; writing++) {
    char* at = map_huge_stamped(0, 1, 1);
    EXPECT_TO_DEVICE(node, at, 512, "v1*512");
    fail_next_allocation(node);
    EXPECT_EQ(0, writing ? touch_write(at + 100 * DMIRROR_PAGE) : touch_read(at + 100 * DMIRROR_PAGE));
    // The kernel brings the touched page home and leaves the rest; all 512 would be fine too.
    unsigned char bytes[512];
    EXPECT_ERROR(0, command(node, DMIRROR_SNAPSHOT, at, bytes, 512).error);
    EXPECT_EQ(DMIRROR_PROT_WRITE, bytes[100] & ~DMIRROR_PROT_PMD);
    for (int i = 0; i < 512; i++) {
      const int byte = bytes[i] & ~DMIRROR_PROT_PMD;
      EXPECT(byte == DMIRROR_PROT_WRITE || byte == (DMIRROR_PROT_DEV_PRIVATE_LOCAL | DMIRROR_PROT_WRITE));
    }
    EXPECT_CONTENTS(at, 100, "v1*100");
    EXPECT_CONTENTS(at + 101 * DMIRROR_PAGE, 411, "v1*411");
  }
}

MIRROR_CASE(fail, the_flag_is_used_up, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  fail_next_allocation(node);
  EXPECT_ERROR(ENOENT, to_device(node, at, 1).error);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT_TO_SYSTEM(node, at, 16, 16);
}

MIRROR_CASE(fail, the_flag_can_be_taken_back, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  fail_next_allocation(node);
  EXPECT_ERROR(0, set_flags(node, 2).error);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT_ERROR(0, set_flags(node, 0xfffffffffffff).error);  // every bit that a valid range allows, bit 0 too
  EXPECT_ERROR(ENOMEM, to_system(node, at, 16).error);
}

MIRROR_CASE(fail, the_flag_belongs_to_the_open, EACH_KIND) {
  const int node = open_node(kind->node);
  const int same = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 24, 1);
  fail_next_allocation(node);
  EXPECT_TO_DEVICE(other, at, 8, "v1*8");
  EXPECT_TO_DEVICE(same, at + 16 * DMIRROR_PAGE, 8, "v1*8");
  EXPECT_ERROR(ENOENT, to_device(node, at + 8 * DMIRROR_PAGE, 8).error);
  EXPECT_CONTENTS(at, 24, "v1*24");
}

MIRROR_CASE(fail, what_needs_no_device_page_does_not_use_the_flag_up, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 8, READ_WRITE, SMALL_PAGES);
  fail_next_allocation(node);
  EXPECT_READ(node, at, 2, "0*2");
  EXPECT_WRITE(node, at + 2 * DMIRROR_PAGE, 2, 1);
  EXPECT_EXCLUSIVE(node, at + 4 * DMIRROR_PAGE, 2, "0*2");
  EXPECT_SNAPSHOT(kind, node, at, 8, "zero*2 ram*2 none*4");
  EXPECT_TO_SYSTEM(node, at, 8, 0);
  EXPECT_ERROR(ENOENT, to_device(node, at + 6 * DMIRROR_PAGE, 2).error);
}

MIRROR_CASE(fail, in_the_fault_of_a_child, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*8");
    end_child();
  }
  fail_next_allocation(node);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(fail, on_a_unit_that_two_processes_share, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 512, "v1*512");
    end_child();
  }
  fail_next_allocation(node);
  EXPECT_EQ(0, touch_read(at + 5 * DMIRROR_PAGE));
  pass_turn(&other);
  EXPECT_CONTENTS(at, 512, "v1*512");
  await_child(&other);
}
