// Stands where the dynamic loader should be: says so and ends, whatever the program is.
#include <sys/syscall.h>

static long call(long number, long a, long b, long c) {
  long result;
  __asm__ volatile("syscall" : "=a"(result) : "a"(number), "D"(a), "S"(b), "d"(c) : "rcx", "r11", "memory");
  return result;
}

void _start(void) {
  static const char kText[] = "loaded by hand\n";
  call(SYS_write, 1, (long)kText, sizeof kText - 1);
  call(SYS_exit_group, 0, 0, 0);
  for (;;) {
  }
}
