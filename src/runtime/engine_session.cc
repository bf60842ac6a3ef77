// Engine: as a session of a program that uses it knowingly.
#include <algorithm>
#include <span>
#include <type_traits>

#include "linux/libc_engine_threads.h"
#include "linux/raw_engine_threads.h"
#include "runtime/engine.h"

namespace whimbrel {
namespace {

using Threads = std::conditional_t<kRawThreadsUsable, RawEngineThreads, LibcEngineThreads>;

constexpr std::int64_t kLookAgain = 50'000'000;
constexpr std::int64_t kNoHints = INT64_MAX;
constexpr std::int64_t kAfterFork = 1'000'000;  // an order waits for the end of one

void copy_text(const char* from, std::span<char> to) noexcept {
  std::size_t n = 0;
  for (; n + 1 < to.size() && from[n] != 0; ++n) to[n] = from[n];
  to[n] = 0;
}

}  // namespace

bool Engine::make_threads() noexcept {
  if constexpr (kRawThreadsUsable) {
    threads_ = make_from<RawEngineThreads>(stacks_, stacks_, EngineThreadOptions{});
  } else {
    threads_ = make_from<LibcEngineThreads>(stacks_, EngineThreadOptions{});
  }
  return threads_ != nullptr;
}

Result<void> Engine::start_session(const Settings& settings) noexcept {
  Result<void> started = start(settings);
  while (started) {
    const std::uint32_t seen = identity_event_.value();
    const Phase phase = phase_.load(std::memory_order_acquire);
    if (phase == Phase::kRunning) return {};
    if (phase == Phase::kOff)
      started = std::unexpected(given_up_);
    else
      identity_event_.wait(seen, kLookAgain);
  }
  phase_.store(Phase::kOff, std::memory_order_release);
  if (background_thread_ >= 0) threads_->join(background_thread_);
  close_memory();
  return started;
}

void Engine::give_up(const Error& error) noexcept {
  given_up_ = error;
  phase_.store(Phase::kOff, std::memory_order_release);
  identity_event_.advance();
  if (hints_ != nullptr) hints_->close();
}

std::uint32_t Engine::last_said(char (&text)[248]) noexcept {
  MutexLock hold(said_mutex_);
  std::copy_n(said_, sizeof said_, text);
  return said_count_;
}

// How long to wait before the next slice.
std::int64_t Engine::carry_out_hints() noexcept {
  if (hints_ == nullptr) return kNoHints;
  switch (hints_->run_slice(*pager_)) {
    case HintQueue::More::kAtOnce:
      return 0;
    case HintQueue::More::kLater:
      return kAfterFork;
    case HintQueue::More::kNothing:
      break;
  }
  return kNoHints;
}

Result<void> Engine::stop() noexcept {
  if (phase_.load(std::memory_order_acquire) == Phase::kRunning) {
    stop_failed_.store(false, std::memory_order_relaxed);
    stopping_.store(Stop::kAsked, std::memory_order_release);
    pager_->wake_event().advance();
    stopping_.store(Stop::kGo, std::memory_order_release);  // from here on the pager may be gone
    for (;;) {
      const std::uint32_t seen = identity_event_.value();
      if (phase_.load(std::memory_order_acquire) == Phase::kOff) break;
      if (stop_failed_.load(std::memory_order_acquire)) return fail(Errc::kDeviceIo, 0, "contents could not be loaded");
      identity_event_.wait(seen, kLookAgain);
    }
  } else if (device_ != nullptr) {
    return fail(Errc::kGone, 0, "the engine has ended");
  }
  // The thread that was the last to leave has closed the descriptors.
  if (background_thread_ >= 0) threads_->join(background_thread_);
  close_memory();
  return {};
}

// On the background thread, whose descriptors these are.
bool Engine::take_apart() noexcept {
  if (!pager_->bring_all_home()) {
    stopping_.store(Stop::kNo, std::memory_order_relaxed);
    stop_failed_.store(true, std::memory_order_release);
    identity_event_.advance();
    return false;
  }
  hints_->close();
  faults_stopping_.store(true, std::memory_order_release);
  mmu_->interrupt();
  threads_->join(fault_thread_);
  destroy_from(tables_, faults_);
  Pager::destroy(pager_);
  AddressSpace::destroy(space_);
  SwitchDevice::destroy(device_);
  device_ = nullptr;
  mmu_->destroy();
  mmu_ = guarded_ = nullptr;
  give_up({Errc::kGone, 0, "stopped"});
  return true;
}

void Engine::set_budget(std::uint64_t ram, std::uint64_t total) noexcept {
  note_limits(ram, total);
  pager_->set_limits(ram, total);
}

Result<void> Engine::set_device(const char* specification, const char* device_process) noexcept {
  std::uint32_t seen = device_done_.value();
  copy_text(specification, asked_device_);
  copy_text(device_process, asked_device_process_);
  const std::uint32_t change = device_asked_.fetch_add(1, std::memory_order_release) + 1;
  for (;; seen = device_done_.value()) {
    if (has_ended()) return fail(Errc::kGone, 0, "the engine has ended");
    if (slot_->device_change.load(std::memory_order_acquire) == change) return {};
    if (slot_->device_refused.load(std::memory_order_acquire) == change) return fail(Errc::kInvalid, 0, "the device stays what it was");
    pager_->wake_event().advance();
    device_done_.wait(seen, kLookAgain);
  }
}

void Engine::close_memory() noexcept {
  leave_watch();
  destroy_from(stacks_, static_cast<Threads*>(threads_));
  threads_ = nullptr;
  background_thread_ = -1;
  store_.close();
  tables_.close();
  stacks_.close();
}

}  // namespace whimbrel
