// whimbrel-device: the process behind devices that must not live inside the programs they serve, because their
// libraries allocate, lock and start threads. Started by `whimbrel run` and by sessions; of no use by itself.
#include <fcntl.h>
#include <poll.h>
#include <sys/mman.h>
#include <sys/prctl.h>
#include <sys/resource.h>
#include <sys/socket.h>
#include <unistd.h>

#include <algorithm>
#include <array>
#include <cerrno>
#include <csignal>
#include <cstdio>
#include <cstring>
#include <memory>
#include <string_view>
#include <vector>

#include "device_process/export.h"
#include "device_process/numbers.h"

namespace whimbrel::device_process {
namespace {

constexpr std::size_t kMostStrangers = 64;
constexpr int kLook = 200;  // milliseconds

class Service {
 public:
  explicit Service(const std::array<unsigned char, 16>& token) : token_(token) {}
  int run();

 private:
  struct Stranger {
    int socket;
    std::chrono::steady_clock::time_point since;
  };
  void accept_one();
  void hear(int socket);
  [[nodiscard]] bool is_in_use() const;

  std::array<unsigned char, 16> token_;
  std::vector<Stranger> strangers_;  // connected, and have not said who they are
  std::vector<std::unique_ptr<Export>> exports_;
  bool has_lifeline_ = true;
};

bool Service::is_in_use() const {
  return !strangers_.empty() ||
         std::any_of(exports_.begin(), exports_.end(), [](const auto& e) { return e->clients() != 0; });
}

void Service::accept_one() {
  const int socket = accept4(kListenerNumber, nullptr, nullptr, SOCK_CLOEXEC | SOCK_NONBLOCK);
  if (socket < 0) return;
  if (strangers_.size() < kMostStrangers) {
    strangers_.push_back({socket, std::chrono::steady_clock::now()});
  } else {
    close(socket);
  }
}

bool is_text(const char* field, std::size_t room) { return std::memchr(field, 0, room) != nullptr; }

// The first message of somebody: who does not know the token is not answered.
void Service::hear(int socket) {
  RingHello hello;
  const ssize_t got = recv(socket, &hello, sizeof hello, MSG_DONTWAIT);
  unsigned char different = 0;
  for (std::size_t i = 0; i < token_.size(); ++i) different |= static_cast<unsigned char>(hello.token[i] ^ token_[i]);
  if (got != sizeof hello || hello.magic != WHIMBREL_RING_MAGIC || different != 0 ||
      !is_text(hello.kind, sizeof hello.kind) || !is_text(hello.target, sizeof hello.target) ||
      !is_text(hello.certificates, sizeof hello.certificates)) {
    close(socket);
    return;
  }
  auto client = std::make_unique<RingClient>(socket);
  if (std::string_view(hello.kind) != "nbd") {
    RingWelcome answer{};
    answer.magic = WHIMBREL_RING_MAGIC;
    answer.failed = ENOTSUP;
    std::snprintf(answer.text, sizeof answer.text, "this whimbrel-device has no devices of that kind");
    client->answer(answer, -1);
    return;
  }
  Export::Options wanted{.server = {.uri = hello.target, .certificates = hello.certificates},
                         .connections = std::clamp(hello.connections, 1u, 16u),
                         .timeout = std::chrono::milliseconds(std::clamp(hello.timeout_ms, 100u, 86'400'000u)),
                         .force = hello.force != 0};
  auto found = std::find_if(exports_.begin(), exports_.end(), [&](const auto& e) {
    const Export::Options& has = e->options();
    return has.server.uri == wanted.server.uri && has.server.certificates == wanted.server.certificates &&
           has.force == wanted.force;
  });
  if (found == exports_.end()) {
    exports_.push_back(std::make_unique<Export>(std::move(wanted)));
    found = exports_.end() - 1;
  }
  (*found)->join(std::move(client), hello);
}

int Service::run() {
  while (has_lifeline_ || is_in_use()) {
    std::vector<pollfd> fds = {{kListenerNumber, POLLIN, 0},
                               {has_lifeline_ ? kLifelineNumber : -1, POLLIN, 0}};
    for (const Stranger& stranger : strangers_) fds.push_back({stranger.socket, POLLIN, 0});
    if (poll(fds.data(), fds.size(), has_lifeline_ && strangers_.empty() ? -1 : kLook) < 0) continue;
    const auto now = std::chrono::steady_clock::now();
    std::vector<Stranger> still;
    for (std::size_t i = 0; i < strangers_.size(); ++i) {
      if (fds[i + 2].revents != 0) {
        hear(strangers_[i].socket);
      } else if (now - strangers_[i].since > std::chrono::seconds(5)) {
        close(strangers_[i].socket);
      } else {
        still.push_back(strangers_[i]);
      }
    }
    strangers_ = std::move(still);
    if ((fds[0].revents & POLLIN) != 0) accept_one();
    if (fds[1].revents != 0) {
      char nothing;
      if (recv(kLifelineNumber, &nothing, 1, MSG_DONTWAIT) > 0) continue;
      has_lifeline_ = false;
      // The last ones have just ended as a rule: a moment for their sockets to be seen.
      for (int i = 0; i < 20 && is_in_use(); ++i) usleep(10'000);
      if (is_in_use()) {
        (void)!send(kLifelineNumber, &kStaying, 1, MSG_NOSIGNAL | MSG_DONTWAIT);
        close(kLifelineNumber);
      }
    }
  }
  exports_.clear();  // leaves the servers tidy
  return 0;
}

bool is_socket(int fd) {
  int type = 0;
  socklen_t length = sizeof type;
  return getsockopt(fd, SOL_SOCKET, SO_TYPE, &type, &length) == 0;
}

int serve() {
  // A child of nobody who waits for children; no signal that a terminal or a service manager sends to everybody ends it.
  if (fork() != 0) _exit(0);
  for (const int signal : {SIGHUP, SIGINT, SIGQUIT, SIGTERM, SIGPIPE, SIGTSTP, SIGUSR1, SIGUSR2}) {
    std::signal(signal, SIG_IGN);
  }
  prctl(PR_SET_NAME, "whimbrel-device");
  (void)setpriority(PRIO_PROCESS, 0, -10);  // programs wait for it; where that is not permitted it does without
  rlimit lockable{};
  const bool may_lock = getrlimit(RLIMIT_MEMLOCK, &lockable) == 0 && lockable.rlim_cur == RLIM_INFINITY;
  if (geteuid() == 0 || may_lock) (void)mlockall(MCL_CURRENT | MCL_FUTURE | MCL_ONFAULT);
  std::array<unsigned char, 16> token{};
  if (recv(kLifelineNumber, token.data(), token.size(), MSG_WAITALL) != static_cast<ssize_t>(token.size())) return 1;
  if (send(kLifelineNumber, &kReady, 1, MSG_NOSIGNAL) != 1) return 1;
  return Service(token).run();
}

}  // namespace
}  // namespace whimbrel::device_process

int main(int argc, char** argv) {
  using namespace whimbrel::device_process;
  const std::string_view option = argc == 2 ? argv[1] : "";
  if (option == "--version") {
    std::puts("whimbrel-device " WHIMBREL_VERSION);
    return 0;
  }
  if ((option != "--tell" && option != "--quiet") || !is_socket(kListenerNumber) || !is_socket(kLifelineNumber)) {
    std::fputs("whimbrel-device: started by `whimbrel run --device nbd:URI`, of no use by itself\n", stderr);
    return 2;
  }
  if (option == "--quiet") {
    const int nothing = open("/dev/null", O_WRONLY | O_CLOEXEC);
    if (nothing >= 0) dup2(nothing, STDERR_FILENO);
  }
  return serve();
}
