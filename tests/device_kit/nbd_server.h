// An NBD server of the test's own: nbdkit on a unix socket, gone with the test. nbdkit is installed by scripts/setup.
#pragma once

#include <spawn.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <csignal>
#include <cstdlib>
#include <filesystem>
#include <string>
#include <thread>
#include <vector>

namespace whimbrel::testing {

class NbdServer {
 public:
  // `arguments`: filters, plugin and its parameters, as nbdkit takes them.
  explicit NbdServer(std::vector<std::string> arguments) : arguments_(std::move(arguments)) {
    if (::mkdtemp(directory_.data()) == nullptr) std::abort();
    start();
  }
  ~NbdServer() {
    if (::getpid() != owner_) return;
    kill();
    std::filesystem::remove_all(directory_);
  }
  NbdServer(const NbdServer&) = delete;
  NbdServer& operator=(const NbdServer&) = delete;

  [[nodiscard]] std::string uri() const { return "nbd+unix:///?socket=" + socket(); }
  [[nodiscard]] const std::string& directory() const { return directory_; }
  [[nodiscard]] bool is_running() const { return process_ > 0; }

  void start() {
    std::filesystem::remove(socket());
    std::vector<std::string> all = {"nbdkit", "-f", "--exit-with-parent", "-U", socket()};
    all.insert(all.end(), arguments_.begin(), arguments_.end());
    std::vector<char*> pointers;
    for (std::string& one : all) pointers.push_back(one.data());
    pointers.push_back(nullptr);
    // No fork: that of a process with a session waits for what is being stored, and so for the server that is to be started.
    if (::posix_spawnp(&process_, "nbdkit", nullptr, nullptr, pointers.data(), environ) != 0) process_ = -1;
    if (process_ < 0) return;
    while (!answers() && ::waitpid(process_, nullptr, WNOHANG) == 0) {
      std::this_thread::sleep_for(std::chrono::milliseconds(2));
    }
    if (!answers()) process_ = -1;
  }
  void kill() { end(SIGKILL); }
  // Returns when every thread of it has stopped: until then one that runs still may answer.
  void stop() const {
    ::kill(process_, SIGSTOP);
    ::waitpid(process_, nullptr, WUNTRACED);
  }
  void go_on() const { ::kill(process_, SIGCONT); }

 private:
  // The socket's file is there before anybody listens.
  [[nodiscard]] bool answers() const {
    sockaddr_un name{};
    name.sun_family = AF_UNIX;
    const std::string path = socket();
    path.copy(name.sun_path, sizeof name.sun_path - 1);
    const int fd = ::socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0);
    const bool listens = fd >= 0 && ::connect(fd, reinterpret_cast<const sockaddr*>(&name), sizeof name) == 0;
    if (fd >= 0) ::close(fd);
    return listens;
  }
  [[nodiscard]] std::string socket() const { return directory_ + "/socket"; }
  void end(int signal) {
    if (process_ <= 0) return;
    ::kill(process_, signal);
    ::waitpid(process_, nullptr, 0);
    process_ = -1;
  }

  std::vector<std::string> arguments_;
  std::string directory_ = "/var/tmp/whimbrel-nbd-XXXXXX";
  pid_t owner_ = ::getpid();
  pid_t process_ = -1;
};

}  // namespace whimbrel::testing
