// Data that engine threads use although it belongs to no reservation of theirs: of the library that the engine is
// linked into, of libc and of the loader. It must never be away.
#pragma once

#include "mm/address.h"

namespace whimbrel {

// Calls `visit` for each writable range of it. By address, since its anonymous part can merge with neighbours in the
// process's map. On a thread of the program, outside any lock of the loader.
void for_each_relied_on(void (*visit)(void* argument, PageRange range), void* argument) noexcept;

}  // namespace whimbrel
