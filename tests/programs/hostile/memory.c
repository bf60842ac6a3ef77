// The pattern every case fills its memory with, and how a case fails.

#include <errno.h>
#include <stdarg.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

void fail(const char* format, ...) {
  int saved = errno;
  char text[512];
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(text, sizeof text, format, arguments);
  va_end(arguments);
  // To stdout as well: the comparison of plain and managed output then shows it.
  dprintf(STDOUT_FILENO, "FAILED: %s (errno %d: %s)\n", text, saved, strerror(saved));
  _exit(1);
}

void* map_memory(size_t bytes) {
  void* memory = mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) fail("mmap of %zu bytes", bytes);
  return memory;
}

void fill(void* memory, size_t bytes, uint64_t seed) {
  uint64_t* words = memory;
  for (size_t i = 0; i < bytes / sizeof *words; ++i) words[i] = pattern(seed, i);
}

ptrdiff_t first_wrong(const void* memory, size_t bytes, uint64_t seed) {
  const uint64_t* words = memory;
  for (size_t i = 0; i < bytes / sizeof *words; ++i) {
    if (words[i] != pattern(seed, i)) return (ptrdiff_t)i;
  }
  return -1;
}

void verify(const void* memory, size_t bytes, uint64_t seed, const char* what) {
  ptrdiff_t wrong = first_wrong(memory, bytes, seed);
  if (wrong < 0) return;
  const uint64_t* words = memory;
  fail("%s: word %td at %p is %#llx, should be %#llx", what, wrong, (const void*)(words + wrong),
       (unsigned long long)words[wrong], (unsigned long long)pattern(seed, (uint64_t)wrong));
}

void verify_zero(const void* memory, size_t bytes, const char* what) {
  const uint64_t* words = memory;
  for (size_t i = 0; i < bytes / sizeof *words; ++i) {
    if (words[i] != 0) {
      fail("%s: word %zu at %p is %#llx, should be zero", what, i, (const void*)(words + i),
           (unsigned long long)words[i]);
    }
  }
}

void press(size_t bytes) {
  void* memory = map_memory(bytes);
  fill(memory, bytes, 0x77);
  verify(memory, bytes, 0x77, "memory written to create pressure");
  munmap(memory, bytes);
}

const char* describe_status(int status) {
  static char text[64];
  if (WIFSIGNALED(status)) {
    snprintf(text, sizeof text, "signal %d", WTERMSIG(status));
  } else {
    snprintf(text, sizeof text, "exit %d", WEXITSTATUS(status));
  }
  return text;
}

void expect_exit(pid_t pid, int expected, const char* what) {
  int status = 0;
  while (waitpid(pid, &status, 0) < 0) {
    if (errno != EINTR) fail("%s: waitpid", what);
  }
  if (!WIFEXITED(status) || WEXITSTATUS(status) != expected) {
    fail("%s: child ended with %s, expected exit %d", what, describe_status(status), expected);
  }
}
