// Touches what the C library touches in a forked child before any handler of ours can run there.
//
// Between the clone system call and the first child handler, libc resets the lock of every open FILE and clears the
// thread-specific data of every other thread. The child's memory is not watched yet at that moment, so what is away
// would read as zeros. Touching it in the parent, with eviction stopped, brings it home before the fork. Control blocks
// of threads and headers of malloc arenas are not visited here: the pager never moves them.
#pragma once

namespace whimbrel {

// Once, in the constructor: finds what the walk needs to know about this C library. What it does not tell is left out.
void prepare_libc_walk() noexcept;

// On the forking thread, in its last prepare handler, with eviction parked.
void touch_what_fork_touches() noexcept;

}  // namespace whimbrel
