#include "device_process/export.h"

#include <poll.h>
#include <sys/eventfd.h>
#include <sys/random.h>
#include <unistd.h>

#include <algorithm>
#include <cerrno>
#include <cstddef>
#include <cstring>

#include "device_process/export_mark.h"

namespace whimbrel::device_process {
namespace {

using std::chrono::microseconds;
using std::chrono::milliseconds;

// How long a thread with nothing to do looks for requests before it sleeps: waking it takes about as long. On a busy machine
// an engine may wait for this very processor meanwhile.
constexpr auto kSpin = microseconds(5);
constexpr auto kUpkeep = milliseconds(20);
constexpr int kIdle = 500, kBusy = 20;  // milliseconds of sleep at most: with and without something to look after
constexpr int kMostTries = 5;
constexpr std::size_t kMostOnConnection = 64;
constexpr std::uint64_t kMostTrim = 256 << 20;

bool is_worth_another_try(int error) {
  switch (error) {
    case ENOSPC:
    case EPERM:
    case EROFS:
    case EINVAL:
    case EOVERFLOW:
    case ENOTSUP: return false;
    default: return true;
  }
}

}  // namespace

Export::Export(Options options) : options_(std::move(options)), bell_(eventfd(0, EFD_CLOEXEC | EFD_NONBLOCK)) {
  thread_ = std::thread([this] { run(); });
}

Export::~Export() {
  ending_ = true;
  eventfd_write(bell_, 1);
  thread_.join();
  close(bell_);
}

void Export::join(std::unique_ptr<RingClient> client, const RingHello& hello) {
  ++client_count_;
  {
    const std::scoped_lock lock(mutex_);
    newcomers_.push_back({std::move(client), hello});
  }
  eventfd_write(bell_, 1);
}

// --- the loop -------------------------------------------------------------------------------------------------------

void Export::run() {
  while (!ending_) {
    const Time now = std::chrono::steady_clock::now();
    bool worked = take_newcomers();
    worked = collect() || worked;
    worked = dispatch(now) || worked;
    worked = settle(now) || worked;
    if (now >= next_upkeep_) {
      next_upkeep_ = now + kUpkeep;
      look_after_connections(now);
      fail_overdue(now);
      drop_leavers();
      beat(now);
    }
    if (worked) {
      last_work_ = now;
      continue;
    }
    if (jobs_.empty() && now - last_work_ < kSpin) {
      __builtin_ia32_pause();
      continue;
    }
    for (const auto& client : clients_) client->set_asleep(true);
    const bool more = std::any_of(clients_.begin(), clients_.end(), [](const auto& c) { return c->has_request(); });
    if (!more) wait(now);
    for (const auto& client : clients_) client->set_asleep(false);
  }
  close_all();
}

void Export::wait(Time now) {
  std::vector<pollfd> fds;
  fds.push_back({bell_, POLLIN, 0});
  std::vector<RingClient*> heard;
  for (const auto& client : clients_) {
    if (client->leaving) continue;
    fds.push_back({client->socket(), POLLIN, 0});
    heard.push_back(client.get());
  }
  std::vector<NbdConnection*> talking;
  for (const auto& connection : connections_) {
    if (connection->descriptor() < 0) continue;
    fds.push_back({connection->descriptor(), connection->events(), 0});
    talking.push_back(connection.get());
  }
  const bool all_up = std::all_of(connections_.begin(), connections_.end(),
                                  [](const auto& c) { return c->state() == NbdConnection::State::kReady; });
  const bool quiet = jobs_.empty() && all_up && !beating_;
  if (poll(fds.data(), fds.size(), quiet ? kIdle : kBusy) <= 0) return;
  last_work_ = now;
  std::size_t at = 0;
  if (fds[at++].revents != 0) {
    eventfd_t rung;
    eventfd_read(bell_, &rung);
  }
  for (RingClient* client : heard) {
    if (fds[at++].revents != 0 && !client->hear_bells()) leave(*client);
  }
  for (NbdConnection* connection : talking) connection->notify(fds[at++].revents);
}

// --- engines --------------------------------------------------------------------------------------------------------

bool Export::take_newcomers() {
  std::vector<Waiting> newcomers;
  {
    const std::scoped_lock lock(mutex_);
    newcomers.swap(newcomers_);
  }
  for (Waiting& waiting : newcomers) welcome(std::move(waiting.client), waiting.hello);
  return !newcomers.empty();
}

void Export::refuse(const RingClient& client, int error, const std::string& text) const {
  RingWelcome answer{};
  answer.magic = WHIMBREL_RING_MAGIC;
  answer.failed = error;
  std::strncpy(answer.text, text.c_str(), sizeof answer.text - 1);
  client.answer(answer, -1);
}

void Export::welcome(std::unique_ptr<RingClient> client, const RingHello& hello) {
  std::string problem;
  int error = EINVAL;
  if (map_ == nullptr && !open(&problem, &error)) {
    refuse(*client, error, problem);
    --client_count_;
    return;
  }
  RingWelcome answer{};
  answer.magic = WHIMBREL_RING_MAGIC;
  answer.process = static_cast<std::uint32_t>(getpid());
  answer.size_bytes = map_->chunks() * map_->chunk_bytes();
  if (hello.purpose == kRingProbe) {
    client->answer(answer, -1);
    --client_count_;
    return;
  }
  const auto parent = std::find_if(clients_.begin(), clients_.end(),
                                   [&hello](const auto& c) { return hello.parent != 0 && c->id == hello.parent; });
  if (hello.parent != 0 && parent == clients_.end()) {
    refuse(*client, ESRCH, "the process that forks has no connection");
    --client_count_;
    return;
  }
  const int memory = client->make_ring(hello, &problem);
  if (memory < 0) {
    refuse(*client, ENOMEM, problem);
    --client_count_;
    return;
  }
  (void)!getrandom(&client->id, sizeof client->id, 0);
  if (hello.parent != 0) {
    client->volumes = (*parent)->volumes;
    for (const std::uint32_t volume : client->volumes) map_->add_user(volume);
  }
  client->own_volume = map_->make_volume();
  client->volumes.push_back(client->own_volume);
  answer.connection = client->id;
  answer.volume = client->own_volume;
  client->answer(answer, memory);
  close(memory);
  clients_.push_back(std::move(client));
}

void Export::leave(RingClient& client) {
  if (client.leaving) return;
  client.leaving = true;
  // What has not been begun need not be done.
  std::vector<Part*> unwanted;
  std::erase_if(pending_, [&](Part* part) {
    if (part->job->client != &client) return false;
    unwanted.push_back(part);
    return true;
  });
  for (Part* part : unwanted) end_part(part);
}

void Export::drop_leavers() {
  for (auto it = clients_.begin(); it != clients_.end();) {
    RingClient& client = **it;
    if (client.breaks_rules()) leave(client);
    if (!client.leaving || client.outstanding != 0) {
      ++it;
      continue;
    }
    std::vector<std::uint32_t> freed;
    for (const std::uint32_t volume : client.volumes) {
      const std::vector<std::uint32_t> chunks = map_->drop_user(volume);
      freed.insert(freed.end(), chunks.begin(), chunks.end());
    }
    it = clients_.erase(it);
    --client_count_;
    std::sort(freed.begin(), freed.end());
    std::vector<ExportRange> ranges;
    for (const std::uint32_t chunk : freed) {
      const ExportRange range = map_->range_of(chunk);
      if (!ranges.empty() && ranges.back().offset + ranges.back().bytes == range.offset) {
        ranges.back().bytes += range.bytes;
      } else {
        ranges.push_back(range);
      }
    }
    if (!freed.empty()) begin_trim(nullptr, 0, 0, ranges, std::move(freed));
  }
}

// --- requests -------------------------------------------------------------------------------------------------------

bool Export::collect() {
  bool any = false;
  for (const auto& client : clients_) {
    if (client->leaving || client->breaks_rules()) continue;
    for (std::uint32_t lane = 0; lane < client->lanes(); ++lane) {
      while (const auto request = client->take(lane)) {
        any = true;
        handle(*client, lane, *request);
      }
    }
  }
  return any;
}

void Export::handle(RingClient& client, std::uint32_t lane, const RingRequest& request) {
  const auto answer = [&](int error, std::uint64_t value = 0) { client.complete(lane, request.slot, error, value); };
  if (request.op == kRingNothing) return answer(0);
  const auto has = std::find(client.volumes.begin(), client.volumes.end(), request.volume);
  if (has == client.volumes.end() || request.offset % ChunkMap::kBlock != 0 || request.bytes % ChunkMap::kBlock != 0) {
    return answer(EINVAL);
  }
  const bool own = request.volume == client.own_volume;
  switch (request.op) {
    case kRingRead:
    case kRingWrite:
      if (request.bytes == 0 || request.bytes > client.slot_bytes() || (request.op == kRingWrite && !own)) {
        return answer(EINVAL);
      }
      return begin_transfer(client, lane, request);
    case kRingTrim: {
      if (!own) return answer(EINVAL);
      std::vector<ExportRange> ranges;
      std::vector<std::uint32_t> empty;
      map_->clear(request.volume, request.offset, request.bytes, ranges, empty);
      return begin_trim(&client, lane, request.slot, ranges, std::move(empty));
    }
    case kRingUsers: return answer(0, map_->users(request.volume));
    case kRingDrop: {
      if (own) return answer(EINVAL);
      client.volumes.erase(has);
      std::vector<std::uint32_t> freed = map_->drop_user(request.volume);
      std::vector<ExportRange> ranges;
      for (const std::uint32_t chunk : freed) ranges.push_back(map_->range_of(chunk));
      if (!freed.empty()) begin_trim(nullptr, 0, 0, ranges, std::move(freed));
      return answer(0);
    }
    default: return answer(EINVAL);
  }
}

void Export::begin_transfer(RingClient& client, std::uint32_t lane, const RingRequest& request) {
  const bool writing = request.op == kRingWrite;
  std::vector<ExportRange> ranges;
  const int error = writing ? map_->place(request.volume, request.offset, request.bytes, ranges)
                            : map_->find(request.volume, request.offset, request.bytes, ranges);
  if (error != 0) return client.complete(lane, request.slot, error, 0);
  const Time now = std::chrono::steady_clock::now();
  if (down_ && now - down_since_ > options_.timeout) return client.complete(lane, request.slot, ENOTCONN, 0);
  Job* const job = jobs_.emplace_back(std::make_unique<Job>()).get();
  job->client = &client;
  job->lane = lane;
  job->slot = request.slot;
  job->deadline = now + options_.timeout;
  ++client.outstanding;
  std::byte* memory = client.slot(lane, request.slot);
  for (const ExportRange& range : ranges) {
    for (std::uint64_t done = 0; done < range.bytes;) {
      const std::uint64_t bytes = std::min(range.bytes - done, most_bytes_);
      auto* const part = new Part();
      part->command = {.kind = writing ? Command::Kind::kWrite : Command::Kind::kRead,
                       .memory = memory,
                       .offset = range.offset + done,
                       .bytes = bytes};
      part->job = job;
      ++job->parts_left;
      pending_.push_back(part);
      memory += bytes;
      done += bytes;
    }
  }
}

void Export::begin_trim(RingClient* client, std::uint32_t lane, std::uint32_t slot,
                        const std::vector<ExportRange>& ranges, std::vector<std::uint32_t> freed) {
  // Without it the room can still be used again here.
  if (!can_trim_ || ranges.empty()) {
    map_->give(freed);
    if (client != nullptr) client->complete(lane, slot, 0, 0);
    return;
  }
  Job* const job = jobs_.emplace_back(std::make_unique<Job>()).get();
  job->client = client;
  job->lane = lane;
  job->slot = slot;
  job->deadline = std::chrono::steady_clock::now() + options_.timeout;
  job->freed = std::move(freed);
  job->counts = false;
  if (client != nullptr) ++client->outstanding;
  for (const ExportRange& range : ranges) {
    for (std::uint64_t done = 0; done < range.bytes; done += kMostTrim) {
      auto* const part = new Part();
      part->command = {.kind = Command::Kind::kTrim,
                       .offset = range.offset + done,
                       .bytes = std::min(range.bytes - done, kMostTrim)};
      part->job = job;
      ++job->parts_left;
      pending_.push_back(part);
    }
  }
}

bool Export::dispatch(Time now) {
  if (pending_.empty() || down_) return false;  // down: until it is known that the server has what it had
  bool any = false;
  std::deque<Part*> later;
  while (!pending_.empty()) {
    Part* const part = pending_.front();
    if (part->not_before > now) {
      later.push_back(part);
      pending_.pop_front();
      continue;
    }
    NbdConnection* best = nullptr;
    for (std::size_t i = 0; i < connections_.size(); ++i) {
      NbdConnection& one = *connections_[(next_connection_ + i) % connections_.size()];
      if (one.state() != NbdConnection::State::kReady || one.in_flight() >= kMostOnConnection) continue;
      if (best == nullptr || one.in_flight() < best->in_flight()) best = &one;
    }
    if (best == nullptr) break;
    pending_.pop_front();
    ++next_connection_;
    any = true;
    if (best->begin(part->command)) continue;
    pending_.push_front(part);
    lost(*best, best->problem(), now);
  }
  pending_.insert(pending_.end(), later.begin(), later.end());
  return any;
}

bool Export::settle(Time now) {
  bool any = false;
  for (const auto& connection : connections_) {
    bool shut_down = false;
    for (Command* command : connection->take_finished()) {
      any = true;
      auto* const part = reinterpret_cast<Part*>(command);
      if (part->job == beating_.get()) {
        beating_.reset();
        delete part;
        continue;
      }
      const int error = command->error;
      if (error == ESHUTDOWN || error == ENOTCONN) {
        shut_down = true;
        pending_.push_front(part);
      } else if (error != 0 && part->job->counts && is_worth_another_try(error) && ++part->tries < kMostTries) {
        part->not_before = now + milliseconds(10) * (1 << 2 * (part->tries - 1));
        pending_.push_back(part);
      } else {
        if (error != 0 && part->job->counts) part->job->error = error;
        end_part(part);
      }
    }
    if (connection->state() == NbdConnection::State::kDown && connection->handle() != nullptr) {
      lost(*connection, connection->problem(), now);
      any = true;
    } else if (shut_down) {
      lost(*connection, "the server shuts down", now);
    }
  }
  return any;
}

void Export::end_part(Part* part) {
  Job* const job = part->job;
  delete part;
  if (--job->parts_left == 0) end_job(job);
}

void Export::end_job(Job* job) {
  map_->give(job->freed);
  if (job->client != nullptr) {
    --job->client->outstanding;
    job->client->complete(job->lane, job->slot, job->error, 0);
  }
  jobs_.remove_if([job](const auto& one) { return one.get() == job; });
}

// Requests whose time is up. libnbd cannot take a command back, and it may still write into a slot: so the connection
// goes, and what else was under way on it is made again.
void Export::fail_overdue(Time now) {
  std::vector<Job*> overdue;
  for (const auto& job : jobs_) {
    if (job->deadline <= now) overdue.push_back(job.get());
  }
  if (overdue.empty()) return;
  const auto is_overdue = [&](const Part* part) {
    return std::find(overdue.begin(), overdue.end(), part->job) != overdue.end();
  };
  for (const auto& connection : connections_) {
    bool holds = false;
    for (const Command* command : connection->under_way()) {
      holds = holds || is_overdue(reinterpret_cast<const Part*>(command));
    }
    if (holds) lost(*connection, "no answer for " + std::to_string(options_.timeout.count() / 1000) + " s", now);
  }
  std::vector<Part*> failed;
  std::erase_if(pending_, [&](Part* part) {
    if (!is_overdue(part)) return false;
    failed.push_back(part);
    return true;
  });
  for (Part* part : failed) {
    const bool sent = part->command.sent;
    if (sent && part->command.kind != Command::Kind::kRead) map_->taint({part->command.offset, part->command.bytes});
    if (part->job->error != ETIMEDOUT) part->job->error = sent ? ETIMEDOUT : ENOTCONN;
    end_part(part);
  }
}

}  // namespace whimbrel::device_process
