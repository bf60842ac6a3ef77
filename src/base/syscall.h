// Raw system calls: the result is the value, or -errno. errno itself is never touched, so these work on threads
// that libc does not know and in a forked child before any handler has run.
//
// Everything that asks the kernel for something beyond blocking and dying lives in linux/; base/ uses this only for
// futex, write and exit.
#pragma once

namespace whimbrel::sys {

inline long call(long nr, long a = 0, long b = 0, long c = 0, long d = 0, long e = 0, long f = 0) noexcept {
  register long r10 __asm__("r10") = d;
  register long r8 __asm__("r8") = e;
  register long r9 __asm__("r9") = f;
  long result;
  __asm__ volatile("syscall"
                   : "=a"(result)
                   : "a"(nr), "D"(a), "S"(b), "d"(c), "r"(r10), "r"(r8), "r"(r9)
                   : "rcx", "r11", "memory");
  return result;
}

template <class T>
inline long arg(T* p) noexcept {
  return reinterpret_cast<long>(p);
}

}  // namespace whimbrel::sys
