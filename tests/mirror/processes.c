#include "processes.h"

#include <errno.h>
#include <fcntl.h>
#include <signal.h>
#include <string.h>
#include <sys/wait.h>
#include <unistd.h>

#include "harness.h"

struct partner start_child(void) {
  int down[2], up[2];
  REQUIRE(pipe2(down, O_CLOEXEC) == 0);
  REQUIRE(pipe2(up, O_CLOEXEC) == 0);
  signal(SIGPIPE, SIG_IGN);  // passing the turn to a process that is gone
  const pid_t pid = fork();
  REQUIRE(pid >= 0);
  if (pid == 0) {
    close(down[1]);
    close(up[0]);
    return (struct partner){.in_child = true, .from_other = down[0], .to_other = up[1]};
  }
  close(down[0]);
  close(up[1]);
  return (struct partner){.child = pid, .from_other = up[0], .to_other = down[1]};
}

void pass_turn(struct partner* other) {
  const ssize_t sent = write(other->to_other, "t", 1);
  EXPECT(sent == 1 || errno == EPIPE);
}

void await_turn(struct partner* other) {
  char token;
  EXPECT(read(other->from_other, &token, 1) >= 0);
}

void end_child(void) { _exit(0); }

void await_child(struct partner* other) {
  int status = 0;
  REQUIRE(waitpid(other->child, &status, 0) == other->child);
  close(other->to_other);
  close(other->from_other);
  if (WIFSIGNALED(status)) {
    fail_at(__FILE__, __LINE__, "the child was killed by %s", strsignal(WTERMSIG(status)));
  } else if (WEXITSTATUS(status) != 0) {
    fail_at(__FILE__, __LINE__, "the child ended early, with status %d", WEXITSTATUS(status));
  }
}
