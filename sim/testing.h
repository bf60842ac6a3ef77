// What the simulator's own tests share: a world with one Mmu and one program, whose threads run in the ordinary course
// or in every order.
#pragma once

#include <functional>
#include <utility>

#include "sim/sim_clock.h"
#include "sim/sim_program.h"

namespace whimbrel::sim {

struct TestWorld {
  explicit TestWorld(Choices& choices, Scheduler::Options schedule = {}, SimMmu::Options options = {})
      : scheduler(choices, clock, schedule), mmu(options), program(mmu) {}

  void thread(std::string name, std::function<void()> body) {
    scheduler.spawn(std::move(name), Role::kWorker, std::move(body));
  }
  void service(std::string name, std::function<void()> body) {
    scheduler.spawn(std::move(name), Role::kService, std::move(body));
  }
  [[nodiscard]] Scheduler::Outcome run() { return scheduler.run(); }

  SimClock clock;
  Scheduler scheduler;
  SimMmu mmu;
  SimProgram program;
};

// Every schedule with at most `max_delays` departures: build(world) starts the threads, check(world) looks at the end.
// Returns the number of worlds.
inline std::uint64_t every_schedule(std::uint32_t max_delays, const std::function<void(TestWorld&)>& build,
                                    const std::function<void(TestWorld&, Scheduler::Outcome)>& check) {
  Choices choices = Choices::exhaustive();
  while (choices.next()) {
    TestWorld world(choices, {.max_delays = max_delays});
    build(world);
    const Scheduler::Outcome outcome = world.run();
    check(world, outcome);
    world.mmu.space().check_invariants();
  }
  return choices.worlds();
}

}  // namespace whimbrel::sim
