// Memory that other parties touch: the kernel on behalf of system calls, and other processes through shared mappings.

#include <errno.h>
#include <fcntl.h>
#include <poll.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/stat.h>
#include <sys/syscall.h>
#include <sys/uio.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

int case_shared(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t bytes = WORKING_SET / 4;
  char* private_memory = map_memory(bytes);
  char* shared = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  REQUIRE(shared != MAP_FAILED);
  int file = memfd_create("hostile", MFD_CLOEXEC);
  REQUIRE(file >= 0 && ftruncate(file, (off_t)bytes) == 0);
  char* copy_on_write = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE, file, 0);
  REQUIRE(copy_on_write != MAP_FAILED);
  fill(private_memory, bytes, 140);
  fill(shared, bytes, 141);
  fill(copy_on_write, bytes, 142);
  press(WORKING_SET / 2);
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (first_wrong(private_memory, bytes, 140) >= 0 || first_wrong(shared, bytes, 141) >= 0) _exit(1);
    fill(private_memory, bytes, 143);  // ours alone
    fill(shared, bytes, 144);          // seen by the parent
    _exit(first_wrong(copy_on_write, bytes, 142) < 0 ? 0 : 2);
  }
  expect_exit(child, 0, "child beside shared memory");
  verify(private_memory, bytes, 140, "private memory");
  verify(shared, bytes, 144, "shared memory written by the child");
  verify(copy_on_write, bytes, 142, "private file mapping");
  char* file_view = mmap(NULL, bytes, PROT_READ, MAP_SHARED, file, 0);
  REQUIRE(file_view != MAP_FAILED);
  verify_zero(file_view, bytes, "file behind a private mapping");  // private writes never reach it
  close(file);
  printf("shared: private stays private, shared stays shared\n");
  return 0;
}

static void write_all(int fd, const char* data, size_t bytes) {
  while (bytes > 0) {
    ssize_t done = write(fd, data, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail("write");
    data += done;
    bytes -= (size_t)done;
  }
}

static void read_all(int fd, char* data, size_t bytes) {
  while (bytes > 0) {
    ssize_t done = read(fd, data, bytes);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) fail("read");
    data += done;
    bytes -= (size_t)done;
  }
}

// A child echoes what it gets: both directions of a socket with buffers that are away.
static void echo_through_socket(char* from, char* to, size_t bytes) {
  int ends[2];
  REQUIRE(socketpair(AF_UNIX, SOCK_STREAM, 0, ends) == 0);
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    char buffer[65536];
    close(ends[0]);
    for (ssize_t got; (got = read(ends[1], buffer, sizeof buffer)) > 0;) write_all(ends[1], buffer, (size_t)got);
    _exit(0);
  }
  close(ends[1]);
  for (size_t at = 0; at < bytes; at += 65536) {
    write_all(ends[0], from + at, 65536);
    read_all(ends[0], to + at, 65536);
  }
  close(ends[0]);
  expect_exit(child, 0, "echo");
}

int case_syscall_buffers(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t bytes = WORKING_SET / 4;
  char* from = map_memory(bytes);
  char* to = map_memory(bytes);
  fill(from, bytes, 150);
  fill(to, bytes, 151);
  press(WORKING_SET);
  FILE* file = tmpfile();
  REQUIRE(file != NULL);
  int fd = fileno(file);
  write_all(fd, from, bytes);
  press(WORKING_SET);
  REQUIRE(lseek(fd, 0, SEEK_SET) == 0);
  // Scattered read into memory that is away, every segment of another size.
  size_t at = 0;
  while (at < bytes) {
    struct iovec segments[4];
    size_t length = 0;
    for (size_t i = 0; i < 4; ++i) {
      size_t size = (i + 1) * 5000;
      if (at + length + size > bytes) size = bytes - at - length;
      segments[i] = (struct iovec){to + at + length, size};
      length += size;
    }
    REQUIRE(readv(fd, segments, 4) == (ssize_t)length);
    at += length;
  }
  verify(to, bytes, 150, "read back by readv");
  press(WORKING_SET);
  fill(to, bytes, 152);
  press(WORKING_SET);
  echo_through_socket(from, to, bytes);
  verify(to, bytes, 150, "through a socket");
  press(WORKING_SET);
  // A path, a result structure and a futex word that are away.
  char* path = from + 4 * kPage;
  struct stat* status = (struct stat*)(from + 40 * kPage);
  strcpy(path, "/proc/self/exe");
  press(WORKING_SET);
  REQUIRE(stat(path, status) == 0 && S_ISREG(status->st_mode));
  press(WORKING_SET);
  REQUIRE(getrandom(to, 65536, 0) == 65536);
  int* word = (int*)(to + 64 * kPage);
  *word = 5;
  press(WORKING_SET);
  REQUIRE(syscall(SYS_futex, word, 0 /* FUTEX_WAIT */, 6, NULL, NULL, 0) == -1 && errno == EAGAIN);
  struct iovec local = {to + 128 * kPage, 16 * kPage};
  struct iovec remote = {from + 128 * kPage, 16 * kPage};
  REQUIRE(process_vm_readv(getpid(), &local, 1, &remote, 1, 0) == (ssize_t)(16 * kPage));
  REQUIRE(memcmp(local.iov_base, remote.iov_base, 16 * kPage) == 0);
  fclose(file);
  printf("syscall-buffers: every call saw the right bytes\n");
  return 0;
}
