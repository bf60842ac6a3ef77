#include "base/check.h"

#include <sys/syscall.h>

#include <atomic>
#include <csignal>
#include <cstring>

#include "base/syscall.h"

namespace whimbrel {
namespace {

// Appends text to a fixed buffer, silently cutting what does not fit.
struct Line {
  char text[512];
  unsigned used = 0;
  void add(const char* s) {
    while (*s != 0 && used < sizeof text - 1) text[used++] = *s++;
  }
  void add(int n) {
    char digits[12];
    unsigned k = sizeof digits;
    digits[--k] = 0;
    unsigned v = n < 0 ? 0u : static_cast<unsigned>(n);
    do digits[--k] = static_cast<char>('0' + v % 10);
    while ((v /= 10) != 0 && k > 0);
    add(digits + k);
  }
};

std::atomic<CheckSink> g_sink{nullptr};

}  // namespace

void set_check_sink(CheckSink sink) noexcept { g_sink.store(sink, std::memory_order_release); }

void check_failed(const char* file, int line, const char* condition, const char* message) noexcept {
  Line out;
  out.add("whimbrel: internal error at ");
  out.add(file);
  out.add(":");
  out.add(line);
  out.add(": ");
  out.add(condition);
  if (*message != 0) {
    out.add(" (");
    out.add(message);
    out.add(")");
  }
  out.add("\n  the program is stopped here so that no wrong data is used; please report this line\n");
  const CheckSink sink = g_sink.exchange(nullptr, std::memory_order_acq_rel);
  if (sink != nullptr) sink(out.text);
  sys::call(SYS_write, 2, sys::arg(out.text), out.used);
  // SIGABRT with the default action, whatever the program had installed: an abort handler of the program could
  // touch memory that nobody brings home any more.
  struct {
    void* handler;
    unsigned long flags;
    void* restorer;
    unsigned long mask;
  } action{};
  sys::call(SYS_rt_sigaction, SIGABRT, sys::arg(&action), 0, 8);
  unsigned long none = 0;
  sys::call(SYS_rt_sigprocmask, SIG_SETMASK, sys::arg(&none), 0, 8);
  sys::call(SYS_tgkill, sys::call(SYS_getpid), sys::call(SYS_gettid), SIGABRT);
  for (;;) sys::call(SYS_exit_group, 134);
}

}  // namespace whimbrel
