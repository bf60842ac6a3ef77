// Forks that do not come through fork(): `_Fork()` runs no handlers at all, and syscall(SYS_fork) and its like bypass
// libc. The child would read zeros where memory was away, so the handlers run here. A fork instruction of the program's
// own machine code cannot be seen.
#include <linux/sched.h>
#include <sys/syscall.h>
#include <sys/types.h>

#include <cerrno>
#include <cstdint>

#include "base/syscall.h"
#include "preload/libc_walk.h"
#include "preload/program_engine.h"

namespace whimbrel {
namespace {

// Runs `make_child`, which returns like the fork system call, in both processes.
template <class MakeChild>
long with_engine(MakeChild make_child) noexcept {
  Engine* const engine = program_engine();
  if (engine == nullptr) return make_child();
  engine->prepare_fork();
  if (engine->is_moving()) touch_what_fork_touches();
  const long child = make_child();
  if (child == 0) {
    engine->after_fork_in_child();
  } else {
    engine->after_fork_in_parent();
  }
  return child;
}

}  // namespace
}  // namespace whimbrel

#define WHIMBREL_EXPORT extern "C" __attribute__((visibility("default")))

WHIMBREL_EXPORT pid_t _Fork() noexcept {
  const whimbrel::LibcFork next = whimbrel::libc_raw_fork();
  if (next == nullptr) {
    errno = ENOSYS;
    return -1;
  }
  return static_cast<pid_t>(whimbrel::with_engine([next] { return static_cast<long>(next()); }));
}

// What syscall() does for numbers that copy the process; -errno on failure.
extern "C" __attribute__((visibility("hidden"))) long whimbrel_forking_call(long number, long a, long b, long c, long d,
                                                                            long e) noexcept {
  return whimbrel::with_engine([&] { return whimbrel::sys::call(number, a, b, c, d, e); });
}

extern "C" __attribute__((visibility("hidden"))) long whimbrel_set_errno(long error) noexcept {
  errno = static_cast<int>(error);
  return -1;
}

// syscall(number, a, b, c, d, e, f), as libc's. In machine code, since a child with a stack of its own (CLONE_VM) must
// find nothing of ours on it: only a call that copies the process (fork, or clone without CLONE_VM) takes the other way.
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".globl syscall\n"
    ".type syscall,@function\n"
    "syscall:\n"
    "  .cfi_startproc\n"
    "  endbr64\n"
    "  cmpq $57, %rdi\n"  // fork
    "  je 2f\n"
    "  cmpq $56, %rdi\n"  // clone: flags are the first argument
    "  je 3f\n"
    "  cmpq $435, %rdi\n"  // clone3: the first word of the structure
    "  je 4f\n"
    "1:\n"
    "  movq %rdi, %rax\n"
    "  movq %rsi, %rdi\n"
    "  movq %rdx, %rsi\n"
    "  movq %rcx, %rdx\n"
    "  movq %r8, %r10\n"
    "  movq %r9, %r8\n"
    "  movq 8(%rsp), %r9\n"
    "  syscall\n"
    "  cmpq $-4095, %rax\n"
    "  jae 5f\n"
    "  ret\n"
    "3:\n"
    "  testl $0x100, %esi\n"  // CLONE_VM
    "  jnz 1b\n"
    "  jmp 2f\n"
    "4:\n"
    "  testq %rsi, %rsi\n"
    "  jz 1b\n"
    "  testl $0x100, (%rsi)\n"
    "  jnz 1b\n"
    "2:\n"
    "  subq $8, %rsp\n"
    "  .cfi_adjust_cfa_offset 8\n"
    "  call whimbrel_forking_call\n"
    "  addq $8, %rsp\n"
    "  .cfi_adjust_cfa_offset -8\n"
    "  cmpq $-4095, %rax\n"
    "  jae 5f\n"
    "  ret\n"
    "5:\n"
    "  negq %rax\n"
    "  movq %rax, %rdi\n"
    "  jmp whimbrel_set_errno\n"
    "  .cfi_endproc\n"
    ".size syscall,.-syscall\n");
