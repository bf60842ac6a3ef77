// Failures: which calls of a world fail, and how. Every call asks; exhaustive worlds let each call fail in turn with
// each error it can meet, at most `budget` of them in one world.
#pragma once

#include <array>
#include <cstdint>
#include <optional>
#include <span>

#include "base/error.h"
#include "sim/choices.h"

namespace whimbrel::sim {

class Failures {
 public:
  // one_in: random worlds let one call in so many fail.
  Failures(Choices& choices, std::uint32_t budget, std::uint32_t one_in = 50)
      : choices_(&choices), left_(budget), one_in_(one_in) {}

  // The error this call is to fail with, or nothing.
  [[nodiscard]] std::optional<Errc> next(std::span<const Errc> possible) {
    if (!armed_ || left_ == 0 || possible.empty()) return std::nullopt;
    const auto bound = static_cast<std::uint32_t>(possible.size() + 1);
    const std::uint32_t answer = choices_->pick_rarely(bound, one_in_);
    if (answer == 0) return std::nullopt;
    --left_;
    const Errc error = possible[answer - 1];
    ++injected_[static_cast<std::size_t>(error)];
    return error;
  }
  // After next() gave an error for a call over `count` pages: how many of them are done all the same.
  [[nodiscard]] std::uint64_t partial(std::uint64_t count) {
    if (count < 2) return 0;
    const std::uint64_t at[] = {0, count - 1, 1};
    return at[choices_->pick(count == 2 ? 2 : 3)];
  }

  // Off while a world is being set up, or when it has to settle.
  void arm(bool on) { armed_ = on; }
  [[nodiscard]] std::uint64_t injected(Errc error) const { return injected_[static_cast<std::size_t>(error)]; }

 private:
  Choices* choices_;
  std::uint32_t left_;
  std::uint32_t one_in_;
  bool armed_ = true;
  std::array<std::uint64_t, 16> injected_{};
};

}  // namespace whimbrel::sim
