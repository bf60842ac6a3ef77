// Choices: the one source of everything a simulated world leaves open: which thread runs next, which call fails and
// how, what the program does.
//
//   exhaustive   every combination in turn: for (Choices c = Choices::exhaustive(); c.next();) { build world; run; }
//   random       from a seed; every next() is another world
//   replay       the recorded choices of one world again (to look at a failure, and to shrink it)
//
// A world must ask the same questions when it is given the same answers; exhaustive mode checks that.
#pragma once

#include <cstdint>
#include <functional>
#include <vector>

namespace whimbrel::sim {

class Choices {
 public:
  [[nodiscard]] static Choices exhaustive() { return Choices(Mode::kExhaustive, 0, {}); }
  [[nodiscard]] static Choices random(std::uint64_t seed) { return Choices(Mode::kRandom, seed, {}); }
  // One world. Questions after the last recorded answer are answered 0.
  [[nodiscard]] static Choices replay(std::vector<std::uint32_t> answers) {
    return Choices(Mode::kReplay, 0, std::move(answers));
  }

  // Starts the next world; false when all have been seen.
  [[nodiscard]] bool next();
  // One of 0..bound-1. 0 is "the ordinary course": what happens when nothing special does.
  [[nodiscard]] std::uint32_t pick(std::uint32_t bound) { return pick_rarely(bound, 0); }
  // As pick(), but random worlds leave the ordinary course only once in `one_in` times (0: all alike).
  [[nodiscard]] std::uint32_t pick_rarely(std::uint32_t bound, std::uint32_t one_in);
  [[nodiscard]] bool flip() { return pick(2) != 0; }

  // Told each answer as it is given (its place, the answer), so that a world that kills the process can be repeated.
  void set_trace_observer(std::function<void(std::size_t, std::uint32_t)> observer) { observer_ = std::move(observer); }

  // The answers of this world so far.
  [[nodiscard]] const std::vector<std::uint32_t>& trace() const { return trace_; }
  [[nodiscard]] std::uint64_t worlds() const { return worlds_; }
  [[nodiscard]] bool is_random() const { return mode_ == Mode::kRandom; }
  // The seed of this world alone: random(world_seed()) has it as its first world.
  [[nodiscard]] std::uint64_t world_seed() const { return world_seed_; }

 private:
  enum class Mode : std::uint8_t { kExhaustive, kRandom, kReplay };
  Choices(Mode mode, std::uint64_t seed, std::vector<std::uint32_t> answers)
      : mode_(mode), next_seed_(seed), trace_(std::move(answers)) {}
  [[nodiscard]] std::uint64_t random_word();
  [[nodiscard]] std::uint32_t answer(std::uint32_t bound, std::uint32_t one_in);

  Mode mode_;
  std::uint64_t next_seed_;
  std::uint64_t world_seed_ = 0;
  std::uint64_t state_ = 0;
  std::uint64_t worlds_ = 0;
  std::vector<std::uint32_t> trace_;
  std::vector<std::uint32_t> bounds_;  // exhaustive: of each answer in trace_
  std::function<void(std::size_t, std::uint32_t)> observer_;
  std::size_t asked_ = 0;     // in this world
  std::size_t position_ = 0;  // exhaustive, replay: the next answer
};

}  // namespace whimbrel::sim
