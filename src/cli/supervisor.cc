#include "cli/supervisor.h"

#include <fcntl.h>
#include <sys/prctl.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <chrono>
#include <csignal>
#include <cstdlib>
#include <ctime>

namespace whimbrel::cli {
namespace {

constexpr timespec kIdlePeriod{0, 250'000'000};

std::vector<char*> pointers(const std::vector<std::string>& strings) {
  std::vector<char*> out;
  for (const std::string& s : strings) out.push_back(const_cast<char*>(s.c_str()));
  out.push_back(nullptr);
  return out;
}

// Everything that can be waited for. SIGSEGV and its like stay as they are: they are about ourselves.
sigset_t forwarded_signals() {
  sigset_t set;
  sigfillset(&set);
  for (const int signal : {SIGSEGV, SIGBUS, SIGFPE, SIGILL, SIGTRAP, SIGABRT, SIGSYS, SIGTTIN, SIGTTOU}) {
    sigdelset(&set, signal);
  }
  return set;
}

[[noreturn]] void become_program(const Launch& launch, const sigset_t& mask, int report, int go, pid_t parent) {
  char word;
  while (go >= 0 && read(go, &word, 1) < 0 && errno == EINTR) {
  }
  // The caller's mask and a whimbrel that dies by SIGKILL: the program would go on without anybody to answer for it.
  prctl(PR_SET_PDEATHSIG, SIGKILL);
  if (getppid() == parent) {
    sigprocmask(SIG_SETMASK, &mask, nullptr);
    std::vector<char*> arguments = pointers(launch.arguments);
    std::vector<char*> environment = pointers(launch.environment);
    execve(launch.path.c_str(), arguments.data(), environment.data());
    const int error = errno;
    (void)!write(report, &error, sizeof error);
  }
  _exit(127);
}

void give_away_streams() {
  const int nothing = open("/dev/null", O_RDWR | O_CLOEXEC);
  if (nothing < 0) return;
  dup2(nothing, STDIN_FILENO);
  dup2(nothing, STDOUT_FILENO);
  if (nothing > STDOUT_FILENO) close(nothing);
}

// The program stopped: so do we, so that the shell sees a stopped job; when continued, it goes on too.
void stop_with(pid_t child, int signal) {
  struct sigaction old_action{}, default_action{};
  default_action.sa_handler = SIG_DFL;
  sigaction(signal, &default_action, &old_action);
  sigset_t only, old_mask;
  sigemptyset(&only);
  sigaddset(&only, signal);
  raise(signal);
  sigprocmask(SIG_UNBLOCK, &only, &old_mask);  // stops here
  sigprocmask(SIG_SETMASK, &old_mask, nullptr);
  sigaction(signal, &old_action, nullptr);
  kill(child, SIGCONT);
}

void pass_on(pid_t child, const siginfo_t& info) {
  // What the terminal sends goes to the whole foreground group: the program has had it already.
  if (info.si_code == SI_KERNEL) return;
  // Our own child's signals to its group reach us too; sending them back would never end.
  if (info.si_code <= 0 && info.si_pid == child) return;
  kill(child, info.si_signo);
}

// Collects state changes. True: the program has ended and `end` says how.
bool collect(pid_t child, ProgramEnd& end) {
  for (;;) {
    int status = 0;
    const pid_t got = wait4(child, &status, WNOHANG | WUNTRACED, &end.usage);
    if (got < 0 && errno == EINTR) continue;
    if (got < 0) return true;  // cannot happen while we are the parent
    if (got == 0) return false;
    if (WIFSTOPPED(status)) {
      stop_with(child, WSTOPSIG(status));
      continue;
    }
    end.exit_status = WIFEXITED(status) ? WEXITSTATUS(status) : 0;
    end.signal = WIFSIGNALED(status) ? WTERMSIG(status) : 0;
    end.dumped_core = WIFSIGNALED(status) && WCOREDUMP(status);
    return true;
  }
}

}  // namespace

ProgramEnd run_program(const Launch& launch, const std::function<void()>& idle) {
  ProgramEnd end;
  const auto started = std::chrono::steady_clock::now();
  const sigset_t waited_for = forwarded_signals();
  sigset_t old_mask;
  sigprocmask(SIG_BLOCK, &waited_for, &old_mask);
  struct sigaction old_child{}, default_action{};
  default_action.sa_handler = SIG_DFL;
  sigaction(SIGCHLD, &default_action, &old_child);  // ignored by some callers: then nobody could be waited for

  int report[2];
  if (pipe2(report, O_CLOEXEC) != 0) {
    end.start_error = errno;
    return end;
  }
  int go[2] = {-1, -1};
  if (launch.before_start && pipe2(go, O_CLOEXEC) != 0) {
    end.start_error = errno;
    return end;
  }
  const pid_t parent = getpid();
  const pid_t child = fork();
  if (child == 0) {
    if (old_child.sa_handler == SIG_IGN) sigaction(SIGCHLD, &old_child, nullptr);
    if (go[1] >= 0) close(go[1]);
    become_program(launch, old_mask, report[1], go[0], parent);
  }
  if (go[0] >= 0) {
    close(go[0]);
    if (child > 0) launch.before_start(child);
    close(go[1]);  // which is the word
  }
  close(report[1]);
  if (launch.give_away_streams && child > 0) give_away_streams();
  int start_error = 0;
  if (child < 0) {
    start_error = errno;
  } else {
    ssize_t got;
    do got = read(report[0], &start_error, sizeof start_error);
    while (got < 0 && errno == EINTR);
    if (got <= 0) start_error = 0;
  }
  close(report[0]);
  end.start_error = start_error;
  if (child > 0) {
    while (!collect(child, end)) {
      siginfo_t info{};
      const int signal = sigtimedwait(&waited_for, &info, &kIdlePeriod);
      if (signal > 0 && signal != SIGCHLD) pass_on(child, info);
      if (signal < 0 && idle) idle();
    }
  }
  sigaction(SIGCHLD, &old_child, nullptr);
  sigprocmask(SIG_SETMASK, &old_mask, nullptr);
  end.seconds = std::chrono::duration<double>(std::chrono::steady_clock::now() - started).count();
  return end;
}

void end_like(const ProgramEnd& end) {
  if (end.signal != 0) {
    const rlimit no_core{0, 0};
    setrlimit(RLIMIT_CORE, &no_core);
    prctl(PR_SET_DUMPABLE, 0);  // also keeps core_pattern pipes from being started
    signal(end.signal, SIG_DFL);
    sigset_t only;
    sigemptyset(&only);
    sigaddset(&only, end.signal);
    kill(getpid(), end.signal);
    sigprocmask(SIG_UNBLOCK, &only, nullptr);
    std::_Exit(128 + end.signal);
  }
  std::exit(end.exit_status);
}

}  // namespace whimbrel::cli
