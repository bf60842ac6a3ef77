// What a device made of devices (its parts) needs to move pages to and from them: names of places on them, operations
// gathered so that each part gets its own in one batch, and groups of pages that look for a place.
#pragma once

#include <array>
#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/memory_source.h"
#include "devices/device_spec.h"
#include "port/device.h"

namespace whimbrel {

inline constexpr std::uint32_t kMostParts = 6;

// Where one page lies: a slot of a part, or nowhere (all zero).
class PartWord {
 public:
  static constexpr std::uint64_t kMostSlots = std::uint64_t{1} << 28;

  constexpr PartWord() = default;
  constexpr PartWord(std::uint32_t part, DeviceSlot slot) noexcept
      : bits_(part << 29 | kThere | static_cast<std::uint32_t>(slot)) {}
  [[nodiscard]] constexpr explicit operator bool() const noexcept { return bits_ != 0; }
  [[nodiscard]] constexpr std::uint32_t part() const noexcept { return bits_ >> 29; }
  [[nodiscard]] constexpr DeviceSlot slot() const noexcept { return DeviceSlot{bits_ & (kThere - 1)}; }

 private:
  static constexpr std::uint32_t kThere = 1u << 28;
  std::uint32_t bits_ = 0;
};

// The parts with what has to be known of them all the time.
struct Parts {
  std::array<DeviceHandle, kMostParts> handles;
  std::array<DeviceTraits, kMostParts> traits;
  std::uint32_t count = 0;

  // kInvalid: too many, or one with more slots than a word can name.
  [[nodiscard]] Result<void> take(std::span<DeviceHandle> devices) noexcept;
  [[nodiscard]] Device& operator[](std::uint32_t part) const noexcept { return *handles[part]; }
  // The most pages that a part likes to store together.
  [[nodiscard]] std::uint32_t widest_unit() const noexcept;
  // How many of these places can be one operation: neighbours in one unit of one part.
  [[nodiscard]] std::uint32_t run_length(std::span<const PartWord> words) const noexcept;
  // Gives places back, neighbours together; words that are nowhere are passed over.
  void release(std::span<const PartWord> words) const noexcept;

  // The hooks of a fork, for all parts. Their descriptors are carried together.
  void prepare_fork() noexcept;
  void after_fork_in_parent() noexcept;
  void after_fork_in_child() noexcept;
  void settle_in_child() noexcept;
  void drop_carried() noexcept;
  [[nodiscard]] std::span<const int> carried() const noexcept { return {carried_.data(), carried_count_}; }

 private:
  // As many as engine threads can keep. A file has one for each generation of processes that it is shared with.
  static constexpr std::size_t kMostCarried = 64;
  std::array<int, kMostCarried> carried_{};
  std::size_t carried_count_ = 0;
};

// Operations for the parts. For one thread at a time.
class PartBatch {
 public:
  static constexpr std::uint32_t kMost = 128;  // for each part

  [[nodiscard]] Result<void> init(MemorySource& source, std::uint32_t parts) noexcept;
  void clear() noexcept { counts_.fill(0); }
  [[nodiscard]] bool has_room(std::uint32_t more) const noexcept;
  [[nodiscard]] bool empty() const noexcept;
  void add(std::uint32_t part, const DeviceOp& op, std::uint32_t owner) noexcept;
  // Starts the operations of all parts, then waits for them.
  void run(const Parts& parts) noexcept;
  // Calls f(part, op, owner) for each operation.
  template <class F>
  void for_each(F&& f) noexcept {
    for (std::uint32_t part = 0; part < kMostParts; ++part) {
      for (std::uint32_t i = 0; i < counts_[part]; ++i) f(part, ops_[part][i], std::uint32_t{owners_[part][i]});
    }
  }

 private:
  std::array<SourceArray<DeviceOp>, kMostParts> ops_;
  std::array<std::array<std::uint16_t, kMost>, kMostParts> owners_{};
  std::array<std::uint32_t, kMostParts> counts_{};
};

// Pages in memory that look for a place on a part. Neighbours in memory are stored together, whatever units they belong
// to.
struct PageGroup {
  static constexpr std::uint32_t kMost = PartBatch::kMost;

  std::array<std::byte*, kMost> memory{};
  std::array<PartWord, kMost> placed{};
  std::array<bool, kMost> wanted{};   // is to be placed
  std::array<bool, kMost> refused{};  // did not shrink where only that was wanted
  std::uint32_t count = 0;

  void clear() noexcept { count = 0; }
  void add(std::byte* page) noexcept {
    memory[count] = page;
    placed[count] = {};
    wanted[count] = true;
    refused[count++] = false;
  }

  struct Outcome {
    std::uint32_t placed = 0;   // pages
    std::uint32_t missing = 0;  // pages that were tried and got no place, the refused ones not counted
    Error error{};              // of one that got none
  };
  // Stores on `part` what is wanted and has no place yet. `shrink_only`: as of DeviceOp; refused pages are left out
  // then. `skip_refused`: pages that were refused before are not tried.
  [[nodiscard]] Outcome place_on(const Parts& parts, std::uint32_t part, bool shrink_only, bool skip_refused,
                                 PartBatch& batch) noexcept;
};

}  // namespace whimbrel
