#include "harness.h"

#include <errno.h>
#include <fnmatch.h>
#include <poll.h>
#include <signal.h>
#include <stdarg.h>
#include <stdatomic.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

#include "open_list.h"

static const struct kind kinds[] = {
    {.name = "private", .node = 0, .other = 1, .coherent = false},
    {.name = "coherent", .node = 2, .other = 3, .coherent = true},
};

struct test_case {
  const char* name;
  unsigned flags;
  case_body* body;
};
enum { MAX_CASES = 400 };
static struct test_case cases[MAX_CASES];
static unsigned case_count;

// What a running case tells the harness; shared with all processes of the case.
struct case_state {
  atomic_uint failures;
  atomic_bool skipped;
  char reason[200];
};
static struct case_state* state;

void register_case(const char* name, unsigned flags, case_body* body) {
  if (case_count == MAX_CASES) {
    fprintf(stderr, "mirror_client: MAX_CASES is too small\n");
    abort();
  }
  cases[case_count++] = (struct test_case){name, flags, body};
}

const char* error_name(int error) {
  if (error == 0) return "success";
  const char* name = strerrorname_np(error);
  return name ? name : "unknown errno";
}

// One write per line, without stdio's buffer: children that end with _exit must not lose or repeat lines.
static void print_line(const char* prefix, const char* format, va_list arguments) {
  char line[4096];
  int used = snprintf(line, sizeof line, "%s", prefix);
  used += vsnprintf(line + used, sizeof line - (size_t)used - 1, format, arguments);
  if (used > (int)sizeof line - 2) used = (int)sizeof line - 2;
  line[used++] = '\n';
  if (write(STDOUT_FILENO, line, (size_t)used) < 0) _exit(3);
}

void note(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  print_line("# ", format, arguments);
  va_end(arguments);
}

void fail_at(const char* file, int line, const char* format, ...) {
  // One wrong page rarely comes alone; the first ones tell enough.
  enum { MOST_SHOWN = 20 };
  const unsigned before = atomic_fetch_add(&state->failures, 1);
  if (before == MOST_SHOWN) note("further failures of this case are not shown");
  if (before >= MOST_SHOWN) return;
  const char* slash = strrchr(file, '/');
  char prefix[200];
  snprintf(prefix, sizeof prefix, "# %s:%d: ", slash ? slash + 1 : file, line);
  va_list arguments;
  va_start(arguments, format);
  print_line(prefix, format, arguments);
  va_end(arguments);
}

void abandon_case(void) { _exit(1); }

void skip_case(const char* format, ...) {
  va_list arguments;
  va_start(arguments, format);
  vsnprintf(state->reason, sizeof state->reason, format, arguments);
  va_end(arguments);
  atomic_store(&state->skipped, true);
  _exit(0);
}

void expect_equal(const char* file, int line, const char* what, unsigned long long wanted, unsigned long long got) {
  if (wanted != got) fail_at(file, line, "%s is %llu, wanted %llu", what, got, wanted);
}

void expect_error(const char* file, int line, const char* what, int wanted, int got) {
  if (wanted != got) fail_at(file, line, "%s gave %s, wanted %s", what, error_name(got), error_name(wanted));
}

static bool matches(const char* const* patterns, const char* name) {
  for (; *patterns; patterns++) {
    if (fnmatch(*patterns, name, 0) == 0) return true;
  }
  return false;
}

static double seconds_now(void) {
  struct timespec now;
  clock_gettime(CLOCK_MONOTONIC, &now);
  return (double)now.tv_sec + (double)now.tv_nsec * 1e-9;
}

// How a case ended: null when its process ended by itself with status 0.
static const char* await_case(pid_t pid, unsigned time_limit_seconds, char text[80]) {
  const int handle = (int)syscall(SYS_pidfd_open, pid, 0);
  struct pollfd wait = {.fd = handle, .events = POLLIN};
  const bool ended = poll(&wait, 1, (int)time_limit_seconds * 1000) == 1;
  // The group holds the processes that the case made; none of them may outlive it.
  if (!ended) kill(-pid, SIGKILL);
  int status = 0;
  waitpid(pid, &status, 0);
  kill(-pid, SIGKILL);
  close(handle);
  if (!ended) {
    snprintf(text, 80, "took more than %u seconds", time_limit_seconds);
  } else if (WIFSIGNALED(status)) {
    snprintf(text, 80, "killed by %s", strsignal(WTERMSIG(status)));
  } else if (WEXITSTATUS(status) != 0) {
    snprintf(text, 80, "exit status %d", WEXITSTATUS(status));
  } else {
    return NULL;
  }
  return text;
}

