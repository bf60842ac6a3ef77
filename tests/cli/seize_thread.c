/* seize-thread PID NAME hold|end|sleep|rob: does to one thread of another process what nobody should.
 *   hold   holds it still for as long as this program runs
 *   end    makes it end by itself
 *   sleep  makes it sleep for ever: alive, not stopped, and of no use
 *   rob    holds it still until a message is there on its userfaultfd, takes that one away, and lets it go on
 * Prints "ready" when that is done (rob: when it is held; "robbed" follows). Exit status 77: the kernel cannot do it. */
#define _GNU_SOURCE
#include <dirent.h>
#include <errno.h>
#include <fcntl.h>
#include <linux/userfaultfd.h>
#include <poll.h>
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

/* The thread's userfaultfd as a descriptor of ours: engine threads have a table of their own. */
static int borrow_userfaultfd(const char* pid, pid_t thread) {
  char path[64];
  snprintf(path, sizeof path, "/proc/%s/task/%d/fd", pid, (int)thread);
  DIR* fds = opendir(path);
  if (fds == NULL) return -1;
  int number = -1;
  for (struct dirent* entry; number < 0 && (entry = readdir(fds)) != NULL;) {
    char target[64] = "";
    if (readlinkat(dirfd(fds), entry->d_name, target, sizeof target - 1) > 0 && strcmp(target, "anon_inode:[userfaultfd]") == 0) {
      number = atoi(entry->d_name);
    }
  }
  closedir(fds);
  if (number < 0) return -1;
  const int process = (int)syscall(SYS_pidfd_open, thread, O_EXCL); /* of a thread: kernel 6.9 */
  return process < 0 ? -1 : (int)syscall(SYS_pidfd_getfd, process, number, 0);
}

static int rob(const char* pid, pid_t thread) {
  const int fd = borrow_userfaultfd(pid, thread);
  if (fd < 0) return fprintf(stderr, "its userfaultfd: %s\n", strerror(errno)), 77;
  puts("ready");
  fflush(stdout);
  struct pollfd wait = {fd, POLLIN, 0};
  struct uffd_msg message;
  if (poll(&wait, 1, 20000) != 1) return fprintf(stderr, "nobody touched anything\n"), 8;
  if (read(fd, &message, sizeof message) != sizeof message) return fprintf(stderr, "read: %s\n", strerror(errno)), 9;
  if (message.event != UFFD_EVENT_PAGEFAULT) return fprintf(stderr, "not a touch\n"), 10;
  puts("robbed");
  return ptrace(PTRACE_DETACH, thread, 0, 0) == 0 ? 0 : 11;
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
  if (strcmp(argv[3], "rob") == 0) return rob(argv[1], thread);
  /* Stopped at a system call: run the same instruction again, as exit(2), or as pause(2): no signal reaches it. */
  struct user_regs_struct regs;
  if (ptrace(PTRACE_GETREGS, thread, 0, &regs) != 0) return 5;
  const unsigned long code = (unsigned long)ptrace(PTRACE_PEEKTEXT, thread, regs.rip - 2, 0);
  if ((code & 0xffff) != 0x050f) return fprintf(stderr, "not at a system call\n"), 6;
  regs.rip -= 2;
  regs.rax = strcmp(argv[3], "sleep") == 0 ? SYS_pause : SYS_exit;
  regs.orig_rax = (unsigned long)-1;
  regs.rdi = 0;
  if (ptrace(PTRACE_SETREGS, thread, 0, &regs) != 0 || ptrace(PTRACE_DETACH, thread, 0, 0) != 0) return 7;
  puts("ready");
  return 0;
}
