#include "sim/worlds/world.h"

#include "base/check.h"

namespace whimbrel::sim {

World::World(Choices& choices, const Options& options)
    : choices_(choices),
      options_(options),
      failures_(choices, options.failures, options.fail_one_in),
      scheduler_(std::make_unique<Scheduler>(choices, clock_, options.schedule)),
      mmu_(options.mmu, &failures_),
      device_(options.device, choices, &failures_),
      program_(mmu_) {
  failures_.arm(false);
  space_ = AddressSpace::create(mmu_, heap_, clock_, options.engine).value();
  driver_ = std::make_unique<SimDriver>(*space_, device_, choices, options.device_pages);
}

World::~World() {
  // A world that went wrong is left as it lies: threads still hold its locks and references.
  if (!verdict_.empty()) return;
  driver_.reset();
  AddressSpace::destroy(space_);
}

void World::complain(const std::string& what) {
  if (!verdict_.empty()) verdict_ += "\n";
  verdict_ += what;
}

void World::start_fault_threads() {
  stop_ = false;
  for (std::uint32_t i = 0; i < options_.fault_threads; ++i) {
    scheduler_->spawn("fault thread", Role::kService, [this] {
      FaultService service(*space_, nullptr, nullptr);
      while (!stop_) {
        (void)mmu_.wait_for_message(-1);
        (void)service.run_once();
      }
    });
  }
}

void World::stop_fault_threads() {
  stop_ = true;
  scheduler_->spawn("stopper", Role::kWorker, [this] {
    // Each interrupt ends one wait; a few more do no harm.
    for (std::uint32_t i = 0; i < 4 * options_.fault_threads; ++i) {
      mmu_.interrupt();
      scheduler_->yield();
    }
  });
}

bool World::run_until_finished(const char* phase) {
  const Scheduler::Outcome outcome = scheduler_->run();
  if (outcome == Scheduler::Outcome::kFinished) return true;
  const char* what = outcome == Scheduler::Outcome::kDeadlock ? "deadlock" : "step limit (livelock?)";
  complain(std::string(what) + " while " + phase + ":\n" + scheduler_->describe());
  return false;
}

void World::setup(std::function<void()> body) {
  scheduler_->hold_course(true);
  start_fault_threads();
  scheduler_->spawn("setup", Role::kWorker, std::move(body));
  (void)run_until_finished("setting up");
  scheduler_->hold_course(false);
}

void World::program(std::function<void(std::uint32_t)> body) {
  const std::uint32_t thread = ++next_thread_;
  scheduler_->spawn("program " + std::to_string(thread), Role::kWorker,
                    [thread, body = std::move(body)] { body(thread); });
}

void World::engine(std::string name, std::function<void()> body) {
  scheduler_->spawn(std::move(name), Role::kWorker, std::move(body));
}

void World::run() {
  if (!verdict_.empty()) return;
  if (options_.failures != 0 || options_.device_may_go) program_.tolerate_bus_errors();
  driver_->set_scarce(options_.scarce_driver);
  failures_.arm(true);
  const bool finished = run_until_finished("running");
  failures_.arm(false);
  driver_->set_scarce(false);
  if (finished) settle();
  for (const std::string& violation : program_.violations()) complain(violation);
}

// Nothing fails any more: every word is read once, everything comes home, nothing may remain.
void World::settle() {
  scheduler_->hold_course(true);
  device_.set_gone(false);
  scheduler_->spawn("last look", Role::kWorker, [this] {
    for (const VirtualAddress address : program_.model().written()) {
      if (program_.model().allows(address, false)) read(1, address);
    }
    for (int tries = 0; tries < 20 && driver_->map().pages_in_use() != 0; ++tries) (void)driver_->evict_frames();
    space_->pump();
  });
  if (!run_until_finished("reading everything once more")) return;
  stop_fault_threads();
  if (!run_until_finished("stopping")) return;
  look_for_leftovers();
  scheduler_->hold_course(false);
}

void World::look_for_leftovers() {
  mmu_.space().check_invariants();
  space_->check_invariants();
  const auto none = [this](std::uint64_t n, const char* what) {
    if (n != 0) complain(std::to_string(n) + " " + what);
  };
  none(mmu_.userfault().parked(), "threads still wait for a page");
  none(mmu_.userfault().event_pending() ? 1 : 0, "events unread");
  none(driver_->map().pages_in_use(), "device pages in use at the end");
  none(device_.reserved_pages(), "device slots reserved at the end");
  {
    MutexLock hold(space_->mutex());
    none(space_->table().used_pages(), "slots away at the end");
  }
  for (const FrameUse use : {FrameUse::kStaging, FrameUse::kLanding, FrameUse::kHuge}) {
    none(space_->pool(use).in_use(), "frames in use at the end");
  }
}

void World::read(std::uint32_t thread, VirtualAddress address) {
  std::uint64_t value = 0;
  (void)program_.read(thread, address, &value);
}

void World::write(std::uint32_t thread, VirtualAddress address) {
  (void)program_.write(thread, address, next_value_++);
}

}  // namespace whimbrel::sim
