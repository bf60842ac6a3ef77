// Engine: whimbrel inside one process that knows nothing of it. Puts the concrete pieces together, runs their threads
// and carries them over a fork.
//
// Life:
//   1. start(): one sleeping thread that looks at the size of the process now and then.
//   2. At half the budget it brings the engine up: userfaultfd, address space, device, pager, fault thread. From then on
//      it is the background thread. When that cannot be done the process goes on unmanaged, and a message says so.
//   3. fork: prepare_fork() stops what changes things; the parent goes on; the child takes over what it inherited
//      before any of its memory is touched. A child with nothing away starts again at 1, with its pieces asleep.
//   4. Nothing at exit: the kernel takes everything at once.
//
// A session (engine_session.cc) is an engine that a program uses knowingly: it comes up at once, manages only memory that is
// named to it through hints(), can be stopped, and there may be several in one process.
//
// Threads. start() and the fork calls come from threads of the program, everything else happens on two engine threads.
// Program threads take no engine lock: they may fault while they hold it. They wait on counters only.
//
// In memory that the pager leaves alone; destroyed after stop() only.
#pragma once

#include <atomic>
#include <cstdint>
#include <span>

#include "base/mutex.h"
#include "devices/switch_device.h"
#include "linux/beside_faulter.h"
#include "linux/mapping_news.h"
#include "linux/clock.h"
#include "linux/identity.h"
#include "linux/engine_threads.h"
#include "linux/guarded_mmu.h"
#include "linux/reservation.h"
#include "linux/process_mmu.h"
#include "migrate/fault.h"
#include "pager/footprint.h"
#include "pager/pager.h"
#include "pager/park_gate.h"
#include "port/device.h"
#include "runtime/event_file.h"
#include "runtime/fault_watch.h"
#include "runtime/hint_queue.h"
#include "runtime/memory_gauge.h"
#include "runtime/settings.h"
#include "runtime/stats_file.h"

namespace whimbrel {

class Engine final : private Footprint {
 public:
  Engine() noexcept = default;
  Engine(const Engine&) = delete;
  Engine& operator=(const Engine&) = delete;

  // Address ranges that no engine may ever move, besides its own memory: data of the library and of those it relies on.
  static constexpr std::size_t kMostForbidden = 16;
  void forbid(PageRange range) noexcept;

  // Once. An error leaves the process as it is, unmanaged.
  [[nodiscard]] Result<void> start(const Settings& settings) noexcept;

  // ---- sessions: settings.whole_process is false ----
  // start() and waits until the engine is up. An error leaves nothing behind but the object; last_said() may tell more.
  [[nodiscard]] Result<void> start_session(const Settings& settings) noexcept;
  // Everything comes home, the threads end, the engine's memory is given back. kDeviceIo, ...: something could not be
  // loaded; the engine goes on serving it, but nothing leaves any more. kGone: it has ended by itself, in a forked child; its
  // memory stays as it is, and so must this object. With no thread inside.
  [[nodiscard]] Result<void> stop() noexcept;
  [[nodiscard]] HintQueue& hints() noexcept { return *hints_; }
  // Null: memory is managed by userfaultfd. Else it manages nothing but the arenas that are made by this.
  [[nodiscard]] GuardedMmu* guarded() noexcept { return guarded_; }
  [[nodiscard]] const char* rung_name() const noexcept { return mmu_->rung_name(); }
  [[nodiscard]] bool has_ended() const noexcept { return phase_.load(std::memory_order_acquire) == Phase::kOff; }
  [[nodiscard]] Pager& pager() noexcept { return *pager_; }
  // Another device: what is stored from now on goes there, what lies on the one before moves there in the background. Waits until
  // the engine has taken it. `device_process`: address of the one for devices that need it. One caller at a time. kInvalid: it
  // stays what it was, and last_said() tells why; kGone: the engine has ended.
  [[nodiscard]] Result<void> set_device(const char* specification, const char* device_process) noexcept;
  // Another budget, now; bytes, 0: no limit of that kind.
  void set_budget(std::uint64_t ram, std::uint64_t total) noexcept;
  // Pages in RAM whose last contents the device has as well do not count as stored.
  [[nodiscard]] DeviceStats device_stats() const noexcept;
  [[nodiscard]] const char* device_name() const noexcept { return device_->traits().name; }
  [[nodiscard]] const StatsSlot& statistics() const noexcept { return *slot_; }
  // A message for people, from the session around the engine.
  void tell(const char* text) const noexcept EXCLUDES(said_mutex_) { say(text); }
  // The last message for people, and how many there have been.
  [[nodiscard]] std::uint32_t last_said(char (&text)[248]) noexcept EXCLUDES(said_mutex_);

