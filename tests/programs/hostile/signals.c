// Programs with signal handlers of their own, running on a stack that may itself be away, and every way to end.

#include <errno.h>
#include <fcntl.h>
#include <pthread.h>
#include <setjmp.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/wait.h>
#include <unistd.h>

#include "hostile.h"

static sigjmp_buf* jump;  // lives in managed memory
static volatile sig_atomic_t faults_seen;
static void* volatile fault_address;
static char* handler_memory;  // read by the handler
static volatile sig_atomic_t handler_saw_wrong;
static char* stack_low;
static char* stack_high;
static volatile sig_atomic_t off_stack;

static void on_fault(int signal_number, siginfo_t* info, void* context) {
  (void)signal_number, (void)context;
  char here;
  if (&here < stack_low || &here >= stack_high) off_stack = 1;
  ++faults_seen;
  fault_address = info->si_addr;
  if (first_wrong(handler_memory, 16 * kPage, 20) >= 0) handler_saw_wrong = 1;
  siglongjmp(*jump, 1);
}

static volatile sig_atomic_t children_reaped;
static void on_child(int signal_number) {
  (void)signal_number;
  int saved = errno;
  while (waitpid(-1, NULL, WNOHANG) > 0) ++children_reaped;
  errno = saved;
}

static void install(int signal_number, void (*with_info)(int, siginfo_t*, void*), void (*simple)(int), int flags) {
  struct sigaction action;
  memset(&action, 0, sizeof action);
  if (with_info) {
    action.sa_sigaction = with_info;
  } else {
    action.sa_handler = simple;
  }
  action.sa_flags = flags;
  sigemptyset(&action.sa_mask);
  REQUIRE(sigaction(signal_number, &action, NULL) == 0);
}

// A file mapping whose second page lies beyond the end of the file: reading it raises SIGBUS.
static char* map_beyond_end(void) {
  FILE* file = tmpfile();
  REQUIRE(file != NULL);
  REQUIRE(ftruncate(fileno(file), kPage) == 0);
  char* mapping = mmap(NULL, 2 * kPage, PROT_READ, MAP_SHARED, fileno(file), 0);
  REQUIRE(mapping != MAP_FAILED);
  fclose(file);
  return mapping + kPage;
}

// Reads `address` and requires that the handler saw exactly this address.
static void provoke(const volatile char* address, const char* what) {
  int before = faults_seen;
  if (sigsetjmp(*jump, 1) == 0) {
    (void)*address;
    fail("%s: reading %p went through", what, (const void*)address);
  }
  if (faults_seen != before + 1) fail("%s: handler ran %d times", what, (int)faults_seen - before);
  if (fault_address != (const void*)address) fail("%s: handler saw %p", what, (void*)fault_address);
}

