// SpecMessage: the text that tells a user what is wrong with a device specification, and what would be right.
//
// A fixed buffer, because specifications are also read inside a program whose heap is none of our business. A text
// that does not fit ends in "...".
#pragma once

#include <array>
#include <cstdint>
#include <string_view>

namespace whimbrel {

class SpecMessage {
 public:
  SpecMessage& add(std::string_view text) noexcept {
    for (const char c : text) {
      if (size_ == buffer_.size() - 1) {
        for (std::size_t i = 0; i < 3; ++i) buffer_[size_ - 1 - i] = '.';
        return *this;
      }
      buffer_[size_++] = c;
    }
    buffer_[size_] = '\0';
    return *this;
  }
  SpecMessage& add(std::uint64_t number) noexcept;
  SpecMessage& add_size(std::uint64_t bytes) noexcept;
  void clear() noexcept { buffer_[size_ = 0] = '\0'; }
  [[nodiscard]] bool empty() const noexcept { return size_ == 0; }
  [[nodiscard]] std::string_view text() const noexcept { return {buffer_.data(), size_}; }
  [[nodiscard]] const char* c_str() const noexcept { return buffer_.data(); }

 private:
  std::array<char, 512> buffer_{};
  std::size_t size_ = 0;
};

}  // namespace whimbrel
