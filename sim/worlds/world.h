// World: the engine, unchanged, on a simulated machine, with a driver, a fault thread and a program whose every read is
// checked. What happens in it is decided by its Choices alone.
//
// Life:
//   1. build it, map program memory, put pages where the scenario wants them (setup(): the ordinary course, no
//   failures)
//   2. start threads: program(), engine()
//   3. run(): until all have ended; then the world settles: everything is read once more, everything comes home, and
//      nothing may be left behind: no page away, no frame, lock, reference, device slot, waiting thread
//   4. verdict(): empty, or what went wrong
#pragma once

#include <functional>
#include <memory>
#include <string>

#include "mm/heap_source.h"
#include "sim/sim_clock.h"
#include "sim/sim_program.h"
#include "sim/worlds/sim_driver.h"

namespace whimbrel::sim {

class World {
 public:
  struct Options {
    Scheduler::Options schedule{.max_steps = 30'000};
    std::uint32_t failures = 0;       // calls that may fail
    std::uint32_t fail_one_in = 100;  // random worlds
    SimMmu::Options mmu;
    SimDevice::Options device{.unit_pages = kPagesPerHuge, .slots = 1 << 14};
    std::uint64_t device_pages = 8 * kPagesPerHuge;
    AddressSpace::Config engine{
        .staging = PageCount(64), .landing = PageCount(64), .huge = PageCount(3 * kPagesPerHuge)};
    bool scarce_driver = false;
    bool device_may_go = false;  // a scenario takes the device away for a while: SIGBUS is legal then
    std::uint32_t fault_threads = 1;
  };

  World(Choices& choices, const Options& options);
  ~World();
  World(const World&) = delete;
  World& operator=(const World&) = delete;

  // Runs `body` alone with the fault thread, without failures or departures from the ordinary course.
  void setup(std::function<void()> body);
  // A thread of the program; its number is the thread id of its messages.
  void program(std::function<void(std::uint32_t thread)> body);
  // A thread of the engine's user.
  void engine(std::string name, std::function<void()> body);
  void run();

  [[nodiscard]] const std::string& verdict() const { return verdict_; }
  [[nodiscard]] std::uint64_t steps() const { return scheduler_->steps(); }

  [[nodiscard]] SimProgram& memory() { return program_; }
  [[nodiscard]] SimMmu& mmu() { return mmu_; }
  [[nodiscard]] SimDriver& driver() { return *driver_; }
  [[nodiscard]] SimDevice& device() { return device_; }
  [[nodiscard]] AddressSpace& space() { return *space_; }
  [[nodiscard]] SimClock& clock() { return clock_; }
  [[nodiscard]] Choices& choices() { return choices_; }
  [[nodiscard]] Failures& failures() { return failures_; }

  // ---- shorthand for scenarios: word `offset / 8` of page i of the home range --------------------------------
  static constexpr PageIndex kHome{0x10000};       // 2 MiB aligned
  static constexpr PageIndex kElsewhere{0x20000};  // likewise
  [[nodiscard]] static PageRange pages(std::uint64_t first, std::uint64_t count) {
    return {kHome + PageCount(first), PageCount(count)};
  }
  [[nodiscard]] static VirtualAddress word(std::uint64_t page, std::uint64_t offset = 64) {
    return VirtualAddress((kHome + PageCount(page)).address().raw() + offset);
  }
  void read(std::uint32_t thread, VirtualAddress address);
  void write(std::uint32_t thread, VirtualAddress address);  // a value never written before

 private:
  void start_fault_threads();
  void stop_fault_threads();
  bool run_until_finished(const char* phase);
  void settle();
  void look_for_leftovers();
  void complain(const std::string& what);

  Choices& choices_;
  Options options_;
  Failures failures_;
  SimClock clock_;
  std::unique_ptr<Scheduler> scheduler_;
  SimMmu mmu_;
  SimDevice device_;
  SimProgram program_;
  HeapSource heap_;
  AddressSpace* space_ = nullptr;
  std::unique_ptr<SimDriver> driver_;
  bool stop_ = false;
  std::uint32_t next_thread_ = 100;
  std::uint64_t next_value_ = 1;
  std::string verdict_;
};

}  // namespace whimbrel::sim
