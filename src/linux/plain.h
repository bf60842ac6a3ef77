// For code that runs on a helper thread which shares its starter's thread pointer: no thread-locals, no
// instrumentation, no calls into anything that has either.
#pragma once

namespace whimbrel {

#define WHIMBREL_PLAIN \
  __attribute__((noinline, no_sanitize("thread"), no_sanitize("address"), no_sanitize("undefined")))

WHIMBREL_PLAIN inline long plain_call(long nr, long a, long b, long c, long d, long e) {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8)
                   : "rcx", "r11", "memory");
  return result;
}

}  // namespace whimbrel
