#include "sim/choices.h"

#include "base/check.h"

namespace whimbrel::sim {

bool Choices::next() {
  asked_ = 0;
  if (mode_ == Mode::kRandom) {
    world_seed_ = next_seed_;
    state_ = next_seed_++;
    trace_.clear();
    ++worlds_;
    return true;
  }
  if (mode_ == Mode::kReplay) {
    position_ = 0;
    return worlds_++ == 0;
  }
  if (worlds_ != 0) {
    // The last question that has an answer left decides where the next world differs.
    trace_.resize(position_);
    bounds_.resize(position_);
    while (!trace_.empty() && trace_.back() + 1 >= bounds_.back()) {
      trace_.pop_back();
      bounds_.pop_back();
    }
    if (trace_.empty()) return false;
    ++trace_.back();
  }
  position_ = 0;
  ++worlds_;
  return true;
}

std::uint32_t Choices::pick_rarely(std::uint32_t bound, std::uint32_t one_in) {
  CHECK(bound > 0 && worlds_ > 0, "next() starts a world");
  if (bound == 1) return 0;
  const std::uint32_t given = answer(bound, one_in);
  if (observer_) observer_(asked_, given);
  ++asked_;
  return given;
}

std::uint32_t Choices::answer(std::uint32_t bound, std::uint32_t one_in) {
  if (mode_ == Mode::kRandom) {
    std::uint32_t given = 0;
    if (one_in == 0) {
      given = static_cast<std::uint32_t>(random_word() % bound);
    } else if (random_word() % one_in == 0) {
      given = static_cast<std::uint32_t>(1 + random_word() % (bound - 1));
    }
    trace_.push_back(given);
    return given;
  }
  if (position_ < trace_.size()) {
    if (mode_ == Mode::kExhaustive) {
      if (position_ < bounds_.size()) {
        CHECK(bounds_[position_] == bound, "the world asked another question than last time");
      }
      return trace_[position_++];
    }
    const std::uint32_t given = trace_[position_++];
    return given < bound ? given : bound - 1;  // a shortened list may meet other questions
  }
  if (mode_ == Mode::kExhaustive) bounds_.push_back(bound);
  trace_.push_back(0);
  ++position_;
  return 0;
}

std::uint64_t Choices::random_word() {
  state_ += 0x9e3779b97f4a7c15u;
  std::uint64_t z = state_;
  z = (z ^ (z >> 30)) * 0xbf58476d1ce4e5b9u;
  z = (z ^ (z >> 27)) * 0x94d049bb133111ebu;
  return z ^ (z >> 31);
}

}  // namespace whimbrel::sim
