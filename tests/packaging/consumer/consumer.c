#include <stdio.h>
#include <string.h>
#include <whimbrel/hmm.h>
#include <whimbrel/whimbrel.h>

int main(void) {
  struct whimbrel_session_options options = {.struct_size = sizeof options, .ram_bytes = 4 << 20, .device = "lz4"};
  whimbrel_session *session;
  void *memory;
  struct whimbrel_outcome outcome;
  if (whimbrel_version() != WHIMBREL_VERSION) return 2;
  if (whimbrel_session_open(&options, &session) < 0 || whimbrel_allocate(session, 2 << 20, &memory) < 0) {
    fprintf(stderr, "%s\n", whimbrel_error());
    return 1;
  }
  memset(memory, 7, 2 << 20);
  if (whimbrel_migrate(session, memory, 2 << 20, &outcome) < 0 || outcome.moved == 0) return 3;
  if (((char *)memory)[12345] != 7) return 4;
  whimbrel_free(session, memory);
  printf("consumer: %lu pages moved\n", (unsigned long)outcome.moved);
  return whimbrel_session_close(session);
}
