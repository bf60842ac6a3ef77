// What an errno means, in words for people. libc's strerror() may allocate and knows locales.
#pragma once

namespace whimbrel::sys {

// Never null; "" for 0.
[[nodiscard]] const char* errno_text(int sys_errno) noexcept;

}  // namespace whimbrel::sys
