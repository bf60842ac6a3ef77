// Memory and messages shared with another process: a socket by name, a mapping that forked children do not get, a futex
// that works across processes.
//
// Safe on the fault path. Descriptors belong to the table of the calling thread.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <string_view>

#include "base/error.h"

namespace whimbrel::sys {

// A SOCK_SEQPACKET connection to who listens under that name (abstract: it names no file), close-on-exec. Waiting on it
// ends after `patience_ms` with EAGAIN. kNotFound: nobody listens.
[[nodiscard]] Result<int> connect_by_name(std::string_view name, unsigned patience_ms) noexcept;
// The user who listened when this connection was made.
[[nodiscard]] Result<std::uint32_t> peer_user(int socket) noexcept;
[[nodiscard]] Result<void> send_message(int socket, const void* from, std::size_t bytes) noexcept;
// One message; with it at most one descriptor, -1 when none came. Returns its length.
[[nodiscard]] Result<std::size_t> receive_message(int socket, void* to, std::size_t room, int* descriptor) noexcept;
// A byte to whoever waits there; never waits, and says nothing when it cannot be sent.
void ring_bell(int socket) noexcept;
// Whether the other end still exists.
[[nodiscard]] bool is_connected(int socket) noexcept;
// Identifies an open descriptor, to know it again; 0: not open.
[[nodiscard]] std::uint64_t inode_of(int fd) noexcept;

[[nodiscard]] Result<void> keep_from_children(void* address, std::size_t bytes) noexcept;

// As FUTEX_WAIT: until woken, or the word differs from `expected`, or the time has passed. Spurious returns happen.
void wait_shared(std::uint32_t* word, std::uint32_t expected, std::int64_t nanoseconds) noexcept;
void wake_shared(std::uint32_t* word) noexcept;

}  // namespace whimbrel::sys
