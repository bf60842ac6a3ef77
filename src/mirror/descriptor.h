// Descriptors of mirror devices: real ones (sockets), so that dup, fork, poll and passing them on work by themselves.
//
// The program holds one end of a socket pair, the opener's session the other. When the last copy of the program's end
// closes, in whatever process, the session's end says so. Commands from the opener's own process run on the calling
// thread; those from other processes (a forked child with the parent's descriptor) travel over the socket and act on the
// opener's memory (CL-03, ABI-09). One service thread listens to all of them.
#pragma once

#include <cstdint>
#include <optional>

#include "mirror/mirror_abi.h"

namespace whimbrel::mirror {

// The minor of "/dev/hmm_dmirrorN"; nothing for other paths.
[[nodiscard]] std::optional<int> minor_of_path(const char* path) noexcept;

// A new descriptor, or a negative errno (ENOENT: no engine to be had; the reason is on standard error).
[[nodiscard]] int open_mirror(int minor, int flags) noexcept;

// Is this a descriptor of a mirror device, of this process or inherited by fork?
[[nodiscard]] bool is_mirror(int fd) noexcept;
// The same where nothing is remembered of it: it came through exec, or over a socket from another process.
[[nodiscard]] bool is_foreign_mirror(int fd) noexcept;

// 0 or a negative errno. `argument` is the command block in this process.
[[nodiscard]] int mirror_ioctl(int fd, unsigned long request, void* argument) noexcept;

// After fd has been closed: when that was the last copy in this process's own open, the node is evicted before this
// returns. `cookie` is what cookie_of() gave before.
[[nodiscard]] std::uint64_t cookie_of(int fd) noexcept;  // 0: not a mirror
void closed(std::uint64_t cookie) noexcept;

// The devices need this descriptor themselves: the program must not close it, it never opened it.
[[nodiscard]] bool is_engine_descriptor(int fd) noexcept;
// close_range() as if the engine's own descriptors did not exist. 0 or a negative errno.
[[nodiscard]] int close_descriptors(unsigned first, unsigned last, unsigned flags) noexcept;

// A mapping of the node (MM-01): address or a negative errno.
[[nodiscard]] long map_node(void* address, std::size_t bytes, int protection, int flags) noexcept;

void descriptors_after_fork_in_child() noexcept;

}  // namespace whimbrel::mirror
