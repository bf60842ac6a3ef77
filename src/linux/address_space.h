// How much address space the engine may reserve without taking it from the program.
#pragma once

#include <cstdint>

namespace whimbrel {

// At most `wanted` bytes, and at most a quarter of what RLIMIT_AS still leaves: the program's next allocations must
// not fail because of us.
[[nodiscard]] std::uint64_t affordable_address_space(std::uint64_t wanted) noexcept;

}  // namespace whimbrel
