#include "runtime/engine.h"

#include <fcntl.h>

#include <algorithm>

#include "base/check.h"
#include "linux/errno_text.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kMillisecond = 1'000'000;
// A program cannot fill memory faster than this, so a look at its size is not due before.
constexpr std::uint64_t kFastestGrowthPerMillisecond = std::uint64_t{4} << 20;
constexpr std::int64_t kShortestLook = kMillisecond;
constexpr std::int64_t kLongestLook = 50 * kMillisecond;
// A child usually becomes another program at once: not worth a look before.
constexpr std::int64_t kFirstLookInChild = 10 * kMillisecond;
constexpr std::uint64_t kStackBytes = std::uint64_t{4} << 20;
// While working: new mappings are noticed by the growth of the address space, far cheaper than by walking them.
constexpr std::int64_t kGrowthLook = 2 * kMillisecond;
constexpr std::int64_t kPublishAgain = 20 * kMillisecond;
// A session has nobody who watches it from outside. What waits that long for a fault thread that does nothing waits for ever.
constexpr std::uint64_t kSessionPatience = 20'000 * std::uint64_t{kMillisecond};
// All that a program can have mapped, and no more than the kernel takes for that.
constexpr PageRange kWholeProgram = PageRange::between(PageIndex(16), PageIndex((std::uint64_t{1} << (kUserAddressBits - kPageShift)) - 16));

// For what a CHECK says on threads that have no standard error.
StatsFile g_check_file;

void post_check(const char* text) noexcept {
  if (g_check_file) g_check_file.post(static_cast<std::uint32_t>(sys::getpid()), text);
}

}  // namespace

void Engine::forbid(PageRange range) noexcept {
  CHECK(forbidden_count_ < kMostForbidden);
  forbidden_[forbidden_count_++] = range;
}

Result<void> Engine::start(const Settings& settings) noexcept {
  settings_ = settings;
  if (settings_.stats[0] != 0) {
    const Result<StatsFile> file = StatsFile::open(settings_.stats);
    if (file) file_ = *file;  // without it nobody reads our numbers; the program runs all the same
    g_check_file = file_;
    set_check_sink(post_check);
  }
  if (settings_.events[0] != 0) {
    if (const Result<EventFile> file = EventFile::open(settings_.events)) event_file_ = *file;
  }
  open_slot();
  process_.store(sys::getpid(), std::memory_order_relaxed);
  // Addresses in plenty only when they are needed: they count against a limit that the program may set on itself.
  const Result<void> memory = stacks_.open({.bytes = kStackBytes});
  if (!memory) return memory;
  if (!make_threads()) return fail(Errc::kNoMemory, 0, "engine threads");
  phase_.store(Phase::kWaiting, std::memory_order_release);
  const Result<int> thread = threads_->start_first(&Engine::background_entry, this);
  if (thread) {
    background_thread_ = *thread;
    return {};
  }
  phase_.store(Phase::kOff, std::memory_order_release);
  slot_->mode.store(EngineMode::kUnmanaged, std::memory_order_relaxed);
  say("no thread could be started; this process runs without a budget");
  return std::unexpected(thread.error());
}

void Engine::open_slot() noexcept {
  const StatsSlot* const of_parent = slot_;
  slot_ = &own_slot_;
  if (!file_) return;
  StatsSlot* slot = file_.claim(static_cast<std::uint32_t>(sys::getpid()), static_cast<std::uint32_t>(sys::getppid()),
                                clock_.now_ns());
  if (slot != nullptr) slot_ = slot;
  slot_->device_change.store(device_changes_, std::memory_order_relaxed);  // a child goes on with its parent's
  if (settings_.session != 0) {
    describe_session();
    const bool inherited = of_parent != nullptr;  // and changed since it was opened, perhaps
    note_limits(inherited ? of_parent->ram_limit_bytes.load() : settings_.ram_bytes,
                inherited ? of_parent->total_limit_bytes.load() : settings_.total_bytes);
  }
  char name[16] = {};
  if (const Result<std::size_t> got = sys::read_text("/proc/thread-self/comm", name, sizeof name); got) {
    for (std::size_t i = 0; i < *got && name[i] != '\n'; ++i) slot_->name[i].store(name[i], std::memory_order_relaxed);
  }
}

