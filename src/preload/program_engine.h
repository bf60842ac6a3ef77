// The engine of the process that the library is loaded into.
#pragma once

#include "runtime/engine.h"

namespace whimbrel {

// Null: this process is left alone.
[[nodiscard]] Engine* program_engine() noexcept;

}  // namespace whimbrel
