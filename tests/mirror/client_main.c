// mirror_client: an ordinary client of the mirror test devices, to be run on a kernel that has them or with a stand-in
// preloaded. It uses the documented interface and nothing else.
#include <errno.h>
#include <fcntl.h>
#include <stdbool.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "after_exec.h"
#include "device.h"
#include "harness.h"
#include "open_list.h"

static const char usage[] =
    "usage: mirror_client [options] [PATTERN...]\n"
    "\n"
    "Runs the cases whose names (KIND/GROUP.CASE, e.g. private/fork.child_writes) match one of the shell patterns; "
    "all\n"
    "cases without a pattern.\n"
    "\n"
    "  --list            print the names\n"
    "  --dev PREFIX      nodes are PREFIX0 .. PREFIX3 (default " DMIRROR_DEFAULT_PREFIX
    ")\n"
    "  --skip PATTERN    leave these out (may be repeated)\n"
    "  --open FILE       cases that do not pass yet, with reasons: printed as skipped, not run\n"
    "  --hazards         also run what makes the real driver crash the kernel: only for a stand-in\n"
    "  --timeout SECONDS for each case (default 20; ten times as much for slow ones)\n"
    "  --need-coherent   without coherent nodes fail instead of skipping their cases\n"
    "  -v                print how long each case took\n"
    "\n"
    "Exit status: 0 no case failed, 1 some failed, 2 nothing could be run.\n";

enum { MOST_PATTERNS = 64 };

struct arguments {
  const char *patterns[MOST_PATTERNS + 1], *skips[MOST_PATTERNS + 1];
  struct run_options options;
  bool need_coherent;
};

static bool add(const char** list, const char* pattern) {
  for (int i = 0; i < MOST_PATTERNS; i++) {
    if (!list[i]) {
      list[i] = pattern;
      return true;
    }
  }
  return false;
}

static bool parse(int argc, char** argv, struct arguments* arguments) {
  struct run_options* options = &arguments->options;
  options->patterns = arguments->patterns;
  options->skips = arguments->skips;
  options->time_limit_seconds = 20;
  for (int i = 1; i < argc; i++) {
    const bool has_next = i + 1 < argc;
    if (strcmp(argv[i], "--list") == 0) {
      options->list = true;
    } else if (strcmp(argv[i], "--hazards") == 0) {
      options->hazards = true;
    } else if (strcmp(argv[i], "--need-coherent") == 0) {
      arguments->need_coherent = true;
    } else if (strcmp(argv[i], "-v") == 0) {
      options->verbose = true;
    } else if (strcmp(argv[i], "--dev") == 0 && has_next) {
      node_prefix = argv[++i];
    } else if (strcmp(argv[i], "--skip") == 0 && has_next) {
      if (!add(arguments->skips, argv[++i])) return false;
    } else if (strcmp(argv[i], "--open") == 0 && has_next) {
      if (!read_open_list(argv[++i])) return false;
    } else if (strcmp(argv[i], "--timeout") == 0 && has_next) {
      options->time_limit_seconds = (unsigned)strtoul(argv[++i], NULL, 10);
      if (options->time_limit_seconds == 0) return false;
    } else if (argv[i][0] == '-') {
      return false;
    } else if (!add(arguments->patterns, argv[i])) {
      return false;
    }
  }
  return true;
}

// 0 or the errno of opening a node. In a process of its own: the one that starts the cases stays without any.
static int probe_node(unsigned minor) {
  const pid_t pid = fork();
  if (pid == 0) _exit(open(node_path(minor), O_RDWR) < 0 ? errno : 0);
  int status = 0;
  if (pid < 0 || waitpid(pid, &status, 0) != pid) return errno;
  return WIFEXITED(status) ? WEXITSTATUS(status) : EFAULT;
}

int main(int argc, char** argv) {
  if (argc > 1 && strcmp(argv[1], AFTER_EXEC_OPTION) == 0) return after_exec(argc, argv);
  static struct arguments arguments;
  if (!parse(argc, argv, &arguments)) {
    fputs(usage, stderr);
    return 2;
  }
  if (arguments.options.list) return run_cases(&arguments.options, EACH_KIND);

  const int error = probe_node(0);
  if (error) {
    fprintf(stderr,
            "mirror_client: cannot open %s: %s (%s)\n"
            "  try: load the kernel's test module for device memory, or preload a library that stands in for it:\n"
            "       LD_PRELOAD=/path/to/libwhimbrel-mirror.so %s\n",
            node_path(0), strerror(error), error_name(error), argv[0]);
    return 2;
  }
  const int coherent_error = probe_node(2);
  if (coherent_error) {
    fprintf(stderr, "mirror_client: cannot open %s: %s (%s); the cases of coherent nodes are %s\n", node_path(2),
            strerror(coherent_error), error_name(coherent_error), arguments.need_coherent ? "needed" : "skipped");
    if (arguments.need_coherent) return 2;
  }
  return run_cases(&arguments.options, coherent_error ? PRIVATE : EACH_KIND);
}
