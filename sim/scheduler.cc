#include "sim/scheduler.h"

#include <algorithm>
#include <cstdarg>
#include <cstdio>
#include <limits>

#include "base/check.h"
#include "sim/sim_clock.h"

namespace whimbrel::sim {

Scheduler::Scheduler(Choices& choices, SimClock& clock, Options options)
    : choices_(choices), clock_(clock), options_(options), delays_left_(options.max_delays) {
  CHECK(current_ == nullptr, "one world at a time");
  current_ = this;
  set_blocking_hook(this);
}

Scheduler::~Scheduler() {
  set_blocking_hook(nullptr);
  current_ = nullptr;
}

void Scheduler::spawn(std::string name, Role role, std::function<void()> body) {
  auto task = std::make_unique<Task>();
  task->name = std::move(name);
  task->role = role;
  task->fiber = std::make_unique<Fiber>(std::move(body), main_);
  tasks_.push_back(std::move(task));
}

Scheduler::Outcome Scheduler::run() {
  CHECK(running_ == nullptr, "run() from within a fiber");
  while (workers_left()) {
    if (++steps_ > options_.max_steps) return Outcome::kStepLimit;
    clock_.advance(options_.step_ns);
    wake_the_overdue();
    Task* next = choose();
    if (next == nullptr) {
      if (!move_time_on()) return Outcome::kDeadlock;
      continue;
    }
    last_yielded_ = false;
    running_ = next;
    next->fiber->resume_from(main_);
    running_ = nullptr;
    last_ = next;
    if (next->fiber->finished()) {
      // Keep the turn: the one after the finished fiber is next.
      auto it = std::find_if(tasks_.begin(), tasks_.end(), [&](const auto& t) { return t.get() == next; });
      std::rotate(tasks_.begin(), it + 1, tasks_.end());
      tasks_.pop_back();
      last_ = nullptr;
    }
  }
  return Outcome::kFinished;
}

Scheduler::Task* Scheduler::choose() {
  // Candidates in turn, beginning with who ran last, or behind him when he yielded.
  std::size_t first = 0;
  for (std::size_t i = 0; i < tasks_.size(); ++i) {
    if (tasks_[i].get() == last_) first = last_yielded_ ? i + 1 : i;
  }
  Task* ready[64];
  std::uint32_t count = 0;
  for (std::size_t i = 0; i < tasks_.size() && count < 64; ++i) {
    Task* task = tasks_[(first + i) % tasks_.size()].get();
    if (task->ready) ready[count++] = task;
  }
  if (count == 0) return nullptr;
  if (holds_course_) return ready[0];
  if (choices_.is_random()) return ready[choices_.pick_rarely(count, options_.random_one_in)];
  const std::uint32_t skip = choices_.pick(std::min(count, delays_left_ + 1));
  delays_left_ -= skip;
  return ready[skip];
}

void Scheduler::switch_away() {
  CHECK(running_ != nullptr, "only a fiber can wait");
  main_.resume_from(*running_->fiber);
}

void Scheduler::point() {
  if (running_ != nullptr) switch_away();
}

void Scheduler::yield() {
  if (running_ == nullptr) return;
  last_yielded_ = true;
  switch_away();
}

void Scheduler::sleep(std::int64_t nanoseconds) {
  (void)block(nullptr, std::max<std::int64_t>(nanoseconds, 0), "sleep");
}

bool Scheduler::block(const void* key, std::int64_t nanoseconds, const char* why) {
  Task* self = running_;
  CHECK(self != nullptr, "only a fiber can wait");
  self->ready = false;
  self->timed_out = false;
  self->key = key;
  self->why = why;
  self->asleep_since = ++sleeps_;
  constexpr std::int64_t kFar = std::numeric_limits<std::int64_t>::max() / 2;
  self->deadline = nanoseconds < 0 ? -1 : clock_.now_ns() + std::min(nanoseconds, kFar);
  switch_away();
  return !self->timed_out;
}

int Scheduler::wake_key(const void* key, int count) {
  int woken = 0;
  while (woken < count) {
    Task* oldest = nullptr;
    for (const auto& task : tasks_) {
      if (task->ready || task->key != key || key == nullptr) continue;
      if (oldest == nullptr || task->asleep_since < oldest->asleep_since) oldest = task.get();
    }
    if (oldest == nullptr) break;
    oldest->ready = true;
    oldest->key = nullptr;
    oldest->deadline = -1;
    ++woken;
  }
  return woken;
}

bool Scheduler::wake_the_overdue() {
  bool any = false;
  for (const auto& task : tasks_) {
    if (task->ready || task->deadline < 0 || task->deadline > clock_.now_ns()) continue;
    task->ready = true;
    task->timed_out = true;
    task->key = nullptr;
    task->deadline = -1;
    any = true;
  }
  return any;
}

// Everybody waits: time passes until the first one's sleep is over.
bool Scheduler::move_time_on() {
  std::int64_t earliest = -1;
  for (const auto& task : tasks_) {
    if (!task->ready && task->deadline >= 0 && (earliest < 0 || task->deadline < earliest)) earliest = task->deadline;
  }
  if (earliest < 0) return false;
  clock_.advance(earliest - clock_.now_ns());
  return wake_the_overdue();
}

bool Scheduler::workers_left() const {
  return std::any_of(tasks_.begin(), tasks_.end(), [](const auto& task) { return task->role == Role::kWorker; });
}

void Scheduler::note(const char* format, ...) {
  if (!traces_) return;
  const Task* running = current_ != nullptr ? current_->running_ : nullptr;
  std::fprintf(stderr, "%6llu %-14s ", static_cast<unsigned long long>(current_ != nullptr ? current_->steps_ : 0),
               running != nullptr ? running->name.c_str() : "-");
  va_list arguments;
  va_start(arguments, format);
  std::vfprintf(stderr, format, arguments);
  va_end(arguments);
  std::fputc('\n', stderr);
}

std::string Scheduler::describe() const {
  std::string text;
  for (const auto& task : tasks_) {
    text += "  " + task->name + ": " + (task->ready ? std::string("ready") : std::string("waits: ") + task->why) + "\n";
  }
  return text;
}

bool Scheduler::wait(const std::atomic<std::uint32_t>& word, std::uint32_t expected,
                     std::int64_t nanoseconds) noexcept {
  if (running_ == nullptr) {
    CHECK(false, "a thread outside the simulated world would sleep for ever");
  }
  if (word.load(std::memory_order_relaxed) != expected) return true;
  (void)block(&word, nanoseconds, "Mutex or Event");
  return true;
}

bool Scheduler::wake(const std::atomic<std::uint32_t>& word, int count) noexcept {
  // A good place for another thread to go on: it has just been let in.
  if (wake_key(&word, count) > 0) point();
  return true;
}

}  // namespace whimbrel::sim
