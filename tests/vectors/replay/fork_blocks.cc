// Fork blocks: two processes that take turns, in the order in which the script lists their sections.
#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cstdlib>

#include "replayer.h"

namespace vectors {
namespace {

// A one-way channel for the turn. The end of one side (its death included) counts as passing the turn, so that
// nobody waits for a process that is gone.
class Turn {
 public:
  Turn() {
    if (pipe2(ends_, O_CLOEXEC) != 0) _exit(3);
  }
  void keep_reading() { drop(1); }
  void keep_writing() { drop(0); }
  void pass() {
    if (write(ends_[1], "t", 1) < 0) return;  // the other side is gone and needs no turn
  }
  void await() {
    char token = 0;
    if (read(ends_[0], &token, 1) < 0) _exit(3);
  }
  void close_both() {
    drop(0);
    drop(1);
  }

 private:
  void drop(int end) {
    if (ends_[end] >= 0) close(ends_[end]);
    ends_[end] = -1;
  }
  int ends_[2];
};

std::size_t last_child_section(const Fork& fork) {
  std::size_t last = 0;  // 0 also when there is none: the child then ends at once
  for (std::size_t i = 0; i < fork.sections.size(); i++) {
    if (fork.sections[i].child) last = i;
  }
  return last;
}

}  // namespace

void Replayer::run_fork(const Operation& operation, const Fork& fork) {
  Turn to_child;
  Turn to_parent;
  const pid_t pid = ::fork();
  const bool in_child = pid == 0;
  if (in_child) {
    out_.discard();
    depth_++;
    prctl(PR_SET_CHILD_SUBREAPER, 1);
    to_child.keep_reading();
    to_parent.keep_writing();
    to_child.await();  // the parent's line about the fork comes first
  } else {
    out_.begin(depth_, operation.line, operation.text);
    out_.put(" ");
    out_.put_result(pid);
    out_.end();
    to_child.keep_writing();
    to_parent.keep_reading();
    to_child.pass();
  }
  Turn& mine = in_child ? to_child : to_parent;
  Turn& other = in_child ? to_parent : to_child;

  const std::size_t last_child = last_child_section(fork);
  bool child_is_gone = pid < 0;
  int status = 0;
  for (std::size_t i = 0; i < fork.sections.size(); i++) {
    const Section& section = fork.sections[i];
    if (section.child != in_child) continue;
    if (i > 0 && fork.sections[i - 1].child != in_child && !child_is_gone) {
      if (!in_child && i > last_child) {
        waitpid(pid, &status, 0);
        child_is_gone = true;
      } else {
        mine.await();
      }
    }
    run_block(section.body);
    if (in_child && i == last_child) std::exit(0);
    const bool last = i + 1 == fork.sections.size();
    if (!child_is_gone && !last && fork.sections[i + 1].child != in_child) other.pass();
  }
  if (in_child) std::exit(0);

  if (!child_is_gone) {
    waitpid(pid, &status, 0);
    if (WIFSIGNALED(status)) {
      out_.begin(depth_, fork.end.line, fork.end.text);
      out_.format(" child killed by signal %d", WTERMSIG(status));
      out_.end();
    }
  }
  while (wait(nullptr) > 0) continue;  // orphans of the child
  to_child.close_both();
  to_parent.close_both();
}

}  // namespace vectors
