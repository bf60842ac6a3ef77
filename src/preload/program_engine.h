// The engine of the process that the library is loaded into.
#pragma once

#include <sys/types.h>

#include "runtime/engine.h"

namespace whimbrel {

// Null: this process is left alone.
[[nodiscard]] Engine* program_engine() noexcept;

// libc's _Fork(); null: this libc has none.
using LibcFork = pid_t (*)();
[[nodiscard]] LibcFork libc_raw_fork() noexcept;

}  // namespace whimbrel