  // Around fork(), on the forking thread. After prepare_fork() nothing leaves RAM until one of the others is called;
  // faults are served all the time.
  void prepare_fork() noexcept;
  void after_fork_in_parent() noexcept;
  // Must be the first code in the child that touches memory of the program. Stops the process when memory that was away
  // cannot be had there.
  void after_fork_in_child() noexcept;
  // Around a call by which the program changes users, groups or capabilities of all its threads. Before it the engine
  // gets hold of what needs rights, when it has not yet; when the second one returns, no thread of it has rights left that
  // the calling thread has not. On the calling thread.
  void before_identity_change() noexcept;
  void after_identity_change() noexcept;

  // Whether anything may be away: what a fork has to be careful about.
  [[nodiscard]] bool is_moving() const noexcept { return phase_.load(std::memory_order_acquire) == Phase::kRunning; }

 private:
  enum class Phase : std::uint32_t {
    kOff,        // not started, or given up
    kWaiting,    // one thread watches the size of the process
    kRunning,    // both threads work
  };
  enum class ChildResult : std::uint32_t { kPending, kReady, kUnmanaged, kNoUserfault, kTouched, kNoThread };

  // ---- background thread (engine.cc) ----
  static void background_entry(void* self) noexcept;
  void background() noexcept;
  [[nodiscard]] bool wait_for_need() noexcept;
  void work() noexcept;
  void look_for_growth() noexcept;
  void follow_budget() noexcept;
  void follow_device() noexcept;
  void look_at_leaving() noexcept;
  [[nodiscard]] bool wanted_device(std::array<char, kStatsDevice>& specification) const noexcept;
  void change_device(std::uint32_t change) noexcept;
  void watch_the_fault_thread() noexcept;
  void keep_off_the_faulter() noexcept;
  void publish() noexcept;
  void tell_notices() noexcept;
  void say_cause(std::span<char> to) const noexcept;
  void say(const char* text, const char* detail = "", const char* more = "") const noexcept EXCLUDES(said_mutex_);
  void open_slot() noexcept;
  void describe_session() noexcept;
  void note_limits(std::uint64_t ram, std::uint64_t total) noexcept;
  void record_events() noexcept;
  [[nodiscard]] std::uint64_t start_threshold() const noexcept;

  // ---- putting the pieces together, on the background thread (engine_assembly.cc) ----
  [[nodiscard]] Result<void> bring_up() noexcept;
  [[nodiscard]] Result<void> make_pieces() noexcept;
  [[nodiscard]] Result<void> make_mmu() noexcept;
  [[nodiscard]] Result<DeviceHandle> make_the_device() noexcept;
  [[nodiscard]] Result<void> make_pager() noexcept;
  [[nodiscard]] Result<void> start_fault_thread() noexcept;
  static void fault_entry(void* self) noexcept;
  void hear_of_mappings() noexcept;

  // ---- sessions (engine_session.cc) ----
  [[nodiscard]] bool make_threads() noexcept;
  void give_up(const Error& error) noexcept;
  [[nodiscard]] std::int64_t carry_out_hints() noexcept;
  [[nodiscard]] bool take_apart() noexcept;
  void close_memory() noexcept;
  void leave_watch() noexcept;

  [[nodiscard]] std::uint64_t own_bytes() const noexcept override;

  // ---- rights (engine_identity.cc) ----
  [[nodiscard]] bool is_ours() const noexcept;
  void note_own_identity() noexcept;
  void follow_identity() noexcept;
  void follow_identity_on_fault_thread() noexcept;
  void adopt_or_stop() const noexcept;
  void reset_identity_in_child() noexcept;

