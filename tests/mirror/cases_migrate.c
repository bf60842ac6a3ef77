// Pages go to the device and come home, base pages (2 MiB units: cases_huge.c).
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <sys/ioctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

MIRROR_CASE(migrate, there_and_back_on_request, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  EXPECT_SNAPSHOT(kind, node, at, 64, "dev*64");
  EXPECT_TO_SYSTEM(node, at, 64, 64);
  EXPECT_SNAPSHOT(kind, node, at, 64, "ram*64");
  EXPECT_CONTENTS(at, 64, "v1*64");
}

MIRROR_CASE(migrate, part_of_a_mapping, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at + 10 * DMIRROR_PAGE, 20, "v1*20");
  EXPECT_SNAPSHOT(kind, node, at, 64, "ram*10 dev*20 ram*34");
  EXPECT_TO_SYSTEM(node, at + 15 * DMIRROR_PAGE, 5, 5);
  EXPECT_SNAPSHOT(kind, node, at, 64, "ram*10 dev*5 ram*5 dev*10 ram*34");
  EXPECT_TO_SYSTEM(node, at, 64, 15);
  EXPECT_CONTENTS(at, 64, "v1*64");
}

MIRROR_CASE(migrate, many_pages, EACH_KIND) {
  enum { PAGES = 4096 };
  const int node = open_node(kind->node);
  char* at = map_stamped(0, PAGES, 1);
  EXPECT_TO_DEVICE(node, at, PAGES, "v1*4096");
  EXPECT_SNAPSHOT(kind, node, at, PAGES, "dev*4096");
  EXPECT_TO_SYSTEM(node, at, PAGES, PAGES);
  EXPECT_CONTENTS(at, PAGES, "v1*4096");
}

MIRROR_CASE(migrate, again_and_again, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 256, 1);
  char contents[20];
  for (unsigned round = 1; round < 100; round++) {
    snprintf(contents, sizeof contents, "v%u*256", round);
    EXPECT_TO_DEVICE(node, at, 256, contents);
    if (round % 2) {
      EXPECT_TO_SYSTEM(node, at, 256, 256);
      stamp(at, 256, round + 1);
    } else {
      EXPECT_EQ(0, EXPECT_WRITE(node, at, 256, round + 1));
    }
    if (round % 4 == 0) {
      snprintf(contents, sizeof contents, "v%u*256", round + 1);
      EXPECT_CONTENTS(at, 256, contents);
    }
  }
}

MIRROR_CASE(migrate, many_mappings_each_once, EACH_KIND) {
  const int node = open_node(kind->node);
  for (unsigned round = 0; round < 256; round++) {
    char* at = map_stamped(round % 8 * 32, 32, round + 1);
    char contents[20];
    snprintf(contents, sizeof contents, "v%u*32", round + 1);
    EXPECT_TO_DEVICE(node, at, 32, contents);
    snprintf(contents, sizeof contents, "v%u*16", round + 1);
    EXPECT_CONTENTS(at, 16, contents);  // the other half goes while it is out
    REQUIRE(munmap(at, 32 * DMIRROR_PAGE) == 0);
  }
}

MIRROR_CASE(migrate, holes, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 64, READ_WRITE, SMALL_PAGES);
  EXPECT_TO_DEVICE(node, at + 3 * DMIRROR_PAGE, 8, "0*8");
  EXPECT_SNAPSHOT(kind, node, at, 16, "none*3 dev*8 none*5");
  EXPECT_TO_SYSTEM(node, at, 16, 8);
  EXPECT_SNAPSHOT(kind, node, at, 16, "none*3 ram*8 none*5");
  EXPECT_CONTENTS(at, 16, "0*16");
}

MIRROR_CASE(migrate, holes_between_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 64, READ_WRITE, SMALL_PAGES);
  for (size_t i = 1; i < 16; i += 2) stamp(at + i * DMIRROR_PAGE, 1, 7);
  EXPECT_TO_DEVICE(node, at, 20, "0 v7 0 v7 0 v7 0 v7 0 v7 0 v7 0 v7 0 v7 0*4");
  EXPECT_SNAPSHOT(kind, node, at, 24, "dev*20 none*4");
  EXPECT_CONTENTS(at, 20, "0 v7 0 v7 0 v7 0 v7 0 v7 0 v7 0 v7 0 v7 0*4");
}

MIRROR_CASE(migrate, zero_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 16, READ_WRITE, SMALL_PAGES);
  EXPECT_CONTENTS(at, 8, "0*8");
  EXPECT_SNAPSHOT(kind, node, at, 16, "zero*8 none*8");
  EXPECT_TO_DEVICE(node, at, 8, "0*8");
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*8 none*8");
  stamp(at + 2 * DMIRROR_PAGE, 1, 5);
  EXPECT_CONTENTS(at, 8, "0*2 v5 0*5");
}

