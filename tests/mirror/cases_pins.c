// Pages that the kernel holds on to: registered io_uring buffers.
#include <errno.h>
#include <linux/io_uring.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"

// A ring whose only purpose is to pin buffers.
static int new_ring(void) {
  struct io_uring_params params = {0};
  const int ring = (int)syscall(SYS_io_uring_setup, 1, &params);
  if (ring < 0) skip_case("io_uring: %s", error_name(errno));
  return ring;
}

static void pin(int ring, char* at, size_t pages) {
  struct iovec buffer = {.iov_base = at, .iov_len = pages * DMIRROR_PAGE};
  if (syscall(SYS_io_uring_register, ring, IORING_REGISTER_BUFFERS, &buffer, 1) != 0) {
    skip_case("cannot register a buffer: %s", error_name(errno));
  }
}

static void unpin(int ring) { EXPECT(syscall(SYS_io_uring_register, ring, IORING_UNREGISTER_BUFFERS, NULL, 0) == 0); }

MIRROR_CASE(pins, pinned_pages_stay, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  const int ring = new_ring();
  pin(ring, at + 4 * DMIRROR_PAGE, 4);
  EXPECT_ERROR(ENOENT, to_device(node, at, 16).error);
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*4 ram*4 dev*8");
  EXPECT_CONTENTS(at, 16, "v1*16");
  unpin(ring);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  EXPECT_SNAPSHOT(kind, node, at, 16, "dev*16");
}

MIRROR_CASE(pins, pinned_pages_that_the_device_reaches_count, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  pin(new_ring(), at, 8);
  EXPECT_EQ(1, EXPECT_READ(node, at, 8, "v1*8"));
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, "ram*8");
}

MIRROR_CASE(pins, pinned_unit_stays, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  const int ring = new_ring();
  pin(ring, at + 100 * DMIRROR_PAGE, 4);
  EXPECT_ERROR(ENOENT, to_device(node, at, 512).error);
  EXPECT_CONTENTS(at, 512, "v1*512");
  unpin(ring);
  EXPECT_ERROR(0, to_device(node, at, 512).error);
  EXPECT_CONTENTS(at, 512, "v1*512");
}

MIRROR_CASE(pins, pinning_brings_home, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  const int ring = new_ring();
  pin(ring, at, 8);
  EXPECT_SNAPSHOT(kind, node, at, 16, "ram*8 dev*8");
  EXPECT_CONTENTS(at, 16, "v1*16");
}

MIRROR_CASE(pins, pinning_a_unit_brings_it_home, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  EXPECT_TO_DEVICE(node, at, 512, "v1*512");
  pin(new_ring(), at + 7 * DMIRROR_PAGE, 1);
  EXPECT_SNAPSHOT(kind, node, at, 512, "RAM*512");
  EXPECT_CONTENTS(at, 512, "v1*512");
}
