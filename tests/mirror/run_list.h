// Lists of words with repetitions folded: "22*512 00*3 02".
#ifndef TESTS_MIRROR_RUN_LIST_H
#define TESTS_MIRROR_RUN_LIST_H

#include <stddef.h>

#ifdef __cplusplus
extern "C" {
#endif

// Zero-initialise before use. No allocation: it may be used between fork and exit, and in threads on objects of
// their own. A list too long for `text` is cut; 64 KiB holds more runs than any test makes.
struct run_list {
  char text[1 << 16];
  size_t used;
  char word[40];        // of the run being counted
  unsigned long count;  // 0: none
};

void run_list_add(struct run_list* list, const char* word);

// The folded list so far, words separated by single blanks. Valid until the next add.
const char* run_list_text(struct run_list* list);

#ifdef __cplusplus
}
#endif
#endif
