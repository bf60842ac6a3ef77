// Cases that do not pass yet, read from a file: a name (shell pattern over "kind/group.case") and a short reason a line;
// '#' starts a comment. They are not run; each is printed as skipped, with "open: REASON".
#ifndef TESTS_MIRROR_OPEN_LIST_H
#define TESTS_MIRROR_OPEN_LIST_H

#include <stdbool.h>

// False: the file cannot be read or a line has no reason; printed on standard error.
bool read_open_list(const char* path);

// Why a case is open; NULL when it is not listed.
const char* open_reason(const char* name);

#endif
