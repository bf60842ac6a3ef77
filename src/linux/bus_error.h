// SIGBUS for one thread of the program, as for an access whose contents cannot be had.
#pragma once

#include <cstdint>

#include "base/error.h"
#include "mm/address.h"

namespace whimbrel {

// The kernel lets nobody but a thread itself queue a signal with the code of a real fault: this one has the address in si_addr
// and SI_QUEUE in si_code. kNotPermitted: the thread has SIGBUS blocked, or the process ignores it.
[[nodiscard]] Result<void> send_bus_error(std::uint32_t thread, VirtualAddress address) noexcept;

}  // namespace whimbrel
