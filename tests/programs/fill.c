// fill SIZE_MIB [HOW]: takes memory as fast as it can, then reads it all back and checks it. For budgets seen from outside.
//
// HOW: map (one mapping, the default), brk (the heap), maps (many mappings of 1 MiB), remap (one mapping grown by mremap),
// malloc (blocks of 100 kB), random (one mapping, incompressible contents). Prints the fill rate to stderr.

#define _GNU_SOURCE
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <time.h>
#include <unistd.h>

#define MIB ((size_t)1 << 20)

static double now(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (double)t.tv_sec + (double)t.tv_nsec / 1e9;
}

static uint64_t word_at(uint64_t index, int compressible) {
  uint64_t x = (index + 1) * 0x9e3779b97f4a7c15u;
  x ^= x >> 32;
  x *= 0xd6e8feb86659fd93u;
  x ^= x >> 29;
  return compressible ? x & 0xffffff : x;  // 3 of 8 bytes vary: about two to one
}

static void write_block(uint64_t* block, size_t bytes, uint64_t first, int compressible) {
  for (size_t i = 0; i < bytes / 8; ++i) block[i] = word_at(first + i, compressible);
}

static void check_block(const uint64_t* block, size_t bytes, uint64_t first, int compressible) {
  for (size_t i = 0; i < bytes / 8; ++i) {
    if (block[i] == word_at(first + i, compressible)) continue;
    printf("FAILED: word %llu is %llx, should be %llx\n", (unsigned long long)(first + i),
           (unsigned long long)block[i], (unsigned long long)word_at(first + i, compressible));
    exit(1);
  }
}

static void* need(void* memory) {
  if (memory == NULL || memory == MAP_FAILED) {
    printf("FAILED: no memory\n");
    exit(1);
  }
  return memory;
}

static void* anonymous(size_t bytes) {
  return need(mmap(NULL, bytes, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0));
}

int main(int argc, char** argv) {
  size_t total = argc > 1 ? (size_t)atol(argv[1]) * MIB : 0;
  const char* how = argc > 2 ? argv[2] : "map";
  int compressible = strcmp(how, "random") != 0;
  size_t step = strcmp(how, "malloc") == 0 ? 100000 : MIB;
  if (total == 0) {
    fprintf(stderr, "usage: fill SIZE_MIB [map|brk|maps|remap|malloc|random]\n");
    return 2;
  }
  size_t blocks = total / step;
  char* base = NULL;
  char** separate = NULL;
  double begin = now();
  if (strcmp(how, "map") == 0 || strcmp(how, "random") == 0) {
    base = anonymous(total);
  } else if (strcmp(how, "brk") == 0) {
    base = sbrk(0);
  } else if (strcmp(how, "remap") == 0) {
    base = anonymous(step);
  } else if (strcmp(how, "maps") == 0 || strcmp(how, "malloc") == 0) {
    separate = need(calloc(blocks, sizeof *separate));
  } else {
    fprintf(stderr, "fill: no way called \"%s\"\n", how);
    return 2;
  }
  for (size_t i = 0; i < blocks; ++i) {
    char* block = base + i * step;
    if (strcmp(how, "brk") == 0) block = need(sbrk((intptr_t)step));
    if (strcmp(how, "remap") == 0 && i > 0) {
      base = need(mremap(base, i * step, (i + 1) * step, MREMAP_MAYMOVE));
      block = base + i * step;
    }
    if (strcmp(how, "maps") == 0) {
      // A gap of one page keeps neighbours apart: as many mappings as blocks.
      block = anonymous(step + 4096);
      munmap(block + step, 4096);
    }
    if (strcmp(how, "malloc") == 0) block = need(malloc(step));
    if (separate) separate[i] = block;
    write_block((uint64_t*)(void*)block, step, i * (step / 8), compressible);
  }
  double filled = now();
  for (size_t i = 0; i < blocks; ++i) {
    check_block((const uint64_t*)(const void*)(separate ? separate[i] : base + i * step), step, i * (step / 8),
                compressible);
  }
  fprintf(stderr, "fill %s: %.0f MB/s written, %.0f MB/s read back\n", how, (double)total / 1e6 / (filled - begin),
          (double)total / 1e6 / (now() - filled));
  printf("%zu blocks of %zu bytes right\n", blocks, step);
  return 0;
}
