// The device reads memory of the process.
#include <errno.h>
#include <string.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"

MIRROR_CASE(read, memory, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 256, 1);
  EXPECT_EQ(1, EXPECT_READ(node, at, 256, "v1*256"));
  EXPECT_EQ(0, EXPECT_READ(node, at, 256, "v1*256"));
  EXPECT_SNAPSHOT(kind, node, at, 256, "ram*256");
}

MIRROR_CASE(read, one_round_per_command_not_per_page, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 256, READ_WRITE, SMALL_PAGES);
  stamp(at, 200, 1);
  EXPECT_EQ(1, EXPECT_READ(node, at, 1, "v1"));
  EXPECT_EQ(0, EXPECT_READ(node, at, 1, "v1"));
  EXPECT_EQ(1, EXPECT_READ(node, at, 200, "v1*200"));
  EXPECT_EQ(0, EXPECT_READ(node, at, 200, "v1*200"));
  EXPECT_EQ(1, EXPECT_READ(node, at + 190 * DMIRROR_PAGE, 20, "v1*10 0*10"));
  EXPECT_EQ(1, EXPECT_READ(node, at, 256, "v1*200 0*56"));
}

MIRROR_CASE(read, sees_later_cpu_writes, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_EQ(1, EXPECT_READ(node, at, 64, "v1*64"));
  stamp(at + 10 * DMIRROR_PAGE, 1, 2);
  EXPECT_EQ(0, EXPECT_READ(node, at, 64, "v1*10 v2 v1*53"));
}

MIRROR_CASE(read, hole_becomes_the_zero_page, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 16, READ_WRITE, SMALL_PAGES);
  EXPECT_SNAPSHOT(kind, node, at, 16, "none*16");
  EXPECT_EQ(1, EXPECT_READ(node, at + 4 * DMIRROR_PAGE, 8, "0*8"));
  EXPECT_SNAPSHOT(kind, node, at, 16, "none*4 zero*8 none*4");
  EXPECT_CONTENTS(at, 16, "0*16");
}

MIRROR_CASE(read, huge_hole_becomes_the_huge_zero_page, EACH_KIND) {
  map_huge_stamped(1024, 1, 9);  // skips where there are no huge pages
  const int node = open_node(kind->node);
  char* at = map_pages(0, 512, READ_WRITE, HUGE_PAGES);
  EXPECT_EQ(1, EXPECT_READ(node, at, 4, "0*4"));
  EXPECT_SNAPSHOT(kind, node, at, 512, "zero-RAM*512");
  EXPECT_EQ(1, EXPECT_WRITE(node, at + 8 * DMIRROR_PAGE, 1, 2));  // of a page that was not read
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_CONTENTS(at, 16, "0*8 v2 0*7");
}

MIRROR_CASE(read, huge_page, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 2, 1);
  EXPECT_EQ(1, EXPECT_READ(node, at, 1024, "v1*1024"));
  EXPECT_EQ(0, EXPECT_READ(node, at + 500 * DMIRROR_PAGE, 24, "v1*24"));
  EXPECT_SNAPSHOT(kind, node, at, 1024, "RAM*1024");
}

MIRROR_CASE(read, huge_tlb_page, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = mmap(window(0), 2 << 20, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_HUGETLB | MAP_FIXED, -1, 0);
  if (at == MAP_FAILED) skip_case("no page in the hugetlb pool (/proc/sys/vm/nr_hugepages)");
  stamp(at, 512, 1);
  EXPECT_EQ(1, EXPECT_READ(node, at, 512, "v1*512"));
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_WRITE(node, at, 512, 2);
  EXPECT_CONTENTS(at, 512, "v2*512");
  EXPECT_ERROR(EINVAL, to_device(node, at, 512).error);
  EXPECT_ERROR(EOPNOTSUPP, make_exclusive(node, at, 1).error);
}

MIRROR_CASE(read, unreadable_memory, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_NONE) == 0);
  EXPECT_ERROR(EFAULT, read_and_drop(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "fault*8");
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_WRITE) == 0);
  EXPECT_ERROR(EFAULT, read_and_drop(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "fault*8");
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "v1*8"));
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram-ro*8");
}

MIRROR_CASE(read, failing_leaves_the_buffer_alone, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  REQUIRE(munmap(at + 40 * DMIRROR_PAGE, 24 * DMIRROR_PAGE) == 0);
  char* buffer = buffer_of(64);
  EXPECT_ERROR(EFAULT, device_read(node, at, 64, buffer).error);
  expect_contents_as(__FILE__, __LINE__, buffer, at, 64, "0*64");
}

