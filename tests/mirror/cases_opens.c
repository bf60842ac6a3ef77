// Several opens of one node, closing, RELEASE, and two nodes over the same memory.
#include <errno.h>
#include <stdio.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

MIRROR_CASE(opens, close_brings_everything_home, EACH_KIND) {
  int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  char* small = map_stamped(600, 8, 2);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_TO_DEVICE(node, small, 8, "v2*8");
  EXPECT_WRITE(node, small, 4, 3);
  EXPECT(close(node) == 0);
  node = open_node(kind->node);
  EXPECT_SNAPSHOT(kind, node, at, 512, "home*512");
  EXPECT_SNAPSHOT(kind, node, small, 8, "ram*8");
  EXPECT_CONTENTS(at, 512, "v1*512");
  EXPECT_CONTENTS(small, 8, "v3*4 v2*4");
  EXPECT_TO_DEVICE(node, small, 8, "v3*4 v2*4");
}

MIRROR_CASE(opens, closing_one_evicts_pages_of_all, EACH_KIND) {
  const int first = open_node(kind->node);
  const int second = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(8, 24, 1);
  EXPECT_TO_DEVICE(first, at, 8, "v1*8");
  EXPECT_TO_DEVICE(second, at + 8 * DMIRROR_PAGE, 8, "v1*8");
  EXPECT_TO_DEVICE(other, at + 16 * DMIRROR_PAGE, 8, "v1*8");
  EXPECT(close(second) == 0);
  EXPECT_SNAPSHOT(kind, first, at, 16, "ram*16");
  EXPECT_SNAPSHOT(kind, other, at, 24, "ram*16 dev*8");
  EXPECT_TO_DEVICE(first, at, 8, "v1*8");  // still usable
  EXPECT_SNAPSHOT(kind, first, at, 8, "dev*8");
  EXPECT_CONTENTS(at, 24, "v1*24");
}

MIRROR_CASE(opens, closing_evicts_pages_of_other_processes, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  struct partner other = start_child();
  if (other.in_child) {
    const int own = open_node(kind->node);
    stamp(at, 8, 2);
    EXPECT_TO_DEVICE(own, at, 8, "v2*8");
    EXPECT_SNAPSHOT(kind, own, at, 8, "dev*8");
    pass_turn(&other);
    await_turn(&other);
    EXPECT_SNAPSHOT(kind, own, at, 8, "ram*8");
    EXPECT_CONTENTS(at, 16, "v2*8 v1*8");
    end_child();
  }
  await_turn(&other);
  const int second = open_node(kind->node);
  EXPECT(close(second) == 0);
  pass_turn(&other);
  await_child(&other);
  EXPECT_READ(node, at, 16, "v1*16");
}

MIRROR_CASE(opens, share_the_node_but_not_their_tables, EACH_KIND) {
  const int first = open_node(kind->node);
  const int second = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(first, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, second, at, 8, "dev*8");
  EXPECT_ERROR(ENOENT, to_device(second, at, 8).error);
  EXPECT_TO_SYSTEM(second, at, 8, 8);
  EXPECT_SNAPSHOT(kind, first, at, 8, "ram*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(opens, both_see_changes_of_the_memory, EACH_KIND) {
  const int first = open_node(kind->node);
  const int second = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EQ(1, EXPECT_READ(first, at, 8, "v1*8"));
  EXPECT_EQ(1, EXPECT_READ(second, at, 8, "v1*8"));
  EXPECT_EQ(0, EXPECT_READ(second, at, 8, "v1*8"));
  REQUIRE(madvise(at, 8 * DMIRROR_PAGE, MADV_DONTNEED) == 0);
  EXPECT_EQ(1, EXPECT_READ(first, at, 8, "0*8"));
  EXPECT_EQ(1, EXPECT_READ(second, at, 8, "0*8"));
  EXPECT_WRITE(first, at, 8, 2);
  EXPECT_READ(second, at, 8, "v2*8");
}

MIRROR_CASE(release, brings_everything_home, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  char* small = map_stamped(600, 8, 2);
  for (int round = 0; round < 3; round++) {
    EXPECT_TO_DEVICE(node, at, 512, "v1*512");
    EXPECT_TO_DEVICE(node, small, 8, "v2*8");
    const struct reply reply = release_node(node);
    EXPECT_ERROR(0, reply.error);
    EXPECT_EQ(0, reply.cpages);
    EXPECT_SNAPSHOT(kind, node, at, 512, "home*512");
    EXPECT_SNAPSHOT(kind, node, small, 8, "ram*8");
  }
  EXPECT_CONTENTS(at, 512, "v1*512");
  EXPECT_CONTENTS(small, 8, "v2*8");
}

MIRROR_CASE(release, without_anything_on_the_node, EACH_KIND) {
  const int node = open_node(kind->node);
  for (int i = 0; i < 3; i++) EXPECT_ERROR(0, release_node(node).error);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
}

MIRROR_CASE(release, split_unit, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 2, 1);
  EXPECT_TO_DEVICE(node, at, 1024, "v1*1024");
  EXPECT_TO_SYSTEM(node, at, 10, 10);  // the first page of the unit among them
  EXPECT_ERROR(0, release_node(node).error);
  EXPECT_SNAPSHOT(kind, node, at, 1024, "ram*512 RAM*512");
  EXPECT_CONTENTS(at, 1024, "v1*1024");
}

