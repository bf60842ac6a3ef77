// The words of the src[] and dst[] arrays, bit for bit as drivers know them (DM-01..DM-06).
//
// bit 0 VALID: the upper bits hold a frame number · bit 1 MIGRATE: still migrating · bit 3 WRITE: the slot was
// writable when collected · bit 4 COMPOUND: stands for a whole 2 MiB unit · bits 6..63 the frame number.
#pragma once

#include <cstdint>

#include "mm/address.h"

namespace whimbrel {

class MigrateWord {
 public:
  static constexpr std::uint64_t kValid = 1u << 0;
  static constexpr std::uint64_t kMigrate = 1u << 1;
  static constexpr std::uint64_t kWrite = 1u << 3;
  static constexpr std::uint64_t kCompound = 1u << 4;
  static constexpr unsigned kShift = 6;

  constexpr MigrateWord() = default;
  constexpr explicit MigrateWord(std::uint64_t raw) : raw_(raw) {}
  // pfn | VALID (DM-02).
  [[nodiscard]] static constexpr MigrateWord of(Pfn pfn) { return MigrateWord((pfn.raw() << kShift) | kValid); }

  [[nodiscard]] constexpr std::uint64_t raw() const { return raw_; }
  [[nodiscard]] constexpr bool valid() const { return (raw_ & kValid) != 0; }
  [[nodiscard]] constexpr bool migrating() const { return (raw_ & kMigrate) != 0; }
  [[nodiscard]] constexpr bool writable() const { return (raw_ & kWrite) != 0; }
  [[nodiscard]] constexpr bool compound() const { return (raw_ & kCompound) != 0; }
  // Meaningful only when valid().
  [[nodiscard]] constexpr Pfn pfn() const { return Pfn(raw_ >> kShift); }
  // The number of array entries this one stands for (NRP-01).
  [[nodiscard]] constexpr PageCount pages() const { return PageCount(compound() ? kPagesPerHuge : 1); }

  [[nodiscard]] constexpr MigrateWord with(std::uint64_t bits) const { return MigrateWord(raw_ | bits); }
  [[nodiscard]] constexpr MigrateWord without(std::uint64_t bits) const { return MigrateWord(raw_ & ~bits); }
  constexpr bool operator==(const MigrateWord&) const = default;

 private:
  std::uint64_t raw_ = 0;
};

static_assert(sizeof(MigrateWord) == 8);
static_assert(MigrateWord::of(Pfn(5)).raw() == 5 * 64 + 1);
static_assert(!MigrateWord(MigrateWord::kMigrate | MigrateWord::kCompound).valid());

}  // namespace whimbrel
