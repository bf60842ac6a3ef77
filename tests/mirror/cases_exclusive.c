// Device-exclusive pages: the CPU has no access until it takes the page back, which it does by touching it.
#include <errno.h>
#include <signal.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

MIRROR_CASE(exclusive, until_the_cpu_reads, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 16, "none*8 ram*8");
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 8).error);
  EXPECT_EQ(0, touch_read(at));
  EXPECT_ERROR(0, check_exclusive(node, at, 1).error);
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram none*7 ram*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
  EXPECT_ERROR(0, check_exclusive(node, at, 8).error);
}

MIRROR_CASE(exclusive, until_the_cpu_writes, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  stamp(at + 3 * DMIRROR_PAGE, 1, 2);
  EXPECT_ERROR(0, check_exclusive(node, at + 3 * DMIRROR_PAGE, 1).error);
  EXPECT_ERROR(EPERM, check_exclusive(node, at + 5 * DMIRROR_PAGE, 1).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, "none*3 ram none*4 ram*8");
  EXPECT_READ(node, at, 8, "v1*3 v2 v1*4");
}

MIRROR_CASE(exclusive, the_device_reads_without_losing_it, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  EXPECT_EQ(0, EXPECT_READ(node, at, 8, "v1*8"));
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 8).error);
  EXPECT_EQ(1, EXPECT_WRITE(node, at + 2 * DMIRROR_PAGE, 2, 5));
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 2).error);
  EXPECT_ERROR(0, check_exclusive(node, at + 2 * DMIRROR_PAGE, 2).error);
  EXPECT_ERROR(EPERM, check_exclusive(node, at + 5 * DMIRROR_PAGE, 3).error);
  EXPECT_CONTENTS(at, 8, "v1*2 v5*2 v1*4");
}

MIRROR_CASE(exclusive, until_a_system_call_uses_the_page, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  const int file = stamped_file(8, 9);
  EXPECT(pwrite(file, at, 2 * DMIRROR_PAGE, 0) == 2 * DMIRROR_PAGE);
  EXPECT_FILE(file, 8, "v1*2 v9*6");
  EXPECT(pread(file, at + 4 * DMIRROR_PAGE, DMIRROR_PAGE, 4 * DMIRROR_PAGE) == DMIRROR_PAGE);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*2 none*2 ram none*3");
  EXPECT_CONTENTS(at, 8, "v1*4 v9 v1*3");
}

MIRROR_CASE(exclusive, again_by_the_same_open, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  EXPECT_EXCLUSIVE(node, at + 2 * DMIRROR_PAGE, 2, "v1*2");
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 2).error);
  EXPECT_ERROR(EPERM, check_exclusive(node, at + 2 * DMIRROR_PAGE, 2).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "none*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(exclusive, moves_to_another_device_that_asks, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  EXPECT_EXCLUSIVE(other, at + 2 * DMIRROR_PAGE, 2, "v1*2");
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 2).error);
  EXPECT_ERROR(0, check_exclusive(node, at + 2 * DMIRROR_PAGE, 2).error);
  EXPECT_ERROR(EPERM, check_exclusive(node, at + 5 * DMIRROR_PAGE, 3).error);
  EXPECT_ERROR(EPERM, check_exclusive(other, at + 2 * DMIRROR_PAGE, 2).error);
  EXPECT_READ(other, at, 8, "v1*8");
  EXPECT_ERROR(0, check_exclusive(node, at, 8).error);
}

MIRROR_CASE(exclusive, holes_zero_pages_and_units, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(600, 8, READ_WRITE, SMALL_PAGES);
  EXPECT_EXCLUSIVE(node, at, 4, "0*4");
  EXPECT_EQ(0, touch_read(at + 4 * DMIRROR_PAGE));
  EXPECT_EXCLUSIVE(node, at + 4 * DMIRROR_PAGE, 2, "0*2");
  EXPECT_SNAPSHOT(kind, node, at, 8, "none*8");
  char* unit = map_huge_stamped(0, 1, 1);
  EXPECT_EXCLUSIVE(node, unit + 5 * DMIRROR_PAGE, 2, "v1*2");
  EXPECT_SNAPSHOT(kind, node, unit, 512, "ram*5 none*2 ram*505");
  EXPECT_CONTENTS(unit, 512, "v1*512");
  EXPECT_SNAPSHOT(kind, node, unit, 512, "ram*512");
}