// For whoever looks at the file: limits and device of a run stand in its header.
void Engine::describe_session() noexcept {
  slot_->session.store(settings_.session, std::memory_order_relaxed);
  for (std::size_t i = 0; i + 1 < slot_->device.size(); ++i) {
    slot_->device[i].store(settings_.device[i], std::memory_order_relaxed);
    if (settings_.device[i] == 0) break;
  }
}

void Engine::note_limits(std::uint64_t ram, std::uint64_t total) noexcept {
  slot_->ram_limit_bytes.store(ram, std::memory_order_relaxed);
  slot_->total_limit_bytes.store(total, std::memory_order_relaxed);
}

// Tells the watch that nothing more will come from this session, and lets go of its files. Without engine threads.
void Engine::leave_watch() noexcept {
  if (event_ring_ != nullptr) event_ring_->ended.store(1, std::memory_order_release);
  event_ring_ = nullptr;
  event_file_.unmap();
  slot_->mode.store(EngineMode::kEnded, std::memory_order_release);
  slot_ = &own_slot_;
  if (!file_) return;
  if (g_check_file && &g_check_file.layout() == &file_.layout()) g_check_file = StatsFile();
  file_.unmap();
}

// From the moment on from which pages can move.
void Engine::record_events() noexcept {
  if (!event_file_) return;
  const auto pid = static_cast<std::uint32_t>(sys::getpid());
  event_ring_ = event_file_.claim(pid, static_cast<std::uint32_t>(sys::getppid()), settings_.session, slot_->name, clock_.now_ns());
  events_.attach(event_ring_, &event_file_.layout().header.lost);
}

void Engine::say(const char* text, const char* detail, const char* more) const noexcept {
  char line[248];
  std::size_t used = 0;
  for (const char* part : {text, detail, more}) {
    for (; *part != 0 && used + 1 < sizeof line; ++part) line[used++] = *part;
  }
  line[used] = 0;
  if (file_) file_.post(static_cast<std::uint32_t>(sys::getpid()), line);
  if (settings_.whole_process) return;
  MutexLock hold(said_mutex_);
  std::copy_n(line, sizeof said_, said_);
  ++said_count_;
}

std::uint64_t Engine::start_threshold() const noexcept {
  const std::uint64_t none = ~std::uint64_t{0};
  if (!settings_.whole_process) return 0;
  return std::min(settings_.ram_bytes != 0 ? settings_.ram_bytes : none,
                  settings_.total_bytes != 0 ? settings_.total_bytes : none) / 2;
}

void Engine::background_entry(void* self) noexcept { static_cast<Engine*>(self)->background(); }

void Engine::background() noexcept {
  sys::name_thread("whimbrel-work");
  note_own_identity();
  sys::be_preferred();  // a limiter that waits behind what it limits finds the budget exceeded
  if (!gauge_.open()) {
    give_up({Errc::kNotPermitted, 0, "/proc is not readable"});
    slot_->mode.store(EngineMode::kUnmanaged, std::memory_order_relaxed);
    say("/proc is not readable here; this process runs without a budget");
    if (take_over_now_) {  // in a child, after chroot for instance: the forking thread waits, and brings memory home itself
      take_over_now_ = false;
      child_result_.store(ChildResult::kNoUserfault, std::memory_order_release);
      child_event_.advance();
    }
    return;
  }
  if (take_over_now_) {
    take_over_now_ = false;
    const ChildResult result = take_over_in_child();
    child_result_.store(result, std::memory_order_release);
    child_event_.advance();
    if (result != ChildResult::kReady) return;  // the forking thread stops the process
  } else if (!wait_for_need()) {
    return;
  }
  slot_->background_thread.store(static_cast<std::uint32_t>(sys::gettid()), std::memory_order_release);
  work();
  slot_->background_thread.store(0, std::memory_order_release);
}

