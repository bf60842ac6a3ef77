// Forks. The child must see every byte of the instant of the fork, wherever it was then, and go on alone.

#include <errno.h>
#include <pthread.h>
#include <signal.h>
#include <spawn.h>
#include <stdatomic.h>
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

extern char** environ;

enum { kIdleThreads = 8, kFiles = 50, kKeys = 64, kForks = 20 };

static pthread_key_t keys[kKeys];
static pthread_barrier_t idle_ready;

// A thread that owns a stack, thread-specific data and a malloc arena, and then sleeps while all of it grows cold.
static void* idle_thread(void* argument) {
  size_t index = (size_t)argument;
  char* heap[32];
  char on_stack[32 * 1024];
  fill(on_stack, sizeof on_stack, 50 + index);
  for (int i = 0; i < 32; ++i) {
    heap[i] = malloc(20000);
    if (!heap[i]) fail("malloc in a thread");
    fill(heap[i], 16384, 60 + index);
  }
  for (int i = 0; i < kKeys; ++i) pthread_setspecific(keys[i], heap[i % 32]);
  pthread_barrier_wait(&idle_ready);
  pthread_barrier_wait(&idle_ready);  // released at the end of the test
  verify(on_stack, sizeof on_stack, 50 + index, "stack of an idle thread");
  for (int i = 0; i < kKeys; ++i) {
    if (pthread_getspecific(keys[i]) != heap[i % 32]) fail("thread-specific data changed");
  }
  for (int i = 0; i < 32; ++i) {
    verify(heap[i], 16384, 60 + index, "heap of an idle thread");
    free(heap[i]);
  }
  return NULL;
}

// What a forked child does: read everything, use malloc and stdio, write everything, read again.
static int child_work(char* memory, size_t bytes, uint64_t seed) {
  if (first_wrong(memory, bytes, seed) >= 0) return 2;
  char* mine = malloc(MIB);
  if (!mine) return 3;
  fill(mine, MIB, 70);
  FILE* file = tmpfile();
  if (!file || fwrite(mine, 1, MIB, file) != MIB || fclose(file) != 0) return 4;
  if (first_wrong(mine, MIB, 70) >= 0) return 5;
  free(mine);
  fill(memory, bytes, seed + 1);
  if (first_wrong(memory, bytes, seed + 1) >= 0) return 6;
  return 0;
}

int case_fork_threads(int argc, char** argv) {
  (void)argc, (void)argv;
  for (int i = 0; i < kKeys; ++i) REQUIRE(pthread_key_create(&keys[i], NULL) == 0);
  pthread_barrier_init(&idle_ready, NULL, kIdleThreads + 1);
  pthread_t threads[kIdleThreads];
  for (size_t i = 0; i < kIdleThreads; ++i) {
    REQUIRE(pthread_create(&threads[i], NULL, idle_thread, (void*)i) == 0);
  }
  pthread_barrier_wait(&idle_ready);
  FILE* files[kFiles];
  for (int i = 0; i < kFiles; ++i) {
    files[i] = tmpfile();
    REQUIRE(files[i] != NULL && fprintf(files[i], "file %d", i) > 0);
  }
  size_t bytes = WORKING_SET / 2;
  char* memory = map_memory(bytes);
  fill(memory, bytes, 71);
  for (int round = 0; round < kForks; ++round) {
    press(WORKING_SET / 4);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      // Half of the children look at everything, half leave at once as shells do.
      _exit(round % 2 ? 0 : child_work(memory, bytes, 71));
    }
    expect_exit(child, 0, "forked child");
    verify(memory, bytes / 4, 71, "parent after a fork");
  }
  verify(memory, bytes, 71, "parent at the end");
  pthread_barrier_wait(&idle_ready);
  for (int i = 0; i < kIdleThreads; ++i) pthread_join(threads[i], NULL);
  for (int i = 0; i < kFiles; ++i) REQUIRE(fclose(files[i]) == 0);
  printf("fork-threads: %d forks, every child and the parent right\n", kForks);
  return 0;
}

// --- fork-writers ---

enum { kWriters = 4, kInstants = 8 };
struct Writer {
  pthread_t thread;
  uint64_t* words;
  size_t count;
  uint64_t passes;
};
static atomic_bool stop_writers;

// Writes pass number after pass number over its words in ascending order: at any instant a prefix holds v, the rest v-1.
static void* write_passes(void* argument) {
  struct Writer* self = argument;
  uint64_t pass = 0;
  while (!atomic_load_explicit(&stop_writers, memory_order_relaxed)) {
    ++pass;
    for (size_t i = 0; i < self->count; ++i) ((volatile uint64_t*)self->words)[i] = pass;
  }
  self->passes = pass;
  return NULL;
}

