// Engine: rights. The program gives up its rights for all threads that libc knows. Engine threads are none of those, and
// one that kept root would be a hole in the program's sandbox: whoever gets at its memory has the rights.
//
// Calls of libc by which a program changes its rights wait until the engine has followed. Changes made behind libc's back
// are found by looking at the main thread now and then.
#include <sys/syscall.h>

#include <csignal>

#include "base/check.h"
#include "linux/sys.h"
#include "runtime/engine.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kLookAgain = 50'000'000;
constexpr std::int64_t kAskAgain = 10'000'000;

}  // namespace

bool Engine::is_ours() const noexcept {
  return phase_.load(std::memory_order_acquire) != Phase::kOff &&
         process_.load(std::memory_order_relaxed) == sys::getpid();
}

void Engine::before_identity_change() noexcept {
  // Without rights there are none to lose, and a program that stays small is left alone.
  if (!is_ours() || sys::call(SYS_geteuid) != 0) return;
  rights_now_.store(true, std::memory_order_release);
  for (;;) {
    const std::uint32_t seen = identity_event_.value();
    if (phase_.load(std::memory_order_acquire) != Phase::kWaiting) return;
    nudge_.advance();
    identity_event_.wait(seen, kAskAgain);
  }
}

void Engine::after_identity_change() noexcept {
  if (!is_ours()) return;
  identity_of_.store(sys::gettid(), std::memory_order_relaxed);
  const std::uint32_t ticket = identity_asked_.fetch_add(1, std::memory_order_acq_rel) + 1;
  for (;;) {
    const std::uint32_t seen = identity_event_.value();
    if (static_cast<std::int32_t>(identity_done_.load(std::memory_order_acquire) - ticket) >= 0) return;
    const Phase phase = phase_.load(std::memory_order_acquire);
    if (phase == Phase::kOff) return;  // its threads have ended
    nudge_.advance();
    if (phase == Phase::kRunning) pager_->wake_event().advance();
    identity_event_.wait(seen, kAskAgain);
  }
}

void Engine::note_own_identity() noexcept {
  if (!Identity::of_thread(sys::gettid(), identity_)) identity_ = Identity();
}

// On the background thread.
void Engine::follow_identity() noexcept {
  const std::uint32_t asked = identity_asked_.load(std::memory_order_acquire);
  const bool is_asked = asked != identity_done_.load(std::memory_order_relaxed);
  const std::int64_t now = clock_.now_ns();
  if (!is_asked && now < next_identity_look_) return;
  next_identity_look_ = now + kLookAgain;
  Identity theirs;
  const int thread = is_asked ? identity_of_.load(std::memory_order_relaxed) : process_.load(std::memory_order_relaxed);
  if (Identity::of_thread(thread, theirs) && !theirs.same_as(identity_)) {
    identity_ = theirs;
    adopt_or_stop();
    if (phase_.load(std::memory_order_relaxed) == Phase::kRunning) {
      const std::uint32_t number = identity_number_.fetch_add(1, std::memory_order_acq_rel) + 1;
      while (identity_on_fault_thread_.load(std::memory_order_acquire) != number) {
        const std::uint32_t seen = identity_event_.value();
        mmu_->interrupt();
        if (identity_on_fault_thread_.load(std::memory_order_acquire) != number) identity_event_.wait(seen, kAskAgain);
      }
    }
  }
  if (!is_asked) return;
  identity_done_.store(asked, std::memory_order_release);
  identity_event_.advance();
}

void Engine::follow_identity_on_fault_thread() noexcept {
  const std::uint32_t number = identity_number_.load(std::memory_order_acquire);
  if (number == identity_on_fault_thread_.load(std::memory_order_relaxed)) return;
  adopt_or_stop();
  identity_on_fault_thread_.store(number, std::memory_order_release);
  identity_event_.advance();
}

void Engine::adopt_or_stop() const noexcept {
  const Result<void> adopted = identity_.adopt();
  if (adopted) return;
  say("the process was stopped: whimbrel's threads could not give up the rights that the program gave up: ",
      adopted.error().where);
  sys::call(SYS_kill, sys::getpid(), SIGKILL);
  for (;;) sys::call(SYS_exit_group, 137);
}

void Engine::reset_identity_in_child() noexcept {
  process_.store(sys::getpid(), std::memory_order_relaxed);
  identity_event_.reset_after_fork();
  identity_done_.store(identity_asked_.load(std::memory_order_relaxed), std::memory_order_relaxed);
  rights_now_.store(false, std::memory_order_relaxed);
  next_identity_look_ = 0;
}

}  // namespace whimbrel
