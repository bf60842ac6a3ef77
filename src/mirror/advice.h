// Calls about memory that the kernel answers by the page tables it knows: what lies on a device it takes for absent.
#pragma once

#include <cstddef>

namespace whimbrel::mirror {

// mprotect: device pages become the readable flavour (MP-02). All here: 0 (an address for remap) or a negative errno.
[[nodiscard]] long protect(void* address, std::size_t bytes, int protection) noexcept;

// munmap: no more than what note_borders() says.
[[nodiscard]] long unmap(void* address, std::size_t bytes) noexcept;

// mremap: the kernel moves a range of several mappings at once, unless they are watched; then it is done piece by piece.
[[nodiscard]] long remap(void* from, std::size_t old_bytes, std::size_t new_bytes, int flags, void* to) noexcept;

// madvise as it is with device memory (MA): FREE drops nothing on a device, COLLAPSE brings base pages home and refuses
// over huge ones. 0 or a negative errno.
[[nodiscard]] long advise(void* address, std::size_t bytes, int advice) noexcept;

// mincore: device, migrating and exclusive pages count as resident (MA-14).
[[nodiscard]] long mincore(void* address, std::size_t bytes, unsigned char* resident) noexcept;

// io_uring_register: buffers are about to be pinned for long, and no page of a coherent node may be (GP-03). Pages of private
// nodes come home by themselves.
void before_io_uring_register(unsigned opcode, const void* argument, unsigned count) noexcept;

}  // namespace whimbrel::mirror
