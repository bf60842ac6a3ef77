/* A table four times larger than the RAM it may take: built, looked at, and read again with the next part on its way. */
#include <stdio.h>
#include <stdlib.h>
#include <whimbrel/whimbrel.h>

enum { PARTS = 16, PER_PART = 1 << 19 }; /* 16 parts of 4 MiB */

static void must(int result) {
  if (result >= 0) return;
  fprintf(stderr, "%s\n", whimbrel_error());
  exit(1);
}

int main(void) {
  struct whimbrel_session_options options = {.struct_size = sizeof options, .ram_bytes = 16 << 20, .device = "zstd"};
  whimbrel_session *session;
  void *memory;
  must(whimbrel_session_open(&options, &session));
  must(whimbrel_allocate(session, sizeof(long) * PARTS * PER_PART, &memory));
  long *table = memory, sum = 0;
  for (long i = 0; i < (long)PARTS * PER_PART; i++) table[i] = i; /* cold pages leave while this goes on */

  for (int part = 0; part < PARTS; part++) {
    whimbrel_request next = {0};
    if (part + 1 < PARTS) must(whimbrel_prefetch_start(session, table + (part + 1) * PER_PART, sizeof(long) * PER_PART, &next));
    for (long i = 0; i < PER_PART; i++) sum += table[part * PER_PART + i];
    if (part + 1 < PARTS) must(whimbrel_wait(&next, -1, NULL));
  }
  struct whimbrel_session_stats stats = {.struct_size = sizeof stats};
  must(whimbrel_session_get_stats(session, &stats));
  printf("sum %ld; %lu MiB of 64 are resident, %lu pages left, %lu came home\n", sum,
         (unsigned long)(stats.resident_pages >> 8), (unsigned long)stats.pages_out, (unsigned long)stats.pages_home);
  whimbrel_free(session, memory);
  must(whimbrel_session_close(session));
  return sum == ((long)PARTS * PER_PART - 1) * PARTS * PER_PART / 2 && stats.resident_pages <= 17 << 8 ? 0 : 1;
}
