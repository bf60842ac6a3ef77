#include "devices/spec_options.h"

#include <bit>
#include <charconv>
#include <optional>

#include "devices/size_text.h"
#include "devices/text_cut.h"

namespace whimbrel {
namespace {

constexpr std::uint64_t kNoLimit = ~std::uint64_t{0};

std::optional<std::uint64_t> parse_number(std::string_view text) noexcept {
  std::uint64_t number = 0;
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), number);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return number;
}

void add_value(const SpecOption& option, std::uint64_t value, SpecMessage& message) noexcept {
  if (option.type == SpecOption::Type::kNumber) {
    message.add(value);
  } else {
    message.add_size(value);
  }
}

void add_choices(const SpecOption& option, std::string_view between, SpecMessage& message) noexcept {
  for (std::size_t i = 0; i < option.choices.size(); ++i) {
    if (i > 0) message.add(between);
    message.add(option.choices[i]);
  }
}

// What the option allows, as in "level must be ...".
void add_allowed(const SpecOption& option, SpecMessage& message) noexcept {
  switch (option.type) {
    case SpecOption::Type::kChoice:
      return add_choices(option, " or ", message);
    case SpecOption::Type::kNumber:
      message.add("a number from ");
      break;
    case SpecOption::Type::kSize:
      message.add(option.max == kNoLimit ? "a size of at least " : "a size from ");
      break;
    case SpecOption::Type::kUnit:
      message.add("a power of two from ");
      break;
  }
  add_value(option, option.min, message);
  if (option.max != kNoLimit) {
    message.add(" to ");
    add_value(option, option.max, message);
  }
  if (option.type == SpecOption::Type::kSize) message.add(", e.g. 256M or 1.5G");
}

std::unexpected<Error> bad_value(std::string_view device, const SpecOption& option, std::string_view value,
                                 SpecMessage& message) noexcept {
  message.add(device).add(": ").add(option.name).add(" is '").add(value).add("', but must be ");
  add_allowed(option, message);
  return fail(Errc::kInvalid, 0, "device option");
}

const SpecOption* find_option(std::span<const SpecOption> options, std::string_view name) noexcept {
  for (const SpecOption& option : options) {
    if (option.name == name) return &option;
  }
  return nullptr;
}

std::unexpected<Error> unknown(std::string_view device, std::string_view name, std::span<const SpecOption> options,
                               SpecMessage& message) noexcept {
  message.add(device).add(": there is no option '").add(name).add("'; ").add(device).add(" takes ");
  describe_options(options, message);
  return fail(Errc::kInvalid, 0, "device option");
}

Result<void> set_option(std::string_view device, const SpecOption& option, std::string_view text,
                        SpecMessage& message) noexcept {
  if (option.type == SpecOption::Type::kChoice) {
    for (std::size_t i = 0; i < option.choices.size(); ++i) {
      if (option.choices[i] != text) continue;
      *option.value = i;
      return {};
    }
    return bad_value(device, option, text, message);
  }
  const bool number = option.type == SpecOption::Type::kNumber;
  const std::optional<std::uint64_t> value = number ? parse_number(text) : parse_size(text);
  const bool good = value && *value >= option.min && *value <= option.max &&
                    (option.type != SpecOption::Type::kUnit || std::has_single_bit(*value));
  if (!good) return bad_value(device, option, text, message);
  *option.value = *value;
  return {};
}

}  // namespace

SpecMessage& SpecMessage::add(std::uint64_t number) noexcept {
  char text[24];
  const auto end = std::to_chars(text, text + sizeof(text), number).ptr;
  return add({text, static_cast<std::size_t>(end - text)});
}

SpecMessage& SpecMessage::add_size(std::uint64_t bytes) noexcept {
  char text[24];
  return add(format_size(bytes, text));
}

void describe_options(std::span<const SpecOption> options, SpecMessage& message) noexcept {
  if (options.empty()) message.add("no options");
  for (const SpecOption& option : options) {
    if (&option != options.data()) message.add(", ");
    message.add(option.name).add("=");
    if (option.type == SpecOption::Type::kChoice) {
      add_choices(option, "|", message);
      continue;
    }
    if (option.max == kNoLimit) {
      message.add("SIZE");
      continue;
    }
    add_value(option, option.min, message);
    message.add("..");
    add_value(option, option.max, message);
  }
}

Result<void> parse_options(std::string_view device, std::string_view arguments, std::span<const SpecOption> options,
                           SpecMessage& message) noexcept {
  std::uint64_t seen = 0;
  while (!arguments.empty()) {
    const Cut item = cut(arguments, ',');
    arguments = item.after;
    const auto [name, value] = cut(item.before, '=');
    const SpecOption* option = find_option(options, name);
    if (option == nullptr) return unknown(device, name, options, message);
    const std::uint64_t bit = std::uint64_t{1} << (option - options.data());
    if ((seen & bit) != 0) {
      message.add(device).add(": ").add(name).add(" is given twice");
      return fail(Errc::kInvalid, 0, "device option");
    }
    seen |= bit;
    if (const Result<void> set = set_option(device, *option, value, message); !set) return set;
  }
  return {};
}

}  // namespace whimbrel
