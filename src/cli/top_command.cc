// whimbrel top: running programs, again and again, or once.
#include <poll.h>
#include <sys/ioctl.h>
#include <termios.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <string>

#include "cli/device_option.h"
#include "cli/limits.h"
#include "cli/live_runs.h"
#include "cli/options.h"
#include "cli/top_text.h"

namespace whimbrel::cli {
namespace {

volatile std::sig_atomic_t g_stop = 0;

void ask_to_stop(int) { g_stop = 1; }

// The terminal as we found it comes back with the end of this object.
class Screen {
 public:
  Screen() {
    is_terminal_ = isatty(STDOUT_FILENO) != 0 && isatty(STDIN_FILENO) != 0 && tcgetattr(STDIN_FILENO, &before_) == 0;
    if (!is_terminal_) return;
    keys_ = before_;
    keys_.c_lflag &= ~static_cast<tcflag_t>(ICANON | ECHO);
    tcsetattr(STDIN_FILENO, TCSANOW, &keys_);
    std::fputs("\x1b[?1049h\x1b[?25l", stdout);  // the other screen, without a cursor
  }
  ~Screen() {
    if (!is_terminal_) return;
    std::fputs("\x1b[?25h\x1b[?1049l", stdout);
    std::fflush(stdout);
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
  }
  Screen(const Screen&) = delete;
  Screen& operator=(const Screen&) = delete;
  [[nodiscard]] bool is_terminal() const { return is_terminal_; }

  void show(const Sample& now, const Sample& before, int picked) const {
    winsize size{};
    if (ioctl(STDOUT_FILENO, TIOCGWINSZ, &size) != 0) size = {24, 80, 0, 0};
    std::string text = top_table(now, before, size.ws_col, size.ws_row - 1, picked);
    for (std::size_t at = 0; (at = text.find('\n', at)) != std::string::npos; at += 5)
      text.replace(at, 1, "\x1b[K\r\n");
    std::fputs(("\x1b[H" + text + "\x1b[J").c_str(), stdout);
    std::fflush(stdout);
  }

  // A line typed at the bottom, as the terminal edits it; empty: none.
  [[nodiscard]] std::string ask(const std::string& question) const {
    tcsetattr(STDIN_FILENO, TCSANOW, &before_);
    std::fputs(("\x1b[999H\x1b[K" + question + "\x1b[?25h").c_str(), stdout);
    std::fflush(stdout);
    std::string line;
    for (char c = 0; g_stop == 0 && read(STDIN_FILENO, &c, 1) == 1 && c != '\n';) line += c;
    std::fputs("\x1b[?25l", stdout);
    tcsetattr(STDIN_FILENO, TCSANOW, &keys_);
    return line;
  }
  // One line at the bottom, until the next show().
  void say(const std::string& text) const {
    std::fputs(("\x1b[999H\x1b[K" + text.substr(0, text.find('\n'))).c_str(), stdout);
    std::fflush(stdout);
  }

