// FaultWatch: does the fault thread, which is alive, still take up what comes?
//
// A touch of memory that is away waits until the fault thread has read and served it. Should that thread sleep or spin where
// it must not, everybody would wait and nothing would tell. So the background thread looks once a second whether touches wait while
// no round of serving begins, and for how long that has been so.
//
// Only time in which this process ran counts: two looks a minute apart (a stopped process) are one step. Not thread-safe.
#pragma once

#include <algorithm>
#include <cstdint>

namespace whimbrel {

class FaultWatch {
 public:
  // Between two looks.
  static constexpr std::int64_t kPause = 1'000'000'000;

  [[nodiscard]] bool due(std::int64_t now_ns) const noexcept { return now_ns >= last_ + kPause; }

  // `waiting`: touches wait that nobody has taken up. `rounds`: how many rounds of serving have begun so far.
  // Nanoseconds for which touches have been waiting without a round; 0: all is well.
  std::uint64_t look(std::int64_t now_ns, bool waiting, std::uint64_t rounds) noexcept {
    const std::int64_t passed = std::min(now_ns - last_, 2 * kPause);
    const bool stuck = waiting && waited_ && rounds == rounds_;
    unserved_ = stuck ? unserved_ + static_cast<std::uint64_t>(passed) : 0;
    last_ = now_ns;
    waited_ = waiting;
    rounds_ = rounds;
    return unserved_;
  }

 private:
  std::int64_t last_ = 0;
  bool waited_ = false;
  std::uint64_t rounds_ = 0;
  std::uint64_t unserved_ = 0;
};

}  // namespace whimbrel
