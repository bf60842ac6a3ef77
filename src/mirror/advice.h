// Calls about memory that the kernel answers by the page tables it knows: what lies on a device it takes for absent.
#pragma once

#include <cstddef>

namespace whimbrel::mirror {

// After a successful mprotect: device pages become the readable flavour (MP-02).
void note_mprotect(void* address, std::size_t bytes) noexcept;

// madvise as it is with device memory (MA): FREE drops nothing on a device, COLLAPSE brings base pages home and refuses
// over huge ones. 0 or a negative errno.
[[nodiscard]] long advise(void* address, std::size_t bytes, int advice) noexcept;

// mincore: device, migrating and exclusive pages count as resident (MA-14).
[[nodiscard]] long mincore(void* address, std::size_t bytes, unsigned char* resident) noexcept;

}  // namespace whimbrel::mirror
