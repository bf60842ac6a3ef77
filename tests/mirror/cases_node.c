// Nodes and descriptors: opening, closing, duplicating, and what else a descriptor can do.
#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/socket.h>
#include <sys/wait.h>
#include <unistd.h>

#include "after_exec.h"
#include "device.h"
#include "memory.h"

extern char** environ;

static const struct reply closed = {.error = EBADF};

static int snapshot_error(int node) {
  unsigned char byte;
  return command(node, DMIRROR_SNAPSHOT, window(0), &byte, 1).error;
}

MIRROR_CASE(node, open_and_close, EACH_KIND) {
  const int node = open_node(kind->node);
  EXPECT(close(node) == 0);
  EXPECT(close(node) < 0 && errno == EBADF);
  EXPECT_ERROR(closed.error, snapshot_error(node));
}

MIRROR_CASE(node, both_nodes_of_a_kind_open, EACH_KIND) {
  const int first = open_node(kind->node);
  const int second = open_node(kind->other);
  EXPECT(first != second);
  EXPECT_ERROR(0, snapshot_error(first));
  EXPECT_ERROR(0, snapshot_error(second));
  EXPECT(close(first) == 0);
  EXPECT_ERROR(0, snapshot_error(second));
}

MIRROR_CASE(node, there_is_no_fifth_node, PRIVATE) {
  EXPECT(open(node_path(DMIRROR_NODES), O_RDWR) < 0 && errno == ENOENT);
}

MIRROR_CASE(node, opens_with_any_access_mode, EACH_KIND) {
  static const int modes[] = {O_RDWR, O_RDONLY, O_WRONLY, O_RDWR | O_CLOEXEC, O_RDWR | O_NONBLOCK};
  char* at = map_stamped(0, 8, 1);
  for (size_t i = 0; i < sizeof modes / sizeof *modes; i++) {
    const int node = open(node_path(kind->node), modes[i]);
    REQUIRE(node >= 0);
    EXPECT_TO_DEVICE(node, at, 8, "v1*8");
    EXPECT_TO_SYSTEM(node, at, 8, 8);
    EXPECT(close(node) == 0);
  }
}

MIRROR_CASE(node, opens_by_every_open_call, EACH_KIND) {
  char* at = map_stamped(0, 1, 1);
  const int nodes[] = {open(node_path(kind->node), O_RDWR), open64(node_path(kind->node), O_RDWR),
                       openat(AT_FDCWD, node_path(kind->node), O_RDWR),
                       openat64(AT_FDCWD, node_path(kind->node), O_RDWR)};
  for (size_t i = 0; i < sizeof nodes / sizeof *nodes; i++) {
    REQUIRE(nodes[i] >= 0);
    EXPECT_READ(nodes[i], at, 1, "v1");
  }
}

MIRROR_CASE(node, many_opens_at_once, EACH_KIND) {
  enum { OPENS = 100 };
  int nodes[OPENS];
  char* at = map_stamped(0, 4, 1);
  for (int i = 0; i < OPENS; i++) nodes[i] = open_node(i % 2 ? kind->node : kind->other);
  for (int i = 0; i < OPENS; i++) EXPECT_READ(nodes[i], at, 4, "v1*4");
  for (int i = 0; i < OPENS; i++) EXPECT(close(nodes[i]) == 0);
  // And again and again: nothing is used up.
  for (int i = 0; i < OPENS; i++) {
    const int node = open_node(kind->node);
    EXPECT_TO_DEVICE(node, at, 4, "v1*4");
    EXPECT(close(node) == 0);
  }
  EXPECT_CONTENTS(at, 4, "v1*4");
}

MIRROR_CASE(node, read_and_write_are_not_provided, EACH_KIND) {
  const int node = open_node(kind->node);
  char byte = 0;
  EXPECT(read(node, &byte, 1) < 0 && errno == EINVAL);
  EXPECT(write(node, &byte, 1) < 0 && errno == EINVAL);
}

MIRROR_CASE(node, dup_is_the_same_open, EACH_KIND) {
  char* at = map_stamped(0, 8, 1);
  const int node = open_node(kind->node);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  const int copies[] = {dup(node), dup2(node, 200), dup3(node, 201, O_CLOEXEC), fcntl(node, F_DUPFD, 210),
                        fcntl(node, F_DUPFD_CLOEXEC, 220)};
  EXPECT(close(node) == 0);
  EXPECT_ERROR(EBADF, snapshot_error(node));
  for (size_t i = 0; i < sizeof copies / sizeof *copies; i++) {
    REQUIRE(copies[i] >= 0);
    // The pages stay out as long as any descriptor of the open is left.
    EXPECT_SNAPSHOT(kind, copies[i], at, 8, "dev*8");
    EXPECT_EQ(0, EXPECT_READ(copies[i], at, 8, "v1*8"));
    EXPECT(close(copies[i]) == 0);
  }
  const int again = open_node(kind->node);
  EXPECT_SNAPSHOT(kind, again, at, 8, "ram*8");
}

