// Small programs that do what a pager injected into them would rather not see, each checking its own memory.
//
// Every case is a function that fills memory with a known pattern, does its deed, and verifies every word. It prints one
// line of its own, the same with and without whimbrel, and returns 0; anything wrong ends the process through fail().
// A case that cannot run here (no root, no permission) says why on stdout and returns kSkip.

#ifndef WHIMBREL_TESTS_PROGRAMS_HOSTILE_HOSTILE_H_
#define WHIMBREL_TESTS_PROGRAMS_HOSTILE_HOSTILE_H_

#ifndef _GNU_SOURCE
#define _GNU_SOURCE
#endif
#include <stdbool.h>
#include <stddef.h>
#include <stdint.h>
#include <sys/types.h>

enum { kSkip = 77, kPage = 4096 };
#define MIB ((size_t)1 << 20)

// Bytes each case keeps in memory unless it says otherwise; the managed run gives it a quarter (--ram 16M).
#define WORKING_SET (64 * MIB)

// Word `index` of the pattern `seed`: every word differs, and the upper half is constant within a seed so that pages
// compress about two to one, like program data.
static inline uint64_t pattern(uint64_t seed, uint64_t index) {
  uint64_t low = (index + 1) * 0x9e3779b97f4a7c15u + seed * 0xc2b2ae3d27d4eb4fu;
  low ^= low >> 29;
  return (seed << 40) | (low & 0xffffffffu);
}

// A private anonymous mapping of `bytes`; fails the program when there is no memory.
void* map_memory(size_t bytes);
void fill(void* memory, size_t bytes, uint64_t seed);
// Fails with the address of the first wrong word.
void verify(const void* memory, size_t bytes, uint64_t seed, const char* what);
// First wrong word's index, or -1; for children that must report instead of failing. Async-signal-safe.
ptrdiff_t first_wrong(const void* memory, size_t bytes, uint64_t seed);
void verify_zero(const void* memory, size_t bytes, const char* what);

// Fills and drops a second working set, so that a pager pushes the first one out.
void press(size_t bytes);

__attribute__((noreturn, format(printf, 1, 2))) void fail(const char* format, ...);
// fail() unless the condition holds; errno is shown.
#define REQUIRE(condition)                                                        \
  do {                                                                            \
    if (!(condition)) fail("%s:%d: %s does not hold", __FILE__, __LINE__, #condition); \
  } while (0)

// Waits for `pid` and requires exit status `expected`.
void expect_exit(pid_t pid, int expected, const char* what);
// As text: "exit 3", "signal 9".
const char* describe_status(int status);

// Small deterministic generator, one per thread.
static inline uint64_t next_random(uint64_t* state) {
  *state ^= *state << 13;
  *state ^= *state >> 7;
  *state ^= *state << 17;
  return *state;
}

typedef int (*CaseFunction)(int argc, char** argv);
struct Case {
  const char* name;
  CaseFunction run;
  const char* what;
};

#define CASE(function) int function(int argc, char** argv)
CASE(case_close_range);
CASE(case_close_all);
CASE(case_pipe_eof);
CASE(case_few_descriptors);
CASE(case_daemon);
CASE(case_daemon_detached);
CASE(case_setuid);
CASE(case_setuid_early);
CASE(case_setuid_raw);
CASE(case_seccomp);
CASE(case_crash_handlers);
CASE(case_signal_rain);
CASE(case_fork_threads);
CASE(case_fork_writers);
CASE(case_fork_chain);
CASE(case_raw_fork);
CASE(case_wipe_on_fork);
CASE(case_dont_fork);
CASE(case_spawn);
CASE(case_exec_thread);
CASE(case_pthread_exit);
CASE(case_thread_churn);
CASE(case_mlockall);
CASE(case_address_storm);
CASE(case_dontneed);
CASE(case_brk);
CASE(case_reserve_commit);
CASE(case_shared);
CASE(case_syscall_buffers);
CASE(case_address_limit);
CASE(case_io_uring);
CASE(case_direct_io);
CASE(case_vmsplice);
CASE(case_zerocopy);
CASE(case_chroot);
CASE(case_many_maps);
CASE(case_seccomp_request);
CASE(case_advice);
CASE(case_huge_switch);
CASE(case_rights_storm);
CASE(case_thread_storm);
CASE(case_group_limit);
CASE(case_end);
CASE(helper_pipe_writer);
CASE(helper_verify);

#endif  // WHIMBREL_TESTS_PROGRAMS_HOSTILE_HOSTILE_H_
