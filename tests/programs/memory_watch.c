// Runs a command and watches the memory of its whole process tree from outside, through /proc alone.
//
//   memory-watch --out FILE [--limit SECONDS] [--interval MS] [--residency] -- COMMAND ARGS...
//
// FILE receives one `key=value` per line. Two views are taken at each sample:
//   anon       RSS minus file and shared pages (/proc/PID/statm): what the process costs the machine.
//   residency  anonymous pages of the program itself, i.e. `anon` without the mappings of the engine, which are known by
//              their flags: excluded from core dumps (dd) and told about huge pages, never (nh) or please (hg). Needs
//              smaps, hence only with --residency.
// The command is over when it and every descendant have gone, daemonised ones included (we are their subreaper).
// At the limit everything is killed and timed_out=1 reported. Exit status: the command's, or 128 + signal, or 124.

#define _GNU_SOURCE
#include <ctype.h>
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <stdbool.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/wait.h>
#include <time.h>
#include <unistd.h>

enum { kMaxProcesses = 4096, kReadBuffer = 1 << 16 };

struct Options {
  const char* out;
  double limit_seconds;
  int64_t interval_ns;
  bool residency;
  char** command;
};

struct Peaks {
  uint64_t process_anon;  // bytes, the largest single process
  uint64_t process_rss;
  uint64_t tree_anon;
  uint64_t residency;  // bytes, the largest single process
  uint64_t samples;
  int64_t longest_gap_ns;
  char name[32];  // command of the process that set process_anon
};

static pid_t tree[kMaxProcesses];
static size_t tree_size;

static int64_t now_ns(void) {
  struct timespec t;
  clock_gettime(CLOCK_MONOTONIC, &t);
  return (int64_t)t.tv_sec * 1000000000 + t.tv_nsec;
}

// Reads a /proc file into `buffer`; its length, or 0 when the process has gone.
static size_t read_file(const char* path, char* buffer, size_t size) {
  int fd = open(path, O_RDONLY | O_CLOEXEC);
  if (fd < 0) return 0;
  size_t used = 0;
  for (;;) {
    ssize_t got = read(fd, buffer + used, size - 1 - used);
    if (got <= 0) break;
    used += (size_t)got;
    if (used == size - 1) break;
  }
  close(fd);
  buffer[used] = 0;
  return used;
}

static void add_children_of_thread(pid_t pid, const char* tid) {
  char path[96];
  static char text[kReadBuffer];
  snprintf(path, sizeof path, "/proc/%d/task/%.20s/children", pid, tid);
  if (read_file(path, text, sizeof text) == 0) return;
  for (char* word = strtok(text, " \n"); word; word = strtok(NULL, " \n")) {
    if (tree_size < kMaxProcesses) tree[tree_size++] = (pid_t)atoi(word);
  }
}

// Collects all descendants of this process, breadth first.
static void find_tree(void) {
  tree_size = 0;
  tree[tree_size++] = getpid();
  for (size_t i = 0; i < tree_size; ++i) {
    char path[64];
    snprintf(path, sizeof path, "/proc/%d/task", tree[i]);
    DIR* tasks = opendir(path);
    if (!tasks) continue;
    for (struct dirent* entry; (entry = readdir(tasks)) != NULL;) {
      if (isdigit((unsigned char)entry->d_name[0])) add_children_of_thread(tree[i], entry->d_name);
    }
    closedir(tasks);
  }
}

static bool read_statm(pid_t pid, uint64_t* rss, uint64_t* anon) {
  char path[64];
  char text[256];
  snprintf(path, sizeof path, "/proc/%d/statm", pid);
  if (read_file(path, text, sizeof text) == 0) return false;
  unsigned long total = 0, resident = 0, shared = 0;
  if (sscanf(text, "%lu %lu %lu", &total, &resident, &shared) != 3) return false;
  uint64_t page = (uint64_t)sysconf(_SC_PAGESIZE);
  *rss = resident * page;
  *anon = resident > shared ? (resident - shared) * page : 0;
  return true;
}

