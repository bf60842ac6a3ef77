/* seize-thread PID NAME hold|end: does to one thread of another process what nobody should: holds it still for as long as
 * this program runs, or makes it end by itself. Prints "ready" when that is done. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <signal.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ptrace.h>
#include <sys/syscall.h>
#include <sys/user.h>
#include <sys/wait.h>
#include <unistd.h>

static pid_t find_thread(const char* pid, const char* name) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/task", pid);
  DIR* tasks = opendir(path);
  if (tasks == NULL) return 0;
  pid_t found = 0;
  for (struct dirent* entry; found == 0 && (entry = readdir(tasks)) != NULL;) {
    char file[400], comm[32] = "";
    snprintf(file, sizeof file, "%s/%s/comm", path, entry->d_name);
    FILE* f = fopen(file, "r");
    if (f == NULL) continue;
    if (fgets(comm, sizeof comm, f) != NULL) comm[strcspn(comm, "\n")] = 0;
    fclose(f);
    if (strcmp(comm, name) == 0) found = atoi(entry->d_name);
  }
  closedir(tasks);
  return found;
}

int main(int argc, char** argv) {
  if (argc != 4) return 2;
  const pid_t thread = find_thread(argv[1], argv[2]);
  if (thread == 0) return fprintf(stderr, "no thread %s in %s\n", argv[2], argv[1]), 3;
  int status;
  if (ptrace(PTRACE_SEIZE, thread, 0, 0) != 0 || ptrace(PTRACE_INTERRUPT, thread, 0, 0) != 0 ||
      waitpid(thread, &status, __WALL) != thread) {
    return fprintf(stderr, "seize: %s\n", strerror(errno)), 4;
  }
  if (strcmp(argv[3], "hold") == 0) {
    puts("ready");
    fflush(stdout);
    while (waitpid(thread, &status, __WALL) == thread && !WIFEXITED(status) && !WIFSIGNALED(status)) {
    }
    return 0;
  }
  /* Stopped at a system call: run the same instruction again, as exit(2). */
  struct user_regs_struct regs;
  if (ptrace(PTRACE_GETREGS, thread, 0, &regs) != 0) return 5;
  const unsigned long code = (unsigned long)ptrace(PTRACE_PEEKTEXT, thread, regs.rip - 2, 0);
  if ((code & 0xffff) != 0x050f) return fprintf(stderr, "not at a system call\n"), 6;
  regs.rip -= 2;
  regs.rax = SYS_exit;
  regs.orig_rax = (unsigned long)-1;
  regs.rdi = 0;
  if (ptrace(PTRACE_SETREGS, thread, 0, &regs) != 0 || ptrace(PTRACE_DETACH, thread, 0, 0) != 0) return 7;
  puts("ready");
  return 0;
}
