// A small test harness: every case runs in a process of its own, with a time limit of its own.
//
// A case is a function that is told which kind of node it runs on. Failed expectations are counted in memory that the
// case shares with all processes it makes, so an expectation may fail in any of them. Output is TAP.
#ifndef TESTS_MIRROR_HARNESS_H
#define TESTS_MIRROR_HARNESS_H

#include <stdbool.h>
#include <stdint.h>

// A kind of node, and the two nodes of it.
struct kind {
  const char* name;  // "private" or "coherent"
  unsigned node;     // the one under test
  unsigned other;    // a second one of the same kind
  bool coherent;
};

enum case_flags {
  PRIVATE = 1,
  COHERENT = 2,
  EACH_KIND = PRIVATE | COHERENT,
  // Would crash the real driver or kernel: run only when asked for.
  HAZARD = 4,
  // Takes long for a good reason.
  SLOW = 8
};

typedef void case_body(const struct kind* kind);
void register_case(const char* name, unsigned flags, case_body* body);

// Defines and registers a case: MIRROR_CASE(read, hole_gives_zero_page, EACH_KIND) { ... kind ... }
#define MIRROR_CASE(group, name, flags)                                      \
  static void group##_##name(const struct kind* kind);                       \
  __attribute__((constructor)) static void register_##group##_##name(void) { \
    register_case(#group "." #name, (flags), group##_##name);                \
  }                                                                          \
  static void group##_##name(__attribute__((unused)) const struct kind* kind)

// Counts a failure and prints where and what. Usable in children and threads.
__attribute__((format(printf, 3, 4))) void fail_at(const char* file, int line, const char* format, ...);

// Ends this process of the case at once; a failure must have been counted before.
_Noreturn void abandon_case(void);

// Ends the case: it cannot run here. Only in the first process of a case.
__attribute__((format(printf, 1, 2))) _Noreturn void skip_case(const char* format, ...);

// Prints a line of information, e.g. a measured figure.
__attribute__((format(printf, 1, 2))) void note(const char* format, ...);

const char* error_name(int error);  // "EINVAL"; "success" for 0

void expect_equal(const char* file, int line, const char* what, unsigned long long wanted, unsigned long long got);
void expect_error(const char* file, int line, const char* what, int wanted, int got);

#define EXPECT(condition)                                                    \
  do {                                                                       \
    if (!(condition)) fail_at(__FILE__, __LINE__, "not so: %s", #condition); \
  } while (0)

// Like EXPECT, for what the rest of the case depends on.
#define REQUIRE(condition)                                                 \
  do {                                                                     \
    if (!(condition)) {                                                    \
      fail_at(__FILE__, __LINE__, "cannot go on without: %s", #condition); \
      abandon_case();                                                      \
    }                                                                      \
  } while (0)

#define EXPECT_EQ(wanted, got) \
  expect_equal(__FILE__, __LINE__, #got, (unsigned long long)(wanted), (unsigned long long)(got))

// `got` is 0 or an errno.
#define EXPECT_ERROR(wanted, got) expect_error(__FILE__, __LINE__, #got, (wanted), (got))

// The result of a system call: 0 or more for success. Evaluates to 0 or the errno.
#define ERROR_OF(call) ((call) < 0 ? errno : 0)

struct run_options {
  const char* const* patterns;  // names to run (shell patterns over "kind/group.name"), null-terminated; none: all
  const char* const* skips;     // names to leave out, null-terminated
  bool hazards;                 // run HAZARD cases too
  bool list;                    // only print the names
  bool verbose;                 // print durations
  unsigned time_limit_seconds;  // per case; SLOW cases get ten times as much
};

// Runs the registered cases. `has_kind` says which kinds of node exist (PRIVATE, COHERENT): cases of absent kinds are
// skipped, with the reason printed. Returns the exit status: 0 none failed, 1 some failed, 2 none selected.
int run_cases(const struct run_options* options, unsigned has_kind);

#endif
