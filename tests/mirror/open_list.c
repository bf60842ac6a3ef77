#include "open_list.h"

#include <fnmatch.h>
#include <stdio.h>
#include <string.h>

enum { MOST_OPEN = 300 };

static struct {
  char name[100], reason[160];
} open_cases[MOST_OPEN];
static unsigned open_count;

bool read_open_list(const char* path) {
  FILE* file = fopen(path, "re");
  if (!file) {
    perror(path);
    return false;
  }
  bool good = true;
  char line[512];
  for (unsigned number = 1; good && fgets(line, sizeof line, file); number++) {
    if (line[0] == '#' || line[strspn(line, " \t\n")] == '\0') continue;
    good = open_count < MOST_OPEN &&
           sscanf(line, "%99s %159[^\n]", open_cases[open_count].name, open_cases[open_count].reason) == 2;
    if (good) {
      open_count++;
    } else {
      fprintf(stderr, "%s:%u: not 'NAME REASON', or too many\n", path, number);
    }
  }
  fclose(file);
  return good;
}

const char* open_reason(const char* name) {
  for (unsigned i = 0; i < open_count; i++) {
    if (fnmatch(open_cases[i].name, name, 0) == 0) return open_cases[i].reason;
  }
  return NULL;
}
