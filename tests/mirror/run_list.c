#include "run_list.h"

#include <stdio.h>
#include <string.h>

static void close_run(struct run_list* list) {
  if (list->count == 0) return;
  char run[64];
  if (list->count == 1) {
    snprintf(run, sizeof run, "%s", list->word);
  } else {
    snprintf(run, sizeof run, "%s*%lu", list->word, list->count);
  }
  const size_t need = strlen(run) + (list->used > 0);
  if (list->used + need < sizeof list->text) {
    if (list->used > 0) list->text[list->used++] = ' ';
    memcpy(list->text + list->used, run, strlen(run) + 1);
    list->used += strlen(run);
  }
  list->count = 0;
}

void run_list_add(struct run_list* list, const char* word) {
  if (list->count > 0 && strcmp(word, list->word) != 0) close_run(list);
  if (list->count == 0) snprintf(list->word, sizeof list->word, "%s", word);
  list->count++;
}

const char* run_list_text(struct run_list* list) {
  close_run(list);
  list->text[list->used] = '\0';
  return list->text;
}
