// Where pages are after fork, which process brings them home for whom, and 2 MiB units that two processes share.
#include <signal.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

MIRROR_CASE(fork, shares_pages_that_are_out, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    end_child();
  }
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev-ro*16");
  pass_turn(&other);
  await_child(&other);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev-ro*16");  // rights come back with the next write only
}

MIRROR_CASE(fork, child_touch_brings_home_for_both, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    EXPECT_CONTENTS(at, 4, "v1*4");
    pass_turn(&other);
    await_turn(&other);
    end_child();
  }
  await_turn(&other);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram-ro*4 dev-ro*12");
  pass_turn(&other);
  await_child(&other);
}

MIRROR_CASE(fork, parent_touch_brings_home, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 16, "v1*16");
    pass_turn(&other);
    await_turn(&other);
    end_child();
  }
  stamp(at, 4, 2);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*4 dev-ro*12");
  pass_turn(&other);
  await_turn(&other);
  stamp(at + 4 * DMIRROR_PAGE, 4, 3);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*8 ram-ro*8");
  pass_turn(&other);
  await_child(&other);
}

MIRROR_CASE(fork, survivor_reuses_its_page, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) end_child();
  await_child(&other);
  stamp(at, 1, 2);
  EXPECT_CONTENTS(at + DMIRROR_PAGE, 1, "v1");
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram ram-ro dev-ro*6");
  EXPECT_TO_SYSTEM(node, at, 8, 6);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram ram-ro*7");
  stamp(at, 8, 5);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*8");
}

MIRROR_CASE(fork, writer_of_a_coherent_page_gets_a_ram_copy, COHERENT) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*8");
    end_child();
  }
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro*8");
  stamp(at + DMIRROR_PAGE, 1, 3);
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro ram dev-ro*6");
  pass_turn(&other);
  await_child(&other);
  stamp(at + 2 * DMIRROR_PAGE, 1, 5);  // the only user left: in place
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro ram dev dev-ro*5");
  EXPECT_TO_SYSTEM(node, at, 8, 7);
}

MIRROR_CASE(fork, huge_child_reads, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  struct partner other = start_child();
  if (other.in_child) {
    EXPECT_CONTENTS(at + 3 * DMIRROR_PAGE, 1, "v1");
    pass_turn(&other);
    await_turn(&other);
    EXPECT_CONTENTS(at, 512, "v1*512");
    end_child();
  }
  await_turn(&other);
  EXPECT_CONTENTS(at, 512, "v1*512");
  stamp(at + 5 * DMIRROR_PAGE, 1, 2);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 512, "v1*5 v2 v1*506");
}

MIRROR_CASE(fork, huge_unit_comes_home_huge_for_both, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  struct partner other = start_child();
  if (other.in_child) {
    EXPECT_EQ(0, touch_read(at + 3 * DMIRROR_PAGE));
    end_child();
  }
  await_child(&other);
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM-ro*512");
  stamp(at + 2 * DMIRROR_PAGE, 1, 5);
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_CONTENTS(at, 512, "v1*2 v5 v1*509");
}

MIRROR_CASE(fork, huge_unit_shared_in_ram_goes_out, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    stamp(at, 1, 2);
    EXPECT_CONTENTS(at, 512, "v2 v1*511");
    end_child();
  }
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM-ro*512");
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV-ro*512");
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(fork, huge_unit_partly_unmapped_in_the_child, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  struct partner other = start_child();
  if (other.in_child) {
    REQUIRE(munmap(at, 100 * DMIRROR_PAGE) == 0);
    EXPECT_EQ(SIGSEGV, touch_read(at + 99 * DMIRROR_PAGE));
    EXPECT_CONTENTS(at + 100 * DMIRROR_PAGE, 412, "v1*412");
    end_child();
  }
  await_child(&other);
  EXPECT_CONTENTS(at, 512, "v1*512");
}
