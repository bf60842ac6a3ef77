// One slot of the engine's page table: 8 bytes (a promise: metadata per page is small and known).
//
// bits 0..3 state · 4 writable flavour · 5 exclusive marker (belongs to this address space alone) · 6 somebody waits ·
// 7 head of a 2 MiB unit · 8 present-in-RAM copy is write-protected · 16..63 frame number (0 in state kRam).
#pragma once

#include <cstdint>

#include "base/check.h"
#include "mm/address.h"
#include "mm/page_state.h"

namespace whimbrel {

class PageEntry {
 public:
  static constexpr std::uint64_t kWritable = 1u << 4;
  static constexpr std::uint64_t kExclusiveMarker = 1u << 5;
  static constexpr std::uint64_t kWaited = 1u << 6;
  static constexpr std::uint64_t kHuge = 1u << 7;
  static constexpr std::uint64_t kWriteProtected = 1u << 8;

  constexpr PageEntry() = default;
  constexpr PageEntry(PageState state, Pfn pfn, std::uint64_t bits = 0)
      : raw_((pfn.raw() << 16) | bits | static_cast<std::uint64_t>(state)) {}

  [[nodiscard]] constexpr std::uint64_t raw() const { return raw_; }
  [[nodiscard]] constexpr PageState state() const { return static_cast<PageState>(raw_ & 15); }
  [[nodiscard]] constexpr Pfn pfn() const { return Pfn(raw_ >> 16); }
  [[nodiscard]] constexpr bool has(std::uint64_t bit) const { return (raw_ & bit) != 0; }
  [[nodiscard]] constexpr bool is_ram() const { return state() == PageState::kRam; }
  [[nodiscard]] constexpr bool is_huge() const { return has(kHuge); }

  // The entry after `event`; the step must exist. Frame and flags stay, but are cleared when the slot becomes kRam.
  [[nodiscard]] PageEntry after(PageEvent event) const {
    const Result<PageState> state_after = next(state(), event);
    CHECK(state_after.has_value(), "illegal page state transition");
    if (*state_after == PageState::kRam) return PageEntry();
    return PageEntry((raw_ & ~std::uint64_t{15}) | static_cast<std::uint64_t>(*state_after));
  }
  [[nodiscard]] constexpr PageEntry with(std::uint64_t bits) const { return PageEntry(raw_ | bits); }
  [[nodiscard]] constexpr PageEntry without(std::uint64_t bits) const { return PageEntry(raw_ & ~bits); }
  [[nodiscard]] constexpr PageEntry with_pfn(Pfn pfn) const { return PageEntry((raw_ & 0xffff) | (pfn.raw() << 16)); }
  constexpr bool operator==(const PageEntry&) const = default;

 private:
  constexpr explicit PageEntry(std::uint64_t raw) : raw_(raw) {}
  std::uint64_t raw_ = 0;
};

static_assert(sizeof(PageEntry) == 8);
static_assert(PageEntry().is_ram());

}  // namespace whimbrel
