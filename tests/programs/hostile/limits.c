// Less and less is permitted: another root directory, nearly no mappings left, single calls forbidden to every thread.

#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <linux/userfaultfd.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

static void work_on(char* memory, uint64_t seed, const char* what) {
  for (int round = 0; round < 2; ++round) {
    press(WORKING_SET / 2);
    verify(memory, WORKING_SET, seed, what);
  }
}

int case_chroot(int argc, char** argv) {
  (void)argc, (void)argv;
  if (geteuid() != 0) {
    printf("chroot: needs root\n");
    return kSkip;
  }
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 170);
  char path[] = "/tmp/whimbrel-chroot-XXXXXX";
  REQUIRE(mkdtemp(path) != NULL);
  REQUIRE(chroot(path) == 0 && chdir("/") == 0);
  REQUIRE(access("/proc/self/maps", F_OK) != 0);
  work_on(memory, 170, "where there is no /proc");
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (first_wrong(memory, WORKING_SET, 170) >= 0) _exit(1);
    fill(memory, WORKING_SET, 171);
    _exit(first_wrong(memory, WORKING_SET, 171) < 0 ? 0 : 2);
  }
  expect_exit(child, 0, "a child where there is no /proc");
  verify(memory, WORKING_SET, 170, "after the child");
  printf("chroot: memory right without /proc\n");
  return 0;
}

static long map_count_limit(void) {
  FILE* file = fopen("/proc/sys/vm/max_map_count", "r");
  long limit = 65530;
  if (file != NULL) {
    REQUIRE(fscanf(file, "%ld", &limit) == 1);
    fclose(file);
  }
  return limit;
}

// Every other page is made read-only, so that each is a mapping of its own, until the kernel has no more.
int case_many_maps(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 172);
  size_t pages = (size_t)map_count_limit() + 1000;
  if (pages > 1000000) {
    printf("many-maps: the limit on mappings is too high to reach\n");
    return kSkip;
  }
  char* fragments = mmap(NULL, 2 * pages * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(fragments != MAP_FAILED);
  size_t made = 0;
  while (made < pages && mprotect(fragments + 2 * made * kPage, kPage, PROT_READ) == 0) ++made;
  REQUIRE(made < pages && errno == ENOMEM);
  for (size_t i = 0; i < made; i += 16) fragments[(2 * i + 1) * kPage] = (char)i;
  // Nobody can have a mapping more: what is there goes on. Memory that exists already serves as pressure.
  for (int round = 0; round < 3; ++round) {
    verify(memory, WORKING_SET, 172 + (uint64_t)round, "with no mapping left");
    fill(memory, WORKING_SET, 173 + (uint64_t)round);
  }
  for (size_t i = 0; i < made; i += 16) REQUIRE(fragments[(2 * i + 1) * kPage] == (char)i);
  // A few are free again, which is not many.
  REQUIRE(munmap(fragments, 64 * kPage) == 0);
  work_on(memory, 175, "with hardly a mapping left");
  printf("many-maps: memory right at the limit of mappings\n");
  return 0;
}

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))

// Forbids one request of ioctl() to every thread of the process, whoever started it.
static bool forbid_request(unsigned request) {
  struct sock_filter code[] = {
      LOAD(nr),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, SYS_ioctl, 0, 3),
      LOAD(args[1]),
      BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, request, 0, 1),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof code[0], code};
  REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  return syscall(SYS_seccomp, SECCOMP_SET_MODE_FILTER, SECCOMP_FILTER_FLAG_TSYNC, &program) == 0;
}

// hostile seccomp-request move|copy|zero|wake|scan: afterwards pages cannot be stolen, put back, ...
int case_seccomp_request(int argc, char** argv) {
  static const struct {
    const char* name;
    unsigned request;
  } kRequests[] = {{"move", _IOC(_IOC_READ | _IOC_WRITE, UFFDIO, 0x05, 40)},
                   {"zero", UFFDIO_ZEROPAGE},
                   {"wake", UFFDIO_WAKE},
                   {"register", UFFDIO_REGISTER}};
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 176);
  press(WORKING_SET / 2);
  for (size_t i = 0; argc > 1 && i < sizeof kRequests / sizeof kRequests[0]; ++i) {
    if (strcmp(kRequests[i].name, argv[1]) != 0) continue;
    if (!forbid_request(kRequests[i].request)) {
      printf("seccomp-request: filters for all threads are not to be had: %s\n", strerror(errno));
      return kSkip;
    }
    for (int round = 0; round < 2; ++round) verify(memory, WORKING_SET, 176, "with one request forbidden");
    fill(memory, WORKING_SET, 177);
    verify(memory, WORKING_SET, 177, "written with one request forbidden");
    printf("seccomp-request: memory right without %s\n", argv[1]);
    return 0;
  }
  fail("seccomp-request: no such request");
}