static bool is_one_instant(const uint64_t* words, size_t count) {
  uint64_t first = words[0];
  size_t i = 0;
  while (i < count && words[i] == first) ++i;
  while (i < count && words[i] == first - 1) ++i;
  return i == count;
}

int case_fork_writers(int argc, char** argv) {
  (void)argc, (void)argv;
  struct Writer writers[kWriters];
  size_t each = WORKING_SET / 2 / kWriters;
  for (int i = 0; i < kWriters; ++i) {
    writers[i] = (struct Writer){.words = map_memory(each), .count = each / sizeof(uint64_t)};
    REQUIRE(pthread_create(&writers[i].thread, NULL, write_passes, &writers[i]) == 0);
  }
  size_t bytes = WORKING_SET / 4;
  char* still = map_memory(bytes);
  fill(still, bytes, 75);
  for (int round = 0; round < kInstants; ++round) {
    usleep(20000);
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) {
      for (int i = 0; i < kWriters; ++i) {
        if (!is_one_instant(writers[i].words, writers[i].count)) _exit(10 + i);
      }
      _exit(first_wrong(still, bytes, 75) < 0 ? 0 : 2);
    }
    expect_exit(child, 0, "child forked among writers");
  }
  atomic_store(&stop_writers, true);
  for (int i = 0; i < kWriters; ++i) {
    pthread_join(writers[i].thread, NULL);
    for (size_t k = 0; k < writers[i].count; ++k) {
      if (writers[i].words[k] != writers[i].passes) fail("writer %d: word %zu is from another pass", i, k);
    }
  }
  verify(still, bytes, 75, "memory nobody wrote");
  printf("fork-writers: %d children saw one instant each\n", kInstants);
  return 0;
}

// --- fork-chain ---

static int descend(int depth, char* memory, size_t bytes) {
  uint64_t seed = 80 + (uint64_t)depth;
  if (first_wrong(memory, bytes, seed) >= 0) return 20 + depth;
  if (depth == 4) return 0;
  pid_t child = fork();
  if (child < 0) return 30 + depth;
  if (child == 0) {
    fill(memory, bytes, seed + 1);
    _exit(descend(depth + 1, memory, bytes));
  }
  // The parent writes its own half meanwhile: neither may see the other's words.
  fill(memory, bytes / 2, seed + 50);
  if (first_wrong(memory, bytes / 2, seed + 50) >= 0) return 40 + depth;
  int status = 0;
  while (waitpid(child, &status, 0) < 0) {
    if (errno != EINTR) return 50 + depth;
  }
  if (!WIFEXITED(status)) return 60 + depth;
  if (WEXITSTATUS(status) != 0) return WEXITSTATUS(status);
  const char* rest = memory + bytes / 2;
  const uint64_t* words = (const uint64_t*)rest;
  for (size_t i = 0; i < bytes / 2 / sizeof *words; ++i) {
    if (words[i] != pattern(seed, bytes / 2 / sizeof *words + i)) return 70 + depth;
  }
  return first_wrong(memory, bytes / 2, seed + 50) < 0 ? 0 : 90 + depth;
}

int case_fork_chain(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t bytes = WORKING_SET / 2;
  char* memory = map_memory(bytes);
  fill(memory, bytes, 80);
  press(WORKING_SET / 2);
  int result = descend(0, memory, bytes);
  if (result != 0) fail("a generation saw wrong memory (code %d)", result);
  printf("fork-chain: five generations, each right\n");
  return 0;
}

// --- raw-fork ---

int case_raw_fork(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 90);
  fflush(stdout);
  pid_t child = (pid_t)syscall(SYS_fork);
  REQUIRE(child >= 0);
  if (child == 0) {
    struct rlimit none = {0, 0};
    setrlimit(RLIMIT_CORE, &none);
    ptrdiff_t wrong = first_wrong(memory, WORKING_SET, 90);
    syscall(SYS_exit_group, wrong < 0 ? 0 : 66);
  }
  int status = 0;
  REQUIRE(waitpid(child, &status, 0) == child);
  // No handler of libc runs in such a child. Stopping it is honest; letting it read zeros is not.
  if (WIFEXITED(status) && WEXITSTATUS(status) == 66) fail("a child of the raw fork call read wrong memory");
  if (WIFEXITED(status) && WEXITSTATUS(status) != 0) fail("raw fork child: %s", describe_status(status));
  verify(memory, WORKING_SET, 90, "parent after the raw fork call");
  fprintf(stderr, "raw-fork: the child ended with %s\n", describe_status(status));
  printf("raw-fork: no wrong word\n");
  return 0;
}

// --- ranges a child must not inherit ---

static void check_wiped_in_child(char* wiped, size_t bytes, char* normal, const char* what) {
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    const uint64_t* words = (const uint64_t*)wiped;
    for (size_t i = 0; i < bytes / sizeof *words; ++i) {
      if (words[i] != 0) _exit(3);  // the parent's secrets
    }
    _exit(first_wrong(normal, bytes, 96) < 0 ? 0 : 4);
  }
  expect_exit(child, 0, what);
}

