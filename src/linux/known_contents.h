// What a block device holds, as far as its first bytes tell: so that nobody's file system is overwritten by a typo.
#pragma once

#include "base/error.h"

namespace whimbrel {

// "" when nothing known is there, else words that can follow "PATH ", e.g. "holds an ext4 file system". kDeviceIo and
// others when it cannot be read. Static text.
[[nodiscard]] Result<const char*> known_contents(int fd) noexcept;

}  // namespace whimbrel
