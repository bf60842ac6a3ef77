// Device-exclusive pages: a page of RAM that only a device reaches until somebody touches it (EX-01..EX-10).
//
// The page is moved out of the program into a frame of ours, and the device works on the frame. Whoever touches it in
// the program gets it back first.
#pragma once

#include "migrate/address_space.h"

namespace whimbrel {

// Makes the page at `address` exclusive to `owner`. The frame is returned locked, with one reference of the caller's:
// until both are dropped nobody can take it back (EX-02). Errors: kFault no writable mapping; kNotSupported not private
// anonymous memory; kBusy pinned or shared and not to be had; kNoMemory. Faults the page in: never on the fault thread.
[[nodiscard]] Result<Pfn> make_device_exclusive(AddressSpace& space, VirtualAddress address, const void* owner) noexcept;

// Gives the page at `page` back to the program if it is exclusive (EX-04). False: its frame is locked by the device; the
// waiter is remembered and re-driven by release_exclusive().
bool revoke_exclusive(AddressSpace& space, PageIndex page) noexcept;

// Drops the caller's lock and reference.
void release_exclusive(AddressSpace& space, Pfn frame) noexcept;

// All of them, before a fork (EX-05). Frames that a device holds locked are waited for.
void revoke_all_exclusive(AddressSpace& space) noexcept;

}  // namespace whimbrel
