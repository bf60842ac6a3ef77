// Engine: fork. The child inherits every table and every stored page, but no thread, no descriptor and no watched
// memory; all three must be there before it touches anything that is away.
#include <sys/syscall.h>

#include <csignal>
#include <cstring>

#include "base/check.h"
#include "linux/guard_signal.h"
#include "linux/sys.h"
#include "runtime/engine.h"

namespace whimbrel {

void Engine::prepare_fork() noexcept {
  if (phase_.load(std::memory_order_acquire) == Phase::kOff) return;
  bring_up_gate_.close();
  if (!is_moving()) return;
  pager_->park();
  device_->prepare_fork();
}

void Engine::after_fork_in_parent() noexcept {
  const Phase phase = phase_.load(std::memory_order_acquire);
  if (phase == Phase::kOff) return;
  if (phase == Phase::kRunning) {
    device_->after_fork_in_parent();
    if (guarded_ == nullptr) pager_->mark_shared_after_fork();
    pager_->unpark();
  }
  bring_up_gate_.open();
}

void Engine::after_fork_in_child() noexcept {
  const Phase phase = phase_.load(std::memory_order_acquire);
  if (phase == Phase::kOff) return;
  // Locks that threads of the parent may have held.
  stacks_.reset_after_fork();
  tables_.reset_after_fork();
  store_.reset_after_fork();
  bring_up_gate_.reset_in_child();
  nudge_.reset_after_fork();
  child_event_.reset_after_fork();
  device_done_.reset_after_fork();
  reset_identity_in_child();
  said_mutex_.reset_after_fork();
  if (hints_ != nullptr) hints_->reset_in_child();
  gauge_.forget();
  threads_->forget_after_fork();
  events_.detach();
  event_ring_ = nullptr;
  open_slot();
  if (guarded_ != nullptr) return end_in_child();
  if (phase == Phase::kRunning) {
    mmu_->reset_after_fork();
    mmu_->wait_also_for(-1);
    news_.forget();
    device_->after_fork_in_child();
    space_->mutex().reset_after_fork();
    MutexLock hold(space_->mutex());
    take_over_now_ = space_->table().used_pages() != 0;
    asleep_ = !take_over_now_;
    phase_.store(Phase::kWaiting, std::memory_order_release);
  }
  child_result_.store(ChildResult::kPending, std::memory_order_relaxed);
  const bool must_wait = take_over_now_;
  const bool has_device = device_ != nullptr;
  if (has_device) threads_->keep_also(device_->carried());
  const Result<int> thread = threads_->start_first(&Engine::background_entry, this);
  background_thread_ = thread ? *thread : -1;
  if (!thread) {
    give_up(thread.error());
    slot_->mode.store(EngineMode::kUnmanaged, std::memory_order_relaxed);
    if (must_wait) go_on_unmanaged_or_stop(bring_home_by_hand());
  } else if (must_wait) {
    wait_for_take_over();
  }
  if (has_device) device_->drop_carried();
}

// Arenas are shared memory, which a child of a fork does not get: there is nothing here that an engine could serve.
void Engine::end_in_child() noexcept {
  guard_signal::forget_in_child();
  mmu_->reset_after_fork();
  background_thread_ = -1;
  slot_->mode.store(EngineMode::kUnmanaged, std::memory_order_relaxed);
  give_up({Errc::kGone, 0, "a forked child has nothing of guarded arenas"});
}

// On the child's background thread: fresh descriptors, everything away watched again, tables put right.
Engine::ChildResult Engine::take_over_in_child() noexcept {
  if (!mmu_->reopen_in_child()) return ChildResult::kNoUserfault;
  if (space_->recover_in_child() != 0) return ChildResult::kTouched;
  device_->settle_in_child();
  pager_->reset_in_child(&slot_->pager);
  pager_->set_beat(&slot_->background_beat_ns);
  record_events();
  slot_->mode.store(EngineMode::kManaged, std::memory_order_relaxed);
  phase_.store(Phase::kRunning, std::memory_order_release);
  return start_fault_thread() ? ChildResult::kReady : ChildResult::kNoThread;
}

// The forking thread's stack is resident (it was touched just before the fork), engine memory always is.
void Engine::wait_for_take_over() noexcept {
  for (;;) {
    const std::uint32_t seen = child_event_.value();
    const ChildResult result = child_result_.load(std::memory_order_acquire);
    if (result == ChildResult::kReady) return;
    if (result == ChildResult::kNoUserfault) return go_on_unmanaged_or_stop(bring_home_by_hand());
    if (result != ChildResult::kPending) stop_child(result);
    child_event_.wait(seen);
  }
}

// A child that may not use userfaultfd, for instance because the program gave up its rights: its memory is ordinary
// memory, and it has one thread that touches it. So everything is simply written back where it belongs.
Engine::ChildResult Engine::bring_home_by_hand() noexcept {
  give_up({Errc::kNotPermitted, 0, "userfaultfd in a forked child"});
  slot_->mode.store(EngineMode::kUnmanaged, std::memory_order_relaxed);
  auto* buffer = static_cast<std::byte*>(tables_.take(kPageSize));
  if (buffer == nullptr) return ChildResult::kNoUserfault;
  ChildResult result = ChildResult::kUnmanaged;
  MutexLock hold(space_->mutex());
  const PageRange everything{PageIndex(0), PageCount(std::uint64_t{1} << (kUserAddressBits - kPageShift))};
  space_->table().for_each(everything, [&](PageRange where, PageEntry entry) {
    space_->lock_is_held();
    const PageMap* map = space_->map_of(entry.pfn());
    if (map == nullptr) return true;  // on its way home in the parent, and there already
    for (std::uint64_t i = 0; i < where.count.raw(); ++i) {
      const PageIndex home = where.first + PageCount(i);
      const Result<bool> present = sys::is_resident(home);
      if (!present) continue;  // the child does not have that mapping
      if (*present && entry.state() == PageState::kDevice) result = ChildResult::kTouched;
      if (*present) continue;
      const DeviceSlot slot{(entry.pfn() - map->first()).raw() + i};
      DeviceOp load{.kind = DeviceOp::Kind::kLoad, .first = slot, .pages = 1, .memory = buffer};
      DeviceBatch batch{.ops = {&load, 1}};
      device_->submit(batch);
      device_->wait(batch);
      if (!load.result || !sys::write_own_memory(home, buffer)) result = ChildResult::kNoUserfault;
    }
    return result == ChildResult::kUnmanaged;
  });
  return result;
}

void Engine::go_on_unmanaged_or_stop(ChildResult result) const noexcept {
  if (result != ChildResult::kUnmanaged) stop_child(result);
  say("may not use userfaultfd: its memory has come home, and it goes on without a budget");
}

void Engine::stop_child(ChildResult why) const noexcept {
  const char* text = "a forked process was stopped: ";
  const char* reason = "";
  switch (why) {
    case ChildResult::kNoUserfault:
      reason = "userfaultfd is not allowed there, so its memory cannot be brought home; see: whimbrel doctor";
      break;
    case ChildResult::kTouched:
      reason = "memory that was away was touched before whimbrel could take over (a fork behind libc's back?)";
      break;
    case ChildResult::kNoThread: reason = "no thread could be started; check ulimit -u"; break;
    case ChildResult::kPending:
    case ChildResult::kUnmanaged:
    case ChildResult::kReady: CHECK(false, "nothing to stop for");
  }
  say(text, reason);
  if (!file_) {
    for (const char* part : {"whimbrel: ", text, reason, "\n"}) (void)sys::write(2, part, std::strlen(part));
  }
  sys::call(SYS_kill, sys::getpid(), SIGKILL);
  for (;;) sys::call(SYS_exit_group, 137);
}

}  // namespace whimbrel