MIRROR_CASE(migrate, repeated_is_harmless, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 32, 1);
  for (int i = 0; i < 3; i++) EXPECT_TO_DEVICE(node, at, 32, "v1*32");
  EXPECT_TO_DEVICE(node, at + 5 * DMIRROR_PAGE, 3, "v1*3");
  EXPECT_SNAPSHOT(kind, node, at, 32, "dev*32");
  EXPECT_TO_SYSTEM(node, at, 32, 32);
  EXPECT_TO_SYSTEM(node, at, 32, 0);
}

MIRROR_CASE(migrate, entry_lost_means_not_found, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, PROT_READ) == 0);
  REQUIRE(mprotect(at, 8 * DMIRROR_PAGE, READ_WRITE) == 0);
  EXPECT_ERROR(ENOENT, to_device(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro*8");
  EXPECT_TO_SYSTEM(node, at, 8, 8);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev-ro*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(migrate, read_only_mapping, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 16, PROT_READ, SMALL_PAGES);
  EXPECT_CONTENTS(at, 4, "0*4");
  EXPECT_TO_DEVICE(node, at, 16, "0*16");
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev-ro*16");
  EXPECT_TO_SYSTEM(node, at, 16, 16);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram-ro*16");
}

MIRROR_CASE(migrate, unreadable_mapping, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, PROT_NONE) == 0);
  EXPECT_ERROR(EINVAL, to_device(node, at, 16).error);
  EXPECT_ERROR(EINVAL, to_system(node, at, 16).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, "fault*16");
  REQUIRE(mprotect(at, 16 * DMIRROR_PAGE, READ_WRITE) == 0);
  EXPECT_CONTENTS(at, 16, "v1*16");
}

MIRROR_CASE(migrate, several_mappings_at_once, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 100, 1);
  map_pages(100, 100, PROT_READ, SMALL_PAGES);
  map_stamped(200, 312, 2);
  EXPECT_TO_DEVICE(node, at, 512, "v1*100 0*100 v2*312");
  EXPECT_SNAPSHOT(kind, node, at, 512, "dev*100 dev-ro*100 dev*312");
  EXPECT_TO_SYSTEM(node, at, 512, 512);
  EXPECT_SNAPSHOT(kind, node, at, 512, "ram*100 ram-ro*100 ram*312");
  EXPECT_CONTENTS(at, 512, "v1*100 0*100 v2*312");
}

MIRROR_CASE(migrate, stops_at_a_gap_in_the_mappings, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  map_stamped(16, 8, 2);
  EXPECT_ERROR(EINVAL, to_device(node, at, 24).error);
  EXPECT_SNAPSHOT(kind, node, at, 24, "dev*8 fault*8 ram*8");
  EXPECT_ERROR(EINVAL, to_system(node, at, 24).error);
  EXPECT_SNAPSHOT(kind, node, at, 24, "ram*8 fault*8 ram*8");
  EXPECT_ERROR(EINVAL, to_device(node, at + 8 * DMIRROR_PAGE, 4).error);
  EXPECT_ERROR(EINVAL, to_device(node, at + 20 * DMIRROR_PAGE, 8).error);
  EXPECT_SNAPSHOT(kind, node, at + 16 * DMIRROR_PAGE, 8, "ram*4 dev*4");
}

MIRROR_CASE(migrate, mixed_protections_and_contents, EACH_KIND) {
  const int node = open_node(kind->node);
  const int other = open_node(kind->other);
  char* at = map_stamped(0, 6, 1);
  REQUIRE(mprotect(at, DMIRROR_PAGE, PROT_NONE) == 0);
  REQUIRE(madvise(at + DMIRROR_PAGE, DMIRROR_PAGE, MADV_DONTNEED) == 0);
  REQUIRE(mprotect(at + DMIRROR_PAGE, 2 * DMIRROR_PAGE, PROT_READ) == 0);
  REQUIRE(mprotect(at + 5 * DMIRROR_PAGE, DMIRROR_PAGE, PROT_NONE) == 0);
  EXPECT_SNAPSHOT(kind, node, at, 6, "fault none ram-ro ram*2 fault");
  EXPECT_ERROR(EINVAL, to_device(node, at, 6).error);
  EXPECT_SNAPSHOT(kind, node, at, 6, "fault none ram-ro ram*2 fault");
  EXPECT_TO_DEVICE(node, at + DMIRROR_PAGE, 3, "0 v1*2");
  EXPECT_SNAPSHOT(kind, node, at, 6, "fault dev-ro*2 dev ram fault");
  EXPECT_ERROR(ENOENT, to_device(other, at + DMIRROR_PAGE, 4).error);
  EXPECT_SNAPSHOT(kind, other, at, 6, kind->coherent ? "fault other-ro*2 other dev fault" : "fault none*3 dev fault");
  EXPECT_ERROR(EINVAL, to_device(node, at + 4 * DMIRROR_PAGE, 2).error);
  EXPECT_CONTENTS(at + DMIRROR_PAGE, 4, "0 v1*3");
}

