// Programs that become something else: daemons, other users, processes with fewer rights.

#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <grp.h>
#include <linux/audit.h>
#include <linux/filter.h>
#include <linux/seccomp.h>
#include <stddef.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

// What a daemon does after its parent has gone: verify, work under pressure, verify.
static const char* live_as_daemon(char* memory, uint64_t seed) {
  if (first_wrong(memory, WORKING_SET, seed) >= 0) return "wrong memory right after daemon()";
  for (int round = 0; round < 3; ++round) {
    press(WORKING_SET / 2);
    if (first_wrong(memory, WORKING_SET, seed) >= 0) return "wrong memory after pressure";
  }
  fill(memory, WORKING_SET, seed + 1);
  press(WORKING_SET / 2);
  if (first_wrong(memory, WORKING_SET, seed + 1) >= 0) return "wrong memory after rewriting";
  return "memory right";
}

int case_daemon(int argc, char** argv) {
  (void)argc, (void)argv;
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    close(ends[0]);
    char* memory = map_memory(WORKING_SET);
    fill(memory, WORKING_SET, 10);
    if (daemon(1, 1) != 0) fail("daemon()");
    const char* verdict = live_as_daemon(memory, 10);
    dprintf(ends[1], "%s", verdict);
    _exit(0);
  }
  close(ends[1]);
  expect_exit(child, 0, "the process that called daemon()");
  char text[128] = {0};
  size_t used = 0;
  for (ssize_t got; (got = read(ends[0], text + used, sizeof text - 1 - used)) > 0;) used += (size_t)got;
  if (used == 0) fail("the daemon died without a word");
  printf("daemon: %s\n", text);
  return strcmp(text, "memory right") == 0 ? 0 : 1;
}

int case_daemon_detached(int argc, char** argv) {
  if (argc != 2) fail("daemon-detached: path of the verdict file missing");
  int verdict_file = open(argv[1], O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  REQUIRE(verdict_file >= 0);
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 11);
  printf("daemon-detached: leaving\n");
  fflush(stdout);
  if (daemon(0, 0) != 0) fail("daemon()");
  const char* verdict = live_as_daemon(memory, 11);
  dprintf(verdict_file, "%s\n", verdict);
  return 0;
}

// Every thread of this process must have the new user: one that keeps root is a hole in the program's sandbox.
static void require_all_threads_run_as(unsigned uid) {
  DIR* tasks = opendir("/proc/self/task");
  REQUIRE(tasks != NULL);
  int threads = 0;
  for (struct dirent* entry; (entry = readdir(tasks)) != NULL;) {
    if (entry->d_name[0] == '.') continue;
    char path[300];
    snprintf(path, sizeof path, "/proc/self/task/%.200s/status", entry->d_name);
    FILE* status = fopen(path, "re");
    REQUIRE(status != NULL);
    char line[256];
    while (fgets(line, sizeof line, status)) {
      unsigned real = 0, effective = 0;
      if (sscanf(line, "Uid: %u %u", &real, &effective) == 2 && (real != uid || effective != uid)) {
        fail("thread %s runs as user %u/%u, the program as %u", entry->d_name, real, effective, uid);
      }
      if (sscanf(line, "Gid: %u %u", &real, &effective) == 2 && (real != uid || effective != uid)) {
        fail("thread %s runs as group %u/%u, the program as %u", entry->d_name, real, effective, uid);
      }
      unsigned long long capabilities = 0;
      if (sscanf(line, "CapPrm: %llx", &capabilities) == 1 && capabilities != 0) {
        fail("thread %s keeps capabilities %llx", entry->d_name, capabilities);
      }
      if (sscanf(line, "Groups: %u", &real) == 1) fail("thread %s keeps group %u", entry->d_name, real);
    }
    fclose(status);
    ++threads;
  }
  closedir(tasks);
  REQUIRE(threads >= 1);
}

int case_setuid(int argc, char** argv) {
  (void)argc, (void)argv;
  if (geteuid() != 0) {
    printf("SKIP: changing the user needs root\n");
    return kSkip;
  }
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 12);
  press(WORKING_SET / 2);
  REQUIRE(seteuid(65534) == 0);  // for a while only
  REQUIRE(seteuid(0) == 0);
  REQUIRE(setgroups(0, NULL) == 0);
  REQUIRE(setgid(65534) == 0);
  REQUIRE(setuid(65534) == 0);
  require_all_threads_run_as(65534);  // at once
  REQUIRE(setuid(0) == -1);
  verify(memory, WORKING_SET, 12, "after setuid");
  press(WORKING_SET);
  verify(memory, WORKING_SET, 12, "after setuid and pressure");
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) _exit(first_wrong(memory, WORKING_SET, 12) < 0 && geteuid() == 65534 ? 0 : 1);
  expect_exit(child, 0, "child forked after setuid");
  require_all_threads_run_as(65534);
  printf("setuid: memory right, every thread runs as user 65534\n");
  return 0;
}

