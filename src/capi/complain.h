// Errors on their way out of the library: negative errno, and a sentence for whoever asks whimbrel_error(). On threads of
// the program.
#pragma once

#include "base/error.h"

namespace whimbrel::capi {

// Notes what failed for whimbrel_error() and returns -sys_errno. `what` and `next` are static text; `next` may be empty.
int complain(int sys_errno, const char* what, const char* next = "") noexcept;
// The same with the reason of an Error.
int complain(const Error& error, const char* what, const char* next = "") noexcept;
// The same with a reason that is copied, and cut where it is too long.
int complain_because(int sys_errno, const char* what, const char* reason, const char* next = "") noexcept;
[[nodiscard]] int errno_of(const Error& error) noexcept;

}  // namespace whimbrel::capi