MIRROR_CASE(exclusive, pages_on_the_device_come_home_first, PRIVATE) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 4, "v1*4");
  EXPECT_TO_DEVICE(other, at + 4 * DMIRROR_PAGE, 4, "v1*4");
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 16, "none*8 ram*8");
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 8).error);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");  // stays where it is: the device can reach it
  EXPECT_SNAPSHOT(kind, node, at, 8, "none*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*8");
}

MIRROR_CASE(exclusive, one_page_of_a_unit_on_the_device, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_EXCLUSIVE(node, at + 7 * DMIRROR_PAGE, 1, "v1");
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*7 none ram*504");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(exclusive, coherent_pages_stay_on_their_device, COHERENT) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_EXCLUSIVE(node, at, 4, "v1*4");
  EXPECT_SNAPSHOT(kind, node, at, 8, "none*4 dev*4");
  EXPECT_CONTENTS(at, 2, "v1*2");
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*2 none*2 dev*4");
  EXPECT_TO_SYSTEM(node, at, 8, 6);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(exclusive, migrating_around_them, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at + 2 * DMIRROR_PAGE, 2, "v1*2");
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*2 none*2 dev*4");
  EXPECT_ERROR(EPERM, check_exclusive(node, at + 2 * DMIRROR_PAGE, 2).error);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(exclusive, refused, EACH_KIND) {
  const int node = open_node(kind->node);
  char* shared = map_file(0, 8, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
  stamp(shared, 8, 1);
  EXPECT_ERROR(EOPNOTSUPP, make_exclusive(node, shared, 1).error);
  const int file = stamped_file(24, 9);
  EXPECT_ERROR(EOPNOTSUPP, make_exclusive(node, map_file(8, 8, READ_WRITE, MAP_SHARED, file), 1).error);
  char* copied = map_file(16, 8, READ_WRITE, MAP_PRIVATE, file);
  EXPECT_EXCLUSIVE(node, copied, 1, "v9@16");
  EXPECT_ERROR(EFAULT, make_exclusive(node, map_pages(24, 8, PROT_READ, SMALL_PAGES), 1).error);
  EXPECT_ERROR(EFAULT, make_exclusive(node, map_pages(32, 8, PROT_NONE, SMALL_PAGES), 1).error);
  EXPECT_ERROR(EFAULT, make_exclusive(node, window(100), 1).error);
}

MIRROR_CASE(exclusive, pages_before_the_failing_one_stay_exclusive, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(40, 4, 1);
  EXPECT_ERROR(EFAULT, make_exclusive(node, at - 2 * DMIRROR_PAGE, 4).error);
  EXPECT_SNAPSHOT(kind, node, at, 4, "ram*4");
  EXPECT_ERROR(EFAULT, make_exclusive(node, at + 2 * DMIRROR_PAGE, 4).error);
  EXPECT_SNAPSHOT(kind, node, at, 4, "ram*2 none*2");
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 4).error);
  EXPECT_CONTENTS(at, 4, "v1*4");
}

MIRROR_CASE(exclusive, protection_change, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_ERROR(0, check_exclusive(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "none*8");
  EXPECT_CONTENTS(at, 2, "v1*2");
  EXPECT_EQ(SIGSEGV, touch_write(at + 2 * DMIRROR_PAGE));
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram-ro*2 none*6");
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, READ_WRITE) == 0);
  stamp(at, 8, 4);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*8");
}