// Sleeps until the process has grown to half of its budget, then brings the engine up. False: it could not be done.
bool Engine::wait_for_need() noexcept {
  std::int64_t pause = asleep_ ? kFirstLookInChild : 0;
  for (;;) {
    const std::uint32_t seen = nudge_.value();
    if (pause != 0) nudge_.wait(seen, pause);
    const Result<MemoryGauge::Reading> now = gauge_.read();
    if (!now) {
      phase_.store(Phase::kOff, std::memory_order_release);
      return false;
    }
    follow_budget();
    follow_device();
    const std::uint64_t threshold = start_threshold();
    const std::uint64_t used = now->anonymous_bytes;
    slot_->anonymous_bytes.store(used, std::memory_order_relaxed);
    if (slot_->pager.peak_resident_pages.load(std::memory_order_relaxed) < used / kPageSize) {
      slot_->pager.peak_resident_pages.store(used / kPageSize, std::memory_order_relaxed);
    }
    follow_identity();
    if (used < threshold && !rights_now_.load(std::memory_order_acquire)) {
      const std::uint64_t left = (threshold - used) / kFastestGrowthPerMillisecond;
      pause = std::clamp(static_cast<std::int64_t>(left) * kMillisecond, kShortestLook, kLongestLook);
      continue;
    }
    const GateSection section(bring_up_gate_);
    if (!section) {  // a fork is under way
      pause = kShortestLook;
      continue;
    }
    const Result<void> up = bring_up();
    identity_event_.advance();
    if (up) return true;
    give_up(up.error());
    slot_->mode.store(EngineMode::kUnmanaged, std::memory_order_relaxed);
    const char* const where = up.error().where;
    if (settings_.whole_process) say("this process runs without a budget: ", where != nullptr && *where != 0 ? where : errc_name(up.error().code));
    return false;
  }
}

void Engine::keep_off_the_faulter() noexcept {
  const int processor = beside_.processor();
  if (processor >= 0) {
    other_processor_.keep_off(processor);
  } else if (!pager_->is_scattered()) {  // else it is only choosing anew
    other_processor_.keep_off(-1);
  }
}

void Engine::work() noexcept {
  std::int64_t published = 0;
  for (;;) {
    const std::uint32_t seen = pager_->wake_event().value();
    follow_budget();
    follow_identity();
    follow_device();
    keep_off_the_faulter();
    look_for_growth();
    if (stopping_.load(std::memory_order_acquire) != Stop::kNo) {
      if (stopping_.load(std::memory_order_acquire) == Stop::kAsked) continue;  // for some instructions
      if (take_apart()) return;
    }
    const std::int64_t hints_pause = carry_out_hints();
    std::int64_t pause = std::min(pager_->background_step(), hints_pause);
    const std::int64_t now = clock_.now_ns();
    if (pause > 0 || published + kPublishAgain <= now) {
      published = now;
      publish();
      tell_notices();
    }
    while (pause > 0) {
      // A session knows its mappings; it looks up only to stay with a program that faults.
      const bool often = settings_.whole_process || beside_.processor() >= 0;
      const std::int64_t slice = often ? std::min(pause, kGrowthLook) : pause;
      pager_->wake_event().wait(seen, slice);
      if (pager_->wake_event().value() != seen) break;
      pause -= slice;
      follow_budget();
      follow_identity();
      follow_device();
      keep_off_the_faulter();
      look_for_growth();
    }
  }
}

// The run's budget may be changed from outside, also before this process has become what it is now.
void Engine::follow_budget() noexcept {
  if (!file_ || settings_.session != 0) return;
  const StatsHeader& header = file_.layout().header;
  const std::uint32_t changes = header.budget_changes.load(std::memory_order_acquire);
  if (changes == budget_changes_) return;
  budget_changes_ = changes;
  settings_.ram_bytes = header.ram_limit_bytes.load(std::memory_order_relaxed);
  settings_.total_bytes = header.total_limit_bytes.load(std::memory_order_relaxed);
  if (pager_ != nullptr) pager_->set_limits(settings_.ram_bytes, settings_.total_bytes);
}

// A new or larger mapping: have it watched before much of it has been filled.
void Engine::look_for_growth() noexcept {
  const std::int64_t time = clock_.now_ns();
  slot_->background_beat_ns.store(static_cast<std::uint64_t>(time), std::memory_order_relaxed);
  watch_the_fault_thread();
  if (!settings_.whole_process || time < next_growth_look_) return;
  const Result<MemoryGauge::Reading> now = gauge_.read();
  if (now && now->mapped_bytes > mapped_) (void)pager_->scan_step();
  if (now) mapped_ = now->mapped_bytes;
  next_growth_look_ = clock_.now_ns() + kGrowthLook / 2;
}

