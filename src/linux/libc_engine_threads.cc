#include "linux/libc_engine_threads.h"

#include <sched.h>
#include <signal.h>
#include <sys/syscall.h>

#include <climits>

#include "base/check.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr int kFirstOther = 3;  // standard input, output and error stay: reports of sanitizers go there

void close_others(Descriptors::Span keep) noexcept {
  const int from = keep.first > kFirstOther ? keep.first : kFirstOther;
  if (keep.end <= from) {
    sys::close_range(kFirstOther, ~0u);
    return;
  }
  if (from > kFirstOther) sys::close_range(kFirstOther, static_cast<unsigned>(from) - 1);
  sys::close_range(static_cast<unsigned>(keep.end), ~0u);
}

}  // namespace

LibcEngineThreads::~LibcEngineThreads() {
  for (const Slot& slot : slots_) CHECK(!slot.taken, "an engine thread was not joined");
}

void* LibcEngineThreads::run(void* slot_pointer) {
  auto* const slot = static_cast<Slot*>(slot_pointer);
  slot->thread_id.store(static_cast<std::uint32_t>(sys::gettid()), std::memory_order_release);
  if (slot->first) {
    CHECK(sys::call(SYS_unshare, CLONE_FILES) == 0, "the engine cannot have a descriptor table of its own");
    close_others(slot->owner->options_.keep);
  }
  slot->body(slot->argument);
  slot->thread_id.store(0, std::memory_order_release);
  return nullptr;
}

Result<int> LibcEngineThreads::start(Body body, void* argument, bool first) noexcept {
  int n = 0;
  {
    const MutexLock lock(mutex_);
    while (n < kMost && slots_[n].taken) ++n;
    if (n == kMost) return fail(Errc::kAgain, 0, "too many engine threads");
    slots_[n].taken = true;
  }
  Slot& slot = slots_[n];
  slot.body = body;
  slot.argument = argument;
  slot.owner = this;
  slot.first = first;
  const std::size_t least = static_cast<std::size_t>(PTHREAD_STACK_MIN) + 64 * 1024;
  pthread_attr_t attributes;
  pthread_attr_init(&attributes);
  pthread_attr_setstacksize(&attributes, options_.stack_bytes < least ? least : options_.stack_bytes);
  sigset_t all, before;
  sigfillset(&all);
  pthread_sigmask(SIG_SETMASK, &all, &before);
  const int error = pthread_create(&slot.thread, &attributes, run, &slot);
  pthread_sigmask(SIG_SETMASK, &before, nullptr);
  pthread_attr_destroy(&attributes);
  if (error == 0) return n;
  const MutexLock lock(mutex_);
  slot.taken = false;
  return fail(sys::errc_of(error), error, "pthread_create");
}

Result<int> LibcEngineThreads::start_first(Body body, void* argument) noexcept { return start(body, argument, true); }

Result<int> LibcEngineThreads::start_another(Body body, void* argument) noexcept {
  return start(body, argument, false);
}

void LibcEngineThreads::join(int n) noexcept {
  CHECK(n >= 0 && n < kMost && slots_[n].taken, "no such engine thread");
  pthread_join(slots_[n].thread, nullptr);
  const MutexLock lock(mutex_);
  slots_[n].taken = false;
}

std::uint32_t LibcEngineThreads::thread_id(int n) const noexcept {
  return slots_[n].thread_id.load(std::memory_order_acquire);
}

void LibcEngineThreads::forget_after_fork() noexcept {
  mutex_.reset_after_fork();
  for (Slot& slot : slots_) {
    slot.thread_id.store(0, std::memory_order_relaxed);
    slot.taken = false;
  }
}

}  // namespace whimbrel
