// Two processes of a case that take turns.
//
//   struct partner other = start_child();
//   if (other.in_child) {
//     ...                      // the child goes first
//     pass_turn(&other);
//     await_turn(&other);
//     end_child();
//   }
//   await_turn(&other);
//   ...
//   pass_turn(&other);
//   await_child(&other);
//
// Parent and child run freely until one awaits its turn. The end of a process counts as passing the turn.
#ifndef TESTS_MIRROR_PROCESSES_H
#define TESTS_MIRROR_PROCESSES_H

#include <stdbool.h>
#include <sys/types.h>

struct partner {
  bool in_child;
  pid_t child;  // in the parent
  int from_other, to_other;
};

// Forks. Failure ends the case.
struct partner start_child(void);

void pass_turn(struct partner* other);
void await_turn(struct partner* other);

// The child is done; whatever failed in it has been counted.
_Noreturn void end_child(void);

// Waits until the child is gone; a child that did not come to its end is a failure.
void await_child(struct partner* other);

#endif