MIRROR_CASE(read, a_failed_round_keeps_its_complete_blocks, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 100, 1);
  map_pages(100, 100, PROT_NONE, SMALL_PAGES);
  EXPECT_ERROR(EFAULT, read_and_drop(node, at, 200).error);
  for (size_t block = 0; block < 96; block += 32) {
    EXPECT_EQ(0, EXPECT_READ(node, at + block * DMIRROR_PAGE, 32, "v1*32"));
  }
  EXPECT_EQ(1, EXPECT_READ(node, at + 96 * DMIRROR_PAGE, 4, "v1*4"));
}

MIRROR_CASE(read, private_file, EACH_KIND) {
  const int node = open_node(kind->node);
  const int file = stamped_file(16, 9);
  char* at = map_file(0, 16, READ_WRITE, MAP_PRIVATE, file);
  EXPECT_EQ(1, EXPECT_READ(node, at, 16, "v9*16"));
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram-ro*16");
  stamp(at, 2, 1);
  EXPECT_READ(node, at, 16, "v1*2 v9*14");
  EXPECT_FILE(file, 16, "v9*16");
}

MIRROR_CASE(read, shared_file, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_file(0, 16, READ_WRITE, MAP_SHARED, stamped_file(16, 9));
  EXPECT_EQ(1, EXPECT_READ(node, at, 16, "v9*16"));
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*16");
}

MIRROR_CASE(read, read_only_file, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_file(0, 8, PROT_READ, MAP_SHARED, stamped_file(8, 9));
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "v9*8"));
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram-ro*8");
}

MIRROR_CASE(read, past_the_end_of_a_file, EACH_KIND) {
  const int node = open_node(kind->node);
  const int file = stamped_file(8, 9);
  char* at = map_file(0, 16, READ_WRITE, MAP_SHARED, file);
  EXPECT_READ(node, at, 8, "v9*8");
  EXPECT_ERROR(EFAULT, read_and_drop(node, at, 9).error);
  REQUIRE(ftruncate(file, 4 * DMIRROR_PAGE) == 0);
  EXPECT_ERROR(EFAULT, read_and_drop(node, at, 8).error);
  EXPECT_READ(node, at, 4, "v9*4");
  EXPECT_ERROR(EFAULT, stamp_by_device(node, at + 4 * DMIRROR_PAGE, 1, 3).error);
}

MIRROR_CASE(read, shared_memory, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_file(0, 16, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
  stamp(at, 8, 1);
  EXPECT_EQ(1, EXPECT_READ(node, at, 16, "v1*8 0*8"));
}

MIRROR_CASE(read, several_mappings_at_once, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 40, 1);
  map_file(40, 8, PROT_READ, MAP_SHARED, stamped_file(8, 9));
  map_pages(48, 40, PROT_READ, SMALL_PAGES);
  EXPECT_EQ(1, EXPECT_READ(node, at, 88, "v1*40 v9@40*8 0*40"));
}

MIRROR_CASE(read, many_pages, EACH_KIND) {
  enum { PAGES = 8192 };
  const int node = open_node(kind->node);
  char* at = map_pages(0, PAGES, READ_WRITE, DEFAULT_PAGES);
  stamp(at, PAGES, 1);
  EXPECT_EQ(1, EXPECT_READ(node, at, PAGES, "v1*8192"));
  EXPECT_EQ(0, EXPECT_READ(node, at, PAGES, "v1*8192"));
}

MIRROR_CASE(read, buffer_elsewhere_in_the_same_mapping, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_ERROR(0, device_read(node, at, 8, at + 8 * DMIRROR_PAGE).error);
  EXPECT_CONTENTS(at, 16, "v1*8 v1@8*8");
}

MIRROR_CASE(read, own_device_page_stays, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  EXPECT_EQ(0, EXPECT_READ(node, at, 64, "v1*64"));
  EXPECT_SNAPSHOT(kind, node, at, 64, "dev*64");
}

MIRROR_CASE(read, of_every_byte_value, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 1, READ_WRITE, SMALL_PAGES);
  for (int i = 0; i < DMIRROR_PAGE; i++) at[i] = (char)i;
  char* buffer = buffer_of(1);
  EXPECT_ERROR(0, device_read(node, at, 1, buffer).error);
  EXPECT(memcmp(at, buffer, DMIRROR_PAGE) == 0);
  for (int i = 0; i < DMIRROR_PAGE; i++) buffer[i] = (char)(255 - i);
  EXPECT_ERROR(0, device_write(node, at, 1, buffer).error);
  EXPECT(memcmp(at, buffer, DMIRROR_PAGE) == 0);
}
