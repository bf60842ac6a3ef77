// CHECK stops the process with a message when an invariant is broken: corruption must not go on.
// DCHECK does the same in builds without NDEBUG and costs nothing in the others.
//
// The message goes to standard error by one raw write: safe on the fault path, in a forked child and in signal
// handlers; it allocates nothing and takes no lock.
#pragma once

namespace whimbrel {

// Also receives the message; for processes whose engine threads have no standard error. Called from any thread in any
// state: it may touch engine memory only. Null: none.
using CheckSink = void (*)(const char* text) noexcept;
void set_check_sink(CheckSink sink) noexcept;

[[noreturn]] void check_failed(const char* file, int line, const char* condition, const char* message) noexcept;

}  // namespace whimbrel

#define WHIMBREL_CHECK_2(condition, message) \
  (__builtin_expect(!!(condition), 1) ? (void)0 : ::whimbrel::check_failed(__FILE__, __LINE__, #condition, message))
#define WHIMBREL_CHECK_1(condition) WHIMBREL_CHECK_2(condition, "")
#define WHIMBREL_CHECK_PICK(a, b, name, ...) name
#define CHECK(...) WHIMBREL_CHECK_PICK(__VA_ARGS__, WHIMBREL_CHECK_2, WHIMBREL_CHECK_1, )(__VA_ARGS__)
#ifdef NDEBUG
#define DCHECK(...) (void)0
#else
#define DCHECK(...) CHECK(__VA_ARGS__)
#endif