MIRROR_CASE(exclusive, fork_ends_it, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    stamp(at, 4, 2);
    EXPECT_CONTENTS(at, 8, "v2*4 v1*4");
    end_child();
  }
  EXPECT_ERROR(0, check_exclusive(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram-ro*8");
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(exclusive, pages_shared_by_fork_are_unshared, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  struct partner other = start_child();
  if (other.in_child) {
    const int own = open_node(kind->node);
    EXPECT_EXCLUSIVE(own, at, 4, "v1*4");
    pass_turn(&other);
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*8");
    end_child();
  }
  await_turn(&other);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  stamp(at, 2, 2);
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*2 none*6");
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v2*2 v1*6");
}

MIRROR_CASE(exclusive, copy_on_write_without_fork_damage, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  struct partner other = start_child();
  if (other.in_child) {
    await_turn(&other);
    EXPECT_CONTENTS(at, 8, "v1*8");
    end_child();
  }
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  EXPECT_WRITE(node, at, 8, 2);
  stamp(at, 1, 3);
  pass_turn(&other);
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v3 v2*7");
}

MIRROR_CASE(exclusive, unmapped_dropped_and_moved, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_EXCLUSIVE(node, at, 16, "v1*16");
  REQUIRE(munmap(at, 2 * DMIRROR_PAGE) == 0);
  REQUIRE(madvise(at + 4 * DMIRROR_PAGE, 2 * DMIRROR_PAGE, MADV_DONTNEED) == 0);
  EXPECT_ERROR(0, check_exclusive(node, at, 2).error);
  EXPECT_ERROR(0, check_exclusive(node, at + 4 * DMIRROR_PAGE, 2).error);
  EXPECT_ERROR(EPERM, check_exclusive(node, at + 8 * DMIRROR_PAGE, 8).error);
  char* moved =
      mremap(at + 8 * DMIRROR_PAGE, 4 * DMIRROR_PAGE, 4 * DMIRROR_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED, window(100));
  REQUIRE(moved != MAP_FAILED);
  EXPECT_ERROR(0, check_exclusive(node, at + 8 * DMIRROR_PAGE, 4).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, "fault*2 none*6 fault*4 none*4");
  EXPECT_SNAPSHOT(kind, node, moved, 4, "none*4");
  EXPECT_CONTENTS(moved, 4, "v1@92*4");
  EXPECT_CONTENTS(at + 2 * DMIRROR_PAGE, 6, "v1*2 0*2 v1*2");
  EXPECT_CONTENTS(at + 12 * DMIRROR_PAGE, 4, "v1*4");
}

MIRROR_CASE(exclusive, hints, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at, 4, "v1*4");
  REQUIRE(madvise(at, 8 * DMIRROR_PAGE, ADVISE_COLD) == 0);
  EXPECT_ERROR(EPERM, check_exclusive(node, at, 4).error);
  REQUIRE(madvise(at, 8 * DMIRROR_PAGE, MADV_FREE) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 4, "none*4");
  EXPECT_ERROR(0, check_exclusive(node, at, 4).error);
  stamp(at, 4, 2);
  EXPECT_CONTENTS(at, 4, "v2*4");
}

MIRROR_CASE(exclusive, another_device_migrating_over_it, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at, 4, "v1*4");
  EXPECT_ERROR(ENOENT, to_device(other, at, 8).error);
  EXPECT_SNAPSHOT(kind, other, at, 8, "none*4 dev*4");
  EXPECT_ERROR(0, check_exclusive(node, at, 4).error);
  EXPECT_TO_SYSTEM(node, at, 8, 0);
  EXPECT_SNAPSHOT(kind, node, at, 4, "none*4");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(exclusive, closing_leaves_the_slots_as_they_are, EACH_KIND) {
  int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_EXCLUSIVE(node, at, 8, "v1*8");
  EXPECT(close(node) == 0);
  node = open_node(kind->node);
  EXPECT_SNAPSHOT(kind, node, at, 8, "none*8");
  EXPECT_ERROR(0, check_exclusive(node, at, 8).error);
  EXPECT_CONTENTS(at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*8");
}

MIRROR_CASE(exclusive, collapse_takes_them_back, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_EXCLUSIVE(node, at + 10 * DMIRROR_PAGE, 4, "v1*4");
  if (madvise(at, 512 * DMIRROR_PAGE, ADVISE_COLLAPSE) != 0) skip_case("MADV_COLLAPSE: %s", error_name(errno));
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_ERROR(0, check_exclusive(node, at + 10 * DMIRROR_PAGE, 4).error);
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(exclusive, atomics_by_turns, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 1, READ_WRITE, SMALL_PAGES);
  uint64_t* counter = (uint64_t*)at;
  char* buffer = buffer_of(1);
  for (uint64_t round = 0; round < 200; round += 2) {
    EXPECT_ERROR(0, command(node, DMIRROR_EXCLUSIVE, at, buffer, 1).error);
    EXPECT_EQ(round, *(uint64_t*)buffer);
    *(uint64_t*)buffer += 1;
    EXPECT_ERROR(0, device_write(node, at, 1, buffer).error);
    EXPECT_EQ(round + 1, __atomic_fetch_add(counter, 1, __ATOMIC_SEQ_CST));
  }
}

MIRROR_CASE(exclusive, thousand_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 1000, 1);
  EXPECT_EXCLUSIVE(node, at, 1000, "v1*1000");
  EXPECT_SNAPSHOT(kind, node, at, 1000, "none*1000");
  EXPECT_CONTENTS(at, 1000, "v1*1000");
  EXPECT_ERROR(0, check_exclusive(node, at, 1000).error);
}