int case_wipe_on_fork(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t bytes = WORKING_SET / 4;
  char* early = map_memory(bytes);
  char* late = map_memory(bytes);
  char* normal = map_memory(bytes);
  REQUIRE(madvise(early, bytes, MADV_WIPEONFORK) == 0);
  fill(early, bytes, 94);
  fill(late, bytes, 95);
  fill(normal, bytes, 96);
  press(WORKING_SET / 2);
  check_wiped_in_child(early, bytes, normal, "range wiped on fork from the start");
  REQUIRE(madvise(late, bytes, MADV_WIPEONFORK) == 0);  // by now its pages are away
  check_wiped_in_child(late, bytes, normal, "range wiped on fork after its pages had left");
  verify(early, bytes, 94, "parent, early range");
  verify(late, bytes, 95, "parent, late range");
  REQUIRE(madvise(late, bytes, MADV_KEEPONFORK) == 0);
  press(WORKING_SET / 2);
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) _exit(first_wrong(late, bytes, 95) < 0 ? 0 : 5);
  expect_exit(child, 0, "range kept on fork again");
  printf("wipe-on-fork: the child saw zeros, the parent its data\n");
  return 0;
}

int case_dont_fork(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t bytes = WORKING_SET / 4;
  char* hidden = map_memory(bytes);
  char* normal = map_memory(bytes);
  fill(hidden, bytes, 97);
  fill(normal, bytes, 96);
  press(WORKING_SET / 2);
  REQUIRE(madvise(hidden, bytes, MADV_DONTFORK) == 0);
  pid_t child = fork();
  REQUIRE(child >= 0);
  if (child == 0) {
    if (msync(hidden, kPage, MS_ASYNC) == 0 || errno != ENOMEM) _exit(3);  // it must not be mapped
    void* fresh = mmap(hidden, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED_NOREPLACE, -1, 0);
    if (fresh != hidden) _exit(4);
    for (size_t i = 0; i < bytes / sizeof(uint64_t); ++i) {
      if (((uint64_t*)fresh)[i] != 0) _exit(5);
    }
    fill(fresh, bytes, 98);
    if (first_wrong(fresh, bytes, 98) >= 0) _exit(6);
    _exit(first_wrong(normal, bytes, 96) < 0 ? 0 : 7);
  }
  expect_exit(child, 0, "child without the DONTFORK range");
  verify(hidden, bytes, 97, "parent, hidden range");
  verify(normal, bytes, 96, "parent, normal range");
  printf("dont-fork: absent in the child, intact in the parent\n");
  return 0;
}

// --- spawn and exec ---

int helper_verify(int argc, char** argv) {
  uint64_t seed = argc > 1 ? strtoull(argv[1], NULL, 10) : 1;
  char* memory = map_memory(WORKING_SET / 2);
  fill(memory, WORKING_SET / 2, seed);
  verify(memory, WORKING_SET / 2, seed, "in the new image");
  verify(memory, WORKING_SET / 2, seed, "in the new image, again");
  return 0;
}

int case_spawn(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  // Arguments and environment that are away at the time of the call.
  char* program = memory + 1 * MIB;
  char* word = memory + 2 * MIB;
  char** arguments = (char**)(memory + 3 * MIB);
  fill(memory + 4 * MIB, WORKING_SET - 4 * MIB, 100);
  strcpy(program, "/proc/self/exe");
  strcpy(word, "101");
  arguments[0] = program;
  arguments[1] = strcpy(memory + 2 * MIB + 64, "verify");
  arguments[2] = word;
  arguments[3] = NULL;
  press(WORKING_SET / 2);
  pid_t child = 0;
  REQUIRE(posix_spawn(&child, program, NULL, NULL, arguments, environ) == 0);
  expect_exit(child, 0, "posix_spawn");
  press(WORKING_SET / 2);
  child = vfork();
  if (child == 0) {
    execve(program, arguments, environ);
    _exit(127);
  }
  REQUIRE(child > 0);
  expect_exit(child, 0, "vfork and execve");
  press(WORKING_SET / 2);
  int status = system("exit 5");
  REQUIRE(WIFEXITED(status) && WEXITSTATUS(status) == 5);
  FILE* pipe_end = popen("echo through a pipe", "r");
  char line[64] = "";
  REQUIRE(pipe_end != NULL && fgets(line, sizeof line, pipe_end) != NULL && pclose(pipe_end) == 0);
  line[strcspn(line, "\n")] = 0;
  verify(memory + 4 * MIB, WORKING_SET - 4 * MIB, 100, "after spawning");
  printf("spawn: all children right, popen said \"%s\"\n", line);
  return 0;
}
