#include "cli/supervisor.h"

#include <gtest/gtest.h>
#include <sys/wait.h>
#include <unistd.h>

#include <chrono>
#include <csignal>
#include <fstream>
#include <thread>

namespace whimbrel::cli {
namespace {

Launch shell(const std::string& script) {
  return Launch{"/bin/sh", {"sh", "-c", script}, {"PATH=/usr/bin:/bin", "X=passed on"}};
}

ProgramEnd run(const Launch& launch) { return run_program(launch, nullptr); }

TEST(Supervisor, ExitStatusesPassThrough) {
  for (const int status : {0, 1, 7, 127, 255}) {
    const ProgramEnd end = run(shell("exit " + std::to_string(status)));
    EXPECT_EQ(end.start_error, 0);
    EXPECT_EQ(end.exit_status, status);
    EXPECT_EQ(end.signal, 0);
  }
}

TEST(Supervisor, ReportsTheSignalThatKilled) {
  for (const int signal : {SIGSEGV, SIGKILL, SIGTERM, SIGPIPE}) {
    EXPECT_EQ(run(shell("ulimit -c 0; kill -" + std::to_string(signal) + " $$")).signal, signal);
  }
}

TEST(Supervisor, SaysWhyTheProgramCouldNotStart) {
  EXPECT_EQ(run(Launch{"/nonexistent", {"x"}, {}}).start_error, ENOENT);
  EXPECT_EQ(run(Launch{"/etc/passwd", {"x"}, {}}).start_error, EACCES);
}

TEST(Supervisor, PassesArgumentsAndEnvironment) {
  Launch launch = shell("test \"$X\" = 'passed on' && test \"$1\" = 'a b'");
  launch.arguments.insert(launch.arguments.end(), {"name", "a b"});
  EXPECT_EQ(run(launch).exit_status, 0);
}

TEST(Supervisor, TheProgramGetsTheCallersSignalMaskAndIgnoredSignals) {
  // An ignored SIGCHLD must not keep us from seeing the end, and must still be ignored in the program.
  signal(SIGCHLD, SIG_IGN);
  const auto shown = [](const char* pattern) {
    return run(Launch{"/bin/grep", {"grep", "-q", pattern, "/proc/self/status"}, {}}).exit_status == 0;
  };
  EXPECT_TRUE(shown("^SigBlk:.0000000000000000"));
  EXPECT_TRUE(shown("^SigIgn:.*[1-9a-f]....$"));
  signal(SIGCHLD, SIG_DFL);
}

// Runs `body` in a process of its own, since signals are sent to it.
template <class Body>
int in_child(Body body, const std::function<void(pid_t)>& meanwhile) {
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    body();
    _exit(99);
  }
  meanwhile(child);
  int status = 0;
  waitpid(child, &status, 0);
  return status;
}

TEST(Supervisor, SignalsSentToUsReachTheProgram) {
  const int status = in_child([] { end_like(run(shell("trap 'exit 33' TERM; trap 'exit 34' USR1; sleep 5 & wait"))); },
                              [](pid_t us) {
                                std::this_thread::sleep_for(std::chrono::milliseconds(300));
                                kill(us, SIGUSR1);
                              });
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 34);
}

TEST(Supervisor, DiesByTheSameSignal) {
  const int status = in_child([] { end_like(run(shell("ulimit -c 0; kill -SEGV $$"))); }, [](pid_t) {});
  ASSERT_TRUE(WIFSIGNALED(status));
  EXPECT_EQ(WTERMSIG(status), SIGSEGV);
  EXPECT_FALSE(WCOREDUMP(status));
}

TEST(Supervisor, StopsAndContinuesWithTheProgram) {
  const pid_t child = fork();
  if (child == 0) {
    setpgid(0, 0);
    end_like(run(shell("kill -TSTP $$; exit 21")));
  }
  int status = 0;
  ASSERT_EQ(waitpid(child, &status, WUNTRACED), child);
  ASSERT_TRUE(WIFSTOPPED(status));
  EXPECT_EQ(WSTOPSIG(status), SIGTSTP);
  kill(child, SIGCONT);
  ASSERT_EQ(waitpid(child, &status, 0), child);
  ASSERT_TRUE(WIFEXITED(status));
  EXPECT_EQ(WEXITSTATUS(status), 21);
}

TEST(Supervisor, TheProgramDoesNotOutliveAKilledSupervisor) {
  int pipe_ends[2];
  ASSERT_EQ(pipe(pipe_ends), 0);
  const int status = in_child(
      [&] {
        close(pipe_ends[0]);
        end_like(run(shell("exec sleep 30")));
      },
      [&](pid_t us) {
        close(pipe_ends[1]);
        std::this_thread::sleep_for(std::chrono::milliseconds(300));
        kill(us, SIGKILL);
      });
  EXPECT_TRUE(WIFSIGNALED(status));
  char byte;
  EXPECT_EQ(read(pipe_ends[0], &byte, 1), 0);  // end of file: nobody holds the other end any more
  close(pipe_ends[0]);
}

TEST(Supervisor, LooksAfterTheCallersBusinessMeanwhile) {
  int calls = 0;
  (void)run_program(shell("sleep 0.8"), [&] { ++calls; });
  EXPECT_GE(calls, 2);
}

}  // namespace
}  // namespace whimbrel::cli
