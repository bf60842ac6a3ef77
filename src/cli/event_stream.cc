#include "cli/event_stream.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <chrono>
#include <cstring>

#include "cli/event_text.h"
#include "cli/summary.h"
#include "runtime/settings.h"

namespace whimbrel::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kPage = 4096;
constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kSamplePause = 100 * kMillisecond;
// Each look takes a processor from the program for a moment. Stacks have to be matched with their faults soon; else there is room in
// the rings for far longer.
constexpr int kPauseMs = 50, kShortestPauseMs = 2;
constexpr std::size_t kFlushAt = std::size_t{64} << 10;
// A ring is used again when its owner has been dead and silent for so long: death is seen by process number, and in
// another namespace of these that may be wrong.
constexpr std::uint64_t kQuiet = 1000 * kMillisecond;

const char* place_name(Place place) {
  switch (place) {
    case Place::kNone: return "none";
    case Place::kRam: return "ram";
    case Place::kDevice: return "device";
  }
  return "none";
}

const char* cause_name(MoveCause cause) {
  switch (cause) {
    case MoveCause::kUser: return "user";
    case MoveCause::kFault: return "fault";
    case MoveCause::kPrefetch: return "prefetch";
    case MoveCause::kEviction: return "eviction";
    case MoveCause::kPressure: return "pressure";
    case MoveCause::kEvacuation: return "evacuation";
  }
  return "user";
}

}  // namespace

EventStream::~EventStream() {
  if (thread_.joinable()) {
    {
      const std::lock_guard hold(mutex_);
      stopping_ = true;
    }
    stop_.notify_all();
    thread_.join();
  }
  if (!path_.empty()) unlink(path_.c_str());
  if (output_ >= 0) close(output_);
}

bool EventStream::open(const std::string& output, const std::string& stats_path, stacks::FaultStacks* stacks, std::string* problem) {
  stacks_ = stacks;
  if (!output.empty()) output_ = ::open(output.c_str(), O_WRONLY | O_CREAT | O_TRUNC | O_CLOEXEC, 0644);
  if (!output.empty() && output_ < 0) {
    *problem = "--events " + output + ": " + std::strerror(errno);
    return false;
  }
  const std::string path = stats_path + kEventsSuffix;
  unlink(path.c_str());  // of an earlier process with our number, killed before it could
  const Result<EventFile> made = EventFile::create(path.c_str());
  if (!made) {
    *problem = "cannot create " + path + ": " + std::strerror(made.error().sys);
    return false;
  }
  file_ = *made;
  path_ = path;
  return true;
}

void EventStream::start(const StatsFile& stats, const std::vector<std::string>& command) {
  if (!file_) return;
  stats_ = stats;
  const StatsHeader& header = stats.layout().header;
  std::array<char, kStatsDevice> device;
  std::uint32_t changes = 0;
  (void)stats.device(device, &changes);  // nobody changes it yet
  const auto wall = std::chrono::system_clock::now().time_since_epoch();
  put_text(dumped({{"event", "run"},
                   {"version", 1},
                   {"time_ns", now_ns()},
                   {"unix_time_ns", std::chrono::duration_cast<std::chrono::nanoseconds>(wall).count()},
                   {"pid", getpid()},
                   {"ram_limit_bytes", header.ram_limit_bytes.load()},
                   {"total_limit_bytes", header.total_limit_bytes.load()},
                   {"device", std::string(device.data())},
                   {"page_bytes", kPage},
                   {"command", command}}));
  flush();
  // Signals are the other thread's, and a reader that goes away must not end us.
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  thread_ = std::thread([this] { run(); });
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
}

void EventStream::run() {
  int pause = kPauseMs;
  std::unique_lock hold(mutex_);
  while (!stopping_) {
    stop_.wait_for(hold, std::chrono::milliseconds(pause));
    hold.unlock();
    const bool any = take_all(false);
    pause = any && stacks_ != nullptr ? kShortestPauseMs : std::min(pause * 2, kPauseMs);
    note_changes();
    if (stacks_ != nullptr) stacks_->look(now_ns(), false);
    if (next_sample_ <= static_cast<std::int64_t>(now_ns())) {
      next_sample_ = static_cast<std::int64_t>(now_ns()) + kSamplePause;
      look_for_the_dead();
      sample();
    }
    if (buffer_.size() >= kFlushAt || !any) flush();
    hold.lock();
  }
}

