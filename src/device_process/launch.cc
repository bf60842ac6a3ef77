#include "device_process/launch.h"

#include <dlfcn.h>
#include <fcntl.h>
#include <poll.h>
#include <spawn.h>
#include <sys/random.h>
#include <sys/socket.h>
#include <sys/un.h>
#include <sys/wait.h>
#include <unistd.h>

#include <cerrno>
#include <cstddef>
#include <cstring>
#include <filesystem>
#include <utility>
#include <vector>

#include "device_process/numbers.h"

extern char** environ;

namespace whimbrel::device_process {
namespace {

constexpr int kStopTakes = 8000;  // milliseconds
constexpr int kBacklog = 64;

std::string hexadecimal(const unsigned char* bytes, std::size_t count) {
  constexpr char kDigits[] = "0123456789abcdef";
  std::string out;
  for (std::size_t i = 0; i < count; ++i) {
    out += kDigits[bytes[i] >> 4];
    out += kDigits[bytes[i] & 15];
  }
  return out;
}

// Beside the program or library that this is part of, in the build tree, an installation or a Python package. Never by a
// name that the caller chose: that could lie anywhere.
std::string find_program(std::string* tried) {
  namespace fs = std::filesystem;
  std::error_code error;
  std::vector<fs::path> places;
  Dl_info here{};
  // The command is not found by the name it was called by, which may be relative.
  if (dladdr(reinterpret_cast<const void*>(&find_program), &here) != 0 && here.dli_fname != nullptr && here.dli_fname[0] == '/') {
    const fs::path folder = fs::canonical(here.dli_fname, error).parent_path();
    if (!error) {
      for (const char* way : {".", "../bin", "../../bin", "../libexec/whimbrel"}) places.push_back(folder / way);
    }
  }
  const fs::path folder = fs::read_symlink("/proc/self/exe", error).parent_path();
  if (!error) {
    for (const char* way : {".", "../libexec/whimbrel"}) places.push_back(folder / way);
  }
  places.emplace_back(WHIMBREL_FULL_LIBEXECDIR "/whimbrel");
  for (const fs::path& place : places) {
    const fs::path candidate = (place / "whimbrel-device").lexically_normal();
    if (access(candidate.c_str(), X_OK) == 0) return candidate;
    tried->append(tried->empty() ? "" : ", ").append(candidate);
  }
  return {};
}

int listen_on(const std::string& name) {
  const int fd = socket(AF_UNIX, SOCK_SEQPACKET | SOCK_CLOEXEC, 0);
  if (fd < 0) return -1;
  sockaddr_un address{};
  address.sun_family = AF_UNIX;
  std::memcpy(address.sun_path + 1, name.data(), name.size());
  const auto length = static_cast<socklen_t>(offsetof(sockaddr_un, sun_path) + 1 + name.size());
  if (bind(fd, reinterpret_cast<sockaddr*>(&address), length) == 0 && listen(fd, kBacklog) == 0) return fd;
  close(fd);
  return -1;
}

// Out of the way of the numbers that the new process gets them under.
int moved_up(int fd) {
  const int up = fcntl(fd, F_DUPFD_CLOEXEC, 32);
  close(fd);
  return up;
}

int spawn(const std::string& program, bool quiet, int listener, int lifeline) {
  posix_spawn_file_actions_t actions;
  posix_spawn_file_actions_init(&actions);
  posix_spawn_file_actions_addopen(&actions, STDIN_FILENO, "/dev/null", O_RDWR, 0);
  posix_spawn_file_actions_addopen(&actions, STDOUT_FILENO, "/dev/null", O_RDWR, 0);
  posix_spawn_file_actions_adddup2(&actions, listener, kListenerNumber);
  posix_spawn_file_actions_adddup2(&actions, lifeline, kLifelineNumber);
  posix_spawnattr_t attributes;
  posix_spawnattr_init(&attributes);
  sigset_t none, all;
  sigemptyset(&none);
  sigfillset(&all);
  posix_spawnattr_setsigmask(&attributes, &none);
  posix_spawnattr_setsigdefault(&attributes, &all);
  posix_spawnattr_setflags(&attributes, POSIX_SPAWN_SETSID | POSIX_SPAWN_SETSIGMASK | POSIX_SPAWN_SETSIGDEF);
  std::string name = program, option = quiet ? "--quiet" : "--tell";
  char* arguments[] = {name.data(), option.data(), nullptr};
  // Without our settings: it is not to be paged itself.
  std::vector<char*> environment;
  for (char** entry = environ; *entry != nullptr; ++entry) {
    const std::string_view text = *entry;
    if (!text.starts_with("WHIMBREL_") && !text.starts_with("LD_PRELOAD=")) environment.push_back(*entry);
  }
  environment.push_back(nullptr);
  pid_t child = -1;
  const int error = posix_spawn(&child, name.c_str(), &actions, &attributes, arguments, environment.data());
  posix_spawn_file_actions_destroy(&actions);
  posix_spawnattr_destroy(&attributes);
  if (error != 0) return error;
  // It forks at once, and the process that we know ends.
  while (waitpid(child, nullptr, 0) < 0 && errno == EINTR) {
  }
  return 0;
}

}  // namespace

DeviceProcess::DeviceProcess(DeviceProcess&& other) noexcept
    : lifeline_(std::exchange(other.lifeline_, -1)), owner_(other.owner_), address_(std::move(other.address_)) {}

DeviceProcess& DeviceProcess::operator=(DeviceProcess&& other) noexcept {
  std::swap(lifeline_, other.lifeline_);
  std::swap(owner_, other.owner_);
  std::swap(address_, other.address_);
  return *this;
}

bool DeviceProcess::start(bool quiet, std::string* problem, std::string* advice) {
  std::string tried;
  const std::string program = find_program(&tried);
  if (program.empty()) {
    *problem = "whimbrel-device is not there (tried " + tried + ")";
    *advice = "install whimbrel again; built from sources, it needs libnbd-dev (scripts/setup installs it)";
    return false;
  }
  *advice = "look at what this machine allows: `whimbrel doctor`";
  unsigned char random[32];
  if (getrandom(random, sizeof random, 0) != sizeof random) {
    *problem = std::string("no random numbers: ") + std::strerror(errno);
    return false;
  }
  const std::string name = "whimbrel-" + hexadecimal(random, 16);
  int ends[2];
  int listener = listen_on(name);
  if (listener < 0 || socketpair(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0, ends) != 0) {
    *problem = std::string("no socket for the device process: ") + std::strerror(errno);
    if (listener >= 0) close(listener);
    return false;
  }
  listener = moved_up(listener);
  const int theirs = moved_up(ends[1]);
  const int error = spawn(program, quiet, listener, theirs);
  close(listener);
  close(theirs);
  lifeline_ = ends[0];
  owner_ = getpid();
  char ready = 0;
  if (error == 0 && send(lifeline_, random + 16, 16, MSG_NOSIGNAL) == 16 && recv(lifeline_, &ready, 1, 0) == 1 &&
      ready == kReady) {
    address_ = std::to_string(geteuid()) + ":" + name + ":" + hexadecimal(random + 16, 16);
    return true;
  }
  close(std::exchange(lifeline_, -1));
  *problem = program + " cannot be started: " + (error != 0 ? std::strerror(error) : "it ended at once");
  *advice = "see what it says by itself: " + program + " --version";
  return false;
}

bool DeviceProcess::has_ended() const {
  char nothing;
  return lifeline_ >= 0 && recv(lifeline_, &nothing, 1, MSG_PEEK | MSG_DONTWAIT) == 0;
}

void DeviceProcess::stop() {
  if (lifeline_ < 0) return;
  if (owner_ != getpid()) {
    close(std::exchange(lifeline_, -1));
    return;
  }
  shutdown(lifeline_, SHUT_WR);
  pollfd end{lifeline_, POLLIN, 0};
  while (poll(&end, 1, kStopTakes) < 0 && errno == EINTR) {
  }
  close(std::exchange(lifeline_, -1));
}

}  // namespace whimbrel::device_process
