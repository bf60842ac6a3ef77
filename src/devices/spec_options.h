// The options of a device specification: `level=3,unit=16K,capacity=2G`.
#pragma once

#include <cstdint>
#include <span>
#include <string_view>

#include "base/error.h"
#include "devices/spec_message.h"

namespace whimbrel {

// One option that a kind of device takes. `value` keeps its default when the option is not given.
struct SpecOption {
  enum class Type : std::uint8_t { kNumber, kSize, kUnit, kChoice };
  std::string_view name;
  Type type = Type::kNumber;
  std::uint64_t min = 0, max = 0;  // kUnit: powers of two only
  std::uint64_t* value = nullptr;  // kChoice: the position in `choices`
  std::span<const std::string_view> choices = {};
};

// Reads `name=value` pairs separated by commas, each name at most once. kInvalid with a message: it names the option
// and the value, and lists what is allowed. On an error the values mean nothing.
[[nodiscard]] Result<void> parse_options(std::string_view device, std::string_view arguments,
                                         std::span<const SpecOption> options, SpecMessage& message) noexcept;

// "level=1..19, unit=4K..64K, capacity=SIZE": for messages and help.
void describe_options(std::span<const SpecOption> options, SpecMessage& message) noexcept;

}  // namespace whimbrel
