// Fills a redis-server through its socket and then mixes reads and writes, checking every value that comes back.
//
// Usage: bench_redis_load --socket PATH --keys N --value-bytes N --requests N --phases fill,mixed
// Values follow from key and generation and compress like the workload's pages. Keys are named as redis-benchmark
// names them, so that it can read the same data afterwards. One connection; sets of the filling go 64 at a time, the
// mix (half get, half set, uniform) one by one, as a client that waits for its answers does.
#include <sys/socket.h>
#include <sys/un.h>
#include <unistd.h>

#include <array>
#include <cerrno>
#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>
#include <string_view>
#include <vector>

#include "bench/content.h"
#include "bench/random.h"
#include "bench/result.h"

namespace {

struct Options {
  std::string socket;
  std::uint64_t keys = 1000;
  std::uint64_t value_bytes = 1024;
  std::uint64_t requests = 1000;
  std::string phases = "fill,mixed";
};

// A connection that sends commands and reads answers of the two kinds needed here. Throws std::runtime_error.
class Connection {
 public:
  explicit Connection(const std::string& path) : descriptor_(socket(AF_UNIX, SOCK_STREAM | SOCK_CLOEXEC, 0)) {
    sockaddr_un address{};
    address.sun_family = AF_UNIX;
    if (path.size() >= sizeof address.sun_path) throw std::runtime_error("the socket's path is too long");
    std::memcpy(address.sun_path, path.c_str(), path.size() + 1);
    if (connect(descriptor_, reinterpret_cast<const sockaddr*>(&address), sizeof address) != 0) {
      throw std::runtime_error("cannot connect to " + path + ": " + std::strerror(errno));
    }
  }
  Connection(const Connection&) = delete;
  Connection& operator=(const Connection&) = delete;
  ~Connection() { close(descriptor_); }

  void queue(std::initializer_list<std::string_view> words) {
    out_ += "*" + std::to_string(words.size()) + "\r\n";
    for (const std::string_view word : words) {
      out_ += "$" + std::to_string(word.size()) + "\r\n";
      out_ += word;
      out_ += "\r\n";
    }
  }
  void flush() {
    std::size_t sent = 0;
    while (sent < out_.size()) {
      const ssize_t count = send(descriptor_, out_.data() + sent, out_.size() - sent, MSG_NOSIGNAL);
      if (count < 0) throw std::runtime_error(std::string("sending: ") + std::strerror(errno));
      sent += static_cast<std::size_t>(count);
    }
    out_.clear();
  }
  // "+OK" or "$<bytes>" with its bytes. A missing value comes back as "(nil)".
  std::string_view answer() {
    const std::string_view line = take_line();
    if (line.starts_with("-")) throw std::runtime_error("the server says: " + std::string(line));
    if (!line.starts_with("$")) return line;
    const long length = std::strtol(std::string(line.substr(1)).c_str(), nullptr, 10);
    return length < 0 ? std::string_view("(nil)")
                      : take(static_cast<std::size_t>(length) + 2).substr(0, static_cast<std::size_t>(length));
  }

 private:
  void receive() {
    if (used_ > (1u << 20)) {
      in_.erase(0, used_);
      used_ = 0;
    }
    std::array<char, 65536> buffer;
    const ssize_t count = recv(descriptor_, buffer.data(), buffer.size(), 0);
    if (count <= 0) throw std::runtime_error("the server closed the connection");
    in_.append(buffer.data(), static_cast<std::size_t>(count));
  }
  std::string_view take_line() {
    std::size_t end = 0;
    while ((end = in_.find("\r\n", used_)) == std::string::npos) receive();
    const std::string_view line = std::string_view(in_).substr(used_, end - used_);
    used_ = end + 2;
    line_.assign(line);
    return line_;
  }
  std::string_view take(std::size_t bytes) {
    while (in_.size() - used_ < bytes) receive();
    const std::string_view taken = std::string_view(in_).substr(used_, bytes);
    used_ += bytes;
    return taken;
  }

  int descriptor_;
  std::string out_, in_, line_;
  std::size_t used_ = 0;
};

class Load {
 public:
  explicit Load(const Options& options)
      : options_(options),
        connection_(options.socket),
        generation_(options.keys, 0),
        content_(bench::Mix::kRecords, 6) {}

