// How fast memory goes to the device and comes back, 2 MiB units against base pages. Figures are printed, not judged:
// what is judged is that every byte arrives.
#include <errno.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <time.h>

#include "device.h"
#include "memory.h"

enum { UNITS = 128, PAGES = UNITS * DMIRROR_UNIT_PAGES, REPEATS = 5 };  // 256 MiB
static const double megabytes = (double)PAGES * (double)DMIRROR_PAGE / (1 << 20);

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

static int by_value(const void* a, const void* b) {
  const double x = *(const double*)a, y = *(const double*)b;
  return (x > y) - (x < y);
}

static double median(double* values) {
  qsort(values, REPEATS, sizeof *values, by_value);
  return values[REPEATS / 2];
}

struct pace {
  double out, home, fault;  // seconds for everything
};

static struct pace measure(int node, char* at, char* buffer, size_t fault_step) {
  double out[REPEATS], home[REPEATS], fault[REPEATS];
  for (int i = 0; i < REPEATS; i++) {
    double start = seconds_now();
    EXPECT_ERROR(0, command(node, DMIRROR_MIGRATE_TO_DEV, at, buffer, PAGES).error);
    out[i] = seconds_now() - start;
    start = seconds_now();
    EXPECT_ERROR(0, to_system(node, at, PAGES).error);
    home[i] = seconds_now() - start;
    EXPECT_ERROR(0, command(node, DMIRROR_MIGRATE_TO_DEV, at, buffer, PAGES).error);
    start = seconds_now();
    for (size_t page = 0; page < PAGES; page += fault_step) *(volatile char*)(at + page * DMIRROR_PAGE);
    fault[i] = seconds_now() - start;
  }
  return (struct pace){median(out), median(home), median(fault)};
}

static void report(const char* what, double huge, double base, double copy) {
  note("%-28s 2 MiB units %8.1f ms %7.0f MiB/s %3.0f %% of memcpy", what, huge * 1e3, megabytes / huge,
       100 * copy / huge);
  note("%-28s base pages  %8.1f ms %7.0f MiB/s %3.0f %% of memcpy; %.1f times as long", "", base * 1e3,
       megabytes / base, 100 * copy / base, base / huge);
}

MIRROR_CASE(bench, there_and_back, EACH_KIND | SLOW) {
  const int node = open_node(kind->node);
  char* buffer = buffer_of(PAGES);
  char* copy_source = buffer_of(PAGES);
  double copies[REPEATS];
  for (int i = 0; i < REPEATS; i++) {
    const double start = seconds_now();
    memcpy(buffer, copy_source, PAGES * (size_t)DMIRROR_PAGE);
    copies[i] = seconds_now() - start;
  }
  const double copy = median(copies);
  drop_buffer(copy_source, PAGES);

  char* at = map_huge_stamped(0, UNITS, 1);
  const struct pace huge = measure(node, at, buffer, kind->coherent ? 1 : DMIRROR_UNIT_PAGES);
  EXPECT_CONTENTS(at, PAGES, "v1*65536");
  REQUIRE(munmap(at, PAGES * (size_t)DMIRROR_PAGE) == 0);
  at = map_stamped(0, PAGES, 2);
  const struct pace base = measure(node, at, buffer, 1);
  EXPECT_CONTENTS(at, PAGES, "v2*65536");

  note("%.0f MiB, medians of %d; memcpy %.1f ms, %.0f MiB/s", megabytes, REPEATS, copy * 1e3, megabytes / copy);
  report("to the device and read back", huge.out, base.out, copy);
  report("home on request", huge.home, base.home, copy);
  if (!kind->coherent) report("home by faults", huge.fault, base.fault, copy);
}
