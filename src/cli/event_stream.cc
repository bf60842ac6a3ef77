#include "cli/event_stream.h"

#include <fcntl.h>
#include <signal.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <charconv>
#include <chrono>
#include <cstring>
#include <functional>
#include <nlohmann/json.hpp>
#include <string_view>

#include "cli/summary.h"
#include "report/process_mappings.h"

namespace whimbrel::cli {
namespace {

using Json = nlohmann::ordered_json;

constexpr std::uint64_t kPage = 4096;
constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kSamplePause = 100 * kMillisecond;
constexpr std::int64_t kMappingsPause = 1000 * kMillisecond;
constexpr int kShortestPauseMs = 2, kLongestPauseMs = 20;
constexpr std::size_t kFlushAt = std::size_t{64} << 10;
// A ring is used again when its owner has been dead and silent for so long: death is seen by process number, and in
// another namespace of these that may be wrong.
constexpr std::uint64_t kQuiet = 1000 * kMillisecond;
// Of more than so many the largest are named.
constexpr std::size_t kMostMappings = 512;

std::uint64_t now_ns() { return static_cast<std::uint64_t>(std::chrono::steady_clock::now().time_since_epoch().count()); }

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

void put_number(std::string& to, std::string_view name, std::uint64_t value) {
  char digits[24];
  const auto [end, error] = std::to_chars(digits, digits + sizeof digits, value);
  to.append(name).append(digits, static_cast<std::size_t>(end - digits));
}

std::string dumped(const Json& line) { return line.dump(-1, ' ', false, Json::error_handler_t::replace); }

bool is_gone(std::uint32_t pid) { return kill(static_cast<pid_t>(pid), 0) != 0 && errno == ESRCH; }

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
  const std::string path = stats_path + ".events";
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
  int pause = kLongestPauseMs;
  std::unique_lock hold(mutex_);
  while (!stopping_) {
    stop_.wait_for(hold, std::chrono::milliseconds(pause));
    hold.unlock();
    const bool any = take_all(false);
    pause = any ? kShortestPauseMs : std::min(pause * 2, kLongestPauseMs);
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
  put_text(dumped({{"event", "process"},
                   {"time_ns", owner.started_ns},
                   {"pid", owner.pid},
                   {"parent", ring.parent.load(std::memory_order_relaxed)},
                   {"program", name}}));
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
  for (std::size_t i = 0; i < kEventRings; ++i) {
    Owner& owner = owners_[i];
    if (owner.pid == 0) continue;
    if (!owner.dead) {
      // Another program in the same process has taken a ring of its own.
      const bool replaced = std::any_of(owners_.begin(), owners_.end(), [&](const Owner& other) {
        return other.pid == owner.pid && other.started_ns > owner.started_ns;
      });
      owner.dead = replaced || is_gone(owner.pid);
      if (owner.dead) put_text(dumped({{"event", "exit"}, {"time_ns", now_ns()}, {"pid", owner.pid}}));
      continue;
    }
    EventRing& ring = file_.layout().rings[i];
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

// ---- state ---------------------------------------------------------------------------------------------------------

void EventStream::sample() {
  if (output_ < 0) return;
  const StatsLayout& layout = stats_.layout();
  const std::uint32_t used = std::min<std::uint32_t>(layout.header.next_slot, static_cast<std::uint32_t>(kStatsSlots));
  const bool mappings = next_mappings_ <= static_cast<std::int64_t>(now_ns());
  if (mappings) next_mappings_ = static_cast<std::int64_t>(now_ns()) + kMappingsPause;
  std::unordered_map<std::uint32_t, std::uint32_t> latest;  // a process that became another program has several slots
  for (std::uint32_t i = 0; i < used; ++i) latest[layout.slots[i].pid] = i;
  for (std::uint32_t i = 0; i < used; ++i) {
    const StatsSlot& slot = layout.slots[i];
    if (slot.state != SlotState::kLive || slot.mode != EngineMode::kManaged) continue;
    // What the dead have left is said once.
    const bool dead = latest[slot.pid] != i || is_gone(slot.pid);
    if (!dead) sampled_last_.erase(i);
    else if (!sampled_last_.insert(i).second) continue;
    const PagerStats& pager = slot.pager;
    std::string& out = buffer_;
    put_number(out, "{\"event\":\"sample\",\"time_ns\":", now_ns());
    put_number(out, ",\"pid\":", slot.pid);
    put_number(out, ",\"image\":", i);
    put_number(out, ",\"resident_bytes\":", pager.resident_pages * kPage);
    put_number(out, ",\"limit_bytes\":", pager.resident_limit_pages * kPage);
    put_number(out, ",\"away_bytes\":", slot.stored_pages * kPage);
    put_number(out, ",\"compressed_bytes\":", slot.compressed_bytes);
    put_number(out, ",\"held_bytes\":", slot.held_bytes);
    put_number(out, ",\"total_bytes\":", pager.total_bytes);
    put_number(out, ",\"pages_out\":", pager.pages_out);
    put_number(out, ",\"unchanged_out\":", pager.unchanged_out);
    put_number(out, ",\"pages_home\":", pager.pages_home);
    put_number(out, ",\"faults\":", pager.faults);
    put_number(out, ",\"zero_faults\":", pager.holes);
    put_number(out, ",\"wait_ns\":", pager.wait_ns);
    put_number(out, ",\"back_pressure\":", pager.back_pressure);
    put_number(out, ",\"over_limit\":", pager.over_limit);
    put_number(out, ",\"refused_pages\":", pager.refused_pages);
    out += "}\n";
    if (mappings && !dead) sample_mappings(slot.pid);
  }
}

void EventStream::sample_mappings(std::uint32_t pid) {
  auto found = report::private_mappings(pid);
  const std::size_t left_out = found.size() > kMostMappings ? found.size() - kMostMappings : 0;
  if (left_out != 0) {
    std::nth_element(found.begin(), found.begin() + kMostMappings, found.end(),
                     [](const auto& a, const auto& b) { return a.length > b.length; });
    found.resize(kMostMappings);
    std::sort(found.begin(), found.end(), [](const auto& a, const auto& b) { return a.address < b.address; });
  }
  Json list = Json::array();
  for (const auto& [address, length, name] : found) list.push_back({address, length, name});
  const std::string text = list.dump(-1, ' ', false, Json::error_handler_t::replace);
  const std::size_t hash = std::hash<std::string>()(text);
  if (found.empty() || mappings_[pid] == hash) return;
  mappings_[pid] = hash;
  put_number(buffer_, "{\"event\":\"mappings\",\"time_ns\":", now_ns());
  put_number(buffer_, ",\"pid\":", pid);
  put_number(buffer_, ",\"left_out\":", left_out);
  buffer_ += ",\"mappings\":" + text + "}\n";
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
