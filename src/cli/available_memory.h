// How much memory this process could still use, before anything has to be written to swap or killed.
#pragma once

#include <cstdint>

namespace whimbrel::cli {

// The machine's available memory, or what this process's control group leaves of its limit when that is less. Bytes.
[[nodiscard]] std::uint64_t available_memory();

}  // namespace whimbrel::cli
