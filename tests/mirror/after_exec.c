#include "after_exec.h"

#include <errno.h>
#include <stdio.h>
#include <stdlib.h>

#include "device.h"
#include "memory.h"

int after_exec(int argc, char** argv) {
  if (argc != 3) return 99;
  const int node = atoi(argv[2]);
  // The descriptor still speaks of the space it was opened in, which is gone; this space is a new one.
  char* at = mmap(window(0), DMIRROR_PAGE, READ_WRITE, MAP_PRIVATE | MAP_ANONYMOUS | MAP_FIXED, -1, 0);
  static char buffer[DMIRROR_PAGE];
  if (at == MAP_FAILED) return 98;
  stamp(at, 1, 1);
  const struct {
    enum dmirror_nr nr;
    int error;
  } expected[] = {
      {DMIRROR_MIGRATE_TO_DEV, EINVAL}, {DMIRROR_MIGRATE_TO_SYS, EINVAL},
      {DMIRROR_READ, EFAULT},           {DMIRROR_WRITE, EFAULT},
      {DMIRROR_SNAPSHOT, EINVAL},       {DMIRROR_EXCLUSIVE, EINVAL},
      {DMIRROR_CHECK_EXCLUSIVE, 0},     {DMIRROR_FLAGS, 0},
  };
  for (int i = 0; i < (int)(sizeof expected / sizeof *expected); i++) {
    const struct reply reply = command(node, expected[i].nr, at, buffer, 1);
    if (reply.error == expected[i].error) continue;
    printf("# after exec: command %d gave %s, wanted %s\n", (int)expected[i].nr, error_name(reply.error),
           error_name(expected[i].error));
    return i + 1;
  }
  return 0;
}
