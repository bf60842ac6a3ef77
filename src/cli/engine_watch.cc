#include "cli/engine_watch.h"

#include <signal.h>

#include <algorithm>
#include <cstdio>
#include <fstream>
#include <optional>
#include <sstream>

namespace whimbrel::cli {
namespace {

constexpr auto kPause = std::chrono::seconds(1);
constexpr auto kAbortTakes = std::chrono::seconds(5);
// Who has not looked for so long was stopped himself: what threads did meanwhile is not known.
constexpr auto kUnseen = std::chrono::seconds(3);
constexpr unsigned kExiting = 0x4;  // proc(5), stat: flags of the kernel's task, PF_EXITING

struct ThreadState {
  char state = 0;
  bool exiting = false;
};

// proc(5): the state follows the name, which may hold anything, and the flags are the sixth field after it.
std::optional<ThreadState> read_state(std::uint32_t pid, std::uint32_t thread) {
  std::ifstream file("/proc/" + std::to_string(pid) + "/task/" + std::to_string(thread) + "/stat");
  std::string line;
  if (!std::getline(file, line)) return std::nullopt;
  const std::size_t name_end = line.rfind(')');
  if (name_end == std::string::npos) return std::nullopt;
  std::istringstream rest(line.substr(name_end + 1));
  ThreadState out;
  std::string skipped;
  unsigned flags = 0;
  rest >> out.state;
  for (int i = 0; i < 5; ++i) rest >> skipped;
  rest >> flags;
  if (!rest) return std::nullopt;
  out.exiting = (flags & kExiting) != 0;
  return out;
}

bool is_stopped(char state) { return state == 'T' || state == 't'; }
bool is_dead(char state) { return state == 'Z' || state == 'X' || state == 'x'; }

std::chrono::steady_clock::time_point when(std::uint64_t monotonic_ns) {
  return std::chrono::steady_clock::time_point(std::chrono::nanoseconds(monotonic_ns));
}

long seconds_of(std::chrono::steady_clock::duration d) { return std::chrono::duration_cast<std::chrono::seconds>(d).count(); }

}  // namespace

void EngineWatch::look_at(Time now) {
  if (patience_.count() == 0 || now < next_look_) return;
  if (next_look_ != Time{} && next_look_ + kUnseen < now) processes_.clear();
  next_look_ = now + kPause;
  const std::uint32_t used = std::min<std::uint32_t>(layout_.header.next_slot.load(std::memory_order_acquire),
                                                     static_cast<std::uint32_t>(kStatsSlots));
  for (std::uint32_t i = 0; i < used; ++i) {
    StatsSlot& slot = layout_.slots[i];
    const bool managed = slot.state.load(std::memory_order_acquire) == SlotState::kLive &&
                         slot.mode.load(std::memory_order_relaxed) == EngineMode::kManaged;
    if (!managed) {
      processes_.erase(i);
      continue;
    }
    Process& process = processes_[i];
    const std::uint32_t pid = slot.pid.load(std::memory_order_relaxed);
    const std::uint64_t started = slot.started_ns.load(std::memory_order_relaxed);
    if (process.pid != pid || process.started_ns != started) {
      process = Process();
      process.pid = pid;
      process.started_ns = started;
      process.session = slot.session.load(std::memory_order_relaxed);
    }
    look_at_process(slot, process, now);
  }
}

void EngineWatch::look_at_process(StatsSlot& slot, Process& process, Time now) {
  if (process.lost) {
    if (process.lost_at + kAbortTakes <= now && !is_replaced(process)) kill(static_cast<pid_t>(process.pid), SIGKILL);
    return;
  }
  const std::optional<ThreadState> main = read_state(process.pid, process.pid);
  if (!main || is_dead(main->state) || main->exiting) return;
  if (is_stopped(main->state) || is_engine_stopped(slot, process)) {  // as a whole: by a signal, or a debugger
    process.fault.stopped = process.background.stopped = false;
    process.said_serving = slot.serving_since_ns.load(std::memory_order_relaxed);
    process.waits.forget();
    return;
  }
  if (const char* why = trouble(process, process.fault, slot.fault_thread.load(std::memory_order_acquire), now)) {
    if (!is_replaced(process)) end(process, why, now);
    return;
  }
  const std::chrono::nanoseconds unserved(slot.unserved_ns.load(std::memory_order_relaxed));
  if (unserved >= patience_) {
    if (!is_replaced(process)) end(process, "takes up nothing", now);
    return;
  }
  const std::uint32_t background = slot.background_thread.load(std::memory_order_acquire);
  const char* why = trouble(process, process.background, background, now);
  const std::uint64_t beat = slot.background_beat_ns.load(std::memory_order_relaxed);
  if (why == nullptr && process.background.seen && beat != 0 && when(beat) + patience_ < now) why = "does not answer";
  if (why != nullptr && !process.said_background && !is_replaced(process)) {
    process.said_background = true;
    say(process, std::string("whimbrel's background thread ") + why + "; its budget is held at faults alone from now on",
        "end and restart the program when the budget matters; report this with the output of `whimbrel doctor`");
  }
  look_at_serving(slot, process, now);
  look_at_waits(slot, process, now);
}

// Reading what each thread waits for costs some microseconds a thread: not each second.
void EngineWatch::look_at_waits(StatsSlot& slot, Process& process, Time now) {
  if (now < process.next_waits_look) return;
  const bool idle = slot.serving_since_ns.load(std::memory_order_relaxed) == 0;
  const MemoryWaits::Found found = process.waits.look(
      process.pid, {slot.fault_thread.load(std::memory_order_relaxed), slot.background_thread.load(std::memory_order_relaxed)},
      now, patience_ / 4, idle);
  if (found.rewake) slot.rewakes_asked.fetch_add(1, std::memory_order_relaxed);
  process.next_waits_look = now + (found.rewake ? kPause : std::max<Time::duration>(kPause, patience_ / 4));
  if (found.helped == 0) return;
  say(process, "thread " + std::to_string(found.helped) + " waited " + std::to_string(seconds_of(found.waited)) +
      " s for memory that nobody was bringing; it has been made to ask again and goes on",
      "nothing is lost; this should not happen: report it with the output of `whimbrel doctor`");
}

// Both threads: a program that is stopped while one of its threads waits for memory inside a system call stops no further.
bool EngineWatch::is_engine_stopped(const StatsSlot& slot, const Process& process) {
  for (const auto* thread : {&slot.fault_thread, &slot.background_thread}) {
    const std::uint32_t number = thread->load(std::memory_order_acquire);
    const std::optional<ThreadState> state = number == 0 ? std::nullopt : read_state(process.pid, number);
    if (!state || !is_stopped(state->state)) return false;
  }
  return true;
}

void EngineWatch::look_at_serving(const StatsSlot& slot, Process& process, Time now) {
  const std::uint64_t since = slot.serving_since_ns.load(std::memory_order_relaxed);
  if (process.said_serving != 0 && since != process.said_serving) {
    if (since == 0 || now < when(since) + patience_) say(process, "memory is being served again", "");
    process.said_serving = 0;
  }
  if (since == 0 || process.said_serving != 0 || now < when(since) + patience_) return;
  process.said_serving = since;
  say(process, "a touch of memory that is away has not been answered for " + std::to_string(seconds_of(now - when(since))) + " s",
      "look at what the device depends on (disk, server); the program waits and loses nothing meanwhile");
}

const char* EngineWatch::trouble(const Process& process, Watched& watched, std::uint32_t thread, Time now) const {
  if (watched.thread != thread) {
    watched = Watched();
    watched.thread = thread;
  }
  if (thread == 0) return nullptr;
  const std::optional<ThreadState> state = read_state(process.pid, thread);
  if (!state || is_dead(state->state)) {
    // Twice: a process that ends, or becomes another program, loses its threads in no order. It may have ended before the
    // first look; that the number means a thread of this process is asked before anything is done (is_replaced).
    return ++watched.looks_gone >= 2 ? "has ended" : nullptr;
  }
  watched.seen = true;
  watched.looks_gone = 0;
  if (!is_stopped(state->state)) {
    watched.stopped = false;
    return nullptr;
  }
  if (!watched.stopped) watched.stopped_since = now;
  watched.stopped = true;
  return watched.stopped_since + patience_ <= now ? "has been stopped by itself" : nullptr;
}

bool EngineWatch::is_replaced(const Process& process) const {
  const std::uint32_t used = std::min<std::uint32_t>(layout_.header.next_slot.load(std::memory_order_acquire),
                                                     static_cast<std::uint32_t>(kStatsSlots));
  for (std::uint32_t i = 0; i < used; ++i) {
    const StatsSlot& slot = layout_.slots[i];
    if (slot.pid.load(std::memory_order_relaxed) == process.pid && slot.session.load(std::memory_order_relaxed) == process.session &&
        slot.started_ns.load(std::memory_order_relaxed) > process.started_ns) {
      return true;
    }
  }
  std::ifstream maps("/proc/" + std::to_string(process.pid) + "/maps");
  for (std::string line; std::getline(maps, line);) {
    if (line.find(path_) != std::string::npos) return false;
  }
  return true;
}

void EngineWatch::end(Process& process, const char* why, Time now) {
  process.lost = true;
  process.lost_at = now;
  say(process, std::string("whimbrel's fault thread ") + why + ": memory that is away cannot be had any more, and the program is ended",
      "find out who touched the thread named whimbrel-fault (a debugger, a seccomp filter that ends threads); report this "
      "with the output of `whimbrel doctor` otherwise");
  kill(static_cast<pid_t>(process.pid), SIGABRT);
}

void EngineWatch::say(const Process& process, const std::string& what, const std::string& next) const {
  std::fprintf(stderr, "whimbrel: process %u: %s\n", process.pid, what.c_str());
  if (!next.empty()) std::fprintf(stderr, "  next: %s\n", next.c_str());
}

}  // namespace whimbrel::cli
