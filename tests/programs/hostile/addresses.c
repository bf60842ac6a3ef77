// Programs that change their address space all the time, checked against a model of what each page must hold.

#include <errno.h>
#include <pthread.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <unistd.h>

#include "hostile.h"

// --- address-storm ---

enum { kStormThreads = 4, kSlots = 6, kSlotPages = 1024, kOperations = 4000 };

// What a page must hold: 0 = zeros, else the seed of its pattern. kUnmapped = no memory there.
enum { kUnmapped = -1 };

struct Storm {
  pthread_t thread;
  int index;
  uint64_t random;
  char* arena;  // kSlots regions of kSlotPages, all of it reserved by this thread
  int64_t model[kSlots * kSlotPages];
  uint64_t next_seed;
  uint64_t checked;
};

static void check_page(struct Storm* self, size_t page) {
  const char* address = self->arena + page * kPage;
  if (self->model[page] == kUnmapped) return;
  if (self->model[page] == 0) {
    verify_zero(address, kPage, "address-storm");
  } else {
    verify(address, kPage, (uint64_t)self->model[page], "address-storm");
  }
  ++self->checked;
}

static void write_pages(struct Storm* self, size_t first, size_t count) {
  for (size_t page = first; page < first + count; ++page) {
    if (self->model[page] == kUnmapped) continue;
    uint64_t seed = ++self->next_seed;
    fill(self->arena + page * kPage, kPage, seed);
    self->model[page] = (int64_t)seed;
  }
}