int case_crash_handlers(int argc, char** argv) {
  (void)argc, (void)argv;
  char* memory = map_memory(WORKING_SET);
  size_t stack_bytes = 256 * 1024;
  stack_low = memory + WORKING_SET / 2;
  stack_high = stack_low + stack_bytes;
  handler_memory = memory + WORKING_SET / 4;
  jump = (sigjmp_buf*)(memory + 3 * (WORKING_SET / 4));
  stack_t stack = {.ss_sp = stack_low, .ss_size = stack_bytes};
  REQUIRE(sigaltstack(&stack, NULL) == 0);
  install(SIGSEGV, on_fault, NULL, SA_SIGINFO | SA_ONSTACK);
  install(SIGBUS, on_fault, NULL, SA_SIGINFO | SA_ONSTACK);
  install(SIGCHLD, NULL, on_child, SA_RESTART | SA_ONSTACK);
  char* forbidden = mmap(NULL, kPage, PROT_NONE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
  REQUIRE(forbidden != MAP_FAILED);
  char* beyond = map_beyond_end();
  char* pressure = map_memory(WORKING_SET / 2);
  fill(handler_memory, 16 * kPage, 20);
  int children = 0;
  for (uint64_t round = 0; round < 12; ++round) {
    fill(pressure, WORKING_SET / 2, 21 + round);  // pushes stack, jump buffer and handler data out
    provoke(forbidden, "SIGSEGV");
    provoke(beyond, "SIGBUS");
    pid_t child = fork();
    REQUIRE(child >= 0);
    if (child == 0) _exit(first_wrong(pressure, kPage * 64, 21 + round) < 0 ? 0 : 1);
    ++children;
    verify(pressure, WORKING_SET / 2, 21 + round, "pressure memory");
  }
  while (children_reaped < children) usleep(1000);
  if (handler_saw_wrong) fail("a handler read wrong memory");
  if (off_stack) fail("a handler ran off its alternate stack");
  printf("crash-handlers: %d faults caught, %d children reaped\n", (int)faults_seen, (int)children_reaped);
  return 0;
}

// --- signal-rain ---

enum { kRainThreads = 4 };
static pid_t rain_tids[kRainThreads + 1];
static volatile sig_atomic_t strange_thread;
static volatile sig_atomic_t rained[65];

static void on_rain(int signal_number) {
  int saved = errno;
  pid_t self = (pid_t)syscall(SYS_gettid);
  bool known = false;
  for (int i = 0; i <= kRainThreads; ++i) known = known || rain_tids[i] == self;
  // A process-directed signal must never be handled by a thread that is not the program's.
  if (!known) strange_thread = 1;
  rained[signal_number] = 1;
  errno = saved;
}

struct RainThread {
  pthread_t thread;
  int index;
  char* memory;
};
static pthread_barrier_t rain_start;

static void* rain_sweep(void* argument) {
  struct RainThread* self = argument;
  rain_tids[self->index] = (pid_t)syscall(SYS_gettid);
  pthread_barrier_wait(&rain_start);
  size_t bytes = WORKING_SET / kRainThreads;
  for (uint64_t round = 0; round < 12; ++round) {
    uint64_t seed = 30 + (uint64_t)self->index + 10 * round;
    fill(self->memory, bytes, seed);
    verify(self->memory, bytes, seed, "swept under signals");
  }
  return NULL;
}

int case_signal_rain(int argc, char** argv) {
  (void)argc, (void)argv;
  static const int kSignals[] = {SIGALRM, SIGVTALRM, SIGPROF, SIGUSR1, SIGUSR2, SIGHUP, SIGWINCH,
                                 SIGURG,  SIGIO,     SIGPIPE, SIGTERM, SIGINT,  SIGQUIT};
  size_t kinds = sizeof kSignals / sizeof kSignals[0];
  rain_tids[0] = (pid_t)syscall(SYS_gettid);
  pthread_barrier_init(&rain_start, NULL, kRainThreads + 1);
  struct RainThread threads[kRainThreads];
  for (int i = 0; i < kRainThreads; ++i) {
    threads[i].index = i + 1;
    threads[i].memory = map_memory(WORKING_SET / kRainThreads);
    REQUIRE(pthread_create(&threads[i].thread, NULL, rain_sweep, &threads[i]) == 0);
  }
  pthread_barrier_wait(&rain_start);
  for (size_t i = 0; i < kinds; ++i) install(kSignals[i], NULL, on_rain, SA_RESTART);
  struct itimerval fast = {{0, 2000}, {0, 2000}};
  setitimer(ITIMER_REAL, &fast, NULL);
  setitimer(ITIMER_VIRTUAL, &fast, NULL);
  setitimer(ITIMER_PROF, &fast, NULL);
  for (int i = 0; i < 400; ++i) {
    kill(getpid(), kSignals[(size_t)i % kinds]);
    pthread_kill(threads[i % kRainThreads].thread, i % 2 ? SIGUSR1 : SIGUSR2);
    usleep(1000);
    if (pthread_tryjoin_np(threads[i % kRainThreads].thread, NULL) == 0) {
      // One has finished: stop sending to threads, the others are joined below.
      for (int k = 0; k < kRainThreads; ++k) {
        if (k != i % kRainThreads) pthread_join(threads[k].thread, NULL);
      }
      goto joined;
    }
  }
  for (int k = 0; k < kRainThreads; ++k) pthread_join(threads[k].thread, NULL);
joined:;
  struct itimerval off = {{0, 0}, {0, 0}};
  setitimer(ITIMER_REAL, &off, NULL);
  setitimer(ITIMER_VIRTUAL, &off, NULL);
  setitimer(ITIMER_PROF, &off, NULL);
  for (size_t i = 0; i < kinds; ++i) {
    if (kSignals[i] != SIGVTALRM && kSignals[i] != SIGPROF) kill(getpid(), kSignals[i]);
  }
  for (size_t i = 0; i < kinds; ++i) {
    if (!rained[kSignals[i]]) fail("signal %d never arrived", kSignals[i]);
  }
  if (strange_thread) fail("a signal was handled by a thread the program does not know");
  printf("signal-rain: memory right, %zu kinds of signal handled by the program's own threads\n", kinds);
  return 0;
}

// --- end ---

static void rest_quietly(void) {
  // No core files from tests that die on purpose.
  (void)!chdir("/");
  signal(SIGALRM, SIG_DFL);
}

int case_end(int argc, char** argv) {
  if (argc != 2) fail("end: how? exit7, quick7, abort, segv, term, kill, alarm");
  const char* how = argv[1];
  char* memory = map_memory(WORKING_SET);
  fill(memory, WORKING_SET, 40);
  verify(memory, WORKING_SET, 40, "before the end");
  printf("end: %s\n", how);
  fflush(stdout);
  if (strcmp(how, "dump") == 0) abort();  // leaves a core file where it is
  rest_quietly();
  if (strcmp(how, "exit7") == 0) exit(7);
  if (strcmp(how, "quick7") == 0) _exit(7);
  if (strcmp(how, "abort") == 0) abort();
  if (strcmp(how, "segv") == 0) {
    munmap(memory, WORKING_SET);
    (void)*(volatile char*)memory;
  }
  if (strcmp(how, "term") == 0) kill(getpid(), SIGTERM);
  if (strcmp(how, "kill") == 0) kill(getpid(), SIGKILL);
  if (strcmp(how, "alarm") == 0) {
    struct itimerval soon = {{0, 0}, {0, 50000}};
    setitimer(ITIMER_REAL, &soon, NULL);
    for (;;) verify(memory, WORKING_SET, 40, "waiting for the alarm");
  }
  fail("end: still alive after %s", how);
}
