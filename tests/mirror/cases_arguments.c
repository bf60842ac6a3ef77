// The command block: validation in the documented order, what is written back, and bad buffers.
#include <errno.h>
#include <string.h>
#include <sys/ioctl.h>

#include "device.h"
#include "memory.h"

enum { UNTOUCHED = 777 };

struct block_result {
  int error;
  struct dmirror_command block;
};

static struct block_result raw(int node, unsigned nr, uint64_t addr, void* ptr, uint64_t npages) {
  struct block_result result = {.block = {.addr = addr, .ptr = (uintptr_t)ptr, .npages = npages}};
  result.block.cpages = result.block.faults = UNTOUCHED;
  result.error = ERROR_OF(ioctl(node, DMIRROR_REQUEST(nr), &result.block));
  return result;
}

// The command fails with `error` and writes nothing back.
static void expect_refused(int line, int node, unsigned nr, uint64_t addr, void* ptr, uint64_t npages, int error) {
  const struct block_result result = raw(node, nr, addr, ptr, npages);
  if (result.error != error) {
    fail_at(__FILE__, line, "command %u gave %s, wanted %s", nr, error_name(result.error), error_name(error));
  }
  const struct dmirror_command* block = &result.block;
  if (block->addr != addr || block->ptr != (uintptr_t)ptr || block->npages != npages || block->cpages != UNTOUCHED ||
      block->faults != UNTOUCHED) {
    fail_at(__FILE__, line, "command %u failed and changed its block", nr);
  }
}
#define EXPECT_REFUSED(...) expect_refused(__LINE__, __VA_ARGS__)

static uint64_t as_word(const void* at) { return (uintptr_t)at; }

MIRROR_CASE(arguments, numbers_are_the_documented_ones, EACH_KIND) {
  static const unsigned long numbers[] = {0xC0284800, 0xC0284801, 0xC0284802, 0xC0284803, 0xC0284804,
                                          0xC0284805, 0xC0284806, 0xC0284807, 0xC0284808};
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 1, 1);
  char* buffer = buffer_of(1);
  for (size_t i = 0; i < sizeof numbers / sizeof *numbers; i++) {
    EXPECT_EQ(numbers[i], DMIRROR_REQUEST(i));
    struct dmirror_command block = {.addr = as_word(at), .ptr = as_word(buffer), .npages = 1};
    if (i == DMIRROR_WRITE) stamp_for(buffer, at, 1);
    const int error = ERROR_OF(ioctl(node, numbers[i], &block));
    // The page was made exclusive by the command before.
    EXPECT_ERROR(i == DMIRROR_CHECK_EXCLUSIVE ? EPERM : 0, error);
  }
  EXPECT_CONTENTS(at, 1, "v1");
  use_base_pages(node);
}

MIRROR_CASE(arguments, no_pages_is_invalid_for_every_command, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 1, 1);
  char* buffer = buffer_of(1);
  for (unsigned nr = 0; nr < 12; nr++) EXPECT_REFUSED(node, nr, as_word(at), buffer, 0, EINVAL);
}

MIRROR_CASE(arguments, unaligned_address_is_invalid_for_every_command, EACH_KIND) {
  static const uint64_t offsets[] = {1, 4, 8, 512, 2048, 4095};
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 2, 1);
  char* buffer = buffer_of(1);
  for (unsigned nr = 0; nr < 12; nr++) {
    for (size_t i = 0; i < sizeof offsets / sizeof *offsets; i++) {
      EXPECT_REFUSED(node, nr, as_word(at) + offsets[i], buffer, 1, EINVAL);
    }
  }
}

MIRROR_CASE(arguments, overflowing_range_is_invalid, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 1, 1);
  char* buffer = buffer_of(1);
  for (unsigned nr = 0; nr <= DMIRROR_FLAGS; nr++) {
    EXPECT_REFUSED(node, nr, 0xfffffffffffff000, buffer, 1, EINVAL);
    EXPECT_REFUSED(node, nr, as_word(at), buffer, 0x10000000000000, EINVAL);  // 2^64 bytes: no length at all
    EXPECT_REFUSED(node, nr, as_word(at), buffer, 0x000fffffffffffff, EINVAL);
  }
}

