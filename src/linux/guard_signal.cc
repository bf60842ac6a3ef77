#include "linux/guard_signal.h"

#include <signal.h>
#include <sys/syscall.h>
#include <ucontext.h>

#include <cerrno>
#include <cstring>

#include "base/mutex.h"
#include "linux/sys.h"

namespace whimbrel::guard_signal {
namespace {

// Read by handlers at any moment. An entry counts while its desk is set; in a child the range stays and the desk is gone.
struct Entry {
  std::atomic<std::uint64_t> begin{0}, end{0};
  std::atomic<FaultDesk*> desk{nullptr};
};
Entry g_arenas[kMostArenas];
std::atomic<std::uint32_t> g_top{0};
Mutex g_mutex;  // of whoever changes the table

struct sigaction g_earlier;
std::atomic<bool> g_installed{false};
std::atomic<int> g_owner{0};  // the process that has published arenas: a child of vfork() is another one in the same memory

// Threads that find, again and again without anything in between, open what they could not touch: the program itself has taken the rights away.
struct Suspect {
  std::atomic<std::uint64_t> key{0};
  std::atomic<std::uint32_t> count{0};
};
Suspect g_suspects[64];
constexpr std::uint32_t kHopeless = 1000;

constexpr std::uint64_t kWriteBit = 2;  // of the processor's error code

const Entry* entry_of(std::uint64_t address) noexcept {
  const std::uint32_t top = g_top.load(std::memory_order_acquire);
  for (std::uint32_t i = 0; i < top; ++i) {
    const std::uint64_t begin = g_arenas[i].begin.load(std::memory_order_acquire);
    if (begin <= address && address < g_arenas[i].end.load(std::memory_order_acquire)) return &g_arenas[i];
  }
  return nullptr;
}

// As the kernel has sets of signals.
constexpr std::uint64_t set_of(int signal) noexcept { return std::uint64_t{1} << (signal - 1); }

void say(const char* text) noexcept { (void)sys::write(2, text, std::strlen(text)); }

// Goes on without a handler: the access that is repeated, or the signal that is sent again, does what it would have done.
void end_by_default(int signal, const siginfo_t* info) noexcept {
  struct sigaction plain {};
  plain.sa_handler = SIG_DFL;
  (void)sigaction(signal, &plain, nullptr);
  if (info->si_code > 0) return;
  sys::call(SYS_tgkill, sys::getpid(), sys::gettid(), signal);
}

void call_earlier(int signal, siginfo_t* info, void* context) noexcept {
  const bool with_info = (g_earlier.sa_flags & SA_SIGINFO) != 0;
  if (!with_info && g_earlier.sa_handler == SIG_IGN && info->si_code <= 0) return;
  // The kernel ignores nothing that an access has raised.
  if (!with_info && (g_earlier.sa_handler == SIG_DFL || g_earlier.sa_handler == SIG_IGN)) return end_by_default(signal, info);
  // What it asked to be blocked while it runs; the return from the signal takes it back.
  std::uint64_t blocked = 0;
  std::memcpy(&blocked, &g_earlier.sa_mask, sizeof blocked);
  if ((g_earlier.sa_flags & SA_NODEFER) == 0) blocked |= set_of(signal);
  sys::call(SYS_rt_sigprocmask, SIG_BLOCK, sys::arg(&blocked), 0, sizeof blocked);
  if (with_info) {
    g_earlier.sa_sigaction(signal, info, context);
  } else {
    g_earlier.sa_handler(signal);
  }
}

// As the kernel does it where SIGBUS is blocked or ignored.
[[noreturn]] void end_by_bus_error(void* address) noexcept {
  struct sigaction plain {};
  plain.sa_handler = SIG_DFL;
  (void)sigaction(SIGBUS, &plain, nullptr);
  const std::uint64_t bus = set_of(SIGBUS);
  siginfo_t info{};
  info.si_signo = SIGBUS;
  info.si_code = SI_QUEUE;
  info.si_addr = address;
  for (;;) {
    sys::call(SYS_rt_tgsigqueueinfo, sys::getpid(), sys::gettid(), SIGBUS, sys::arg(&info));
    sys::call(SYS_rt_sigprocmask, SIG_UNBLOCK, sys::arg(&bus), 0, sizeof bus);
  }
}

Suspect& suspect_of(std::uint32_t thread) noexcept { return g_suspects[thread % std::size(g_suspects)]; }

bool is_hopeless(std::uint32_t thread, std::uint64_t address, std::uint64_t instruction) noexcept {
  Suspect& suspect = suspect_of(thread);
  const std::uint64_t key = address * 31 + instruction * 7 + thread;
  if (suspect.key.exchange(key, std::memory_order_relaxed) != key) suspect.count.store(0, std::memory_order_relaxed);
  return suspect.count.fetch_add(1, std::memory_order_relaxed) >= kHopeless;
}

void on_segv(int signal, siginfo_t* info, void* context) {
  const auto address = reinterpret_cast<std::uint64_t>(info->si_addr);
  const Entry* const entry = info->si_code > 0 ? entry_of(address) : nullptr;
  if (entry == nullptr) return call_earlier(signal, info, context);
  FaultDesk* const desk = entry->desk.load(std::memory_order_acquire);
  // Also when something in the child has touched it before its fork handlers have run, or there are none (a raw clone).
  const bool is_unmapped = info->si_code == SEGV_MAPERR;
  const bool is_child = desk == nullptr || (is_unmapped && sys::getpid() != g_owner.load(std::memory_order_relaxed));
  if (is_unmapped && !is_child) return call_earlier(signal, info, context);  // by the program itself
  if (is_child) {
    say("whimbrel: this forked process has touched memory of a session of its parent. Without userfaultfd a child does not "
        "inherit it; next: fork before the session is opened, use threads, or see: whimbrel doctor\n");
    return end_by_default(signal, info);
  }
  const auto& registers = static_cast<const ucontext_t*>(context)->uc_mcontext.gregs;
  const auto thread = static_cast<std::uint32_t>(sys::gettid());
  const bool write = (static_cast<std::uint64_t>(registers[REG_ERR]) & kWriteBit) != 0;
  switch (desk->wait(VirtualAddress(address), write, thread)) {
    case FaultDesk::Answer::kGoOn:
      suspect_of(thread).key.store(0, std::memory_order_relaxed);
      return;
    case FaultDesk::Answer::kWasOpen:
      if (is_hopeless(thread, address, static_cast<std::uint64_t>(registers[REG_RIP]))) call_earlier(signal, info, context);
      return;
    case FaultDesk::Answer::kFatal: end_by_bus_error(info->si_addr);
  }
}

}  // namespace

Result<void> install() noexcept {
  MutexLock hold(g_mutex);
  if (g_installed.load(std::memory_order_relaxed)) return {};
  struct sigaction ours {};
  ours.sa_sigaction = on_segv;
  ours.sa_flags = SA_SIGINFO | SA_ONSTACK | SA_NODEFER | SA_RESTART;
  if (sigaction(SIGSEGV, nullptr, &g_earlier) != 0 || sigaction(SIGSEGV, &ours, nullptr) != 0) {
    return fail(Errc::kNotSupported, 0, "sigaction(SIGSEGV)");
  }
  g_installed.store(true, std::memory_order_relaxed);
  return {};
}

bool is_first() noexcept {
  struct sigaction now {};
  return sigaction(SIGSEGV, nullptr, &now) == 0 && (now.sa_flags & SA_SIGINFO) != 0 && now.sa_sigaction == on_segv;
}

Result<void> publish(PageRange arena, FaultDesk& desk) noexcept {
  MutexLock hold(g_mutex);
  g_owner.store(sys::getpid(), std::memory_order_relaxed);
  for (std::uint32_t i = 0; i < kMostArenas; ++i) {
    Entry& entry = g_arenas[i];
    if (entry.end.load(std::memory_order_relaxed) != 0) continue;
    entry.desk.store(&desk, std::memory_order_relaxed);
    entry.begin.store(arena.first.address().raw(), std::memory_order_release);
    entry.end.store(arena.end().address().raw(), std::memory_order_release);
    if (g_top.load(std::memory_order_relaxed) <= i) g_top.store(i + 1, std::memory_order_release);
    return {};
  }
  return fail(Errc::kNoMemory, 0, "too many arenas");
}

void withdraw(PageRange arena) noexcept {
  MutexLock hold(g_mutex);
  for (Entry& entry : g_arenas) {
    if (entry.begin.load(std::memory_order_relaxed) != arena.first.address().raw()) continue;
    entry.end.store(0, std::memory_order_release);  // nobody finds it any more, whatever the beginning says
    entry.begin.store(0, std::memory_order_release);
    entry.desk.store(nullptr, std::memory_order_release);
  }
}

void forget_in_child() noexcept {
  g_mutex.reset_after_fork();
  for (Entry& entry : g_arenas) entry.desk.store(nullptr, std::memory_order_release);
}

}  // namespace whimbrel::guard_signal
