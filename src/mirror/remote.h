// Commands from processes other than the opener's: over the socket that the descriptor is.
#pragma once

#include "mirror/mirror_abi.h"

namespace whimbrel::mirror {

class Mirror;

// One command that has arrived at the session's end of an open. False: nobody holds the program's end any more.
[[nodiscard]] bool serve_remote_command(int server, Mirror& mirror) noexcept;

// Runs a command at the other end. 0 or a negative errno; when the opener is gone, what a dead address space gives
// (section D of the interface).
[[nodiscard]] int run_remotely(int fd, unsigned number, Command& command) noexcept;

}  // namespace whimbrel::mirror