MIRROR_CASE(node, dup2_over_a_descriptor_closes_it, EACH_KIND) {
  char* at = map_stamped(0, 8, 1);
  const int node = open_node(kind->node);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  const int null = open("/dev/null", O_RDWR);
  REQUIRE(null >= 0);
  EXPECT(dup2(null, node) == node);
  EXPECT_ERROR(ENOTTY, snapshot_error(node));
  const int again = open_node(kind->node);
  EXPECT_SNAPSHOT(kind, again, at, 8, "ram*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(node, close_range_closes_it, EACH_KIND) {
  char* at = map_stamped(0, 8, 1);
  const int node = fcntl(open_node(kind->node), F_DUPFD, 300);
  REQUIRE(node >= 300);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  EXPECT(close_range(3, ~0u, 0) == 0);
  EXPECT_ERROR(EBADF, snapshot_error(node));
  const int again = open_node(kind->node);
  EXPECT_SNAPSHOT(kind, again, at, 8, "ram*8");
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(node, a_reused_number_is_another_file, EACH_KIND) {
  const int node = open_node(kind->node);
  EXPECT(close(node) == 0);
  const int file = open("/dev/null", O_RDWR);
  EXPECT_EQ(node, file);
  EXPECT_ERROR(ENOTTY, snapshot_error(file));
  EXPECT(close(file) == 0);
}

MIRROR_CASE(node, other_files_are_left_alone, PRIVATE) {
  const int node = open_node(kind->node);
  int pipes[2];
  REQUIRE(pipe(pipes) == 0);
  int pending = 0;
  EXPECT(write(pipes[1], "abc", 3) == 3);
  EXPECT(ioctl(pipes[0], FIONREAD, &pending) == 0);
  EXPECT_EQ(3, pending);
  EXPECT(fcntl(node, F_GETFD) == 0);
}

MIRROR_CASE(node, passed_over_a_socket_it_is_the_same_open, EACH_KIND) {
  char* at = map_stamped(0, 8, 1);
  const int node = open_node(kind->node);
  EXPECT_TO_DEVICE(node, at, 8, "v1*8");
  int sockets[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, sockets) == 0);
  union {
    char bytes[CMSG_SPACE(sizeof(int))];
    struct cmsghdr align;
  } control = {0};
  char byte = 'x';
  struct iovec part = {.iov_base = &byte, .iov_len = 1};
  struct msghdr message = {
      .msg_iov = &part, .msg_iovlen = 1, .msg_control = control.bytes, .msg_controllen = sizeof control.bytes};
  struct cmsghdr* header = CMSG_FIRSTHDR(&message);
  header->cmsg_level = SOL_SOCKET;
  header->cmsg_type = SCM_RIGHTS;
  header->cmsg_len = CMSG_LEN(sizeof(int));
  memcpy(CMSG_DATA(header), &node, sizeof node);
  EXPECT(sendmsg(sockets[0], &message, 0) == 1);
  EXPECT(close(node) == 0);
  message.msg_controllen = sizeof control.bytes;
  EXPECT(recvmsg(sockets[1], &message, 0) == 1);
  header = CMSG_FIRSTHDR(&message);
  REQUIRE(header && header->cmsg_type == SCM_RIGHTS);
  int received;
  memcpy(&received, CMSG_DATA(header), sizeof received);
  EXPECT_SNAPSHOT(kind, received, at, 8, "dev*8");
  EXPECT_EQ(0, EXPECT_READ(received, at, 8, "v1*8"));
  EXPECT(close(received) == 0);
  EXPECT_CONTENTS(at, 8, "v1*8");
}

MIRROR_CASE(node, after_exec_it_speaks_of_a_dead_space, EACH_KIND) {
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    const int node = open_node(kind->node);
    char number[20];
    snprintf(number, sizeof number, "%d", node);
    char option[] = AFTER_EXEC_OPTION;
    char* arguments[] = {program_invocation_name, option, number, NULL};
    execve("/proc/self/exe", arguments, environ);
    _exit(97);
  }
  int status;
  REQUIRE(waitpid(pid, &status, 0) == pid);
  EXPECT(WIFEXITED(status));
  EXPECT_EQ(0, WEXITSTATUS(status));
}

MIRROR_CASE(node, close_on_exec_is_obeyed, EACH_KIND) {
  const int node = open(node_path(kind->node), O_RDWR | O_CLOEXEC);
  REQUIRE(node >= 0);
  EXPECT_EQ(FD_CLOEXEC, fcntl(node, F_GETFD));
  const int inherited = open_node(kind->node);
  EXPECT_EQ(0, fcntl(inherited, F_GETFD));
}
