// Scheduler: runs threads as steps. Each thread is a fiber; the world changes hands only where a thread calls into the
// simulated machine, so a world is decided by its choices alone and can be repeated.
//
// Life of a world:
//   1. spawn() the engine's threads (kService: they may wait for ever) and the program's (kWorker)
//   2. run() until every worker has ended, nobody can go on, or the step limit is met
//   3. services that still wait are abandoned by the destructor: end them first where their stack owns something
//
// Which thread goes on. Every point() is a question to Choices. The ordinary course lets a thread run until it waits or
// yields and then takes the others in turn; each departure from it costs one of `max_delays`, so that exhaustive worlds
// cover every schedule with at most that many departures. Bugs that need more of them are rare; random worlds depart
// without limit.
//
// While run() is in progress Mutex and Event of the engine block as fibers (BlockingHook). Single-threaded.
#pragma once

#include <cstdint>
#include <memory>
#include <string>
#include <vector>

#include "base/mutex.h"
#include "sim/choices.h"
#include "sim/fiber.h"

namespace whimbrel::sim {

class SimClock;

enum class Role : std::uint8_t { kWorker, kService };

class Scheduler final : public BlockingHook {
 public:
  struct Options {
    std::uint32_t max_delays = 2;       // exhaustive worlds: departures from the ordinary course
    std::uint32_t random_one_in = 6;    // random worlds: a departure once in so many points
    std::uint64_t max_steps = 200'000;  // then the world counts as livelocked
    std::int64_t step_ns = 100;         // what a point costs in simulated time
  };
  enum class Outcome : std::uint8_t { kFinished, kDeadlock, kStepLimit };

  Scheduler(Choices& choices, SimClock& clock, Options options);
  ~Scheduler() override;

  // From outside or from a running fiber. The new fiber is ready at once.
  void spawn(std::string name, Role role, std::function<void()> body);
  [[nodiscard]] Outcome run();
  // Names and reasons of those who wait, for the report of a deadlock.
  [[nodiscard]] std::string describe() const;

  // While on, nobody departs from the ordinary course and no choice is asked.
  void hold_course(bool on) { holds_course_ = on; }

  [[nodiscard]] static Scheduler* current() { return current_; }
  [[nodiscard]] bool in_fiber() const { return running_ != nullptr; }
  [[nodiscard]] std::uint64_t steps() const { return steps_; }

  // Writes every note() to standard error with step and thread: to look at one world.
  static void trace(bool on) { traces_ = on; }
  static bool traces() { return traces_; }
  static void note(const char* format, ...) __attribute__((format(printf, 1, 2)));

  // ---- from within a fiber ---------------------------------------------------------------------------------
  // Others may go on here.
  void point();
  // Others go on first: for whoever has just been told "try again".
  void yield();
  void sleep(std::int64_t nanoseconds);
  // Sleeps until wake(key) or the time is up (negative: no limit). False: time was up. `why` must be static text.
  bool block(const void* key, std::int64_t nanoseconds, const char* why);
  // From anywhere: makes up to `count` fibers that sleep on `key` ready, in the order they went to sleep.
  int wake_key(const void* key, int count);

  // ---- BlockingHook ------------------------------------------------------------------------------------------
  bool wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected, std::int64_t nanoseconds) noexcept override;
  bool wake(const std::atomic<std::uint32_t>& word, int count) noexcept override;

 private:
  struct Task {
    std::string name;
    Role role;
    std::unique_ptr<Fiber> fiber;
    bool ready = true;
    bool timed_out = false;
    const void* key = nullptr;
    const char* why = "";
    std::int64_t deadline = -1;  // -1: none
    std::uint64_t asleep_since = 0;
  };

  void switch_away();  // to the loop in run()
  Task* choose();      // who goes on
  bool wake_the_overdue();
  bool move_time_on();
  [[nodiscard]] bool workers_left() const;

  static inline Scheduler* current_ = nullptr;
  static inline bool traces_ = false;

  Choices& choices_;
  SimClock& clock_;
  const Options options_;
  Fiber main_;
  std::vector<std::unique_ptr<Task>> tasks_;  // in turn
  Task* running_ = nullptr;
  Task* last_ = nullptr;  // who ran last, or null when he ended
  bool last_yielded_ = false;
  bool holds_course_ = false;
  std::uint32_t delays_left_;
  std::uint64_t steps_ = 0;
  std::uint64_t sleeps_ = 0;
};

}  // namespace whimbrel::sim