MIRROR_CASE(arguments, unknown_commands_are_invalid, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 1, 1);
  char* buffer = buffer_of(1);
  for (unsigned nr = DMIRROR_FLAGS + 1; nr < 256; nr++) EXPECT_REFUSED(node, nr, as_word(at), buffer, 1, EINVAL);
}

MIRROR_CASE(arguments, unreadable_block_comes_before_all_else, EACH_KIND) {
  const int node = open_node(kind->node);
  for (unsigned nr = 0; nr < 12; nr++) {
    EXPECT_ERROR(EFAULT, ERROR_OF(ioctl(node, DMIRROR_REQUEST(nr), NULL)));
    EXPECT_ERROR(EFAULT, ERROR_OF(ioctl(node, DMIRROR_REQUEST(nr), window(1))));
  }
}

MIRROR_CASE(arguments, block_keeps_inputs_on_success, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 4, 1);
  char* buffer = buffer_of(4);
  const struct block_result result = raw(node, DMIRROR_MIGRATE_TO_DEV, as_word(at), buffer, 4);
  EXPECT_ERROR(0, result.error);
  EXPECT_EQ(as_word(at), result.block.addr);
  EXPECT_EQ(as_word(buffer), result.block.ptr);
  EXPECT_EQ(4, result.block.npages);
  EXPECT_EQ(4, result.block.cpages);
  EXPECT_EQ(0, result.block.faults);
}

MIRROR_CASE(arguments, outputs_are_zeroed_by_commands_without_any, EACH_KIND) {
  const int node = open_node(kind->node);
  map_stamped(0, 1, 1);
  static const unsigned commands[] = {DMIRROR_CHECK_EXCLUSIVE, DMIRROR_RELEASE, DMIRROR_FLAGS};
  for (size_t i = 0; i < sizeof commands / sizeof *commands; i++) {
    const struct block_result result = raw(node, commands[i], as_word(window(0)), NULL, 2);
    EXPECT_ERROR(0, result.error);
    EXPECT_EQ(0, result.block.cpages);
    EXPECT_EQ(0, result.block.faults);
  }
  use_base_pages(node);
}

