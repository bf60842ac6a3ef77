// NbdConnection: one connection to an NBD server, by libnbd, without ever waiting. libnbd neither reconnects nor gives up:
// both are up to the owner, who gets back whatever was under way when a connection ends.
//
// For one thread.
#pragma once

#include <libnbd.h>

#include <chrono>
#include <cstddef>
#include <cstdint>
#include <string>
#include <vector>

namespace whimbrel::device_process {

using Time = std::chrono::steady_clock::time_point;

struct ServerAddress {
  std::string uri;
  std::string certificates;  // directory; empty: the library's default
};

// One command to the server. Owned by whoever asks for it.
struct Command {
  enum class Kind : std::uint8_t { kRead, kWrite, kTrim };
  Kind kind = Kind::kRead;
  std::byte* memory = nullptr;
  std::uint64_t offset = 0;
  std::uint64_t bytes = 0;
  int error = 0;      // once it is finished: what the server said, as an errno
  bool sent = false;  // at some time, to some connection
};

class NbdConnection {
 public:
  enum class State : std::uint8_t { kDown, kConnecting, kReady };

  NbdConnection() = default;
  NbdConnection(const NbdConnection&) = delete;
  NbdConnection& operator=(const NbdConnection&) = delete;
  ~NbdConnection() { drop(); }

  // Begins to connect. False: it cannot even begin; problem() says why.
  bool start(const ServerAddress& address, Time now);
  // Closes at once. What was under way is handed back as it was, in the order in which it was begun.
  std::vector<Command*> drop();

  [[nodiscard]] State state() const { return state_; }
  [[nodiscard]] Time since() const { return since_; }  // when it began to connect
  [[nodiscard]] const std::string& problem() const { return problem_; }
  [[nodiscard]] nbd_handle* handle() const { return handle_; }
  [[nodiscard]] std::size_t in_flight() const { return under_way_.size(); }
  [[nodiscard]] const std::vector<Command*>& under_way() const { return under_way_; }

  // For poll(2): descriptor (-1: none) and events; then what came of it. When the connection has ended state() is kDown,
  // and drop() hands back what was under way.
  [[nodiscard]] int descriptor() const;
  [[nodiscard]] short events() const;
  void notify(short ready);

  // False: the connection has ended, and the command is not under way.
  bool begin(Command& command);
  // Commands that the server has answered since the last call.
  [[nodiscard]] std::vector<Command*> take_finished();

 private:
  struct Done {
    NbdConnection* connection;
    Command* command;
  };
  static int on_done(void* data, int* error);
  void look_at_state();

  nbd_handle* handle_ = nullptr;
  State state_ = State::kDown;
  Time since_{};
  std::string problem_;
  std::vector<Command*> under_way_;
  std::vector<Command*> finished_;
};

}  // namespace whimbrel::device_process
