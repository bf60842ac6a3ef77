// Page contents that say where they came from.
//
// A stamped page holds a pattern made of a value (1..65535) and of the page's position, so that a copy of it found
// anywhere can be named: v7 = value 7 at its own position, v7@64 = value 7 written 64 pages further down, 0 = all
// zeros, junk = anything else, torn pages included. Every 8-byte word of the page takes part.
#ifndef TESTS_MIRROR_PAGE_PATTERN_H
#define TESTS_MIRROR_PAGE_PATTERN_H

#ifdef __cplusplus
extern "C" {
#endif

enum { PAGE_WORD_SIZE = 40 };  // room for any word page_describe() writes

// Writes the whole page, first word first, with plain stores: a fault happens at the page's first byte. Value 0 means
// zeros.
void page_stamp(void* page, unsigned value, long position);

// Names the contents of a readable page, as seen from `position`. Positions count modulo 2^32.
void page_describe(const void* page, long position, char word[PAGE_WORD_SIZE]);

#ifdef __cplusplus
}
#endif
#endif