MIRROR_CASE(migrate, file_pages_stay, EACH_KIND) {
  const int node = open_node(kind->node);
  const int file = stamped_file(16, 9);
  char* at = map_file(0, 16, READ_WRITE, MAP_SHARED, file);
  EXPECT_ERROR(ENOENT, to_device(node, at + 8 * DMIRROR_PAGE, 8).error);
  // What the device can reach already counts as success, wherever it is.
  EXPECT_READ(node, at, 8, "v9*8");
  EXPECT_TO_DEVICE(node, at, 8, "v9*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*8");
  EXPECT_TO_SYSTEM(node, at, 16, 0);
  EXPECT_CONTENTS(at, 16, "v9*16");
}

MIRROR_CASE(migrate, copied_pages_of_a_private_file, EACH_KIND) {
  const int node = open_node(kind->node);
  const int file = stamped_file(16, 9);
  char* at = map_file(0, 16, READ_WRITE, MAP_PRIVATE, file);
  stamp(at + 2 * DMIRROR_PAGE, 4, 1);
  EXPECT_TO_DEVICE(node, at + 2 * DMIRROR_PAGE, 4, "v1*4");
  EXPECT_ERROR(ENOENT, to_device(node, at, 8).error);
  EXPECT_CONTENTS(at, 16, "v9*2 v1*4 v9*10");
  EXPECT_FILE(file, 16, "v9*16");
}

MIRROR_CASE(migrate, dropped_copies_of_a_private_file_are_the_file_again, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_file(0, 16, READ_WRITE, MAP_PRIVATE, stamped_file(16, 9));
  stamp(at + 2 * DMIRROR_PAGE, 6, 1);
  EXPECT_TO_DEVICE(node, at + 2 * DMIRROR_PAGE, 6, "v1*6");
  EXPECT(madvise(at + 2 * DMIRROR_PAGE, 2 * DMIRROR_PAGE, MADV_FREE) == -1 && errno == EINVAL);
  REQUIRE(madvise(at + 3 * DMIRROR_PAGE, 2 * DMIRROR_PAGE, MADV_DONTNEED) == 0);
  // Reaches beyond the mapping: what is mapped is dropped all the same.
  stamp(at + 15 * DMIRROR_PAGE, 1, 1);
  EXPECT_TO_DEVICE(node, at + 15 * DMIRROR_PAGE, 1, "v1");
  EXPECT(madvise(at + 15 * DMIRROR_PAGE, 4 * DMIRROR_PAGE, MADV_DONTNEED) == -1 && errno == ENOMEM);
  EXPECT_CONTENTS(at, 16, "v9*2 v1 v9*2 v1*3 v9*8");
  EXPECT_TO_DEVICE(node, at + 6 * DMIRROR_PAGE, 2, "v1*2");
  char* away = mremap(at + 6 * DMIRROR_PAGE, DMIRROR_PAGE, DMIRROR_PAGE, MREMAP_MAYMOVE | MREMAP_FIXED | MREMAP_DONTUNMAP,
                      at + 32 * DMIRROR_PAGE);
  REQUIRE(away == at + 32 * DMIRROR_PAGE);
  expect_contents_as(__FILE__, __LINE__, away, at + 6 * DMIRROR_PAGE, 1, "v1");
  EXPECT_CONTENTS(at, 16, "v9*2 v1 v9*2 v1 v9 v1 v9*8");
}