 private:
  bool is_terminal_ = false;
  termios before_{}, keys_{};
};

// Until a key is pressed, which is left for the next to read.
void wait_for_key(double seconds) {
  pollfd input{STDIN_FILENO, POLLIN, 0};
  (void)poll(&input, 1, static_cast<int>(seconds * 1000));
}

// Returns the key pressed meanwhile; 'q' also for a signal and the end of the input, 0: none.
char sleep_or_key(double seconds, bool keys) {
  pollfd input{keys ? STDIN_FILENO : -1, POLLIN, 0};
  const int ready = poll(&input, 1, static_cast<int>(seconds * 1000));
  if (g_stop != 0) return 'q';
  char key = 0;
  if (ready <= 0 || (input.revents & (POLLIN | POLLHUP)) == 0) return 0;
  return read(STDIN_FILENO, &key, 1) == 1 ? key : 'q';
}

// The run behind `picked`, in the order shown; the first one when that is not there any more.
int next_run(const Sample& sample, int picked) {
  for (const RunSample& run : sample.runs) {
    if (run.pid > picked) return run.pid;
  }
  return sample.runs.empty() ? 0 : sample.runs.front().pid;
}

bool is_watch(const Sample& sample, int picked) {
  return std::any_of(sample.runs.begin(), sample.runs.end(), [picked](const RunSample& run) { return run.pid == picked && run.is_watch(); });
}

// Another budget for a run, by so many tenths of what it has.
void change_budget(const Sample& sample, int picked, int tenths) {
  for (const RunSample& run : sample.runs) {
    if (run.pid != picked) continue;
    Result<StatsFile> file = StatsFile::open(run.path.c_str());
    if (!file) return;  // it has ended: the next look shows that
    const auto changed = [tenths](std::uint64_t bytes) {
      if (bytes == 0) return bytes;
      const std::uint64_t step = bytes / 10;
      return std::max(tenths < 0 ? bytes - step : bytes + step, kSmallestBudget);
    };
    file->set_limits(changed(run.ram_limit_bytes), changed(run.total_limit_bytes));
    file->unmap();
  }
}

// Another device for a run, as it is typed. What is wrong with it stays to be read for a while.
void change_device(const Sample& sample, int picked, const Screen& screen) {
  for (const RunSample& run : sample.runs) {
    if (run.pid != picked) continue;
    const std::string spec = screen.ask("device for run " + std::to_string(picked) + ": ");
    std::string problem, advice;
    if (spec.empty() || order_device(run, with_absolute_path(spec), &problem, &advice) == 0) return;
    screen.say(problem);
    wait_for_key(3);
  }
}

// The screen, until it is left.
void show_until_left(const std::vector<std::string>& directories, double interval) {
  const Screen screen;
  Sample before;
  int picked = 0;
  for (char key = 0; key != 'q' && key != 'Q';) {
    Sample now = sample_runs(directories);
    const bool there = std::any_of(now.runs.begin(), now.runs.end(), [picked](const RunSample& run) { return run.pid == picked; });
    if (!there) picked = next_run(now, 0);
    screen.show(now, before, picked);
    key = sleep_or_key(interval, screen.is_terminal());
    if (key == '\t') picked = next_run(now, picked);
    if ((key == '+' || key == '-' || key == 'd') && is_watch(now, picked)) {
      screen.say(std::string(kSessionsOwn));
      wait_for_key(3);
    } else if (key == '+' || key == '-') {
      change_budget(now, picked, key == '+' ? 1 : -1);
    } else if (key == 'd') {
      change_device(now, picked, screen);
    }
    before = std::move(now);
  }
}

// Readers never see half a file.
int write_metrics(const std::string& path, const std::string& text) {
  const std::string fresh = path + ".new";
  std::FILE* file = std::fopen(fresh.c_str(), "we");
  bool good = file != nullptr && std::fputs(text.c_str(), file) >= 0;
  if (file != nullptr) good = std::fclose(file) == 0 && good;
  if (good && std::rename(fresh.c_str(), path.c_str()) == 0) return 0;
  const std::string problem = "--metrics " + path + ": " + std::strerror(errno);
  unlink(fresh.c_str());
  return complain(kExitUsage, problem, "a file in a directory that you may write to");
}

void stop_on_signals() {
  struct sigaction action {};
  action.sa_handler = ask_to_stop;
  for (const int signal : {SIGINT, SIGTERM, SIGHUP}) sigaction(signal, &action, nullptr);
}

}  // namespace

int top_command(const TopOptions& options) {
  if (options.json && !options.metrics.empty()) {
    return complain(kExitUsage, "--json and --metrics are two forms of the same", "leave one of them out");
  }
  const std::vector<std::string> directories = stats_directories();
  stop_on_signals();
  if (options.json || !options.metrics.empty()) {
    do {
      const Sample now = sample_runs(directories);
      if (!options.metrics.empty()) {
        if (const int bad = write_metrics(options.metrics, top_metrics(now)); bad != 0) return bad;
      } else if (std::fputs(top_json(now).c_str(), stdout) < 0 || std::fflush(stdout) != 0) {
        return 0;  // nobody reads any more
      }
    } while (!options.once && sleep_or_key(options.interval, false) == 0);
    return 0;
  }
  if (options.once || isatty(STDOUT_FILENO) == 0) {
    // Two looks, so that there are rates.
    const Sample before = sample_runs(directories);
    if (!before.runs.empty()) (void)sleep_or_key(options.interval_given ? options.interval : 0.25, false);
    std::fputs(top_table(sample_runs(directories), before, 0, 0).c_str(), stdout);
    return 0;
  }
  show_until_left(directories, options.interval);
  return 0;
}

}  // namespace whimbrel::cli
