// Several threads at once. Which call wins is open; that no byte is lost and nobody hangs is not.
#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <signal.h>
#include <stdatomic.h>
#include <unistd.h>

#include "device.h"
#include "memory.h"
#include "processes.h"

enum { THREADS = 4, ROUNDS = 60, SHARE = 64 };

struct worker {
  const struct kind* kind;
  int node;
  char* at;  // of this worker's range
  size_t pages;
  unsigned number;
  atomic_bool* stop;  // set when the others are done; may be null
  char* buffer;
};

static void run_threads(struct worker* workers, void* (*body)(void*), int count) {
  pthread_t threads[16];
  for (int i = 0; i < count; i++) REQUIRE(pthread_create(&threads[i], NULL, body, &workers[i]) == 0);
  for (int i = 0; i < count; i++) REQUIRE(pthread_join(threads[i], NULL) == 0);
}

static bool holds(const char* page, const char* as, unsigned value) {
  char expected[DMIRROR_PAGE];
  stamp_for(expected, as, value);
  for (size_t i = 0; i < DMIRROR_PAGE; i++) {
    if (page[i] != expected[i]) return false;
  }
  return true;
}

static void* migrate_own_range(void* argument) {
  struct worker* worker = argument;
  for (unsigned round = 1; round <= ROUNDS; round++) {
    stamp(worker->at, worker->pages, round);
    const struct reply out = command(worker->node, DMIRROR_MIGRATE_TO_DEV, worker->at, worker->buffer, worker->pages);
    EXPECT_ERROR(0, out.error);
    for (size_t i = 0; i < worker->pages; i++) {
      EXPECT(holds(worker->buffer + i * DMIRROR_PAGE, worker->at + i * DMIRROR_PAGE, round));
    }
    if (round % 2) EXPECT_ERROR(0, to_system(worker->node, worker->at, worker->pages).error);
    for (size_t i = 0; i < worker->pages; i++)
      EXPECT(holds(worker->at + i * DMIRROR_PAGE, worker->at + i * DMIRROR_PAGE, round));
  }
  return NULL;
}

// Whose node a thread uses: one open for all, an open each, or opens of both nodes in turn.
enum opens { ONE_OPEN, OPEN_EACH, BOTH_NODES };

static void threads_on_own_ranges(const struct kind* kind, enum opens opens) {
  // Ranges do not touch: the kernel's invalidation for one node makes the other forget the page behind a range too.
  enum { STRIDE = SHARE + 8 };
  char* at = map_pages(0, THREADS * STRIDE, READ_WRITE, SMALL_PAGES);
  const int node = open_node(kind->node);
  struct worker workers[THREADS];
  for (unsigned i = 0; i < THREADS; i++) {
    const int own = opens == ONE_OPEN ? node : open_node(opens == BOTH_NODES && i % 2 ? kind->other : kind->node);
    workers[i] = (struct worker){.kind = kind,
                                 .node = own,
                                 .at = at + i * STRIDE * DMIRROR_PAGE,
                                 .pages = SHARE,
                                 .number = i,
                                 .buffer = buffer_of(SHARE)};
  }
  run_threads(workers, migrate_own_range, THREADS);
  for (unsigned i = 0; i < THREADS; i++) EXPECT_CONTENTS(workers[i].at, SHARE, "v60*64");
}

MIRROR_CASE(threads, one_open_several_ranges, EACH_KIND) { threads_on_own_ranges(kind, ONE_OPEN); }
MIRROR_CASE(threads, one_open_each, EACH_KIND) { threads_on_own_ranges(kind, OPEN_EACH); }
MIRROR_CASE(threads, two_nodes, EACH_KIND) { threads_on_own_ranges(kind, BOTH_NODES); }

static void* migrate_common_range(void* argument) {
  struct worker* worker = argument;
  for (unsigned round = 0; round < ROUNDS; round++) {
    // Another thread may be moving some of the pages: then the device cannot reach all of them now.
    const int error = command(worker->node, DMIRROR_MIGRATE_TO_DEV, worker->at, worker->buffer, worker->pages).error;
    EXPECT(error == 0 || error == ENOENT);
    if (worker->number % 2) EXPECT_ERROR(0, to_system(worker->node, worker->at, worker->pages).error);
  }
  return NULL;
}

MIRROR_CASE(threads, all_on_one_range, EACH_KIND) {
  char* at = map_stamped(0, SHARE, 1);
  const int node = open_node(kind->node);
  struct worker workers[THREADS];
  for (unsigned i = 0; i < THREADS; i++) {
    workers[i] =
        (struct worker){.kind = kind, .node = node, .at = at, .pages = SHARE, .number = i, .buffer = buffer_of(SHARE)};
  }
  run_threads(workers, migrate_common_range, THREADS);
  EXPECT_CONTENTS(at, SHARE, "v1*64");
  EXPECT_TO_DEVICE(node, at, SHARE, "v1*64");
}

