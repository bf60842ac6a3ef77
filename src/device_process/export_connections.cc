// Export: its connections, and the mark on the export.
#include <poll.h>
#include <sys/random.h>

#include <algorithm>
#include <cerrno>
#include <cstdio>
#include <cstring>

#include "device_process/export.h"
#include "device_process/export_mark.h"

namespace whimbrel::device_process {
namespace {

using std::chrono::milliseconds;
using std::chrono::seconds;

constexpr auto kOpening = seconds(10);     // a server that takes longer to say hello is not to be had
constexpr auto kBeat = seconds(2);
constexpr auto kBeatsAreDue = seconds(5);  // a mark that has not moved by then is a dead run's
constexpr auto kEnd = seconds(5);          // to leave the export tidy
constexpr auto kSoon = milliseconds(50), kLater = milliseconds(1000);
constexpr std::uint64_t kSmallest = 4 << 20;
constexpr std::uint64_t kMostTrim = 256 << 20;

Time now() { return std::chrono::steady_clock::now(); }

std::string mebibytes(std::uint64_t bytes) { return std::to_string(bytes >> 20) + " MiB"; }

}  // namespace

void Export::say(const std::string& text) const {
  std::fprintf(stderr, "whimbrel: %s: %s\n", options_.server.uri.c_str(), text.c_str());
}

bool Export::is_up() const {
  return std::any_of(connections_.begin(), connections_.end(),
                     [](const auto& c) { return c->state() == NbdConnection::State::kReady; });
}

// One command and nothing else, until it is done. False: it failed, or there was no time left.
bool Export::finish_alone(NbdConnection& connection, Command& command, Time end) {
  if (!connection.begin(command)) return false;
  for (;;) {
    for (const Command* done : connection.take_finished()) {
      if (done == &command) return command.error == 0;
    }
    const auto left = std::chrono::duration_cast<milliseconds>(end - now()).count();
    if (connection.state() != NbdConnection::State::kReady || left <= 0) return false;
    pollfd fd{connection.descriptor(), connection.events(), 0};
    if (poll(&fd, 1, static_cast<int>(left)) > 0) connection.notify(fd.revents);
  }
}

// --- opening --------------------------------------------------------------------------------------------------------

bool Export::open(std::string* problem, int* error) {
  connections_.clear();
  connections_.push_back(std::make_unique<NbdConnection>());
  if (!open_first(problem, error) || !claim(problem, error)) {
    connections_.clear();
    problem->insert(0, options_.server.uri + ": ");
    return false;
  }
  nbd_handle* const handle = connections_.front()->handle();
  can_trim_ = nbd_can_trim(handle) == 1;
  const std::int64_t most = nbd_get_block_size(handle, LIBNBD_SIZE_MAXIMUM);
  most_bytes_ = most > 0 ? static_cast<std::uint64_t>(most) & ~(ChunkMap::kBlock - 1) : 1 << 20;
  if (most_bytes_ == 0) most_bytes_ = ChunkMap::kBlock;
  // Several connections see the same contents only where the server says so.
  const std::size_t count = nbd_can_multi_conn(handle) == 1 ? options_.connections : 1;
  while (connections_.size() < count) connections_.push_back(std::make_unique<NbdConnection>());
  next_try_.assign(count, Time{});
  map_ = std::make_unique<ChunkMap>(kMarkBytes, size_);
  down_ = false;
  next_beat_ = now() + kBeat;
  return true;
}

bool Export::open_first(std::string* problem, int* error) {
  NbdConnection& first = *connections_.front();
  const Time end = now() + std::min<milliseconds>(kOpening, options_.timeout);
  const auto refused = [&](int code, const std::string& text) {
    *error = code;
    *problem = text;
    return false;
  };
  constexpr const char* kNext = "; next: check the address, and that the server runs and lets this machine in";
  if (!first.start(options_.server, now())) return refused(ECONNREFUSED, first.problem() + kNext);
  while (first.state() == NbdConnection::State::kConnecting) {
    const auto left = std::chrono::duration_cast<milliseconds>(end - now()).count();
    if (left <= 0) return refused(ETIMEDOUT, std::string("the server does not answer") + kNext);
    pollfd fd{first.descriptor(), first.events(), 0};
    if (poll(&fd, 1, static_cast<int>(left)) > 0) first.notify(fd.revents);
  }
  if (first.state() == NbdConnection::State::kDown) return refused(ECONNREFUSED, first.problem() + kNext);
  const std::int64_t size = nbd_get_size(first.handle());
  if (nbd_is_read_only(first.handle()) == 1) {
    return refused(EROFS, "the export is read-only; next: have the server export it writable");
  }
  if (size < static_cast<std::int64_t>(kSmallest)) {
    return refused(EINVAL, "the export has " + mebibytes(static_cast<std::uint64_t>(std::max<std::int64_t>(size, 0))) +
                               ", too little for pages; next: at least " + mebibytes(kSmallest));
  }
  if (nbd_get_block_size(first.handle(), LIBNBD_SIZE_MINIMUM) > static_cast<std::int64_t>(ChunkMap::kBlock)) {
    return refused(EINVAL, "the server wants requests of more than 4 KiB; next: nbdkit's blocksize filter makes them");
  }
  size_ = static_cast<std::uint64_t>(size) & ~(ChunkMap::kBlock - 1);
  return true;
}

// Makes sure that nobody's data is overwritten, and leaves our mark.
bool Export::claim(std::string* problem, int* error) {
  NbdConnection& first = *connections_.front();
  if (mark_ == nullptr) mark_ = std::make_unique<Mark>();
  const auto look = [&] {
    Command read{.kind = Command::Kind::kRead, .memory = mark_->read.data(), .offset = 0, .bytes = kMarkBytes};
    return finish_alone(first, read, now() + kOpening);
  };
  const auto refused = [&](int code, const char* text) {
    *error = code;
    *problem = text;
    return false;
  };
  if (!look()) return refused(EIO, "the export cannot be read; next: look at what the server says");
  MarkText found;
  std::memcpy(&found, mark_->read.data(), sizeof found);
  const auto is_mark = [](const MarkText& text) { return std::memcmp(text.magic, kMarkMagic, sizeof text.magic) == 0; };
  const bool was_marked = is_mark(found);
  if (was_marked) {
    // Left behind by a run that was killed, or another one is at work.
    say("is marked as in use by another run; looking for 5 s whether it is");
    std::this_thread::sleep_for(kBeatsAreDue);
    if (!look()) return refused(EIO, "the export cannot be read; next: look at what the server says");
    MarkText again;
    std::memcpy(&again, mark_->read.data(), sizeof again);
    if (is_mark(again) && std::memcmp(&again, &found, sizeof found) != 0) {
      return refused(EBUSY, "another run uses this export; next: an export for each run (nbdkit's exportname or offset "
                            "filters make several of one)");
    }
  }
  // Marked before and not now: that run has just ended, and what it left is nobody's.
  if (!was_marked && !options_.force && std::any_of(mark_->read.begin(), mark_->read.end(),
                                            [](std::byte b) { return b != std::byte{0}; })) {
    return refused(EEXIST, "the export holds something already; next: name an empty one, or add force=on to overwrite it");
  }
  std::memcpy(mark_->text.magic, kMarkMagic, sizeof kMarkMagic);
  (void)!getrandom(mark_->text.run, sizeof mark_->text.run, 0);
  mark_->text.beat = 1;
  std::memcpy(mark_->block.data(), &mark_->text, sizeof mark_->text);
  Command write{.kind = Command::Kind::kWrite, .memory = mark_->block.data(), .offset = 0, .bytes = mark_->block.size()};
  if (finish_alone(first, write, now() + kOpening)) return true;
  return refused(EIO, "the export cannot be written; next: look at what the server says");
}

// --- upkeep ---------------------------------------------------------------------------------------------------------

void Export::look_after_connections(Time time) {
  for (std::size_t i = 0; i < connections_.size() && map_ != nullptr; ++i) {
    NbdConnection& connection = *connections_[i];
    if (connection.state() == NbdConnection::State::kReady) {
      if (down_) reconnect(connection, time);
      continue;
    }
    if (connection.state() == NbdConnection::State::kConnecting) {
      if (time - connection.since() > kOpening) {
        connection.drop();
        next_try_[i] = time + kLater;
      }
      continue;
    }
    if (time < next_try_[i]) continue;
    next_try_[i] = time + (down_ && time - down_since_ > kLater ? kLater / 2 : kSoon);
    // While the server is gone one at a time is asked for.
    if (down_ && i != 0) continue;
    connection.start(options_.server, time);
  }
}

// The first connection after all were lost.
void Export::reconnect(NbdConnection& connection, Time time) {
  if (nbd_get_size(connection.handle()) < static_cast<std::int64_t>(size_)) {
    lost(connection, "the export has become smaller", time);
    return;
  }
  const bool ours = is_still_ours(connection);
  if (connection.state() != NbdConnection::State::kReady) {
    connection.drop();
    return;
  }
  down_ = false;
  const auto gone = std::chrono::duration<double>(now() - down_since_).count();
  char text[96];
  std::snprintf(text, sizeof text, "the server is back after %.1f s%s", gone,
                ours ? "" : ", WITHOUT what was stored there: those pages are lost");
  say(text);
  if (ours) return;
  // Nothing there is ours any more. Writes that wait would go where they belonged then.
  std::vector<Part*> void_now(pending_.begin(), pending_.end());
  pending_.clear();
  for (Part* part : void_now) {
    part->job->error = part->command.kind == Command::Kind::kRead ? ENODATA : EIO;
    end_part(part);
  }
  map_->lose_contents();
  write_mark(true);
}

bool Export::is_still_ours(NbdConnection& connection) {
  Command read{.kind = Command::Kind::kRead, .memory = mark_->read.data(), .offset = 0, .bytes = 4096};
  if (!finish_alone(connection, read, now() + kOpening)) {
    connection.drop();
    return true;
  }
  MarkText found;
  std::memcpy(&found, mark_->read.data(), sizeof found);
  return std::memcmp(found.magic, mark_->text.magic, sizeof found.magic) == 0 &&
         std::memcmp(found.run, mark_->text.run, sizeof found.run) == 0;
}

void Export::lost(NbdConnection& connection, const std::string& why, Time time) {
  for (Command* command : connection.drop()) {
    auto* const part = reinterpret_cast<Part*>(command);
    if (part->job == beating_.get()) {
      beating_.reset();
      delete part;
    } else {
      pending_.push_front(part);
    }
  }
  if (down_ || is_up()) return;
  down_ = true;
  down_since_ = time;
  say("connection lost (" + why + "); connecting again, pages wait for up to " +
      std::to_string(options_.timeout.count() / 1000) + " s");
  for (Time& next : next_try_) next = time;
}

void Export::beat(Time time) {
  if (map_ == nullptr || beating_ || down_ || time < next_beat_) return;
  next_beat_ = time + kBeat;
  write_mark(true);
}

void Export::write_mark(bool in_use) {
  ++mark_->text.beat;
  if (!in_use) mark_->text = {};
  mark_->block.fill(std::byte{0});
  std::memcpy(mark_->block.data(), &mark_->text, sizeof mark_->text);
  const Command write{
      .kind = Command::Kind::kWrite, .memory = mark_->block.data(), .offset = 0, .bytes = mark_->block.size()};
  for (const auto& connection : connections_) {
    if (connection->state() != NbdConnection::State::kReady) continue;
    if (!in_use) {
      Command last = write;
      (void)finish_alone(*connection, last, now() + kEnd);
      return;
    }
    auto* const part = new Part();
    part->command = write;
    beating_ = std::make_unique<Job>();
    part->job = beating_.get();
    if (connection->begin(part->command)) return;
    delete part;
    beating_.reset();
    return;
  }
}

void Export::close_all() {
  if (map_ == nullptr) return;
  const Time end = now() + kEnd;
  for (const auto& connection : connections_) {
    if (connection->state() != NbdConnection::State::kReady) continue;
    const std::uint64_t used = kMarkBytes + map_->high() * map_->chunk_bytes();
    for (std::uint64_t at = kMarkBytes; can_trim_ && at < used && now() < end; at += kMostTrim) {
      Command trim{.kind = Command::Kind::kTrim, .offset = at, .bytes = std::min(kMostTrim, used - at)};
      if (!finish_alone(*connection, trim, end)) break;
    }
    write_mark(false);
    if (connection->state() == NbdConnection::State::kReady) nbd_aio_disconnect(connection->handle(), 0);
    break;
  }
  connections_.clear();
}

}  // namespace whimbrel::device_process
