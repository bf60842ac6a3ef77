// The CPU, or the kernel on behalf of the process, touches pages that are on the device.
#include <errno.h>
#include <fcntl.h>
#include <linux/futex.h>
#include <pthread.h>
#include <signal.h>
#include <string.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

MIRROR_CASE(fault, a_read_brings_one_page_home, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  EXPECT_EQ(0, touch_read(at + 20 * DMIRROR_PAGE));
  EXPECT_SNAPSHOT(kind, node, at, 64, "dev*20 ram dev*43");
  EXPECT_CONTENTS(at, 64, "v1*64");
  EXPECT_SNAPSHOT(kind, node, at, 64, "ram*64");
}

MIRROR_CASE(fault, a_write_brings_one_page_home, PRIVATE) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  stamp(at + 20 * DMIRROR_PAGE, 1, 2);
  EXPECT_SNAPSHOT(kind, node, at, 64, "dev*20 ram dev*43");
  EXPECT_CONTENTS(at, 64, "v1*20 v2 v1*43");
}

MIRROR_CASE(fault, coherent_pages_are_used_in_place, COHERENT) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  EXPECT_CONTENTS(at, 64, "v1*64");
  stamp(at, 8, 2);
  EXPECT_SNAPSHOT(kind, node, at, 64, "dev*64");
  EXPECT_EQ(0, EXPECT_READ(node, at, 64, "v2*8 v1*56"));
  EXPECT_EQ(0, EXPECT_WRITE(node, at + 4 * DMIRROR_PAGE, 4, 3));
  EXPECT_CONTENTS(at, 64, "v2*4 v3*4 v1*56");
}

MIRROR_CASE(fault, brings_the_latest_device_data, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  EXPECT_WRITE(node, at, 64, 2);
  EXPECT_CONTENTS(at, 64, "v2*64");
}

MIRROR_CASE(fault, then_the_device_reads_what_the_cpu_wrote, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  stamp(at + 63 * DMIRROR_PAGE, 1, 2);  // the last one: the pages before keep their entries
  const uint64_t rounds = EXPECT_READ(node, at, 64, "v1*63 v2");
  EXPECT_EQ(kind->coherent ? 0 : 1, rounds);
  EXPECT_SNAPSHOT(kind, node, at, 64, kind->coherent ? "dev*64" : "dev*63 ram");
}

MIRROR_CASE(fault, every_other_page_then_back, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  EXPECT_TO_DEVICE(node, at, 64, "v1*64");
  for (size_t i = 0; i < 64; i += 2) stamp(at + i * DMIRROR_PAGE, 1, 2);
  EXPECT_TO_SYSTEM(node, at, 64, kind->coherent ? 64 : 32);
  for (size_t i = 0; i < 64; i += 2) EXPECT_CONTENTS(at + i * DMIRROR_PAGE, 2, "v2 v1");
}

MIRROR_CASE(fault, system_calls_read_device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  const int file = stamped_file(8, 9);
  EXPECT(pwrite(file, at, 8 * DMIRROR_PAGE, 0) == 8 * DMIRROR_PAGE);
  EXPECT_FILE(file, 8, "v1*8");
  EXPECT_SNAPSHOT(kind, node, at, 8, kind->coherent ? "dev*8" : "ram*8");
}

MIRROR_CASE(fault, system_calls_write_device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT(pread(stamped_file(8, 9), at, 4 * DMIRROR_PAGE, 0) == 4 * DMIRROR_PAGE);
  EXPECT_CONTENTS(at, 8, "v9*4 v1*4");
}

MIRROR_CASE(fault, system_calls_obey_protection, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  REQUIRE(mprotect(at, 4 * DMIRROR_PAGE, PROT_READ) == 0);
  EXPECT(pread(stamped_file(8, 9), at, DMIRROR_PAGE, 0) < 0 && errno == EFAULT);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(fault, pipes_and_vectors_of_device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 16, 1);
  EXPECT_TO_DEVICE(node, at, 16, "v1*16");
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  struct iovec out[] = {{.iov_base = at + 4 * DMIRROR_PAGE, .iov_len = DMIRROR_PAGE},
                        {.iov_base = at, .iov_len = DMIRROR_PAGE}};
  EXPECT(writev(ends[1], out, 2) == 2 * DMIRROR_PAGE);
  struct iovec in[] = {{.iov_base = at + 8 * DMIRROR_PAGE, .iov_len = DMIRROR_PAGE},
                       {.iov_base = at + 12 * DMIRROR_PAGE, .iov_len = DMIRROR_PAGE}};
  EXPECT(readv(ends[0], in, 2) == 2 * DMIRROR_PAGE);
  EXPECT_CONTENTS(at, 16, "v1*8 v1@4 v1*3 v1@12 v1*3");
}