MIRROR_CASE(threads, all_on_one_unit, EACH_KIND) {
  char* at = map_huge_stamped(0, 1, 1);
  const int node = open_node(kind->node);
  struct worker workers[THREADS];
  for (unsigned i = 0; i < THREADS; i++) {
    workers[i] =
        (struct worker){.kind = kind, .node = node, .at = at, .pages = 512, .number = i, .buffer = buffer_of(512)};
  }
  run_threads(workers, migrate_common_range, THREADS);
  EXPECT_CONTENTS(at, 512, "v1*512");
}

// Every page holds a counter that one thread increments while others move the page.
static void* count_up(void* argument) {
  struct worker* worker = argument;
  for (uint64_t round = 0; !atomic_load(worker->stop); round++) {
    for (size_t i = worker->number; i < worker->pages; i += THREADS) {
      volatile uint64_t* counter = (uint64_t*)(worker->at + i * DMIRROR_PAGE);
      if (*counter != round) {
        EXPECT_EQ(round, *counter);
        return NULL;
      }
      *counter = round + 1;
    }
  }
  return NULL;
}

static void counters_under_migration(const struct kind* kind, char* at, size_t pages, unsigned rounds) {
  const int nodes[] = {open_node(kind->node), open_node(kind->other)};
  atomic_bool stop = false;
  struct worker workers[THREADS];
  pthread_t threads[THREADS];
  for (unsigned i = 0; i < THREADS; i++) {
    workers[i] = (struct worker){.kind = kind, .at = at, .pages = pages, .number = i, .stop = &stop};
    REQUIRE(pthread_create(&threads[i], NULL, count_up, &workers[i]) == 0);
  }
  for (unsigned round = 0; round < rounds; round++) {
    const int node = nodes[round / 8 % 2];
    const int error = to_device(node, at, pages).error;
    EXPECT(error == 0 || error == ENOENT);
    if (round % 4 == 3) EXPECT_ERROR(0, to_system(node, at, pages).error);
    if (round % 16 == 15) {
      const int exclusive = make_exclusive(node, at, pages).error;
      EXPECT(exclusive == 0 || exclusive == ENOENT);
    }
  }
  atomic_store(&stop, true);
  for (unsigned i = 0; i < THREADS; i++) REQUIRE(pthread_join(threads[i], NULL) == 0);
}

MIRROR_CASE(threads, counters_survive_migration, EACH_KIND) {
  counters_under_migration(kind, map_pages(0, 32, READ_WRITE, SMALL_PAGES), 32, 4 * ROUNDS);
}

MIRROR_CASE(threads, counters_in_a_unit_survive_migration, EACH_KIND) {
  char* at = map_huge_stamped(0, 1, 0);
  // Fewer rounds: each is 512 faults, which share the processors with threads that never rest.
  counters_under_migration(kind, at, 512, ROUNDS);
}

static void* map_and_unmap(void* argument) {
  struct worker* worker = argument;
  for (unsigned round = 0; round < 4 * ROUNDS; round++) {
    // Always the same addresses: what the device knows of the old mapping must not reach the new one.
    char* at =
        mmap(worker->at, worker->pages * DMIRROR_PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
    REQUIRE(at == worker->at);
    for (size_t i = 0; i < worker->pages; i++) {
      EXPECT(at[i * DMIRROR_PAGE] == 0);
      at[i * DMIRROR_PAGE] = (char)(round + 1);
    }
    for (size_t i = 0; i < worker->pages; i++) EXPECT(at[i * DMIRROR_PAGE] == (char)(round + 1));
    if (round % 3 == 0) REQUIRE(madvise(at, worker->pages * DMIRROR_PAGE, MADV_DONTNEED) == 0);
    if (round % 3 == 1) REQUIRE(munmap(at, worker->pages * DMIRROR_PAGE) == 0);
  }
  atomic_store(worker->stop, true);
  return NULL;
}

MIRROR_CASE(threads, unmapping_under_migration, EACH_KIND) {
  const int node = open_node(kind->node);
  atomic_bool stop = false;
  struct worker worker = {.kind = kind, .at = window(0), .pages = 64, .stop = &stop};
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, map_and_unmap, &worker) == 0);
  while (!atomic_load(&stop)) {
    const int error = to_device(node, worker.at, worker.pages).error;
    EXPECT(error == 0 || error == ENOENT || error == EINVAL);
  }
  REQUIRE(pthread_join(thread, NULL) == 0);
}

static void* change_protection(void* argument) {
  struct worker* worker = argument;
  for (unsigned round = 0; round < 4 * ROUNDS; round++) {
    REQUIRE(mprotect(worker->at, worker->pages * DMIRROR_PAGE, PROT_READ) == 0);
    for (size_t i = 0; i < worker->pages; i += 7)
      EXPECT(holds(worker->at + i * DMIRROR_PAGE, worker->at + i * DMIRROR_PAGE, 1));
    REQUIRE(mprotect(worker->at, worker->pages * DMIRROR_PAGE, READ_WRITE) == 0);
    stamp(worker->at, worker->pages, 1);
  }
  atomic_store(worker->stop, true);
  return NULL;
}