static const char* start_and_await(const struct test_case* test, const struct kind* kind, unsigned time_limit_seconds,
                                   char text[80]) {
  atomic_store(&state->failures, 0);
  atomic_store(&state->skipped, false);
  fflush(stdout);
  const pid_t pid = fork();
  if (pid < 0) return "cannot fork";
  if (pid == 0) {
    setpgid(0, 0);
    test->body(kind);
    exit(0);
  }
  setpgid(pid, pid);
  return await_case(pid, time_limit_seconds, text);
}

struct tally {
  unsigned number, passed, failed, skipped;
};

// Units that the kernel has made of base pages in the background since it started; 0 where it does not say.
static unsigned long background_collapses(void) {
  FILE* file = fopen("/sys/kernel/mm/transparent_hugepage/khugepaged/pages_collapsed", "r");
  unsigned long count = 0;
  if (file && fscanf(file, "%lu", &count) != 1) count = 0;
  if (file) fclose(file);
  return count;
}

// As start_and_await(). A case that found fault with what it saw is run again, twice at most, when the kernel has been
// collapsing pages meanwhile: snapshots show that, on the real device as well.
static const char* run_undisturbed(const struct test_case* test, const struct kind* kind, unsigned time_limit_seconds,
                                   char text[80]) {
  for (int repeats = 0;; repeats++) {
    const unsigned long before = background_collapses();
    const char* ending = start_and_await(test, kind, time_limit_seconds, text);
    const bool disturbed = background_collapses() != before;
    if (ending || atomic_load(&state->failures) == 0 || !disturbed || repeats == 2) return ending;
    note("%s: the kernel has been collapsing pages meanwhile; again", test->name);
  }
}

static void run_case(const struct test_case* test, const struct kind* kind, const char* name,
                     const struct run_options* options, unsigned has_kind, struct tally* tally) {
  tally->number++;
  if (!(has_kind & (kind->coherent ? COHERENT : PRIVATE))) {
    tally->skipped++;
    printf("ok %u %s # SKIP no %s nodes\n", tally->number, name, kind->name);
    return;
  }
  const unsigned time_limit = options->time_limit_seconds * (test->flags & SLOW ? 10 : 1);
  const double start = seconds_now();
  char text[80];
  const char* ending = run_undisturbed(test, kind, time_limit, text);
  const double taken = seconds_now() - start;
  if (ending) note("%s: %s", name, ending);
  const bool failed = ending || atomic_load(&state->failures) > 0;
  if (failed) {
    tally->failed++;
    printf("not ok %u %s", tally->number, name);
  } else if (atomic_load(&state->skipped)) {
    tally->skipped++;
    printf("ok %u %s # SKIP %s", tally->number, name, state->reason);
  } else {
    tally->passed++;
    printf("ok %u %s", tally->number, name);
  }
  if (options->verbose) printf("  # %.0f ms", taken * 1e3);
  printf("\n");
}

int run_cases(const struct run_options* options, unsigned has_kind) {
  state = mmap(NULL, sizeof *state, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS, -1, 0);
  if (state == MAP_FAILED) {
    perror("mirror_client");
    return 2;
  }
  struct tally tally = {0};
  if (!options->list) printf("TAP version 13\n");
  for (unsigned k = 0; k < sizeof kinds / sizeof *kinds; k++) {
    for (unsigned i = 0; i < case_count; i++) {
      const struct test_case* test = &cases[i];
      if (!(test->flags & (kinds[k].coherent ? COHERENT : PRIVATE))) continue;
      if ((test->flags & HAZARD) && !options->hazards) continue;
      char name[200];
      snprintf(name, sizeof name, "%s/%s", kinds[k].name, test->name);
      if (*options->patterns && !matches(options->patterns, name)) continue;
      if (matches(options->skips, name)) continue;
      if (options->list) {
        tally.number++;
        printf("%s\n", name);
      } else if (open_reason(name)) {
        tally.number++;
        tally.skipped++;
        printf("ok %u %s # SKIP open: %s\n", tally.number, name, open_reason(name));
      } else {
        run_case(test, &kinds[k], name, options, has_kind, &tally);
      }
    }
  }
  if (tally.number == 0) {
    fprintf(stderr, "mirror_client: no case of that name; --list shows all\n");
    return 2;
  }
  if (options->list) return 0;
  printf("1..%u\n# %u passed, %u failed, %u skipped\n", tally.number, tally.passed, tally.failed, tally.skipped);
  return tally.failed == 0 ? 0 : 1;
}
