// The SIGSEGV handler of guarded arenas: a touch of theirs that finds no page waits at its arena's desk, everything else goes to
// whatever handled SIGSEGV before.
//
// Life: install() once per process, before the first arena is published; it stays. publish() and withdraw() as arenas come and
// go. In a forked child forget_in_child(): arenas are not inherited, and a touch of one ends the child with a message.
//
// The handler takes no lock, allocates nothing and leaves errno alone. It runs on the touching thread, on its alternate signal
// stack where it has one, and lets SIGSEGV through while it waits: a handler of another signal that runs on top may touch
// arenas too.
#pragma once

#include "base/error.h"
#include "linux/fault_desk.h"
#include "mm/address.h"

namespace whimbrel::guard_signal {

inline constexpr std::size_t kMostArenas = 256;

[[nodiscard]] Result<void> install() noexcept;
// Whether SIGSEGV still comes here first. A handler installed later may call this one for what it does not know, or not.
[[nodiscard]] bool is_first() noexcept;

// kNoMemory: kMostArenas are there.
[[nodiscard]] Result<void> publish(PageRange arena, FaultDesk& desk) noexcept;
// With no thread waiting in it.
void withdraw(PageRange arena) noexcept;
void forget_in_child() noexcept;

}  // namespace whimbrel::guard_signal