bool EventStream::finish(const ProgramEnd& end, stacks::StackTotals* places, std::string* problem) {
  if (!file_) return true;
  {
    const std::lock_guard hold(mutex_);
    stopping_ = true;
  }
  stop_.notify_all();
  if (thread_.joinable()) thread_.join();
  sample();  // the last state of those that still have one
  look_for_the_dead();
  (void)take_all(true);
  note_changes();
  if (stacks_ != nullptr) {
    stacks_->look(now_ns(), true);
    *places = stacks_->totals();
    Json line{{"event", "stacks"}, {"time_ns", now_ns()}};
    line.update(stacks_json(*places));
    put_text(dumped(line));
  }
  put_text(dumped({{"event", "end"},
                   {"time_ns", now_ns()},
                   {"exit_status", end.signal != 0 ? 128 + end.signal : end.exit_status},
                   {"seconds", end.seconds},
                   {"events", events_},
                   {"lost", lost_}}));
  // Not the thread with its signals blocked any more.
  struct sigaction ignore {}, before {};
  ignore.sa_handler = SIG_IGN;
  sigaction(SIGPIPE, &ignore, &before);
  flush();
  sigaction(SIGPIPE, &before, nullptr);
  unlink(path_.c_str());
  path_.clear();
  if (output_ >= 0 && close(output_) != 0 && write_error_ == 0) write_error_ = errno;
  output_ = -1;
  if (write_error_ == 0) return true;
  *problem = std::string("the event stream is incomplete: ") + std::strerror(write_error_);
  return false;
}

// ---- taking --------------------------------------------------------------------------------------------------------

bool EventStream::take_all(bool last) {
  taken_.clear();
  for (std::size_t i = 0; i < kEventRings; ++i) {
    EventRing& ring = file_.layout().rings[i];
    const std::uint32_t pid = ring.owner.load(std::memory_order_acquire);
    if (pid == 0 || pid == kRingBeingTaken) continue;
    Owner& owner = owners_[i];
    if (owner.pid != pid || owner.started_ns != ring.started_ns.load(std::memory_order_relaxed)) meet(ring, owner);
    take(ring, owner, last);
  }
  write_taken();
  for (std::size_t i = 0; i < kEventRings; ++i) {
    Owner& owner = owners_[i];
    if (owner.pid == 0) continue;
    const std::uint64_t lost = file_.layout().rings[i].lost.load(std::memory_order_relaxed);
    if (lost != owner.lost) tell_lost(owner.pid, lost - owner.lost);
    owner.lost = lost;
  }
  const std::uint64_t without = file_.layout().header.lost.load(std::memory_order_relaxed);
  if (without != lost_without_ring_) tell_lost(0, without - lost_without_ring_);
  lost_without_ring_ = without;
  return !taken_.empty();
}

void EventStream::meet(EventRing& ring, Owner& owner) {
  owner = Owner();
  owner.pid = ring.owner.load(std::memory_order_relaxed);
  owner.started_ns = ring.started_ns.load(std::memory_order_relaxed);
  std::string name;
  for (const auto& c : ring.name) {
    if (c.load(std::memory_order_relaxed) == 0) break;
    name += c.load(std::memory_order_relaxed);
  }
  owner.session = ring.session.load(std::memory_order_relaxed);
  if (owner.session == 0 || have_sessions_.insert(owner.pid).second) {
    put_text(dumped({{"event", "process"},
                     {"time_ns", owner.started_ns},
                     {"pid", owner.pid},
                     {"parent", ring.parent.load(std::memory_order_relaxed)},
                     {"program", name}}));
  }
  if (owner.session != 0) put_text(dumped({{"event", "session"}, {"time_ns", owner.started_ns}, {"pid", owner.pid}, {"session", owner.session}}));
  next_sample_ = next_mappings_ = 0;
}

void EventStream::take(EventRing& ring, Owner& owner, bool last) {
  const std::uint32_t pid = owner.pid;
  const std::uint64_t unfinished = ring.take(owner.dead || last, [this, pid](const EventRecord& r) {
    taken_.push_back({r.time_ns.load(std::memory_order_relaxed), r.first_page, r.detail, pid, r.pages, r.kind, r.cause, r.from, r.to});
  });
  if (unfinished != 0) tell_lost(pid, unfinished);
}

void EventStream::write_taken() {
  // Threads and processes interleave; what one pass took is in order afterwards.
  std::stable_sort(taken_.begin(), taken_.end(), [](const Taken& a, const Taken& b) { return a.time_ns < b.time_ns; });
  if (stacks_ != nullptr) tell_stacks();
  if (output_ >= 0) {
    for (const Taken& taken : taken_) put_line(taken);
  }
  events_ += taken_.size();
}

void EventStream::tell_stacks() {
  for (const Taken& t : taken_) {
    if (t.kind != EventKind::kMove || t.cause != MoveCause::kFault || t.to != Place::kRam) continue;
    stacks_->served(t.pid, t.first_page, t.pages, t.time_ns, t.detail, t.from == Place::kNone);
  }
}

