// A memory control group's limit that is reached while memory is on its way home: with file pages that the kernel can drop
// instead the program goes on, with nothing to drop it is killed as it would be by itself. Never wrong contents, never a hang.

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/stat.h>
#include <sys/vfs.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

#define TMPFS_MAGIC_NUMBER 0x01021994

static const char kV1[] = "/sys/fs/cgroup/memory", kV2[] = "/sys/fs/cgroup";

struct Group {
  bool v1;
  char path[128];
};

static bool write_text(const char* folder, const char* file, const char* text) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", folder, file);
  int fd = open(path, O_WRONLY | O_CLOEXEC);
  if (fd < 0) return false;
  bool done = write(fd, text, strlen(text)) == (ssize_t)strlen(text);
  close(fd);
  return done;
}

static void read_text(const char* folder, const char* file, char* text, size_t room) {
  char path[256];
  snprintf(path, sizeof path, "%s/%s", folder, file);
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  REQUIRE(fd >= 0);
  ssize_t got = read(fd, text, room - 1);
  REQUIRE(got >= 0);
  text[got] = 0;
  close(fd);
}

// False: not to be had here, and why is printed.
static bool make_group(struct Group* group, size_t limit) {
  char text[64];
  if (geteuid() != 0) {
    printf("group-limit: needs root for a memory control group\n");
    return false;
  }
  snprintf(text, sizeof text, "%s/memory.limit_in_bytes", kV1);
  group->v1 = access(text, W_OK) == 0;
  if (!group->v1 && !write_text(kV2, "cgroup.subtree_control", "+memory")) {
    printf("group-limit: no memory controller under /sys/fs/cgroup\n");
    return false;
  }
  snprintf(group->path, sizeof group->path, "%s/whimbrel-hostile-%d", group->v1 ? kV1 : kV2, (int)getpid());
  if (mkdir(group->path, 0755) != 0) {
    printf("group-limit: cannot make a control group: %s\n", strerror(errno));
    return false;
  }
  snprintf(text, sizeof text, "%zu", limit);
  bool limited = write_text(group->path, group->v1 ? "memory.limit_in_bytes" : "memory.max", text);
  // What is swapped out is not what this is about.
  if (!group->v1) (void)write_text(group->path, "memory.swap.max", "0");
  if (!limited) {
    rmdir(group->path);
    printf("group-limit: cannot limit a control group\n");
  }
  return limited;
}

static void enter(const struct Group* group) {
  char text[16];
  snprintf(text, sizeof text, "%d", (int)getpid());
  REQUIRE(write_text(group->path, "cgroup.procs", text));
}

static long times_reached(const struct Group* group) {
  char text[512];
  read_text(group->path, group->v1 ? "memory.failcnt" : "memory.events", text, sizeof text);
  if (group->v1) return atol(text);
  const char* at = strstr(text, "\nmax ");
  return at == NULL ? 0 : atol(at + 5);
}

// A file as large as the limit, clean, that is read again and again by a process in the group: its pages fill what is left.
static const char kFile[] = "group-limit.data";

static void make_file(size_t bytes) {
  static char block[64 * 1024];
  int fd = open(kFile, O_CREAT | O_TRUNC | O_WRONLY | O_CLOEXEC, 0600);
  REQUIRE(fd >= 0);
  memset(block, 'x', sizeof block);
  for (size_t done = 0; done < bytes; done += sizeof block) REQUIRE(write(fd, block, sizeof block) == (ssize_t)sizeof block);
  REQUIRE(fsync(fd) == 0 && posix_fadvise(fd, 0, 0, POSIX_FADV_DONTNEED) == 0);
  close(fd);
}

static void read_file(void) {
  static char block[64 * 1024];
  int fd = open(kFile, O_RDONLY | O_CLOEXEC);
  REQUIRE(fd >= 0);
  while (read(fd, block, sizeof block) > 0) {
  }
  close(fd);
}

// Room for all of it and a half more, which the file takes.
static void go_on_beside_file_pages(const struct Group* group) {
  enter(group);
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 180);
  for (int round = 0; round < 4; ++round) {
    read_file();
    verify(memory, WORKING_SET, 180 + (uint64_t)round, "with the group's limit reached");
    fill(memory, WORKING_SET, 181 + (uint64_t)round);
  }
  verify(memory, WORKING_SET, 184, "at last");
  _exit(times_reached(group) > 0 ? 0 : 3);
}

// A quarter of a fetched budget's worth, and nothing in the group that could be dropped.
static void be_killed(const struct Group* group) {
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 190);
  enter(group);
  verify(memory, WORKING_SET, 190, "in a group that is too small");
  fill(map_memory(WORKING_SET), WORKING_SET, 191);
  _exit(4);
}

// hostile group-limit [kill]
int case_group_limit(int argc, char** argv) {
  bool kill_it = argc > 1 && strcmp(argv[1], "kill") == 0;
  struct statfs where;
  if (!kill_it && statfs(".", &where) == 0 && where.f_type == TMPFS_MAGIC_NUMBER) {
    printf("group-limit: the working directory is in memory, whose pages cannot be dropped\n");
    return kSkip;
  }
  struct Group group;
  size_t limit = kill_it ? WORKING_SET / 16 : WORKING_SET + WORKING_SET / 2;
  if (!make_group(&group, limit)) return kSkip;
  if (!kill_it) make_file(limit);
  pid_t child = fork();
  if (child == 0) kill_it ? be_killed(&group) : go_on_beside_file_pages(&group);
  int status = 0;
  REQUIRE(child > 0 && waitpid(child, &status, 0) == child);
  // What it has left (file pages, tables) goes with the group; the kernel may need a moment to find it empty.
  for (int tries = 0; rmdir(group.path) != 0 && tries < 100; ++tries) usleep(100000);
  if (!kill_it) unlink(kFile);
  if (kill_it) {
    if (!WIFSIGNALED(status) || WTERMSIG(status) != SIGKILL) fail("group-limit: ended by %s, not killed", describe_status(status));
    printf("group-limit: killed like any program that needs more than its group may have\n");
  } else {
    if (!WIFEXITED(status) || WEXITSTATUS(status) != 0) fail("group-limit: ended by %s", describe_status(status));
    printf("group-limit: memory right with the limit reached while it was fetched\n");
  }
  return 0;
}