MIRROR_CASE(release, leaves_the_other_node_alone, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_TO_DEVICE(other, at + 8 * DMIRROR_PAGE, 8, "v1*8");
  EXPECT_ERROR(0, release_node(node).error);
  EXPECT_SNAPSHOT(kind, other, at, 16, "ram*8 dev*8");
  EXPECT_CONTENTS(at, 16, "v1*16");
}

MIRROR_CASE(release, keeps_device_writes, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  EXPECT_WRITE(node, at + 10 * DMIRROR_PAGE, 20, 2);
  EXPECT_ERROR(0, release_node(node).error);
  EXPECT_CONTENTS(at, 64, "v1*10 v2*20 v1*34");
}

MIRROR_CASE(release, pages_that_two_processes_share, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*8");
    end_child();
  }
  EXPECT_ERROR(0, release_node(node).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram-ro*8");
  stamp(at, 2, 3);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v3*2 v1*6");
}

MIRROR_CASE(release, read_only_pages_stay_read_only, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  REQUIRE(mprotect(at, 4 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_ERROR(0, release_node(node).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram-ro*4 ram*4");
}

MIRROR_CASE(pair, pages_of_the_other_node_are_left_there, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, other, at, 16, kind->coherent ? "other*8 ram*8" : "none*8 ram*8");
  EXPECT_ERROR(ENOENT, to_device(other, at, 8).error);
  EXPECT_TO_SYSTEM(other, at, 16, 0);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*8 ram*8");
  EXPECT_TO_SYSTEM(node, at, 16, 8);
  EXPECT_TO_DEVICE(other, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, other, at, 16, "dev*8 ram*8");
}

MIRROR_CASE(pair, a_read_by_the_other_node, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT_EQ(1, EXPECT_READ(other, at, 8, "v1*8"));
  EXPECT_SNAPSHOT(kind, node, at, 16, kind->coherent ? "dev*16" : "ram*8 dev*8");
}

MIRROR_CASE(pair, a_write_by_the_other_node, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT_EQ(1, EXPECT_WRITE(other, at, 8, 2));
  EXPECT_SNAPSHOT(kind, node, at, 16, kind->coherent ? "dev*16" : "ram*8 dev*8");
  EXPECT_CONTENTS(at, 16, "v2*8 v1*8");
}

MIRROR_CASE(pair, competing_for_one_range, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_ERROR(ENOENT, to_device(other, at + 4 * DMIRROR_PAGE, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, kind->coherent ? "dev*8 other*4 ram*4" : "dev*8 none*4 ram*4");
  EXPECT_SNAPSHOT(kind, other, at, 16, kind->coherent ? "other*8 dev*4 ram*4" : "none*8 dev*4 ram*4");
  EXPECT_CONTENTS(at, 16, "v1*16");
}

MIRROR_CASE(pair, alternating, EACH_KIND) {
  const int nodes[] = {open_node(kind->node), open_node(kind->other)};
  char* at = map_stamped(0, 64, 1);
  for (unsigned round = 0; round < 20; round++) {
    char contents[20];
    snprintf(contents, sizeof contents, "v%u*64", round + 1);
    EXPECT_TO_DEVICE(nodes[round % 2], at, 64, contents);
    EXPECT_EQ(0, EXPECT_WRITE(nodes[round % 2], at, 64, round + 2));
    EXPECT_TO_SYSTEM(nodes[round % 2], at, 64, 64);
  }
  EXPECT_CONTENTS(at, 64, "v21*64");
}

MIRROR_CASE(pair, a_unit_seen_from_the_other_node, PRIVATE) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_SNAPSHOT(kind, other, at, 512, "fault*512");
  EXPECT_ERROR(ENOENT, to_device(other, at, 512).error);
  EXPECT_TO_SYSTEM(other, at, 512, 0);
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  EXPECT_EQ(1, EXPECT_WRITE(other, at + 5 * DMIRROR_PAGE, 2, 7));
  EXPECT_SNAPSHOT(kind, other, at, 512, "RAM*512");
  EXPECT_TO_DEVICE(other, at, 512, "v1*5 v7*2 v1*505");
  EXPECT_SNAPSHOT(kind, node, at, 512, "fault*512");
  EXPECT_CONTENTS(at, 8, "v1*5 v7*2 v1");
}

MIRROR_CASE(pair, same_ram_in_both_tables, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "v1*8"));
  EXPECT_EQ(1, EXPECT_READ(other, at, 8, "v1*8"));
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  // What the other node held has moved away; it must look again.
  EXPECT_EQ(1, EXPECT_READ(other, at, 8, "v1*8"));
  EXPECT_CONTENTS(at, 8, "v1*8");
}