MIRROR_CASE(fault, other_processes_read_and_write_device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  const pid_t parent = getpid();
  struct partner other = start_child();
  if (other.in_child) {
    char* copy = buffer_of(8);
    struct iovec local = {.iov_base = copy, .iov_len = 8 * DMIRROR_PAGE};
    struct iovec remote = {.iov_base = at, .iov_len = 8 * DMIRROR_PAGE};
    const ssize_t got = process_vm_readv(parent, &local, 1, &remote, 1, 0);
    if (got < 0 && errno == EPERM) {
      note("process_vm_readv of the parent is not permitted here: not tried");
      end_child();
    }
    EXPECT(got == 8 * DMIRROR_PAGE);
    expect_contents_as(__FILE__, __LINE__, copy, at, 8, "v1*8");
    for (size_t i = 0; i < 4; i++) stamp_for(copy + i * DMIRROR_PAGE, at + i * DMIRROR_PAGE, 2);
    local.iov_len = remote.iov_len = 4 * DMIRROR_PAGE;
    EXPECT(process_vm_writev(parent, &local, 1, &remote, 1, 0) == 4 * DMIRROR_PAGE);
    end_child();
  }
  await_child(&other);
  EXPECT_CONTENTS(at, 8, "v2*4 v1*4");
}

MIRROR_CASE(fault, own_memory_through_proc, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  const int memory = open("/proc/self/mem", O_RDWR);
  REQUIRE(memory >= 0);
  char* copy = buffer_of(8);
  EXPECT(pread(memory, copy, 8 * DMIRROR_PAGE, (off_t)(uintptr_t)at) == 8 * DMIRROR_PAGE);
  expect_contents_as(__FILE__, __LINE__, copy, at, 8, "v1*8");
}

MIRROR_CASE(fault, futexes_and_atomics_on_device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_pages(0, 2, READ_WRITE, SMALL_PAGES);
  int* word = (int*)at;
  *word = 1;
  EXPECT_ERROR(0, to_device(node, at, 2).error);
  // Waiting for another value than the one there must return at once.
  EXPECT(syscall(SYS_futex, word, FUTEX_WAIT_PRIVATE, 0, NULL, NULL, 0) < 0 && errno == EAGAIN);
  EXPECT_ERROR(0, to_device(node, at, 2).error);
  EXPECT_EQ(1, __atomic_fetch_add(word, 5, __ATOMIC_SEQ_CST));
  EXPECT_EQ(6, *word);
}

static void* read_all(void* argument) {
  const char* at = argument;
  for (size_t i = 0; i < 64; i++) {
    if (*(volatile const char*)(at + i * DMIRROR_PAGE + 8) != at[i * DMIRROR_PAGE + 8]) return argument;
  }
  return NULL;
}

MIRROR_CASE(fault, several_threads_touch_the_same_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 64, 1);
  for (int round = 0; round < 20; round++) {
    EXPECT_TO_DEVICE(node, at, 64, "v1*64");
    pthread_t threads[4];
    for (int i = 0; i < 4; i++) REQUIRE(pthread_create(&threads[i], NULL, read_all, at) == 0);
    for (int i = 0; i < 4; i++) {
      void* wrong;
      REQUIRE(pthread_join(threads[i], &wrong) == 0);
      EXPECT(!wrong);
    }
    EXPECT_CONTENTS(at, 64, "v1*64");
  }
}

MIRROR_CASE(fault, a_signal_handler_touches_device_pages, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_stamped(0, 8, 1);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  // The handler runs on a stack that is on the device.
  char* stack = map_stamped(64, 16, 2);
  const stack_t alternate = {.ss_sp = stack, .ss_size = 16 * DMIRROR_PAGE};
  REQUIRE(sigaltstack(&alternate, NULL) == 0);
  EXPECT_ERROR(0, to_device(node, stack, 16).error);
  EXPECT_EQ(SIGSEGV, touch_read(window(1000)));
  EXPECT_CONTENTS(at, 8, "v1*8");
  const stack_t none = {.ss_flags = SS_DISABLE};
  REQUIRE(sigaltstack(&none, NULL) == 0);
}

MIRROR_CASE(fault, code_runs_from_the_device, EACH_KIND) {
  const int node = open_node(kind->node);
  // mov eax, 42; ret
  static const unsigned char code[] = {0xb8, 42, 0, 0, 0, 0xc3};
  char* at = map_pages(0, 2, READ_WRITE, SMALL_PAGES);
  memcpy(at, code, sizeof code);
  if (mprotect(at, 2 * DMIRROR_PAGE, PROT_READ | PROT_EXEC) != 0) skip_case("no executable anonymous memory");
  EXPECT_ERROR(0, to_device(node, at, 2).error);
  int (*function)(void);
  memcpy(&function, &at, sizeof function);
  EXPECT_EQ(42, function());
  EXPECT_SNAPSHOT(kind, node, at, 1, kind->coherent ? "dev-ro" : "ram-ro");
}