// Anonymous bytes of the program's own mappings: smaps holds `Anonymous:` before `VmFlags:` of each mapping.
static uint64_t read_residency(pid_t pid) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/smaps", pid);
  FILE* smaps = fopen(path, "re");
  if (!smaps) return 0;
  static char stream_buffer[kReadBuffer];
  setvbuf(smaps, stream_buffer, _IOFBF, sizeof stream_buffer);
  uint64_t sum_kb = 0, mapping_kb = 0;
  char line[512];
  while (fgets(line, sizeof line, smaps)) {
    if (line[0] == 'A' && strncmp(line, "Anonymous:", 10) == 0) {
      mapping_kb = strtoull(line + 10, NULL, 10);
    } else if (line[0] == 'V' && strncmp(line, "VmFlags:", 8) == 0) {
      bool engine = strstr(line, " dd") != NULL && (strstr(line, " nh") != NULL || strstr(line, " hg") != NULL);
      if (!engine) sum_kb += mapping_kb;
      mapping_kb = 0;
    }
  }
  fclose(smaps);
  return sum_kb * 1024;
}

static void remember_name(pid_t pid, struct Peaks* peaks) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%d/comm", pid);
  if (read_file(path, peaks->name, sizeof peaks->name)) peaks->name[strcspn(peaks->name, "\n")] = 0;
}

static void sample(const struct Options* options, struct Peaks* peaks) {
  find_tree();
  uint64_t tree_anon = 0;
  for (size_t i = 1; i < tree_size; ++i) {  // [0] is ourselves
    uint64_t rss = 0, anon = 0;
    if (!read_statm(tree[i], &rss, &anon)) continue;
    tree_anon += anon;
    if (rss > peaks->process_rss) peaks->process_rss = rss;
    if (anon > peaks->process_anon) {
      peaks->process_anon = anon;
      remember_name(tree[i], peaks);
    }
    // Only a process whose total is above the peak can set a new peak of residency.
    if (options->residency && anon > peaks->residency) {
      uint64_t residency = read_residency(tree[i]);
      if (residency > peaks->residency) peaks->residency = residency;
    }
  }
  if (tree_anon > peaks->tree_anon) peaks->tree_anon = tree_anon;
  ++peaks->samples;
}

static void kill_tree(void) {
  for (int round = 0; round < 200; ++round) {
    find_tree();
    if (tree_size <= 1) return;
    for (size_t i = 1; i < tree_size; ++i) kill(tree[i], SIGKILL);
    while (waitpid(-1, NULL, WNOHANG) > 0) {
    }
    usleep(10000);
  }
}

static volatile sig_atomic_t interrupted;
static void on_interrupt(int signal_number) { interrupted = signal_number; }

// Reaps what has ended; false when there is no child left. `status` receives the command's own status.
static bool reap(pid_t command, int* status) {
  for (;;) {
    int ended = 0;
    pid_t pid = waitpid(-1, &ended, WNOHANG);
    if (pid == 0) return true;
    if (pid < 0) return errno != ECHILD;
    if (pid == command) *status = ended;
  }
}

static double seconds(struct timeval t) { return (double)t.tv_sec + (double)t.tv_usec / 1e6; }