// Somebody has changed the run's budget or device (whimbrel budget, whimbrel device, or a key in whimbrel top).
void EventStream::note_changes() {
  const StatsHeader& header = stats_.layout().header;
  const std::uint32_t changes = header.budget_changes.load(std::memory_order_acquire);
  note_device();
  if (changes == budget_changes_) return;
  budget_changes_ = changes;
  put_text(dumped({{"event", "budget"},
                   {"time_ns", now_ns()},
                   {"ram_limit_bytes", header.ram_limit_bytes.load()},
                   {"total_limit_bytes", header.total_limit_bytes.load()}}));
}

void EventStream::note_device() {
  std::array<char, kStatsDevice> device;
  std::uint32_t changes = 0;
  if (stats_.layout().header.device_writes.load(std::memory_order_acquire) / 2 == device_changes_) return;
  if (!stats_.device(device, &changes)) return;  // is being written
  device_changes_ = changes;
  put_text(dumped({{"event", "device"}, {"time_ns", now_ns()}, {"device", std::string(device.data())}}));
}

void EventStream::put_line(const Taken& taken) {
  std::string& out = buffer_;
  out += taken.kind == EventKind::kMove ? "{\"event\":\"move\"" : taken.kind == EventKind::kDrop ? "{\"event\":\"drop\"" : "{\"event\":\"remap\"";
  put_number(out, ",\"time_ns\":", taken.time_ns);
  put_number(out, ",\"pid\":", taken.pid);
  put_number(out, ",\"address\":", taken.first_page * kPage);
  put_number(out, ",\"length\":", taken.pages * kPage);
  if (taken.kind == EventKind::kMove) {
    out.append(",\"from\":\"").append(place_name(taken.from)).append("\",\"to\":\"").append(place_name(taken.to));
    out.append("\",\"cause\":\"").append(cause_name(taken.cause)).append("\"");
    put_number(out, ",\"latency_ns\":", taken.detail);
  } else {
    if (taken.kind == EventKind::kRemap) put_number(out, ",\"to_address\":", taken.detail * kPage);
    out += ",\"cause\":\"user\"";
  }
  out += "}\n";
}

void EventStream::tell_lost(std::uint32_t pid, std::uint64_t count) {
  lost_ += count;
  put_text(dumped({{"event", "lost"}, {"time_ns", now_ns()}, {"pid", pid}, {"count", count}}));
}

void EventStream::look_for_the_dead() {
  std::erase_if(have_sessions_, [this](std::uint32_t pid) {
    if (!is_gone(pid)) return false;
    put_text(dumped({{"event", "exit"}, {"time_ns", now_ns()}, {"pid", pid}}));
    return true;
  });
  for (std::size_t i = 0; i < kEventRings; ++i) {
    Owner& owner = owners_[i];
    if (owner.pid == 0) continue;
    EventRing& ring = file_.layout().rings[i];
    if (!owner.dead) {
      note_death(owner, ring);
      continue;
    }
    if (ring.head.load(std::memory_order_relaxed) != ring.tail.load(std::memory_order_relaxed)) {
      owner.quiet_since_ns = 0;
    } else if (owner.quiet_since_ns == 0) {
      owner.quiet_since_ns = now_ns();
    } else if (now_ns() - owner.quiet_since_ns > kQuiet) {
      EventFile::release(ring);
      owner = Owner();
    }
  }
}

void EventStream::note_death(Owner& owner, const EventRing& ring) {
  const bool ended = ring.ended.load(std::memory_order_acquire) != 0;
  // Another program in the same process has taken a ring of its own.
  const bool replaced = std::any_of(owners_.begin(), owners_.end(), [&](const Owner& other) {
    return other.pid == owner.pid && other.session == owner.session && other.started_ns > owner.started_ns;
  });
  if (!ended && !replaced && !is_gone(owner.pid)) return;
  owner.dead = true;
  put_text(dumped(owner.session == 0 ? Json{{"event", "exit"}, {"time_ns", now_ns()}, {"pid", owner.pid}}
                                     : Json{{"event", "session_end"}, {"time_ns", now_ns()}, {"pid", owner.pid}, {"session", owner.session}}));
}

void EventStream::flush() {
  const char* at = buffer_.data();
  std::size_t left = write_error_ == 0 && output_ >= 0 ? buffer_.size() : 0;
  while (left != 0) {
    const ssize_t done = write(output_, at, left);
    if (done < 0 && errno == EINTR) continue;
    if (done <= 0) {
      write_error_ = done < 0 ? errno : EIO;
      break;
    }
    at += done;
    left -= static_cast<std::size_t>(done);
  }
  buffer_.clear();
}

}  // namespace whimbrel::cli
