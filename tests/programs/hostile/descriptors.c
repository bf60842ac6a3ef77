// Programs that close, exhaust or share descriptors. An engine that keeps its descriptors in the program's table loses
// them here; one that holds copies of the program's pipes keeps readers waiting for ever.

#include <errno.h>
#include <fcntl.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/resource.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

int case_close_range(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 1);
  for (int round = 0; round < 3; ++round) {
    REQUIRE(syscall(SYS_close_range, 3u, ~0u, 0u) == 0);
    verify(memory, WORKING_SET, 1, "after close_range(3, ~0)");
    press(WORKING_SET / 2);
  }
  // The descriptor table is the program's alone: the next one is 3.
  int fd = open("/dev/null", O_RDWR);
  REQUIRE(fd == 3);
  verify(memory, WORKING_SET, 1, "at the end");
  printf("close-range: memory right, next descriptor %d\n", fd);
  return 0;
}

int case_close_all(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 2);
  int closed = 0;
  for (int round = 0; round < 4; ++round) {
    int opened[8];
    for (int i = 0; i < 8; ++i) opened[i] = open("/dev/null", O_RDONLY | O_CLOEXEC);
    REQUIRE(opened[7] >= 0);
    for (int fd = 3; fd < 1024; ++fd) {
      if (close(fd) == 0) ++closed;
    }
    verify(memory, WORKING_SET, 2, "after closing every descriptor");
    press(WORKING_SET / 4);
  }
  // 8 of ours in each round and nobody else's; a descriptor inherited at the start is counted once by the caller.
  printf("close-all: memory right, %s\n", closed >= 32 ? "all closed" : "descriptors missing");
  return 0;
}

// Fills memory so that its engine is running, closes the pipe, and stays alive for a while.
int helper_pipe_writer(int argc, char** argv) {
  if (argc != 2) fail("pipe-writer: descriptor number missing");
  int fd = atoi(argv[1]);
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 3);
  verify(memory, WORKING_SET, 3, "in the writer");
  REQUIRE(write(fd, "written", 7) == 7);
  REQUIRE(close(fd) == 0);
  for (int i = 0; i < 40; ++i) {
    usleep(50000);
    verify(memory, WORKING_SET / 16, 3, "in the writer, after close");
  }
  return 0;
}

int case_pipe_eof(int argc, char** argv) {
  (void)argc, (void)argv;
  int ends[2];
  REQUIRE(pipe(ends) == 0);
  pid_t writer = fork();
  REQUIRE(writer >= 0);
  if (writer == 0) {
    char number[16];
    close(ends[0]);
    snprintf(number, sizeof number, "%d", ends[1]);
    execl("/proc/self/exe", "hostile", "pipe-writer", number, (char*)NULL);
    _exit(127);
  }
  close(ends[1]);
  char text[64] = {0};
  size_t used = 0;
  for (ssize_t got; (got = read(ends[0], text + used, sizeof text - 1 - used)) > 0;) used += (size_t)got;
  int status = 0;
  pid_t ended = waitpid(writer, &status, WNOHANG);
  if (ended != 0) fail("end of file came only when the writer ended (%s)", describe_status(status));
  expect_exit(writer, 0, "pipe writer");
  printf("pipe-eof: read \"%s\", end of file while the writer was alive\n", text);
  return 0;
}

int case_few_descriptors(int argc, char** argv) {
  (void)argc, (void)argv;
  syscall(SYS_close_range, 3u, ~0u, 0u);
  struct rlimit limit = {3, 3};
  REQUIRE(setrlimit(RLIMIT_NOFILE, &limit) == 0);
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 4);
  verify(memory, WORKING_SET, 4, "with three descriptors");
  REQUIRE(open("/dev/null", O_RDONLY) == -1 && errno == EMFILE);
  press(WORKING_SET / 2);
  verify(memory, WORKING_SET, 4, "with three descriptors, after pressure");
  printf("few-descriptors: memory right\n");
  return 0;
}