MIRROR_CASE(threads, protecting_under_migration, EACH_KIND) {
  const int node = open_node(kind->node);
  atomic_bool stop = false;
  struct worker worker = {.kind = kind, .at = map_stamped(0, 64, 1), .pages = 64, .stop = &stop};
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, change_protection, &worker) == 0);
  while (!atomic_load(&stop)) {
    const int error = to_device(node, worker.at, worker.pages).error;
    EXPECT(error == 0 || error == ENOENT);
  }
  REQUIRE(pthread_join(thread, NULL) == 0);
  EXPECT_CONTENTS(worker.at, 64, "v1*64");
}

static void* migrate_until_stopped(void* argument) {
  struct worker* worker = argument;
  while (!atomic_load(worker->stop)) {
    const int error = command(worker->node, DMIRROR_MIGRATE_TO_DEV, worker->at, worker->buffer, worker->pages).error;
    EXPECT(error == 0 || error == ENOENT);
  }
  return NULL;
}

MIRROR_CASE(threads, forking_under_migration, EACH_KIND) {
  const int node = open_node(kind->node);
  atomic_bool stop = false;
  struct worker worker = {.kind = kind,
                          .node = node,
                          .at = map_stamped(0, SHARE, 1),
                          .pages = SHARE,
                          .stop = &stop,
                          .buffer = buffer_of(SHARE)};
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, migrate_until_stopped, &worker) == 0);
  for (unsigned round = 0; round < 20; round++) {
    struct partner other = start_child();
    if (other.in_child) {
      EXPECT_CONTENTS(worker.at, SHARE, "v1*64");
      stamp(worker.at, SHARE, 2);
      EXPECT_CONTENTS(worker.at, SHARE, "v2*64");
      end_child();
    }
    await_child(&other);
    EXPECT_CONTENTS(worker.at, SHARE, "v1*64");
  }
  atomic_store(&stop, true);
  REQUIRE(pthread_join(thread, NULL) == 0);
}

static void* open_and_close(void* argument) {
  struct worker* worker = argument;
  for (unsigned round = 0; round < ROUNDS; round++) {
    const int node = open(node_path(worker->kind->node), O_RDWR);
    REQUIRE(node >= 0);
    // A close evicts pages of all opens: those that this call has just moved may be home again before it looks.
    const int error = command(node, DMIRROR_MIGRATE_TO_DEV, worker->at, worker->buffer, worker->pages).error;
    EXPECT(error == 0 || error == ENOENT);
    EXPECT(close(node) == 0);
  }
  return NULL;
}

MIRROR_CASE(threads, opening_and_closing, EACH_KIND) {
  char* at = map_stamped(0, THREADS * 16, 1);
  struct worker workers[THREADS];
  for (unsigned i = 0; i < THREADS; i++) {
    workers[i] = (struct worker){
        .kind = kind, .at = at + i * 16 * DMIRROR_PAGE, .pages = 16, .number = i, .buffer = buffer_of(16)};
  }
  run_threads(workers, open_and_close, THREADS);
  EXPECT_CONTENTS(at, THREADS * 16, "v1*64");
}

static atomic_uint signals_taken;
static void take_signal(int number) {
  (void)number;
  atomic_fetch_add(&signals_taken, 1);
}

static void* send_signals(void* argument) {
  struct worker* worker = argument;
  while (!atomic_load(worker->stop)) {
    kill(getpid(), SIGUSR1);
    usleep(200);
  }
  return NULL;
}

// Commands are not interruptible: a signal is taken before or after, without a trace in the answers.
MIRROR_CASE(threads, signals_do_not_interrupt, EACH_KIND) {
  const int node = open_node(kind->node);
  char* at = map_huge_stamped(0, 1, 1);
  const struct sigaction action = {.sa_handler = take_signal};  // without SA_RESTART
  REQUIRE(sigaction(SIGUSR1, &action, NULL) == 0);
  atomic_bool stop = false;
  struct worker worker = {.stop = &stop};
  pthread_t thread;
  REQUIRE(pthread_create(&thread, NULL, send_signals, &worker) == 0);
  for (unsigned round = 0; round < ROUNDS || atomic_load(&signals_taken) < 100; round++) {
    EXPECT_TO_DEVICE(node, at, 512, "v1*512");
    EXPECT_READ(node, at, 512, "v1*512");
    EXPECT_ERROR(0, to_system(node, at, 512).error);
    EXPECT_CONTENTS(at, 512, "v1*512");
  }
  atomic_store(&stop, true);
  REQUIRE(pthread_join(thread, NULL) == 0);
}