  bench::Result fill() {
    constexpr std::uint64_t kBatch = 64;
    bench::Measurement measurement("fill");
    for (std::uint64_t first = 0; first < options_.keys; first += kBatch) {
      const std::uint64_t last = std::min(first + kBatch, options_.keys);
      for (std::uint64_t key = first; key < last; ++key) connection_.queue({"SET", name(key), value(key)});
      connection_.flush();
      for (std::uint64_t key = first; key < last; ++key) expect_ok();
    }
    return measurement.finish(options_.keys, options_.keys * options_.value_bytes, 0, options_.keys);
  }

  bench::Result mixed() {
    bench::Random random(8);
    bench::Histogram latency;
    std::uint64_t wrong = 0;
    std::uint64_t checksum = 0;
    bench::Measurement measurement("mixed");
    for (std::uint64_t i = 0; i < options_.requests; ++i) {
      const std::uint64_t key = random.below(options_.keys);
      const bool writes = random.below(2) == 0;
      const std::int64_t start = bench::monotonic_ns();
      if (writes) {
        ++generation_[key];
        connection_.queue({"SET", name(key), value(key)});
        connection_.flush();
        expect_ok();
      } else {
        connection_.queue({"GET", name(key)});
        connection_.flush();
        const std::string_view got = connection_.answer();
        wrong += got == value(key) ? 0 : 1;
        checksum = checksum * 31 + got.size() + static_cast<unsigned char>(got[got.size() / 2]);
      }
      latency.add(bench::monotonic_ns() - start);
    }
    bench::Result result =
        measurement.finish(options_.requests, options_.requests * options_.value_bytes, wrong, checksum);
    result.latency = latency;
    return result;
  }

 private:
  void expect_ok() {
    const std::string_view answer = connection_.answer();
    if (answer != "+OK") throw std::runtime_error("unexpected answer '" + std::string(answer) + "'");
  }
  [[nodiscard]] std::string name(std::uint64_t key) const {
    std::array<char, 32> text{};
    std::snprintf(text.data(), text.size(), "key:%012llu", static_cast<unsigned long long>(key));
    return text.data();
  }
  // Valid until the next call.
  [[nodiscard]] std::string_view value(std::uint64_t key) {
    content_.fill(page_.data(), key, generation_[key]);
    return {reinterpret_cast<const char*>(page_.data()), options_.value_bytes};
  }

  Options options_;
  Connection connection_;
  std::vector<std::uint8_t> generation_;
  bench::Content content_;
  std::array<std::uint64_t, bench::kPageWords> page_{};
};

bool parse(int argc, char** argv, Options& options) {
  for (int i = 1; i + 1 < argc; i += 2) {
    const std::string_view name = argv[i];
    const char* text = argv[i + 1];
    const std::uint64_t number = std::strtoull(text, nullptr, 10);
    if (name == "--socket") {
      options.socket = text;
    } else if (name == "--phases") {
      options.phases = text;
    } else if (name == "--keys" && number > 0) {
      options.keys = number;
    } else if (name == "--value-bytes" && number > 0 && number <= bench::kPageBytes) {
      options.value_bytes = number;
    } else if (name == "--requests" && number > 0) {
      options.requests = number;
    } else {
      return false;
    }
  }
  return argc % 2 == 1 && !options.socket.empty();
}

}  // namespace

int main(int argc, char** argv) {
  Options options;
  if (!parse(argc, argv, options)) {
    std::fprintf(stderr,
                 "usage: bench_redis_load --socket PATH --keys N --value-bytes N --requests N --phases fill,mixed\n");
    return 2;
  }
  try {
    Load load(options);
    std::uint64_t wrong = 0;
    if (options.phases.find("fill") != std::string::npos) load.fill().print();
    if (options.phases.find("mixed") != std::string::npos) {
      const bench::Result result = load.mixed();
      result.print();
      wrong = result.wrong;
    }
    return wrong == 0 ? 0 : 3;
  } catch (const std::exception& error) {
    std::fprintf(stderr, "bench_redis_load: %s\n", error.what());
    return 1;
  }
}