static void report(const struct Options* options, const struct Peaks* peaks, int status, bool timed_out, int64_t wall) {
  FILE* out = fopen(options->out, "we");
  if (!out) {
    fprintf(stderr, "memory-watch: cannot write %s: %s\n", options->out, strerror(errno));
    exit(125);
  }
  struct rusage usage;
  getrusage(RUSAGE_CHILDREN, &usage);
  fprintf(out, "exit_status=%d\nsignal=%d\ntimed_out=%d\n", WIFEXITED(status) ? WEXITSTATUS(status) : -1,
          WIFSIGNALED(status) ? WTERMSIG(status) : 0, timed_out ? 1 : 0);
  fprintf(out, "wall_seconds=%.3f\nuser_seconds=%.3f\nsystem_seconds=%.3f\n", (double)wall / 1e9,
          seconds(usage.ru_utime), seconds(usage.ru_stime));
  fprintf(out, "peak_process_anon_bytes=%llu\npeak_process_rss_bytes=%llu\npeak_tree_anon_bytes=%llu\n",
          (unsigned long long)peaks->process_anon, (unsigned long long)peaks->process_rss,
          (unsigned long long)peaks->tree_anon);
  fprintf(out, "peak_residency_bytes=%llu\nsamples=%llu\nlongest_gap_ms=%.1f\npeak_process=%s\n",
          (unsigned long long)peaks->residency, (unsigned long long)peaks->samples,
          (double)peaks->longest_gap_ns / 1e6, peaks->name);
  fclose(out);
}

static void usage_error(const char* what) {
  fprintf(stderr,
          "memory-watch: %s\n"
          "usage: memory-watch --out FILE [--limit SECONDS] [--interval MS] [--residency] -- COMMAND ARGS...\n",
          what);
  exit(125);
}

static struct Options parse(int argc, char** argv) {
  struct Options options = {.limit_seconds = 3600, .interval_ns = 10 * 1000000};
  int i = 1;
  for (; i < argc && strcmp(argv[i], "--") != 0; ++i) {
    if (strcmp(argv[i], "--residency") == 0) {
      options.residency = true;
    } else if (i + 1 < argc && strcmp(argv[i], "--out") == 0) {
      options.out = argv[++i];
    } else if (i + 1 < argc && strcmp(argv[i], "--limit") == 0) {
      options.limit_seconds = atof(argv[++i]);
    } else if (i + 1 < argc && strcmp(argv[i], "--interval") == 0) {
      options.interval_ns = (int64_t)(atof(argv[++i]) * 1e6);
    } else {
      usage_error("unknown option or missing value");
    }
  }
  if (!options.out) usage_error("--out FILE is missing");
  if (i + 1 >= argc) usage_error("no command after --");
  options.command = argv + i + 1;
  return options;
}

static pid_t start(char** command) {
  pid_t pid = fork();
  if (pid < 0) {
    perror("memory-watch: fork");
    exit(125);
  }
  if (pid == 0) {
    execvp(command[0], command);
    fprintf(stderr, "memory-watch: cannot run %s: %s\n", command[0], strerror(errno));
    _exit(127);
  }
  return pid;
}

int main(int argc, char** argv) {
  struct Options options = parse(argc, argv);
  struct Peaks peaks = {0};
  prctl(PR_SET_CHILD_SUBREAPER, 1);
  signal(SIGINT, on_interrupt);
  signal(SIGTERM, on_interrupt);
  int64_t begin = now_ns();
  pid_t command = start(options.command);
  // The reader of our standard output must see the end of file when the command closes its copy.
  close(STDIN_FILENO);
  close(STDOUT_FILENO);
  int status = 0;
  bool timed_out = false;
  int64_t last = now_ns();
  while (reap(command, &status)) {
    if (interrupted || (double)(now_ns() - begin) / 1e9 > options.limit_seconds) {
      timed_out = !interrupted;
      kill_tree();
      break;
    }
    int64_t before = now_ns();
    if (before - last > peaks.longest_gap_ns) peaks.longest_gap_ns = before - last;
    last = before;
    sample(&options, &peaks);
    int64_t cost = now_ns() - before;
    // At most a fifth of one core goes into watching, however many mappings there are.
    int64_t pause = options.interval_ns - cost;
    if (pause < 4 * cost) pause = 4 * cost;
    struct timespec t = {pause / 1000000000, pause % 1000000000};
    nanosleep(&t, NULL);
  }
  report(&options, &peaks, status, timed_out, now_ns() - begin);
  if (timed_out) return 124;
  if (interrupted) return 128 + interrupted;
  return WIFEXITED(status) ? WEXITSTATUS(status) : 128 + WTERMSIG(status);
}
