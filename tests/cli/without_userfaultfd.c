// without-userfaultfd MODE COMMAND ARGS...: runs a command where userfaultfd is refused, as containers refuse it.
//
//   all            no userfaultfd at all: neither the system call nor the one through /dev/userfaultfd
//   missing        the same, as a kernel built without it answers (ENOSYS)
//   no-perf-events only perf_event_open is refused, as in containers
//   kernel-faults  only descriptors for faults of user code are granted, as to an ordinary user

#define _GNU_SOURCE
#include <errno.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/syscall.h>
#include <unistd.h>

#define USERFAULTFD_NEW 0xAA00u  // ioctl on /dev/userfaultfd
#define USER_MODE_ONLY 1u

#define LOAD(field) BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, field))
#define IF_NOT(value, skip) BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (value), 0, (skip))
#define ALLOW BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW)
#define ANSWER(error) BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | (error))

static int install(struct sock_filter* code, size_t count) {
  struct sock_fprog program = {(unsigned short)count, code};
  if (prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) != 0) return -1;
  return prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program);
}

static int refuse_all(unsigned error) {
  struct sock_filter code[] = {
      LOAD(nr),          IF_NOT(SYS_userfaultfd, 1), ANSWER(error), IF_NOT(SYS_ioctl, 3), LOAD(args[1]),
      IF_NOT(USERFAULTFD_NEW, 1), ANSWER(error), ALLOW,
  };
  return install(code, sizeof code / sizeof code[0]);
}

static int refuse_perf_events(void) {
  struct sock_filter code[] = {LOAD(nr), IF_NOT(SYS_perf_event_open, 1), ANSWER(EPERM), ALLOW};
  return install(code, sizeof code / sizeof code[0]);
}

static int refuse_kernel_faults(void) {
  struct sock_filter code[] = {
      LOAD(nr),
      IF_NOT(SYS_userfaultfd, 4),
      LOAD(args[0]),
      BPF_JUMP(BPF_JMP | BPF_JSET | BPF_K, USER_MODE_ONLY, 1, 0),
      ANSWER(EPERM),
      ALLOW,
      IF_NOT(SYS_ioctl, 3),
      LOAD(args[1]),
      IF_NOT(USERFAULTFD_NEW, 1),
      ANSWER(EPERM),
      ALLOW,
  };
  return install(code, sizeof code / sizeof code[0]);
}

int main(int argc, char** argv) {
  if (argc < 3) {
    fprintf(stderr, "usage: without-userfaultfd all|missing|no-perf-events|kernel-faults COMMAND ARGS...\n");
    return 2;
  }
  int result = -1;
  if (strcmp(argv[1], "all") == 0) {
    result = refuse_all(EPERM);
  } else if (strcmp(argv[1], "missing") == 0) {
    result = refuse_all(ENOSYS);
  } else if (strcmp(argv[1], "no-perf-events") == 0) {
    result = refuse_perf_events();
  } else if (strcmp(argv[1], "kernel-faults") == 0) {
    result = refuse_kernel_faults();
  } else {
    fprintf(stderr, "without-userfaultfd: no mode called \"%s\"\n", argv[1]);
    return 2;
  }
  if (result != 0) {
    perror("without-userfaultfd: seccomp");
    return 2;
  }
  execvp(argv[2], argv + 2);
  perror(argv[2]);
  return 127;
}
