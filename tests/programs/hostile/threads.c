// Threads that come, go, outlive main, or replace the whole process.

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

static void* exec_from_thread(void* argument) {
  char* memory = argument;
  verify(memory, WORKING_SET, 110, "in the thread before exec");
  execl("/proc/self/exe", "hostile", "verify", "111", (char*)NULL);
  fail("exec from a thread");
}

int case_exec_thread(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 110);
  printf("exec-thread: leaving\n");
  fflush(stdout);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, exec_from_thread, memory) == 0);
  pthread_join(thread, NULL);
  fail("the thread came back from exec");
}

static void* outlive_main(void* argument) {
  char* memory = argument;
  usleep(100000);
  for (int round = 0; round < 3; ++round) {
    verify(memory, WORKING_SET, 112, "after main has left");
    press(WORKING_SET / 2);
  }
  printf("pthread-exit: memory right without the main thread\n");
  fflush(stdout);
  return NULL;  // the last thread: the process must end now, with status 0
}

int case_pthread_exit(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 112);
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, outlive_main, memory) == 0);
  pthread_detach(thread);
  pthread_exit(NULL);
}

// --- thread-churn ---

enum { kRounds = 300, kThreadsPerRound = 16, kForkEvery = 10, kIdle = 8, kOpenFiles = 50 };

static __thread uint64_t thread_local_words[512];

static void* churn(void* argument) {
  uint64_t seed = (uint64_t)(size_t)argument;
  fill(thread_local_words, sizeof thread_local_words, seed);
  char stack[8192];
  fill(stack, sizeof stack, seed + 1);
  char* heap = malloc(64 * 1024);
  if (!heap) fail("malloc in a thread");
  fill(heap, 64 * 1024, seed + 2);
  verify(thread_local_words, sizeof thread_local_words, seed, "thread-local data");
  verify(stack, sizeof stack, seed + 1, "stack of a thread");
  verify(heap, 64 * 1024, seed + 2, "heap of a thread");
  free(heap);
  return NULL;
}

static pthread_barrier_t end_of_churn;
static void* idle(void* argument) {
  char stack[16384];
  uint64_t seed = 5000 + (uint64_t)(size_t)argument;
  fill(stack, sizeof stack, seed);
  pthread_barrier_wait(&end_of_churn);
  verify(stack, sizeof stack, seed, "stack of an idle thread");
  return NULL;
}

int case_thread_churn(int argc, char** argv) {
  // thread-churn [MIB]: resident size besides the threads, for runs at another scale.
  size_t bytes = argc > 1 ? (size_t)atol(argv[1]) * MIB : WORKING_SET;
  char* memory = map_memory(bytes);
  fill(memory, bytes, 113);
  FILE* files[kOpenFiles];
  for (int i = 0; i < kOpenFiles; ++i) REQUIRE((files[i] = fopen("/dev/null", "we")) != NULL);
  pthread_barrier_init(&end_of_churn, NULL, kIdle + 1);
  pthread_t idlers[kIdle];
  for (size_t i = 0; i < kIdle; ++i) REQUIRE(pthread_create(&idlers[i], NULL, idle, (void*)i) == 0);
  int forks = 0;
  size_t slice = bytes / kRounds & ~(size_t)7;
  for (int round = 0; round < kRounds; ++round) {
    pthread_t threads[kThreadsPerRound];
    for (int i = 0; i < kThreadsPerRound; ++i) {
      size_t seed = (size_t)(round * kThreadsPerRound + i + 200);
      REQUIRE(pthread_create(&threads[i], NULL, churn, (void*)seed) == 0);
    }
    if (round % kForkEvery == 0) {
      ++forks;
      pid_t child = fork();
      REQUIRE(child >= 0);
      if (child == 0) {
        void* small = malloc(100000);
        int code = small && first_wrong(memory, bytes, 113) < 0 ? 0 : 1;
        free(small);
        exit(code);  // runs the exit handlers and flushes the 50 files
      }
      expect_exit(child, 0, "child forked among threads");
    }
    for (int i = 0; i < kThreadsPerRound; ++i) REQUIRE(pthread_join(threads[i], NULL) == 0);
    // Read a little of the memory in each round, all of it over the run.
    for (size_t i = 0; i < slice / 8; ++i) {
      size_t index = (size_t)round * (slice / 8) + i;
      if (((uint64_t*)memory)[index] != pattern(113, index)) fail("round %d: word %zu is wrong", round, index);
    }
  }
  verify(memory, bytes, 113, "after the churn");
  pthread_barrier_wait(&end_of_churn);
  for (int i = 0; i < kIdle; ++i) pthread_join(idlers[i], NULL);
  for (int i = 0; i < kOpenFiles; ++i) fclose(files[i]);
  printf("thread-churn: %d threads, %d forks, memory right\n", kRounds * kThreadsPerRound, forks);
  return 0;
}

// --- mlockall ---

static size_t resident_bytes(void) {
  FILE* statm = fopen("/proc/self/statm", "re");
  unsigned long total = 0, resident = 0;
  if (!statm || fscanf(statm, "%lu %lu", &total, &resident) != 2) fail("/proc/self/statm");
  fclose(statm);
  return resident * (size_t)kPage;
}

int case_mlockall(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t bytes = WORKING_SET;
  char* memory = map_memory(bytes);
  fill(memory, bytes, 114);
  if (mlockall(MCL_CURRENT) != 0) {
    if (errno == EPERM || errno == ENOMEM) {
      printf("SKIP: RLIMIT_MEMLOCK does not allow mlockall\n");
      return kSkip;
    }
    fail("mlockall");
  }
  // Everything is in RAM now, and nothing that the program never asked for.
  size_t resident = resident_bytes();
  if (resident < bytes) fail("only %zu MiB resident after mlockall", resident / MIB);
  if (resident > 4 * bytes) fail("%zu MiB resident after mlockall of %zu MiB", resident / MIB, bytes / MIB);
  verify(memory, bytes, 114, "locked");
  unsigned char present[64];
  REQUIRE(mincore(memory, sizeof present * kPage, present) == 0);
  for (size_t i = 0; i < sizeof present; ++i) {
    if (!(present[i] & 1)) fail("page %zu of locked memory is not in RAM", i);
  }
  REQUIRE(munlockall() == 0);
  press(WORKING_SET);
  verify(memory, bytes, 114, "unlocked");
  printf("mlockall: memory right, nothing else locked in\n");
  return 0;
}
