// The mappings of a process that can be managed: private, anonymous, writable, not tiny.
#pragma once

#include <cstdint>
#include <vector>

#include "replay/recording.h"

namespace whimbrel::report {

// In the order of their addresses; none when the process is not there or not ours to look at.
[[nodiscard]] std::vector<replay::Mapping> private_mappings(std::uint32_t pid);

}  // namespace whimbrel::report