static void map_fixed(struct Storm* self, size_t first, size_t count) {
  char* address = self->arena + first * kPage;
  void* got = mmap(address, count * kPage, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  if (got != address) fail("MAP_FIXED");
  for (size_t page = first; page < first + count; ++page) self->model[page] = 0;
}

// Unmaps, and puts PROT_NONE in its place so that no other thread's mmap lands in this arena.
static void unmap(struct Storm* self, size_t first, size_t count) {
  char* address = self->arena + first * kPage;
  if (munmap(address, count * kPage) != 0) fail("munmap");
  void* got = mmap(address, count * kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
  if (got != address) fail("placeholder mapping");
  for (size_t page = first; page < first + count; ++page) self->model[page] = kUnmapped;
}

static void drop(struct Storm* self, size_t first, size_t count) {
  if (madvise(self->arena + first * kPage, count * kPage, MADV_DONTNEED) != 0) fail("MADV_DONTNEED");
  for (size_t page = first; page < first + count; ++page) {
    if (self->model[page] != kUnmapped) self->model[page] = 0;
  }
}

// Moves pages of one slot onto another, one call each: a longer run may consist of several mappings, which kernels
// before 6.17 refuse to move, and later ones too when the mappings are watched by userfaultfd.
static void move(struct Storm* self, size_t from, size_t to, size_t count) {
  for (size_t i = 0; i < count; ++i) {
    char* source = self->arena + (from + i) * kPage;
    char* target = self->arena + (to + i) * kPage;
    if (mremap(source, kPage, kPage, MREMAP_MAYMOVE | MREMAP_FIXED, target) != target) fail("mremap of one page");
    self->model[to + i] = self->model[from + i];
    void* hole = mmap(source, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED | MAP_NORESERVE, -1, 0);
    if (hole != source) fail("placeholder mapping");
    self->model[from + i] = kUnmapped;
  }
}

// A block as realloc() keeps it: one mapping that grows, moves and shrinks as a whole. This must always succeed.
static void grow_block(struct Storm* self) {
  size_t pages = 16 + next_random(&self->random) % 240;
  uint64_t seed = ++self->next_seed;
  char* block = map_memory(pages * kPage);
  fill(block, pages * kPage, seed);
  size_t wider = pages + 1 + next_random(&self->random) % 128;
  char* moved = mremap(block, pages * kPage, wider * kPage, MREMAP_MAYMOVE);
  if (moved == MAP_FAILED) fail("mremap of a block of %zu pages to %zu", pages, wider);
  verify(moved, pages * kPage, seed, "block moved by mremap");
  verify_zero(moved + pages * kPage, (wider - pages) * kPage, "what mremap added to a block");
  if (mremap(moved, wider * kPage, kPage, MREMAP_MAYMOVE) == MAP_FAILED) fail("mremap of a block to one page");
  verify(moved, kPage, seed, "block shrunk by mremap");
  if (munmap(moved, kPage) != 0) fail("munmap of a block");
  self->checked += pages;
}

static bool is_mapped(const struct Storm* self, size_t first, size_t count) {
  for (size_t page = first; page < first + count; ++page) {
    if (self->model[page] == kUnmapped) return false;
  }
  return true;
}

static void protect_and_open(struct Storm* self, size_t first, size_t count) {
  if (!is_mapped(self, first, count)) return;
  char* address = self->arena + first * kPage;
  if (mprotect(address, count * kPage, PROT_READ) != 0) fail("mprotect to read-only");
  for (size_t page = first; page < first + count; page += 7) check_page(self, page);
  if (mprotect(address, count * kPage, PROT_NONE) != 0) fail("mprotect to none");
  if (mprotect(address, count * kPage, PROT_READ | PROT_WRITE) != 0) fail("mprotect to read-write");
}

static void storm_operation(struct Storm* self) {
  size_t slot = next_random(&self->random) % kSlots;
  size_t offset = next_random(&self->random) % kSlotPages;
  size_t count = 1 + next_random(&self->random) % (kSlotPages - offset);
  size_t first = slot * kSlotPages + offset;
  switch (next_random(&self->random) % 16) {
    case 0:
      map_fixed(self, first, count);
      break;
    case 1:
      unmap(self, first, count > 64 ? 64 : count);
      break;
    case 2:
    case 3:
      drop(self, first, count > 128 ? 128 : count);
      break;
    case 4:
    case 5: {
      size_t other = (slot + 1 + next_random(&self->random) % (kSlots - 1)) % kSlots;
      if (count > 48) count = 48;
      if (is_mapped(self, first, count)) move(self, first, other * kSlotPages + offset, count);
      break;
    }
    case 11:
      grow_block(self);
      break;
    case 6:
      protect_and_open(self, first, count);
      break;
    case 7:
    case 8:
    case 9:
    case 10:
      write_pages(self, first, count > 256 ? 256 : count);
      break;
    default:
      for (size_t page = first; page < first + count && page < first + 200; ++page) check_page(self, page);
      break;
  }
}

static void* storm(void* argument) {
  struct Storm* self = argument;
  for (int i = 0; i < kOperations; ++i) storm_operation(self);
  for (size_t page = 0; page < kSlots * kSlotPages; ++page) check_page(self, page);
  return NULL;
}

int case_address_storm(int argc, char** argv) {
  (void)argc, (void)argv;
  static struct Storm storms[kStormThreads];
  for (int i = 0; i < kStormThreads; ++i) {
    struct Storm* self = &storms[i];
    self->index = i;
    self->random = 0x1234567 + (uint64_t)i * 7919;
    self->next_seed = (uint64_t)(i + 1) << 16;
    self->arena = map_memory(kSlots * kSlotPages * (size_t)kPage);
    write_pages(self, 0, kSlots * kSlotPages);
  }
  for (int i = 0; i < kStormThreads; ++i) REQUIRE(pthread_create(&storms[i].thread, NULL, storm, &storms[i]) == 0);
  uint64_t checked = 0;
  for (int i = 0; i < kStormThreads; ++i) {
    pthread_join(storms[i].thread, NULL);
    checked += storms[i].checked;
  }
  REQUIRE(checked > 100000);
  printf("address-storm: %d operations, %llu pages checked, none wrong\n", kStormThreads * kOperations,
         (unsigned long long)checked);
  return 0;
}

// --- dontneed ---

int case_dontneed(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t pages = WORKING_SET / kPage;
  char* memory = map_memory(WORKING_SET);
  static int64_t model[WORKING_SET / kPage];
  uint64_t random = 99, seed = 1;
  for (size_t page = 0; page < pages; ++page) {
    fill(memory + page * kPage, kPage, ++seed);
    model[page] = (int64_t)seed;
  }
  for (int round = 0; round < 3000; ++round) {
    size_t first = next_random(&random) % (pages - 64);
    char* start = memory + first * kPage;
    REQUIRE(madvise(start, 64 * kPage, MADV_DONTNEED) == 0);
    verify_zero(start, 64 * kPage, "right after DONTNEED");
    for (size_t page = first; page < first + 64; ++page) {
      fill(memory + page * kPage, kPage, ++seed);
      model[page] = (int64_t)seed;
    }
    size_t other = next_random(&random) % (pages - 64);
    for (size_t page = other; page < other + 64; ++page) {
      verify(memory + page * kPage, kPage, (uint64_t)model[page], "dontneed, elsewhere");
    }
  }
  for (size_t page = 0; page < pages; ++page) {
    verify(memory + page * kPage, kPage, (uint64_t)model[page], "dontneed, at the end");
  }
  printf("dontneed: 3000 rounds, memory right\n");
  return 0;
}

// --- brk ---

int case_brk(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t bytes = 96 * MIB;
  for (uint64_t round = 0; round < 6; ++round) {
    char* start = sbrk(0);
    size_t grown = 0;
    for (size_t step = MIB; grown < bytes; grown += step) {
      REQUIRE(sbrk((intptr_t)step) == start + grown);
      fill(start + grown, step, 120 + round);
    }
    for (size_t at = 0; at < bytes; at += MIB) verify(start + at, MIB, 120 + round, "grown heap");
    // Shrink by half, grow again: what comes back must be zero.
    REQUIRE(sbrk(-(intptr_t)(bytes / 2)) == start + bytes);
    REQUIRE(sbrk((intptr_t)(bytes / 4)) == start + bytes / 2);
    verify_zero(start + bytes / 2, bytes / 4, "heap given back and taken again");
    for (size_t at = 0; at < bytes / 2; at += MIB) verify(start + at, MIB, 120 + round, "heap that stayed");
    REQUIRE(brk(start) == 0);
  }
  printf("brk: six times up and down, memory right\n");
  return 0;
}

// --- reserve-commit ---

int case_reserve_commit(int argc, char** argv) {
  (void)argc, (void)argv;
  size_t reserved = 1024 * MIB;
  size_t committed = WORKING_SET;
  char* base = mmap(NULL, reserved, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
  REQUIRE(base != MAP_FAILED);
  for (size_t at = 0; at < committed; at += MIB) {
    REQUIRE(mprotect(base + at, MIB, PROT_READ | PROT_WRITE) == 0);
    fill(base + at, MIB, 130 + at / MIB);
  }
  for (size_t at = 0; at < committed; at += MIB) verify(base + at, MIB, 130 + at / MIB, "committed");
  // Code-like pages: read-only, then closed, then open again, contents kept.
  REQUIRE(mprotect(base, committed, PROT_READ) == 0);
  for (size_t at = 0; at < committed; at += MIB) verify(base + at, MIB, 130 + at / MIB, "read-only");
  REQUIRE(mprotect(base, committed, PROT_NONE) == 0);
  press(WORKING_SET / 2);
  REQUIRE(mprotect(base, committed, PROT_READ | PROT_WRITE) == 0);
  for (size_t at = 0; at < committed; at += MIB) verify(base + at, MIB, 130 + at / MIB, "open again");
  // Decommit every other step as a garbage collector does, and commit it anew.
  for (size_t at = 0; at < committed; at += 2 * MIB) {
    REQUIRE(madvise(base + at, MIB, MADV_DONTNEED) == 0);
    REQUIRE(mprotect(base + at, MIB, PROT_NONE) == 0);
  }
  press(WORKING_SET / 2);
  for (size_t at = 0; at < committed; at += 2 * MIB) {
    REQUIRE(mprotect(base + at, MIB, PROT_READ | PROT_WRITE) == 0);
    verify_zero(base + at, MIB, "decommitted and committed again");
    verify(base + at + MIB, MIB, 130 + (at + MIB) / MIB, "neighbour of decommitted memory");
  }
  printf("reserve-commit: memory right through every protection\n");
  return 0;
}