  // ---- fork (engine_fork.cc) ----
  [[nodiscard]] ChildResult take_over_in_child() noexcept;
  void end_in_child() noexcept;
  void wait_for_take_over() noexcept;
  [[nodiscard]] ChildResult bring_home_by_hand() noexcept;
  void go_on_unmanaged_or_stop(ChildResult result) const noexcept;
  [[noreturn]] void stop_child(ChildResult why) const noexcept;

  Settings settings_;
  StatsFile file_;
  EventFile event_file_;
  EventLog events_;
  EventRing* event_ring_ = nullptr;
  StatsSlot* slot_ = nullptr;  // never null once started
  StatsSlot own_slot_;         // where counters go when there is no statistics file, or no room in it
  PageRange forbidden_[kMostForbidden] = {};
  std::size_t forbidden_count_ = 0;

  SystemClock clock_;
  Reservation stacks_;  // the threads'
  Reservation tables_;  // everything but the stacks and the device's contents
  Reservation store_;   // the device's contents
  MemoryGauge gauge_;
  std::uint64_t mapped_ = 0;  // bytes of address space at the last look
  std::int64_t next_growth_look_ = 0;
  std::uint32_t budget_changes_ = 0;  // of the run's budget that have been followed
  std::uint32_t device_changes_ = 0;  // of the device that have been looked at
  // Of a session: what set_device() asks for, until device_done_.
  std::atomic<std::uint32_t> device_asked_{0};
  std::array<char, kStatsDevice> asked_device_{};
  char asked_device_process_[sizeof Settings::device_process] = {};
  Event device_done_;
  FaultWatch fault_watch_;
  std::uint64_t rewakes_ = 0;                // that have been done
  std::atomic<std::uint64_t> fault_rounds_{0};  // of serving that have begun
  EngineThreads* threads_ = nullptr;
  int background_thread_ = -1, fault_thread_ = -1;  // numbers

  std::atomic<Phase> phase_{Phase::kOff};
  ParkGate bring_up_gate_;    // a fork does not fall into the middle of bring_up()
  Event nudge_;               // ends the wait of the waiting phase early

  // Made by bring_up(), constant afterwards, inherited by children.
  ProcessMmu* mmu_ = nullptr;
  GuardedMmu* guarded_ = nullptr;  // the same, where it is one
  AddressSpace* space_ = nullptr;
  SwitchDevice* device_ = nullptr;
  Pager* pager_ = nullptr;
  FaultService* faults_ = nullptr;
  BesideFaulter beside_{clock_};
  MappingNews news_;  // the fault thread's, once it runs
  KeepsOffFaulter other_processor_;  // of the background thread
  HintQueue* hints_ = nullptr;  // sessions only
  bool asleep_ = false;  // in a child: the pieces are inherited, but not yet taken over

  // Rights. The background thread writes the identity while the fault thread has taken on the last one.
  std::atomic<int> process_{0};  // whose engine this is: a vfork child runs in our memory
  Identity identity_;
  std::atomic<std::uint32_t> identity_number_{0}, identity_on_fault_thread_{0};
  std::atomic<std::uint32_t> identity_asked_{0}, identity_done_{0};
  std::atomic<int> identity_of_{0};        // the thread to take after
  std::atomic<bool> rights_now_{false};    // bring up before they are gone
  std::int64_t next_identity_look_ = 0;
  Event identity_event_;

  // Of a session.
  Error given_up_{};  // why it is off
  enum class Stop : std::uint32_t { kNo, kAsked, kGo };  // asked: the asker may still be looking for whom to wake
  std::atomic<Stop> stopping_{Stop::kNo};
  std::atomic<bool> faults_stopping_{false};
  std::atomic<bool> stop_failed_{false};
  mutable Mutex said_mutex_;
  mutable char said_[248] GUARDED_BY(said_mutex_) = {};
  mutable std::uint32_t said_count_ GUARDED_BY(said_mutex_) = 0;

  // In a child.
  bool take_over_now_ = false;
  std::atomic<ChildResult> child_result_{ChildResult::kPending};
  Event child_event_;
};

}  // namespace whimbrel
