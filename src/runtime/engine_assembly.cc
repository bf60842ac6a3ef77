// Engine: putting the pieces together. On the background thread, when the process has grown to half its budget.
#include <new>
#include <utility>

#include "linux/sys.h"
#include "linux/userfault_mmu.h"
#include "runtime/engine.h"

namespace whimbrel {

Result<void> Engine::bring_up() noexcept {
  if (asleep_) {  // inherited: nothing is away, so nobody can have touched too early
    const ChildResult result = take_over_in_child();
    if (result != ChildResult::kReady) return fail(Errc::kNotPermitted, 0, "userfaultfd in a forked child");
    asleep_ = false;
    return {};
  }
  Result<void> done = make_pieces();
  if (!done && space_ == nullptr) {
    // Not enough room under the program's limits: at least it gets back what there is.
    store_.close();
    tables_.close();
  }
  if (done) done = make_pager();
  if (done) record_events();
  if (done) done = start_fault_thread();
  if (!done) return done;
  slot_->mode.store(EngineMode::kManaged, std::memory_order_relaxed);
  phase_.store(Phase::kRunning, std::memory_order_release);
  return {};
}

Result<void> Engine::make_pieces() noexcept {
  if (!store_.range().empty()) return fail(Errc::kInvalid);  // brought up once
  if (const Result<void> opened = tables_.open({}); !opened) return opened;
  if (const Result<void> opened = store_.open({.huge_pages = true}); !opened) return opened;
  if (const Result<void> made = make_mmu(); !made) return made;
  const Result<AddressSpace*> space = AddressSpace::create(*mmu_, tables_, clock_, AddressSpace::Config{});
  if (!space) {
    mmu_->destroy();
    mmu_ = guarded_ = nullptr;
    return std::unexpected(space.error());
  }
  space_ = *space;
  Result<DeviceHandle> device = make_the_device();
  if (!device) return std::unexpected(device.error());
  const Result<SwitchDevice*> made = SwitchDevice::create(tables_, std::move(*device));
  if (!made) return std::unexpected(made.error());
  device_ = *made;
  return {};
}

// The ladder. A program that knows of sessions can keep its system calls off memory that is away; one that was only started by
// us cannot.
Result<void> Engine::make_mmu() noexcept {
  Error refused{Errc::kNotPermitted, 0, "userfaultfd"};
  if (settings_.rung != Settings::Rung::kGuarded) {
    UserfaultMmu::Options options;
    options.visibility = Visibility::kPrivate;
    options.allow_user_mode_only = !settings_.whole_process && settings_.rung == Settings::Rung::kBest;
    const Result<UserfaultMmu*> mmu = UserfaultMmu::create(tables_, options);
    if (mmu) {
      mmu_ = *mmu;
      return {};
    }
    refused = mmu.error();
  }
  if (settings_.whole_process || settings_.rung == Settings::Rung::kUserfaultfd) return std::unexpected(refused);
  const Result<GuardedMmu*> mmu = GuardedMmu::create(tables_, {});
  if (!mmu) return std::unexpected(settings_.rung == Settings::Rung::kGuarded ? mmu.error() : refused);
  mmu_ = guarded_ = *mmu;
  return {};
}

Result<DeviceHandle> Engine::make_the_device() noexcept {
  const DeviceEnvironment environment{.memory = store_, .kinds = built_in_devices(), .device_process = settings_.device_process, .clock = &clock_};
  SpecMessage message;
  Result<DeviceHandle> device =
      make_device(settings_.device[0] != 0 ? settings_.device : "zstd", environment, message);
  if (!device) say(message.c_str());
  return device;
}

// A device that keeps contents elsewhere still has tables and buffers here, which its held bytes do not count.
std::uint64_t Engine::own_bytes() const noexcept {
  const std::uint64_t engine = stacks_.bytes_in_use() + tables_.bytes_in_use();
  return device_ != nullptr && !device_->traits().in_process_memory ? engine + store_.bytes_in_use() : engine;
}

Result<void> Engine::make_pager() noexcept {
  PagerConfig config;
  config.ram_bytes = settings_.ram_bytes;
  config.total_bytes = settings_.total_bytes;
  config.huge_pages = settings_.huge_pages && guarded_ == nullptr;
  config.stats = &slot_->pager;
  config.footprint = this;
  config.events = event_file_ ? &events_ : nullptr;
  if (!settings_.whole_process) {
    config.adopt = false;
    config.watch_at_once = true;
    config.smallest_mapping = PageCount(1);
    hints_ = make_from<HintQueue>(tables_);
    if (hints_ == nullptr) return fail(Errc::kNoMemory, 0, "orders of the program");
  }
  const Result<Pager*> pager = Pager::create(*space_, *device_, config);
  if (!pager) return std::unexpected(pager.error());
  pager_ = *pager;
  pager_->set_beat(&slot_->background_beat_ns);
  if (hints_ != nullptr) hints_->wakes(&pager_->wake_event());
  bool room = pager_->exclude(stacks_.range()) && pager_->exclude(tables_.range()) && pager_->exclude(store_.range()) && pager_->exclude(mmu_->window_range());
  for (std::size_t i = 0; i < forbidden_count_; ++i) room = room && pager_->exclude(forbidden_[i]);
  if (!room) return fail(Errc::kNoMemory, 0, "excluded ranges");
  faults_ = make_from<FaultService>(tables_, *space_, pager_, nullptr);
  if (faults_ == nullptr) return fail(Errc::kNoMemory, 0, "fault service");
  return {};
}

Result<void> Engine::start_fault_thread() noexcept {
  // It starts with the rights of this thread.
  identity_on_fault_thread_.store(identity_number_.load(std::memory_order_relaxed), std::memory_order_relaxed);
  // Not permitted, or too many threads for it: new mappings are found by looking then.
  if (settings_.whole_process && news_.open()) mmu_->wait_also_for(news_.descriptor());
  const Result<int> thread = threads_->start_another(&Engine::fault_entry, this);
  if (!thread) return std::unexpected(thread.error());
  fault_thread_ = *thread;
  return {};
}

void Engine::fault_entry(void* self) noexcept {
  auto* engine = static_cast<Engine*>(self);
  sys::name_thread("whimbrel-fault");
  engine->slot_->fault_thread.store(static_cast<std::uint32_t>(sys::gettid()), std::memory_order_release);
  engine->beside_.prepare();
  engine->faults_->set_placement(&engine->beside_);
  for (;;) {
    (void)engine->mmu_->wait_for_message(-1);
    if (engine->faults_stopping_.load(std::memory_order_acquire)) {
      engine->slot_->fault_thread.store(0, std::memory_order_release);
      return;
    }
    engine->fault_rounds_.fetch_add(1, std::memory_order_relaxed);
    engine->slot_->serving_since_ns.store(static_cast<std::uint64_t>(engine->clock_.now_ns()), std::memory_order_relaxed);
    engine->follow_identity_on_fault_thread();
    if (engine->news_.any()) engine->hear_of_mappings();
    (void)engine->faults_->run_once();
    engine->slot_->serving_since_ns.store(0, std::memory_order_relaxed);
  }
}

void Engine::hear_of_mappings() noexcept {
  PageRange mapped[32];
  bool incomplete = false;
  const std::size_t n = news_.take(mapped, &incomplete);
  pager_->note_mapped({mapped, n}, !incomplete);
}

}  // namespace whimbrel
