// count-bad-pages SIZE_MIB: fills memory with pages that say which one they are, prints "ready", waits for a line of input,
// then reads everything back. Prints how many pages could not be read (SIGBUS) and how many hold something else.
#define _GNU_SOURCE
#include <setjmp.h>
#include <signal.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>

#define PAGE 4096
#define MAGIC 0x7768696d62726c21u  // the tests look for it in the store

static sigjmp_buf bad_page;

static void on_bus(int number) {
  (void)number;
  siglongjmp(bad_page, 1);
}

static uint64_t word_of(uint64_t page, uint64_t i) { return i == 0 ? MAGIC : i == 1 ? page : (page * 512 + i) * 0x9e3779b97f4a7c15u; }

int main(int argc, char** argv) {
  const size_t pages = (size_t)atoi(argc > 1 ? argv[1] : "64") << 8;
  uint64_t* memory = mmap(NULL, pages * PAGE, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  if (memory == MAP_FAILED) return 1;
  for (size_t page = 0; page < pages; ++page) {
    for (size_t i = 0; i < 512; ++i) memory[page * 512 + i] = word_of(page, i);
  }
  puts("ready");
  fflush(stdout);
  char line[16];
  if (fgets(line, sizeof line, stdin) == NULL) return 1;
  signal(SIGBUS, on_bus);
  volatile unsigned bad = 0, wrong = 0;
  volatile const uint64_t* words = memory;
  for (volatile size_t page = 0; page < pages; ++page) {
    if (sigsetjmp(bad_page, 1) != 0) {
      ++bad;
      continue;
    }
    for (size_t i = 0; i < 512; ++i) {
      if (words[page * 512 + i] != word_of(page, i)) {
        ++wrong;
        break;
      }
    }
  }
  printf("%u bad, %u wrong\n", bad, wrong);
  return 0;
}
