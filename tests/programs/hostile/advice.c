// Every piece of advice that madvise knows, rights that change all the time, huge pages on and off.

#include <errno.h>
#include <pthread.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <unistd.h>

#include "hostile.h"

// Advice after which the contents must be what they were. The kernel may refuse any of it.
static const int kHarmless[] = {
    MADV_NORMAL, MADV_RANDOM, MADV_SEQUENTIAL, MADV_WILLNEED, MADV_MERGEABLE, MADV_UNMERGEABLE, MADV_HUGEPAGE, MADV_NOHUGEPAGE,
    MADV_DONTDUMP, MADV_DODUMP, MADV_DONTFORK, MADV_DOFORK, MADV_WIPEONFORK, MADV_KEEPONFORK,
    20 /* COLD */, 21 /* PAGEOUT */, 22 /* POPULATE_READ */, 23 /* POPULATE_WRITE */, 25 /* COLLAPSE */,
};

int case_advice(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 180);
  uint64_t random = 5;
  for (size_t i = 0; i < sizeof kHarmless / sizeof kHarmless[0]; ++i) {
    for (int piece = 0; piece < 8; ++piece) {
      size_t at = next_random(&random) % (WORKING_SET / kPage - 1024) * kPage;
      (void)madvise(memory + at, (1 + next_random(&random) % 1024) * kPage, kHarmless[i]);
    }
    (void)madvise(memory, WORKING_SET, kHarmless[i]);
    press(WORKING_SET / 4);
    verify(memory, WORKING_SET, 180, "after advice");
  }
  // Lazily freed: each page is what it was, or zeros; what is written afterwards stays.
  REQUIRE(madvise(memory, WORKING_SET / 2, MADV_FREE) == 0);
  press(WORKING_SET);
  for (size_t at = 0; at < WORKING_SET / 2; at += kPage) {
    uint64_t word = *(uint64_t*)(memory + at);
    if (word != 0 && word != pattern(180, at / 8)) fail("a freed page holds what was never there");
  }
  fill(memory, WORKING_SET / 2, 181);
  press(WORKING_SET);
  verify(memory, WORKING_SET / 2, 181, "written after MADV_FREE");
  // Advice nobody knows, and on what is not there.
  REQUIRE(madvise(memory, kPage, 12345) == -1 && errno == EINVAL);
  REQUIRE(madvise(memory + 1, kPage, MADV_DONTNEED) == -1 && errno == EINVAL);
  printf("advice: contents are what they should be after all of it\n");
  return 0;
}

int case_huge_switch(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET + 2 * MIB);
  memory = (char*)(((uintptr_t)memory + 2 * MIB - 1) & ~(uintptr_t)(2 * MIB - 1));
  fill(memory, WORKING_SET, 182);
  for (int round = 0; round < 6; ++round) {
    (void)madvise(memory, WORKING_SET, round % 2 == 0 ? MADV_HUGEPAGE : MADV_NOHUGEPAGE);
    (void)prctl(PR_SET_THP_DISABLE, round % 3 == 2, 0, 0, 0);
    press(WORKING_SET / 2);
    verify(memory, WORKING_SET, 182 + (uint64_t)round, "as huge pages come and go");
    fill(memory, WORKING_SET, 183 + (uint64_t)round);
    (void)madvise(memory, WORKING_SET, 25 /* COLLAPSE */);
  }
  verify(memory, WORKING_SET, 188, "at the end");
  printf("huge-switch: memory right with and without huge pages\n");
  return 0;
}

// --- rights ---

enum { kWriters = 3, kSteps = 3000, kPieces = 64 };

struct piece_writer {
  char* memory;
  size_t bytes;
  uint64_t seed;
};

// Each thread changes rights in its own part and checks every page it writes to.
static void* change_rights(void* argument) {
  struct piece_writer* part = argument;
  uint64_t random = part->seed;
  size_t pages = part->bytes / kPage;
  uint64_t* stamps = calloc(pages, sizeof *stamps);
  REQUIRE(stamps != NULL);
  for (int step = 0; step < kSteps; ++step) {
    size_t page = next_random(&random) % pages, count = 1 + next_random(&random) % kPieces;
    if (page + count > pages) count = pages - page;
    char* at = part->memory + page * kPage;
    static const int kRights[] = {PROT_NONE, PROT_READ, PROT_READ | PROT_WRITE};
    REQUIRE(mprotect(at, count * kPage, kRights[next_random(&random) % 3]) == 0);
    REQUIRE(mprotect(at, count * kPage, PROT_READ | PROT_WRITE) == 0);
    for (size_t i = 0; i < count; ++i) {
      uint64_t* word = (uint64_t*)(at + i * kPage + 64);
      if (*word != stamps[page + i]) fail("page %zu holds %#llx, should be %#llx", page + i, (unsigned long long)*word,
                                          (unsigned long long)stamps[page + i]);
      *word = stamps[page + i] = next_random(&random);
      memset((char*)word + 8, (int)*word, 1024);
    }
  }
  free(stamps);
  return NULL;
}

int case_rights_storm(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(kWriters * WORKING_SET / 4);
  pthread_t threads[kWriters];
  struct piece_writer parts[kWriters];
  for (size_t i = 0; i < kWriters; ++i) {
    parts[i] = (struct piece_writer){memory + i * WORKING_SET / 4, WORKING_SET / 4, i + 11};
    REQUIRE(pthread_create(&threads[i], NULL, change_rights, &parts[i]) == 0);
  }
  for (size_t i = 0; i < kWriters; ++i) pthread_join(threads[i], NULL);
  printf("rights-storm: every page held what was written last\n");
  return 0;
}

// --- threads ---

enum { kThreads = 10000, kAtOnce = 8 };

static void* touch_and_end(void* argument) {
  char* memory = argument;
  uint64_t stack[512];  // a page of the stack that was mapped for this thread
  fill(stack, sizeof stack, 9);
  size_t page = ((uintptr_t)stack >> 12) * 2654435761u % (WORKING_SET / kPage);
  const uint64_t* words = (const uint64_t*)(memory + page * kPage);
  if (words[0] != pattern(184, page * kPage / 8)) fail("a thread saw another word");
  return first_wrong(stack, sizeof stack, 9) < 0 ? argument : NULL;
}

int case_thread_storm(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 184);
  for (int made = 0; made < kThreads; made += kAtOnce) {
    pthread_t threads[kAtOnce];
    for (int i = 0; i < kAtOnce; ++i) REQUIRE(pthread_create(&threads[i], NULL, touch_and_end, memory) == 0);
    for (int i = 0; i < kAtOnce; ++i) {
      void* result = NULL;
      REQUIRE(pthread_join(threads[i], &result) == 0 && result == memory);
    }
  }
  verify(memory, WORKING_SET, 184, "after ten thousand threads");
  printf("thread-storm: ten thousand threads saw the right memory\n");
  return 0;
}
