#include "linux/raw_clone.h"

#include <linux/futex.h>
#include <linux/sched.h>
#include <signal.h>
#include <sys/syscall.h>
#include <time.h>

#include <cerrno>

#include "linux/sys.h"

// long whimbrel_clone(flags, stack, tid word, thread pointer, body, argument): returns in the caller only. The new
// thread finds body and argument on its stack, calls, and leaves by the exit system call, which ends just this thread.
__asm__(
    ".text\n"
    ".p2align 4\n"
    ".hidden whimbrel_clone\n"
    ".globl whimbrel_clone\n"
    ".type whimbrel_clone,@function\n"
    "whimbrel_clone:\n"
    "  .cfi_startproc\n"
    "  endbr64\n"
    "  andq $-16, %rsi\n"
    "  subq $16, %rsi\n"
    "  movq %r8, 0(%rsi)\n"
    "  movq %r9, 8(%rsi)\n"
    "  movq %rdx, %r10\n"  // cleared when the thread exits; also written before clone returns
    "  movq %rcx, %r8\n"
    "  movl $56, %eax\n"
    "  syscall\n"
    "  testq %rax, %rax\n"
    "  jz 1f\n"
    "  ret\n"
    "1:\n"
    "  .cfi_undefined rip\n"  // unwinders stop here
    "  xorl %ebp, %ebp\n"
    "  popq %rax\n"
    "  popq %rdi\n"
    "  call *%rax\n"
    "  xorl %edi, %edi\n"
    "  movl $60, %eax\n"
    "  syscall\n"
    "  hlt\n"
    "  .cfi_endproc\n"
    ".size whimbrel_clone,.-whimbrel_clone\n");

extern "C" long whimbrel_clone(unsigned long flags, void* stack, std::atomic<std::uint32_t>* tid, void* tls,
                               void (*body)(void*), void* argument) noexcept;

namespace whimbrel {

Result<void> raw_clone(const RawClone& thread) noexcept {
  unsigned long flags =
      CLONE_VM | CLONE_FS | CLONE_SIGHAND | CLONE_THREAD | CLONE_SYSVSEM | CLONE_PARENT_SETTID | CLONE_CHILD_CLEARTID;
  if (!thread.own_descriptors) flags |= CLONE_FILES;
  if (thread.tls != nullptr) flags |= CLONE_SETTLS;
  // The mask is inherited. Blocked by the raw call, for libc's keeps two signals of its own open.
  const std::uint64_t all = ~std::uint64_t{0};
  std::uint64_t before = 0;
  sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(&all), sys::arg(&before), sizeof all);
  const long raw = whimbrel_clone(flags, thread.stack_end, thread.thread_id, thread.tls, thread.body, thread.argument);
  sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(&before), 0, sizeof all);
  if (raw < 0) return fail(sys::errc_of(static_cast<int>(-raw)), static_cast<int>(-raw), "clone");
  return {};
}

bool wait_raw_thread(std::atomic<std::uint32_t>& thread_id, std::int64_t nanoseconds) noexcept {
  for (;;) {
    const std::uint32_t now = thread_id.load(std::memory_order_acquire);
    if (now == 0) return true;
    const timespec limit{nanoseconds / 1'000'000'000, nanoseconds % 1'000'000'000};
    // Not FUTEX_PRIVATE: the kernel's own wake-up at thread exit is a shared one.
    const long raw =
        sys::call(SYS_futex, sys::arg(&thread_id), FUTEX_WAIT, now, nanoseconds < 0 ? 0 : sys::arg(&limit));
    if (raw == -ETIMEDOUT) return thread_id.load(std::memory_order_acquire) == 0;
  }
}

}  // namespace whimbrel
