// Pages that must not be away when the program forks, recognised by what is on them.
//
// Between the clone system call and the first handler in the child, libc writes to every thread's control block and to
// every malloc arena header; a page that is away there reads as zeros. Hooks miss threads and dead threads' stacks, but
// the contents tell: a control block starts with its own address and repeats it 16 bytes on; an arena's heap starts
// with a pointer to the arena right behind itself. A wrong guess only pins a page.
#pragma once

#include <cstddef>
#include <cstdint>

#include "mm/address.h"

namespace whimbrel {

// Static thread-local storage lies below a control block; its rest above.
inline constexpr PageCount kBelowControlBlock{16};  // 64 KiB
inline constexpr PageCount kAboveControlBlock{1};
// Alignment of the heaps of malloc arenas.
inline constexpr std::uint64_t kArenaAlignment = std::uint64_t{64} << 20;

// Whether the page with these bytes, at home at `home`, holds a thread control block.
[[nodiscard]] inline bool holds_control_block(const std::byte* bytes, PageIndex home) noexcept {
  const auto* words = reinterpret_cast<const std::uint64_t*>(bytes);
  const std::uint64_t base = home.address().raw();
  for (std::size_t at = 0; at < kPageSize; at += 64) {
    const std::uint64_t self = base + at;
    if (words[at / 8] == self && words[at / 8 + 2] == self) return true;
  }
  return false;
}

[[nodiscard]] constexpr bool is_arena_aligned(PageIndex page) noexcept {
  return (page.address().raw() & (kArenaAlignment - 1)) == 0;
}

// Whether this page starts a heap that holds an arena.
[[nodiscard]] inline bool holds_arena_header(const std::byte* bytes, PageIndex home) noexcept {
  if (!is_arena_aligned(home)) return false;
  const std::uint64_t arena = *reinterpret_cast<const std::uint64_t*>(bytes);
  const std::uint64_t base = home.address().raw();
  return arena > base && arena <= base + 256 && arena % 16 == 0;
}

// What to keep when `home` holds a control block.
[[nodiscard]] constexpr PageRange kept_with_control_block(PageIndex home) noexcept {
  const PageIndex first = home.raw() > kBelowControlBlock.raw() ? home - kBelowControlBlock : PageIndex(0);
  return PageRange::between(first, home + kAboveControlBlock + PageCount(1));
}

}  // namespace whimbrel
