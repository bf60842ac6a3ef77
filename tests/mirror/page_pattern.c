#include "page_pattern.h"

#include <stdint.h>
#include <stdio.h>
#include <string.h>

#include "dmirror_abi.h"

enum { WORDS = DMIRROR_PAGE / 8, MARK = 0x5EED };

static uint64_t first_word(unsigned value, long position) {
  return (uint64_t)MARK << 48 | (uint64_t)(value & 0xffffu) << 32 | (uint32_t)position;
}

// The multiplier spreads every bit of the first word and of the index over the whole word.
static uint64_t later_word(uint64_t first, unsigned index) { return (first ^ index) * 0x9E3779B97F4A7C15ull; }

void page_stamp(void* page, unsigned value, long position) {
  // Volatile: the stores must happen in this order and as stores, for faults to come where the header says.
  volatile uint64_t* word = page;
  const uint64_t first = value ? first_word(value, position) : 0;
  word[0] = first;
  for (unsigned i = 1; i < WORDS; i++) word[i] = value ? later_word(first, i) : 0;
}

void page_describe(const void* page, long position, char text[PAGE_WORD_SIZE]) {
  uint64_t word[WORDS];
  memcpy(word, page, DMIRROR_PAGE);
  uint64_t any = 0;
  int pattern = word[0] >> 48 == MARK;
  for (unsigned i = 0; i < WORDS; i++) any |= word[i];
  for (unsigned i = 1; i < WORDS && pattern; i++) pattern = word[i] == later_word(word[0], i);
  const unsigned value = (unsigned)(word[0] >> 32 & 0xffffu);
  const long shift = (long)(int32_t)position - (int32_t)word[0];  // positions are kept in 32 bits
  if (!any) {
    snprintf(text, PAGE_WORD_SIZE, "0");
  } else if (!pattern) {
    snprintf(text, PAGE_WORD_SIZE, "junk");
  } else if (shift == 0) {
    snprintf(text, PAGE_WORD_SIZE, "v%u", value);
  } else {
    snprintf(text, PAGE_WORD_SIZE, "v%u@%ld", value, shift);
  }
}
