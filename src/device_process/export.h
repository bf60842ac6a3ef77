// Export: one export of a server, the connections to it, and the engines whose pages lie there. A thread of its own does
// all of it, so a server that is slow holds up nobody who uses another one.
//
// What may go wrong, and what follows:
//   a connection ends                 what was under way on it is made again on another; reads and writes of pages may be
//   the server is stopped             everything waits, for as long as the timeout allows
//   it is gone for longer than that   requests fail (ENOTCONN, ETIMEDOUT), new ones at once, until it is back
//   it comes back empty               noticed by the mark on the export: what was stored is lost, and reads say so
//   it answers with an error          asked again some times, a second in all; then that request fails
//   an engine breaks the rules        it is left alone
//
// The first 128 KiB of the export are kept for a mark: who uses it, and a number that moves every two seconds. Two runs
// on one export would destroy each other's pages.
#pragma once

#include <atomic>
#include <chrono>
#include <deque>
#include <list>
#include <memory>
#include <mutex>
#include <string>
#include <thread>
#include <vector>

#include "device_process/chunk_map.h"
#include "device_process/nbd_connection.h"
#include "device_process/ring_client.h"

namespace whimbrel::device_process {

class Export {
 public:
  struct Options {
    ServerAddress server;
    std::uint32_t connections = 1;
    std::chrono::milliseconds timeout{60000};
    bool force = false;
  };
  explicit Export(Options options);
  // Ends the thread; with the mark taken off the export when that can be done soon.
  ~Export();
  Export(const Export&) = delete;
  Export& operator=(const Export&) = delete;

  // Hands over an engine that has said hello; it is answered. Any thread.
  void join(std::unique_ptr<RingClient> client, const RingHello& hello);
  // Engines that are here, or waiting to be. Any thread.
  [[nodiscard]] std::size_t clients() const { return client_count_.load(); }
  [[nodiscard]] const Options& options() const { return options_; }

 private:
  static constexpr std::uint64_t kMarkBytes = 128 << 10;

  // What one engine, or the export itself, waits for.
  struct Job {
    RingClient* client = nullptr;  // null: the export's own
    std::uint32_t lane = 0, slot = 0;
    std::size_t parts_left = 0;
    int error = 0;
    Time deadline{};
    std::vector<std::uint32_t> freed;  // chunks to be given back once it is done
    bool counts = true;                // false: an error in it is nobody's business
  };
  struct Part {
    Command command;  // the first member: commands come back from connections
    Job* job = nullptr;
    int tries = 0;
    Time not_before{};
  };
  struct Waiting {
    std::unique_ptr<RingClient> client;
    RingHello hello;
  };
  struct Mark;

  void run();
  [[nodiscard]] bool take_newcomers();
  void welcome(std::unique_ptr<RingClient> client, const RingHello& hello);
  void refuse(const RingClient& client, int error, const std::string& text) const;
  [[nodiscard]] bool collect();
  void handle(RingClient& client, std::uint32_t lane, const RingRequest& request);
  void begin_transfer(RingClient& client, std::uint32_t lane, const RingRequest& request);
  void begin_trim(RingClient* client, std::uint32_t lane, std::uint32_t slot, const std::vector<ExportRange>& ranges,
                  std::vector<std::uint32_t> freed);
  [[nodiscard]] bool dispatch(Time now);
  [[nodiscard]] bool settle(Time now);
  void end_part(Part* part);
  void end_job(Job* job);
  void fail_overdue(Time now);
  void drop_leavers();
  void leave(RingClient& client);
  void wait(Time now);

  // ---- connections (export_connections.cc) ----
  [[nodiscard]] bool open(std::string* problem, int* error);
  [[nodiscard]] bool open_first(std::string* problem, int* error);
  [[nodiscard]] bool claim(std::string* problem, int* error);
  void close_all();
  void look_after_connections(Time now);
  void reconnect(NbdConnection& connection, Time now);
  void lost(NbdConnection& connection, const std::string& why, Time now);
  [[nodiscard]] bool is_still_ours(NbdConnection& connection);
  [[nodiscard]] bool finish_alone(NbdConnection& connection, Command& command, Time end);
  void write_mark(bool in_use);
  void beat(Time now);
  void say(const std::string& text) const;
  [[nodiscard]] bool is_up() const;

  const Options options_;
  int bell_ = -1;  // eventfd: newcomers, or the end

  std::mutex mutex_;
  std::vector<Waiting> newcomers_;
  std::atomic<std::size_t> client_count_{0};
  std::atomic<bool> ending_{false};

  // The thread's own.
  std::vector<std::unique_ptr<NbdConnection>> connections_;
  std::vector<Time> next_try_;
  std::size_t next_connection_ = 0;
  std::unique_ptr<ChunkMap> map_;  // null: not open
  std::uint64_t size_ = 0;
  std::uint64_t most_bytes_ = 0;  // of one command
  bool can_trim_ = false;
  Time down_since_{};
  bool down_ = false;
  std::unique_ptr<Mark> mark_;
  std::unique_ptr<Job> beating_;  // the mark is being written
  Time next_beat_{};
  std::list<std::unique_ptr<RingClient>> clients_;
  std::list<std::unique_ptr<Job>> jobs_;
  std::deque<Part*> pending_;
  Time last_work_{}, next_upkeep_{};
  std::thread thread_;
};

}  // namespace whimbrel::device_process
