#include "device_process/nbd_connection.h"

#include <netinet/in.h>
#include <netinet/tcp.h>
#include <poll.h>
#include <sys/socket.h>

#include <algorithm>
#include <cerrno>
#include <utility>

namespace whimbrel::device_process {
namespace {

std::string last_problem() {
  const char* text = nbd_get_error();
  std::string out = text != nullptr ? text : "unknown reason";
  // "nbd_aio_connect_uri: connect: Connection refused": who called is no news.
  if (const std::size_t at = out.find(": "); out.starts_with("nbd_") && at != std::string::npos) out.erase(0, at + 2);
  return out;
}

// A machine that has vanished says nothing. A server that is only stopped still answers this: its kernel does.
void notice_vanished_machines(int fd) {
  const int on = 1, idle = 10, interval = 5, count = 4;
  setsockopt(fd, SOL_SOCKET, SO_KEEPALIVE, &on, sizeof on);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPIDLE, &idle, sizeof idle);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPINTVL, &interval, sizeof interval);
  setsockopt(fd, IPPROTO_TCP, TCP_KEEPCNT, &count, sizeof count);
}

}  // namespace

bool NbdConnection::start(const ServerAddress& address, Time now) {
  drop();
  problem_.clear();
  since_ = now;
  handle_ = nbd_create();
  if (handle_ == nullptr) {
    problem_ = last_problem();
    return false;
  }
  nbd_set_uri_allow_local_file(handle_, true);
  nbd_set_pread_initialize(handle_, false);
  nbd_set_strict_mode(handle_, 0);  // what is asked for here is right, and the checks cost time
  if (!address.certificates.empty()) nbd_set_tls_certificates(handle_, address.certificates.c_str());
  if (nbd_aio_connect_uri(handle_, address.uri.c_str()) != 0) {
    problem_ = last_problem();
    drop();
    return false;
  }
  state_ = State::kConnecting;
  look_at_state();
  return state_ != State::kDown;
}

std::vector<Command*> NbdConnection::drop() {
  state_ = State::kDown;
  nbd_close(handle_);
  handle_ = nullptr;
  finished_.clear();
  return std::exchange(under_way_, {});
}

int NbdConnection::descriptor() const { return handle_ == nullptr ? -1 : nbd_aio_get_fd(handle_); }

short NbdConnection::events() const {
  const unsigned direction = nbd_aio_get_direction(handle_);
  return static_cast<short>(((direction & LIBNBD_AIO_DIRECTION_READ) != 0 ? POLLIN : 0) |
                            ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0 ? POLLOUT : 0));
}

void NbdConnection::notify(short ready) {
  if (handle_ == nullptr || ready == 0) return;
  const unsigned direction = nbd_aio_get_direction(handle_);
  const bool over = (ready & (POLLHUP | POLLERR | POLLNVAL)) != 0;
  int failed = 0;
  if ((direction & LIBNBD_AIO_DIRECTION_READ) != 0 && (over || (ready & POLLIN) != 0)) {
    failed = nbd_aio_notify_read(handle_);
  } else if ((direction & LIBNBD_AIO_DIRECTION_WRITE) != 0 && (over || (ready & POLLOUT) != 0)) {
    failed = nbd_aio_notify_write(handle_);
  }
  if (failed != 0) problem_ = last_problem();
  look_at_state();
}

void NbdConnection::look_at_state() {
  if (nbd_aio_is_dead(handle_) == 1 || nbd_aio_is_closed(handle_) == 1) {
    if (problem_.empty()) problem_ = "the connection has ended";
    state_ = State::kDown;
    return;
  }
  if (state_ == State::kConnecting && (nbd_aio_is_ready(handle_) == 1 || nbd_aio_is_processing(handle_) == 1)) {
    state_ = State::kReady;
    notice_vanished_machines(descriptor());
  }
}

// Called by libnbd with its lock held: nothing of it may be called here.
int NbdConnection::on_done(void* data, int* error) {
  auto* const done = static_cast<Done*>(data);
  done->command->error = *error;
  done->connection->finished_.push_back(done->command);
  return 1;  // nobody asks libnbd about this command again
}

bool NbdConnection::begin(Command& command) {
  if (state_ != State::kReady) return false;
  nbd_completion_callback callback = {.callback = on_done,
                                      .user_data = new Done{this, &command},
                                      .free = [](void* data) { delete static_cast<Done*>(data); }};
  under_way_.push_back(&command);
  command.sent = true;
  command.error = 0;
  std::int64_t cookie = -1;
  switch (command.kind) {
    case Command::Kind::kRead:
      cookie = nbd_aio_pread(handle_, command.memory, command.bytes, command.offset, callback, 0);
      break;
    case Command::Kind::kWrite:
      cookie = nbd_aio_pwrite(handle_, command.memory, command.bytes, command.offset, callback, 0);
      break;
    case Command::Kind::kTrim: cookie = nbd_aio_trim(handle_, command.bytes, command.offset, callback, 0); break;
  }
  if (cookie >= 0) {
    look_at_state();
    return true;
  }
  problem_ = last_problem();
  std::erase(under_way_, &command);
  std::erase(finished_, &command);
  state_ = State::kDown;
  return false;
}

std::vector<Command*> NbdConnection::take_finished() {
  std::vector<Command*> out;
  // What ended because the connection did is not finished: it is made again on another.
  if (state_ == State::kDown) return out;
  out.swap(finished_);
  std::erase_if(under_way_, [&out](const Command* c) { return std::find(out.begin(), out.end(), c) != out.end(); });
  return out;
}

}  // namespace whimbrel::device_process