MIRROR_CASE(migrate, shared_memory_stays, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_file(0, 16, READ_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1);
  stamp(at, 8, 1);
  EXPECT_ERROR(ENOENT, to_device(node, at, 8).error);
  EXPECT_ERROR(ENOENT, to_device(node, at + 8 * DMIRROR_PAGE, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*8 none*8");
  EXPECT_READ(node, at, 16, "v1*8 0*8");
  EXPECT_TO_DEVICE(node, at, 16, "v1*8 0*8");
  EXPECT_CONTENTS(at, 16, "v1*8 0*8");
}

MIRROR_CASE(migrate, what_can_move_moves_even_if_the_rest_fails, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  map_file(8, 8, READ_WRITE, MAP_SHARED, stamped_file(8, 9));
  map_stamped(16, 8, 2);
  EXPECT_ERROR(ENOENT, to_device(node, at, 24).error);
  EXPECT_SNAPSHOT(kind, node, at, 24, "dev*8 none*8 dev*8");
  EXPECT_CONTENTS(at, 24, "v1*8 v9@8*8 v2*8");
}

MIRROR_CASE(migrate, written_by_the_device_then_home, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  EXPECT_WRITE(node, at + 10 * DMIRROR_PAGE, 10, 2);
  EXPECT_TO_SYSTEM(node, at, 64, 64);
  EXPECT_CONTENTS(at, 64, "v1*10 v2*10 v1*44");
}

MIRROR_CASE(migrate, keeps_write_permission_of_every_page, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  REQUIRE(mprotect(at + 4 * DMIRROR_PAGE, 4 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*4 dev-ro*4 dev*8");
  EXPECT_TO_SYSTEM(node, at, 16, 16);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*4 ram-ro*4 ram*8");
  EXPECT_EQ(0, touch_write(at));
  EXPECT_EQ(SIGSEGV, touch_write(at + 4 * DMIRROR_PAGE));
}

MIRROR_CASE(migrate, locked_memory_moves_too, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  if (mlock(at, 8 * DMIRROR_PAGE) != 0) skip_case("mlock: %s", error_name(errno));
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*8");
  EXPECT(munlock(at, 8 * DMIRROR_PAGE) == 0);
  EXPECT_TO_SYSTEM(node, at, 8, 8);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

// Memory that no test mapped on purpose: the program's own data.
static char program_data[64 * DMIRROR_PAGE] __attribute__((aligned(DMIRROR_PAGE)));

MIRROR_CASE(migrate, program_data_and_heap, EACH_KIND) {
  const int node = open_node(kind->node);
  char* heap = aligned_alloc(DMIRROR_PAGE, 512 * DMIRROR_PAGE);
  REQUIRE(heap);
  char* const places[] = {program_data, heap};
  for (size_t i = 0; i < 2; i++) {
    stamp(places[i], 64, 1);
    EXPECT_TO_DEVICE(node, places[i], 64, "v1*64");
    EXPECT_SNAPSHOT(kind, node, places[i], 64, "dev*64");
    EXPECT_CONTENTS(places[i], 64, "v1*64");
    EXPECT_TO_DEVICE(node, places[i], 64, "v1*64");
    EXPECT_TO_SYSTEM(node, places[i], 64, 64);
    EXPECT_CONTENTS(places[i], 64, "v1*64");
  }
  free(heap);
}

MIRROR_CASE(migrate, to_system_leaves_ram_and_holes_alone, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 16, READ_WRITE, SMALL_PAGES);
  stamp(at, 4, 1);
  EXPECT_TO_SYSTEM(node, at, 16, 0);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*4 none*12");
}

MIRROR_CASE(migrate, ends_with_its_process, EACH_KIND) {
  for (int i = 0; i < 10; i++) {
    struct partner other = start_child();
    if (other.in_child) {
      const int node = open_node(kind->node);
      char* at = map_stamped(0, 256, 1);
      EXPECT_TO_DEVICE(node, at, 256, "v1*256");
      end_child();  // with all pages on the device
    }
    await_child(&other);
  }
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 256, 2);
  EXPECT_TO_DEVICE(node, at, 256, "v2*256");
}

MIRROR_CASE(migrate, holes_of_an_application_userfaultfd_stay, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 8, READ_WRITE, SMALL_PAGES);
  const int faults = (int)syscall(SYS_userfaultfd, O_CLOEXEC);
  if (faults < 0) skip_case("userfaultfd: %s", error_name(errno));
  struct uffdio_api api = {.api = UFFD_API};
  REQUIRE(ioctl(faults, UFFDIO_API, &api) == 0);
  struct uffdio_register range = {.range = {.start = (uintptr_t)at, .len = 8 * DMIRROR_PAGE},
                                  .mode = UFFDIO_REGISTER_MODE_MISSING};
  REQUIRE(ioctl(faults, UFFDIO_REGISTER, &range) == 0);
  EXPECT_ERROR(ENOENT, to_device(node, at, 8).error);
  EXPECT_SNAPSHOT(kind, node, at, 8, "none*8");
  // HR-17: nor does the device wait for the program to fill one.
  EXPECT_ERROR(EFAULT, command(node, DMIRROR_READ, at, buffer_of(8), 8).error);
  EXPECT_ERROR(EFAULT, command(node, DMIRROR_WRITE, at, buffer_of(8), 8).error);
}
