// madvise of every kind, mlock and mincore over device pages.
#include <errno.h>
#include <signal.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

#define ADVISE(at, pages, how) REQUIRE(madvise((at), (pages) * (size_t)DMIRROR_PAGE, (how)) == 0)

MIRROR_CASE(advise, dontneed_drops_the_data, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  ADVISE(at + 4 * DMIRROR_PAGE, 4, MADV_DONTNEED);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*4 none*4 dev*8");
  EXPECT_CONTENTS(at, 16, "v1*4 0*4 v1*8");
}

MIRROR_CASE(advise, dontneed_of_locked_memory, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  if (mlock(at, 16 * DMIRROR_PAGE) != 0) skip_case("mlock: %s", error_name(errno));
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT(madvise(at, 4 * DMIRROR_PAGE, MADV_DONTNEED) < 0 && errno == EINVAL);
  ADVISE(at, 4, ADVISE_DONTNEED_LOCKED);
  EXPECT_CONTENTS(at, 16, "0*4 v1*12");
}

MIRROR_CASE(advise, dontneed_of_part_of_a_unit, EACH_KIND) {
  const int node = open_node(kind->node);
  static const struct { size_t first, pages; } parts[] = {{0, 1}, {0, 170}, {170, 170}, {342, 170}, {511, 1}};
  for (size_t i = 0; i < sizeof parts / sizeof *parts; i++) {
    char* at = map_huge_stamped(0, 1, 1);
    EXPECT_TO_DEVICE(node, at, 512, "v1*512");
    ADVISE(at + parts[i].first * DMIRROR_PAGE, parts[i].pages, MADV_DONTNEED);
    for (size_t page = 0; page < 512; page++) {
      const int gone = page >= parts[i].first && page < parts[i].first + parts[i].pages;
      EXPECT_CONTENTS(at + page * DMIRROR_PAGE, 1, gone ? "0" : "v1");
    }
  }
}

MIRROR_CASE(advise, dontneed_of_a_unit, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  ADVISE(at, 512, MADV_DONTNEED);
  EXPECT_SNAPSHOT(kind, node, at, 512, "none*512");
  EXPECT_TO_DEVICE(node, at, 512, "0*512");
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
}

MIRROR_CASE(advise, free_keeps_device_data, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  ADVISE(at, 16, MADV_FREE);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*8 ram*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(advise, free_then_write_keeps_the_write, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  ADVISE(at, 512, MADV_FREE);
  stamp(at, 512, 2);
  EXPECT_CONTENTS(at, 512, "v2*512");
}

MIRROR_CASE(advise, hints_move_nothing, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  ADVISE(at, 512, ADVISE_COLD);
  ADVISE(at, 512, MADV_WILLNEED);
  ADVISE(at, 512, MADV_NORMAL);
  ADVISE(at, 512, MADV_SEQUENTIAL);
  ADVISE(at, 512, MADV_RANDOM);
  ADVISE(at, 512, MADV_NOHUGEPAGE);
  ADVISE(at, 512, MADV_HUGEPAGE);
  ADVISE(at, 512, MADV_DONTDUMP);
  ADVISE(at, 512, MADV_DODUMP);
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(advise, pageout_leaves_the_device_alone, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  ADVISE(at, 16, ADVISE_PAGEOUT);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*16");
  EXPECT_CONTENTS(at, 16, "v1*16");
}

MIRROR_CASE(advise, populate_brings_home, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 32, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  ADVISE(at, 4, ADVISE_POPULATE_READ);
  EXPECT_SNAPSHOT(kind, node, at, 16, kind->coherent ? "dev*16" : "ram*4 dev*12");
  ADVISE(at + 4 * DMIRROR_PAGE, 4, ADVISE_POPULATE_WRITE);
  EXPECT_SNAPSHOT(kind, node, at, 16, kind->coherent ? "dev*16" : "ram*8 dev*8");
  EXPECT_CONTENTS(at, 32, "v1*32");
}

MIRROR_CASE(advise, mlock_brings_home_once, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  if (mlock(at, 512 * DMIRROR_PAGE) != 0) skip_case("mlock: %s", error_name(errno));
  EXPECT_SNAPSHOT(kind, node, at, 512, kind->coherent ? "dev*512" : "RAM*512");
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  EXPECT(munlock(at, 512 * DMIRROR_PAGE) == 0);
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(advise, collapse_over_base_pages, PRIVATE) {
  const int node = open_node(kind->node);
  map_huge_stamped(1024, 1, 9);  // skips where there are no huge pages
  char* at = map_stamped(0, 512, 1);
  ADVISE(at, 512, MADV_HUGEPAGE);
  EXPECT_TO_DEVICE(node, at + 10 * DMIRROR_PAGE, 50, "v1*50");
  if (madvise(at, 512 * DMIRROR_PAGE, ADVISE_COLLAPSE) != 0) skip_case("MADV_COLLAPSE: %s", error_name(errno));
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(advise, collapse_stops_at_a_coherent_page, COHERENT) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 512, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  ADVISE(at, 512, MADV_HUGEPAGE);
  EXPECT(madvise(at, 512 * DMIRROR_PAGE, ADVISE_COLLAPSE) < 0 && errno == EINVAL);
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*16 ram*496");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(advise, guards_replace_device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  if (madvise(at + 4 * DMIRROR_PAGE, 4 * DMIRROR_PAGE, ADVISE_GUARD_INSTALL) != 0) {
    skip_case("MADV_GUARD_INSTALL: %s", error_name(errno));
  }
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*4 none*4 dev*8");
  EXPECT_ERROR(ENOENT, to_device(node, at, 16).error);
  EXPECT_ERROR(EFAULT, read_and_drop(node, at + 4 * DMIRROR_PAGE, 2).error);
  EXPECT_EQ(SIGSEGV, touch_read(at + 4 * DMIRROR_PAGE));
  ADVISE(at + 4 * DMIRROR_PAGE, 4, ADVISE_GUARD_REMOVE);
  EXPECT_CONTENTS(at, 16, "v1*4 0*4 v1*8");
}

MIRROR_CASE(advise, wipe_on_fork_keeps_the_parents_unit, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  ADVISE(at, 512, MADV_WIPEONFORK);
  struct partner other = start_child();
  if (other.in_child) {
    EXPECT_CONTENTS(at, 512, "0*512");
    end_child();
  }
  await_child(&other);
  EXPECT_SNAPSHOT(kind, node, at, 512, "DEV*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(advise, mincore_counts_device_pages_as_resident, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 16, READ_WRITE, SMALL_PAGES);
  stamp(at, 8, 1);
  EXPECT_TO_DEVICE(node, at, 4, "v1*4");
  EXPECT_EXCLUSIVE(node, at + 4 * DMIRROR_PAGE, 2, "v1*2");
  unsigned char resident[16];
  REQUIRE(mincore(at, sizeof resident * DMIRROR_PAGE, resident) == 0);
  for (size_t i = 0; i < 16; i++) EXPECT_EQ(i < 8 ? 1 : 0, resident[i] & 1);
}