// A fault thread that was not woken is woken; one that cannot be is made known.
void Engine::watch_the_fault_thread() noexcept {
  const std::uint64_t asked = slot_->rewakes_asked.load(std::memory_order_relaxed);
  if (asked != rewakes_) {
    rewakes_ = asked;
    mmu_->wake(kWholeProgram);
  }
  const std::int64_t now = clock_.now_ns();
  if (!fault_watch_.due(now)) return;
  const bool serves = slot_->serving_since_ns.load(std::memory_order_relaxed) != 0;  // a slow device is another matter
  const bool waiting = !serves && (mmu_->has_unread() || space_->has_queued_faults());
  const std::uint64_t unserved = fault_watch_.look(now, waiting, fault_rounds_.load(std::memory_order_relaxed));
  slot_->unserved_ns.store(unserved, std::memory_order_relaxed);
  if (unserved == 0) return;
  mmu_->interrupt();
  CHECK(settings_.whole_process || unserved < kSessionPatience, "the fault thread serves nothing: memory that is away cannot be had");
}

DeviceStats Engine::device_stats() const noexcept {
  DeviceStats device = device_->stats();
  device.stored_pages -= std::min(device.stored_pages, slot_->pager.kept_copies.load(std::memory_order_relaxed));
  return device;
}

void Engine::publish() noexcept {
  constexpr auto kRelaxed = std::memory_order_relaxed;
  const DeviceStats device = device_stats();
  slot_->stored_pages.store(device.stored_pages, kRelaxed);
  slot_->compressed_bytes.store(device.compressed_bytes, kRelaxed);
  slot_->held_bytes.store(device.held_bytes, kRelaxed);
  if (device.stored_pages > slot_->peak.stored_pages.load(kRelaxed)) {
    slot_->peak.stored_pages.store(device.stored_pages, kRelaxed);
    slot_->peak.compressed_bytes.store(device.compressed_bytes, kRelaxed);
    slot_->peak.held_bytes.store(device.held_bytes, kRelaxed);
  }
  slot_->updated_ns.store(static_cast<std::uint64_t>(clock_.now_ns()), kRelaxed);
}

// " (writing to the file: no space left)", or nothing.
void Engine::say_cause(std::span<char> to) const noexcept {
  const Error error = device_->last_error();
  std::size_t used = 0;
  const auto add = [&](const char* text) {
    for (; *text != 0 && used + 1 < to.size(); ++text) to[used++] = *text;
  };
  if (*error.where != 0) {
    add(" (");
    add(error.where);
    if (error.sys != 0) {
      add(": ");
      add(sys::errno_text(error.sys));
    }
    add(")");
  }
  to[used] = 0;
}

void Engine::tell_notices() noexcept {
  const std::uint32_t notices = pager_->take_notices();
  if (notices == 0) return;
  const auto raised = [notices](Pager::Notice n) { return (notices & static_cast<std::uint32_t>(n)) != 0; };
  char cause[96];
  say_cause(cause);
  if (raised(Pager::Notice::kDeviceFull)) {
    say("the device is full", cause, ": pages stay in RAM and the budget cannot be held; next: give the device more room");
  }
  if (raised(Pager::Notice::kDeviceError)) say("the device fails to store", cause, ": pages stay in RAM, nothing is lost");
  if (raised(Pager::Notice::kLoadError)) {
    say("the device failed to give contents back", cause, ": that access got SIGBUS");
  }
  if (raised(Pager::Notice::kCannotFit)) {
    char digits[24];
    std::size_t at = sizeof digits - 1;
    digits[at] = 0;
    for (std::uint64_t n = (pager_->bytes_that_would_do() >> 20) + 1; n != 0; n /= 10) {
      digits[--at] = static_cast<char>('0' + n % 10);
    }
    say("the data does not fit into --total even when compressed; next: --total ", digits + at, "M would do");
  }
  if (raised(Pager::Notice::kTooManyMappings)) say("the kernel refuses to watch more mappings; next: raise vm.max_map_count");
  if (raised(Pager::Notice::kNothingMoves)) {
    say("over the budget, and all that is left is locked, shared with a forked process, or in use by devices");
  }
}

}  // namespace whimbrel
