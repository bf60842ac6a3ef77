// Family: what a process shares with those it forked and was forked from: one small piece of shared memory, made with the
// session and inherited.
//
// Each process has a copy of everything that lay on a device at the fork. What the kernel does to one device page that
// several processes share has to be told to the others: that it came home (FK-07), that a node was evicted (CL-01), that
// an open's flags were used up (FL-03). They act on it at their next command; nothing a program sees of its own memory
// depends on it.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/error.h"
#include "mm/address.h"

namespace whimbrel::mirror {

// The flags of one open (FL-01), wherever it was forked to.
struct OpenFlags {
  std::atomic<std::uint64_t> value{0};
  std::atomic<std::uint32_t> used{0};
  [[nodiscard]] bool fails_next() const noexcept { return (value.load(std::memory_order_acquire) & 1) != 0; }
};

// One shot: true when the next allocation is to fail (FL-02).
[[nodiscard]] inline bool take_fail_alloc(OpenFlags& flags) noexcept {
  constexpr std::uint64_t kFailAlloc = 1;
  return (flags.value.fetch_and(~kFailAlloc, std::memory_order_acq_rel) & kFailAlloc) != 0;
}

// Device pages [first, first + count) that were shared in the given fork have come home in some process.
struct HomeRecord {
  std::uint32_t generation = 0;
  Pfn first;
  PageCount count;
};

class Family {
 public:
  // Never given back. kNoMemory.
  [[nodiscard]] static Result<Family*> create() noexcept;

  [[nodiscard]] OpenFlags* take_flags() noexcept;  // null: used up
  static void give_flags(OpenFlags* flags) noexcept;
  // A number for the flags, never 0, and back again; 0: null.
  [[nodiscard]] std::uint16_t number_of(const OpenFlags* flags) const noexcept {
    return flags == nullptr ? std::uint16_t{0} : static_cast<std::uint16_t>(flags - flags_.data() + 1);
  }
  [[nodiscard]] OpenFlags* flags_of(std::uint16_t number) noexcept {
    return number == 0 || number > kFlags ? nullptr : &flags_[number - 1u];
  }

  // Numbers forks; what is shared in one is known by its number and its device page.
  [[nodiscard]] std::uint32_t next_generation() noexcept { return generation_.fetch_add(1) + 1; }

  void add_home(HomeRecord record) noexcept;
  [[nodiscard]] std::uint64_t home_end() const noexcept { return home_next_.load(std::memory_order_acquire); }
  // The record at `position`, which moves on. False: none there yet. Records that were overwritten are skipped.
  [[nodiscard]] bool next_home(std::uint64_t* position, HomeRecord* out) const noexcept;

  // Whole-node evictions so far.
  [[nodiscard]] std::atomic<std::uint64_t>& evictions(int minor) noexcept {
    return evictions_[static_cast<std::size_t>(minor)];
  }

 private:
  Family() = default;
  static constexpr std::size_t kFlags = 1024, kHome = 4096, kNodeCount = 4;
  struct Home {
    std::atomic<std::uint64_t> stamp{0};  // position + 1 once the rest is written
    std::atomic<std::uint64_t> generation{0}, first{0}, count{0};
  };
  std::atomic<std::uint32_t> generation_{0};
  std::array<OpenFlags, kFlags> flags_;
  std::array<std::atomic<std::uint64_t>, kNodeCount> evictions_{};
  std::atomic<std::uint64_t> home_next_{0};
  std::array<Home, kHome> home_;
};

}  // namespace whimbrel::mirror