MIRROR_CASE(arguments, read_only_block_fails_after_the_work, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 4, 1);
  char* buffer = buffer_of(4);
  struct dmirror_command* block = (struct dmirror_command*)buffer_of(1);
  *block = (struct dmirror_command){.addr = as_word(at), .ptr = as_word(buffer), .npages = 4};
  REQUIRE(mprotect(block, DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT_ERROR(EFAULT, ERROR_OF(ioctl(node, DMIRROR_REQUEST(DMIRROR_MIGRATE_TO_DEV), block)));
  EXPECT_SNAPSHOT(kind, node, at, 4, "dev*4");
  EXPECT_ERROR(EFAULT, ERROR_OF(ioctl(node, DMIRROR_REQUEST(DMIRROR_MIGRATE_TO_SYS), block)));
  EXPECT_SNAPSHOT(kind, node, at, 4, "ram*4");
}

MIRROR_CASE(arguments, bad_buffers, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  char* read_only = buffer_of(8);
  REQUIRE(mprotect(read_only, 8 * DMIRROR_PAGE, PROT_READ) == 0);
  char* short_buffer = buffer_of(2);
  REQUIRE(munmap(short_buffer + DMIRROR_PAGE, DMIRROR_PAGE) == 0);

  EXPECT_REFUSED(node, DMIRROR_READ, as_word(at), NULL, 1, EFAULT);
  EXPECT_REFUSED(node, DMIRROR_READ, as_word(at), read_only, 1, EFAULT);
  EXPECT_REFUSED(node, DMIRROR_READ, as_word(at), short_buffer, 2, EFAULT);
  EXPECT_REFUSED(node, DMIRROR_WRITE, as_word(at), NULL, 1, EFAULT);
  EXPECT_REFUSED(node, DMIRROR_WRITE, as_word(at), short_buffer, 2, EFAULT);
  EXPECT_CONTENTS(at, 8, "v1*8");  // no prefix was written: the buffer is read before anything else

  // What moves pages moves them although it cannot say what is in them.
  EXPECT_REFUSED(node, DMIRROR_MIGRATE_TO_DEV, as_word(at), NULL, 2, EFAULT);
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*2 ram*6");
  EXPECT_REFUSED(node, DMIRROR_MIGRATE_TO_DEV, as_word(at) + 2 * DMIRROR_PAGE, read_only, 2, EFAULT);
  EXPECT_SNAPSHOT(kind, node, at, 8, "dev*4 ram*4");
  EXPECT_TO_SYSTEM(node, at, 8, 4);

  EXPECT_REFUSED(node, DMIRROR_SNAPSHOT, as_word(at), NULL, 8, EFAULT);
  EXPECT_REFUSED(node, DMIRROR_SNAPSHOT, as_word(at), read_only, 8, EFAULT);
  EXPECT_REFUSED(node, DMIRROR_EXCLUSIVE, as_word(at), NULL, 2, EFAULT);
  EXPECT_SNAPSHOT(kind, node, at, 8, "none*2 ram*6");
  EXPECT_REFUSED(node, DMIRROR_CHECK_EXCLUSIVE, as_word(at), NULL, 2, EPERM);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(arguments, buffers_need_no_alignment, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 4, 1);
  char* buffer = buffer_of(6);
  EXPECT_ERROR(0, device_read(node, at, 4, buffer + 13).error);
  memmove(buffer, buffer + 13, 4 * DMIRROR_PAGE);
  expect_contents_as(__FILE__, __LINE__, buffer, at, 4, "v1*4");
  for (size_t i = 0; i < 4; i++) stamp_for(buffer + i * DMIRROR_PAGE, at + i * DMIRROR_PAGE, 2);
  memmove(buffer + 1000, buffer, 4 * DMIRROR_PAGE);
  EXPECT_ERROR(0, device_write(node, at, 4, buffer + 1000).error);
  EXPECT_CONTENTS(at, 4, "v2*4");
}

MIRROR_CASE(arguments, unmapped_ranges, EACH_KIND) {
  const int node = open_node(kind->node);
  char* buffer = buffer_of(1);
  char* nowhere = window(100);
  EXPECT_REFUSED(node, DMIRROR_MIGRATE_TO_DEV, as_word(nowhere), buffer, 1, EINVAL);
  EXPECT_REFUSED(node, DMIRROR_MIGRATE_TO_SYS, as_word(nowhere), buffer, 1, EINVAL);
  EXPECT_REFUSED(node, DMIRROR_READ, as_word(nowhere), buffer, 1, EFAULT);
  EXPECT_REFUSED(node, DMIRROR_WRITE, as_word(nowhere), buffer, 1, EFAULT);
  EXPECT_REFUSED(node, DMIRROR_EXCLUSIVE, as_word(nowhere), buffer, 1, EFAULT);
  EXPECT_ERROR(0, check_exclusive(node, nowhere, 1).error);
  EXPECT_SNAPSHOT(kind, node, nowhere, 1, "fault");
}

MIRROR_CASE(arguments, top_of_the_address_space, EACH_KIND) {
  const int node = open_node(kind->node);
  char* buffer = buffer_of(1);
  const uint64_t top = 0xffffffffffffe000;
  EXPECT_REFUSED(node, DMIRROR_READ, top, buffer, 1, EINVAL);
  EXPECT_REFUSED(node, DMIRROR_SNAPSHOT, top, buffer, 1, EOVERFLOW);
  EXPECT_REFUSED(node, DMIRROR_MIGRATE_TO_DEV, top, buffer, 1, EINVAL);
  EXPECT_REFUSED(node, DMIRROR_MIGRATE_TO_SYS, top, buffer, 1, EINVAL);
}

MIRROR_CASE(arguments, release_and_flags_ignore_the_range, EACH_KIND) {
  const int node = open_node(kind->node);
  EXPECT_ERROR(0, raw(node, DMIRROR_RELEASE, as_word(window(1000)), NULL, 5).error);
  EXPECT_ERROR(0, raw(node, DMIRROR_FLAGS, 0, NULL, 2).error);
  EXPECT_ERROR(0, raw(node, DMIRROR_FLAGS, as_word(window(1000)), NULL, 1ull << 40).error);
  EXPECT_REFUSED(node, DMIRROR_RELEASE, as_word(window(0)) + 4, NULL, 1, EINVAL);
  use_base_pages(node);
}