int case_setuid_early(int argc, char** argv) {
  (void)argc, (void)argv;
  if (geteuid() != 0) {
    printf("SKIP: changing the user needs root\n");
    return kSkip;
  }
  REQUIRE(setgroups(0, NULL) == 0);
  REQUIRE(setresgid(65534, 65534, 65534) == 0);
  REQUIRE(setresuid(65534, 65534, 65534) == 0);
  require_all_threads_run_as(65534);
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 17);
  verify(memory, WORKING_SET, 17, "after rights were given up");
  press(WORKING_SET / 2);
  verify(memory, WORKING_SET, 17, "after rights were given up, and pressure");
  require_all_threads_run_as(65534);
  printf("setuid-early: memory right, every thread runs as user 65534\n");
  return 0;
}

// By the system calls themselves: nobody is told, and the engine has to find out.
int case_setuid_raw(int argc, char** argv) {
  (void)argc, (void)argv;
  if (geteuid() != 0) {
    printf("SKIP: changing the user needs root\n");
    return kSkip;
  }
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 18);
  REQUIRE(syscall(SYS_setgroups, 0, NULL) == 0);
  REQUIRE(syscall(SYS_setresgid, 65534, 65534, 65534) == 0);
  REQUIRE(syscall(SYS_setresuid, 65534, 65534, 65534) == 0);
  verify(memory, WORKING_SET, 18, "after the raw setresuid call");
  usleep(300000);
  require_all_threads_run_as(65534);
  printf("setuid-raw: memory right, every thread runs as user 65534\n");
  return 0;
}

#define DENY(number) \
  BPF_JUMP(BPF_JMP | BPF_JEQ | BPF_K, (number), 0, 1), BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ERRNO | EPERM)

int case_seccomp(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  char* spare = map_memory(WORKING_SET / 2);
  fill(memory, WORKING_SET, 13);
  struct sock_filter code[] = {
      BPF_STMT(BPF_LD | BPF_W | BPF_ABS, offsetof(struct seccomp_data, nr)),
      DENY(SYS_ioctl),
      DENY(SYS_mmap),
      DENY(SYS_madvise),
      DENY(SYS_userfaultfd),
      BPF_STMT(BPF_RET | BPF_K, SECCOMP_RET_ALLOW),
  };
  struct sock_fprog program = {sizeof code / sizeof code[0], code};
  REQUIRE(prctl(PR_SET_NO_NEW_PRIVS, 1, 0, 0, 0) == 0);
  REQUIRE(prctl(PR_SET_SECCOMP, SECCOMP_MODE_FILTER, &program) == 0);
  REQUIRE(mmap(NULL, kPage, PROT_READ, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0) == MAP_FAILED && errno == EPERM);
  for (int round = 0; round < 3; ++round) {
    fill(spare, WORKING_SET / 2, 14 + (uint64_t)round);
    verify(memory, WORKING_SET, 13, "behind a seccomp filter");
    verify(spare, WORKING_SET / 2, 14 + (uint64_t)round, "spare memory behind a seccomp filter");
  }
  printf("seccomp: memory right behind the filter\n");
  return 0;
}

int case_address_limit(int argc, char** argv) {
  (void)argc, (void)argv;
  // Twice what the program needs, far less than a generous reservation of an engine.
  struct rlimit limit = {3 * WORKING_SET, 3 * WORKING_SET};
  REQUIRE(setrlimit(RLIMIT_AS, &limit) == 0);
  pid_t child = fork();  // a fresh image starts under the limit
  REQUIRE(child >= 0);
  if (child == 0) {
    execl("/proc/self/exe", "hostile", "verify", "15", (char*)NULL);
    _exit(127);
  }
  expect_exit(child, 0, "program started under RLIMIT_AS");
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 16);
  verify(memory, WORKING_SET, 16, "under RLIMIT_AS");
  printf("address-limit: memory right\n");
  return 0;
}
