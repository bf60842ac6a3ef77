// The shared suite over a server, and what may happen to the server and to the device process.
#include "devices/ring/ring_device.h"

#include <fcntl.h>
#include <gtest/gtest.h>
#include <sys/stat.h>
#include <unistd.h>

#include <atomic>
#include <cerrno>
#include <csignal>
#include <cstring>
#include <filesystem>
#include <fstream>
#include <thread>
#include <vector>

#include "device_process/launch.h"
#include "devices/device_spec.h"
#include "linux/clock.h"
#include "tests/device_kit/device_suite.h"
#include "tests/device_kit/nbd_server.h"

namespace whimbrel::testing {
namespace {

using device_process::DeviceProcess;

std::string address_of(DeviceProcess& process) {
  std::string problem, advice;
  if (!process.is_running()) {
    EXPECT_TRUE(process.start(true, &problem, &advice)) << problem << "; " << advice;
  }
  return process.address();
}

// One for the whole suite, as there is for all processes of a run.
const std::string& shared_process() {
  static DeviceProcess process;
  static const std::string address = address_of(process);
  return address;
}

// A file on a real disk behind a server: the test can look into it.
class FileServer {
 public:
  explicit FileServer(std::uint64_t bytes) : server_({"file", make(bytes)}) {}
  [[nodiscard]] NbdServer& server() { return server_; }
  [[nodiscard]] const std::string& path() const { return path_; }
  ~FileServer() {
    if (::getpid() == owner_) std::filesystem::remove(path_);
  }

 private:
  std::string make(std::uint64_t bytes) {
    const int fd = ::mkstemp(path_.data());
    if (fd < 0 || ::ftruncate(fd, static_cast<off_t>(bytes)) != 0) std::abort();
    ::close(fd);
    return path_;
  }
  pid_t owner_ = ::getpid();
  std::string path_ = "/var/tmp/whimbrel-export-XXXXXX";
  NbdServer server_;
};

constexpr std::uint64_t kExport = std::uint64_t{8} << 30;
constexpr off_t kMark = 128 << 10;

FileServer& shared_server() {
  static FileServer server(kExport);
  return server;
}

template <class F>
void for_stored_blocks(const std::string& path, F&& f) {
  const int fd = ::open(path.c_str(), O_RDWR | O_CLOEXEC);
  ASSERT_GE(fd, 0);
  for (off_t at = ::lseek(fd, kMark, SEEK_DATA); at >= 0; at = ::lseek(fd, at - at % 4096 + 4096, SEEK_DATA)) f(fd, at);
  ::close(fd);
}

void damage(Device&) {
  for_stored_blocks(shared_server().path(), [](int fd, off_t at) {
    at = at - at % 4096 + 100;
    char byte = 0;
    ASSERT_EQ(::pread(fd, &byte, 1, at), 1);
    byte = static_cast<char>(byte ^ 0x10);
    ASSERT_EQ(::pwrite(fd, &byte, 1, at), 1);
  });
}

// Engines leave, and what they had is trimmed: soon, but not at once.
std::string leftovers() {
  std::uint64_t blocks = 0;
  const bool none = becomes_true(
      [&] {
        blocks = 0;
        for_stored_blocks(shared_server().path(), [&](int, off_t) { ++blocks; });
        return blocks == 0;
      },
      std::chrono::seconds(30));
  return none ? "" : std::to_string(blocks) + " blocks on the server";
}

DeviceHandle make(MemorySource& memory, const std::string& spec, const std::string& process) {
  static const SystemClock clock;
  const DeviceEnvironment environment{
      .memory = memory, .kinds = built_in_devices(), .device_process = process.c_str(), .clock = &clock};
  SpecMessage message;
  Result<DeviceHandle> device = make_device(spec, environment, message);
  EXPECT_TRUE(device.has_value()) << message.c_str();
  return device ? std::move(*device) : DeviceHandle();
}

DevicePtr as_pointer(DeviceHandle handle) {
  auto* const kept = new DeviceHandle(std::move(handle));
  return DevicePtr(kept->get(), [kept](Device*) { delete kept; });
}

DeviceUnderTest nbd(std::string name, std::string options) {
  return {.name = std::move(name),
          .make =
              [options](MemorySource& memory, std::uint64_t capacity) {
                std::string spec = "nbd:" + shared_server().server().uri() + options;
                if (capacity != 0) spec += ",size=" + std::to_string(capacity);
                return as_pointer(make(memory, spec, shared_process()));
              },
          .keeps_fills_free = true,
          .damage = damage,
          .leftovers = leftovers};
}

#if defined(__SANITIZE_THREAD__) || defined(__SANITIZE_ADDRESS__)
INSTANTIATE_TEST_SUITE_P(Nbd, DeviceSuite, ::testing::Values(nbd("plain", "")), device_name);
#else
INSTANTIATE_TEST_SUITE_P(Nbd, DeviceSuite,
                         ::testing::Values(nbd("plain", ""),
                                           nbd("lz4_encrypted_one_connection",
                                               ",extent=16K,compress=lz4,encrypt=on,connections=1,depth=3")),
                         device_name);
#endif

// --- what can happen ------------------------------------------------------------------------------------------------

constexpr std::uint32_t kUnit = 16;

class NbdFaults : public ::testing::Test {
 protected:
  void open(const std::string& spec) {
    device_ = make(memory_, spec, address_of(process_));
    ASSERT_TRUE(static_cast<bool>(device_));
  }
  Result<DeviceSlot> put(std::uint64_t seed) {
    Pages contents(kUnit);
    fill_pages(Contents::kRandom, seed, contents.bytes());
    const Result<DeviceSlot> slot = device_->reserve(kUnit);
    if (!slot) return slot;
    if (const Result<void> stored = store(*device_, *slot, kUnit, contents.data()); !stored) {
      device_->release(*slot, kUnit);
      return std::unexpected(stored.error());
    }
    return slot;
  }
  Result<void> get(DeviceSlot slot, std::uint64_t seed) {
    Pages contents(kUnit), back(kUnit);
    fill_pages(Contents::kRandom, seed, contents.bytes());
    const Result<void> loaded = load(*device_, slot, kUnit, back.data());
    if (loaded) {
      EXPECT_EQ(std::memcmp(back.data(), contents.data(), kUnit * kPageBytes), 0) << "wrong contents";
    }
    return loaded;
  }
  void put_and_get(int units) {
    ASSERT_TRUE(static_cast<bool>(device_));
    std::vector<DeviceSlot> slots;
    for (int i = 0; i < units; ++i) {
      const Result<DeviceSlot> slot = put(static_cast<std::uint64_t>(i));
      ASSERT_TRUE(slot.has_value()) << slot.error().where << ", errno " << slot.error().sys;
      slots.push_back(*slot);
    }
    for (int i = 0; i < units; ++i) {
      const Result<void> good = get(slots[static_cast<std::size_t>(i)], static_cast<std::uint64_t>(i));
      ASSERT_TRUE(good.has_value()) << good.error().where << ", errno " << good.error().sys;
    }
    for (const DeviceSlot slot : slots) device_->release(slot, kUnit);
  }
  // Stores and loads until told to end; whatever is loaded must be right.
  void work_while(const std::function<void()>& what_happens) {
    std::atomic<bool> end{false};
    std::atomic<int> rounds{0};
    std::thread worker([&] {
      while (!end) {
        put_and_get(8);
        ++rounds;
      }
    });
    EXPECT_TRUE(becomes_true([&] { return rounds > 0; }, std::chrono::seconds(30)));
    what_happens();
    const int before = rounds;
    EXPECT_TRUE(becomes_true([&] { return rounds > before + 1; }, std::chrono::seconds(60))) << "it does not go on";
    end = true;
    worker.join();
  }

  TestMemory memory_;
  DeviceProcess process_;
  DeviceHandle device_;
};

TEST_F(NbdFaults, AServerKilledAndStartedAgainLosesNothing) {
  FileServer file(256 << 20);
  open("nbd:" + file.server().uri());
  const Result<DeviceSlot> old = put(77);
  ASSERT_TRUE(old.has_value());
  for (int i = 0; i < 3; ++i) {
    work_while([&] {
      file.server().kill();
      std::this_thread::sleep_for(std::chrono::milliseconds(100));
      file.server().start();
    });
  }
  EXPECT_TRUE(get(*old, 77).has_value());
}

TEST_F(NbdFaults, AServerThatIsStoppedIsWaitedFor) {
  NbdServer server({"memory", "64M"});
  open("nbd:" + server.uri());
  const Result<DeviceSlot> old = put(1);
  ASSERT_TRUE(old.has_value());
  server.stop();
  std::atomic<bool> done{false};
  std::thread reader([&] {
    EXPECT_TRUE(get(*old, 1).has_value());
    done = true;
  });
  std::this_thread::sleep_for(std::chrono::milliseconds(300));
  EXPECT_FALSE(done);
  server.go_on();
  reader.join();
}

TEST_F(NbdFaults, AServerThatIsGoneIsAnErrorInTime) {
  NbdServer server({"memory", "64M"});
  open("nbd:" + server.uri() + ",timeout=1");
  const Result<DeviceSlot> old = put(1);
  ASSERT_TRUE(old.has_value());
  server.kill();
  const Result<void> loaded = get(*old, 1);
  ASSERT_FALSE(loaded.has_value());
  EXPECT_EQ(loaded.error().code, Errc::kDeviceIo);
  const Result<DeviceSlot> stored = put(2);
  ASSERT_FALSE(stored.has_value());
  EXPECT_EQ(stored.error().code, Errc::kDeviceIo);
  EXPECT_STRNE(device_->last_error().where, "");
  // It comes back empty: that is found out, and said; what is stored from now on is kept.
  server.start();
  EXPECT_TRUE(becomes_true([&] { return put(3).has_value(); }, std::chrono::seconds(30)));
  const Result<void> lost = get(*old, 1);
  ASSERT_FALSE(lost.has_value());
  EXPECT_STREQ(lost.error().where, "the server came back without what was stored");
  put_and_get(20);
}

TEST_F(NbdFaults, ALateAnswerIsAnErrorAndHarmsNothing) {
  NbdServer server({"memory", "64M"});
  open("nbd:" + server.uri() + ",timeout=1,connections=1");
  const Result<DeviceSlot> kept = put(1);
  ASSERT_TRUE(kept.has_value());
  server.stop();
  const Result<DeviceSlot> late = put(2);
  ASSERT_FALSE(late.has_value());
  server.go_on();
  EXPECT_TRUE(becomes_true([&] { return put(3).has_value(); }, std::chrono::seconds(30)));
  EXPECT_TRUE(get(*kept, 1).has_value());
  put_and_get(50);
}

TEST_F(NbdFaults, ErrorsThatPassAreTriedAgain) {
  NbdServer server({"--filter=error", "memory", "64M", "error=EIO", "error-pread-rate=15%", "error-pwrite-rate=15%"});
  // The mark is read and written as well, and nobody tries that again.
  for (int i = 0; i < 20 && !device_; ++i) {
    SpecMessage message;
    const std::string spec = "nbd:" + server.uri(), address = address_of(process_);
    if (!try_device_spec(spec, built_in_devices(), address.c_str(), message)) continue;
    open(spec);
  }
  ASSERT_TRUE(static_cast<bool>(device_));
  put_and_get(60);
}

TEST_F(NbdFaults, ErrorsThatStayAreErrors) {
  const std::string trigger = "/var/tmp/whimbrel-nbd-error-" + std::to_string(::getpid());
  std::filesystem::remove(trigger);
  NbdServer server({"--filter=error", "memory", "64M", "error-rate=100%", "error-file=" + trigger});
  open("nbd:" + server.uri());
  const Result<DeviceSlot> kept = put(1);
  ASSERT_TRUE(kept.has_value());
  std::ofstream(trigger).close();
  const Result<void> loaded = get(*kept, 1);
  ASSERT_FALSE(loaded.has_value());
  EXPECT_EQ(loaded.error().code, Errc::kDeviceIo);
  EXPECT_EQ(loaded.error().sys, EIO);
  EXPECT_FALSE(put(2).has_value());
  std::filesystem::remove(trigger);
  EXPECT_TRUE(get(*kept, 1).has_value());
  put_and_get(5);
}

TEST_F(NbdFaults, Tls) {
  std::string keys = "/var/tmp/whimbrel-psk-XXXXXX";
  const int fd = ::mkstemp(keys.data());
  ASSERT_GE(fd, 0);
  ::close(fd);
  std::ofstream(keys) << "whimbrel:00112233445566778899aabbccddeeff\n";
  NbdServer server({"--tls=require", "--tls-psk=" + keys, "memory", "64M"});
  const std::string uri = server.uri();
  const std::string socket = uri.substr(uri.find('?') + 1);
  SpecMessage message;
  const std::string address = address_of(process_);
  EXPECT_FALSE(try_device_spec("nbd:" + uri, built_in_devices(), address.c_str(), message).has_value()) << "without TLS";
  open("nbd:nbds+unix://whimbrel@/?" + socket + "&tls-psk-file=" + keys);
  put_and_get(10);
  std::filesystem::remove(keys);
}

TEST_F(NbdFaults, SlowServersAreWaitedFor) {
  NbdServer server({"--filter=delay", "--filter=rate", "memory", "64M", "rdelay=5ms", "wdelay=5ms", "rate=200M"});
  open("nbd:" + server.uri());
  put_and_get(20);
}

TEST_F(NbdFaults, TheDeviceProcessEnds) {
  NbdServer server({"memory", "64M"});
  open("nbd:" + server.uri());
  const Result<DeviceSlot> kept = put(1);
  ASSERT_TRUE(kept.has_value());
  RingHello hello{};
  std::strcpy(hello.kind, "nbd");
  std::strcpy(hello.target, server.uri().c_str());
  hello.timeout_ms = 1000;
  SpecMessage message;
  const Result<RingWelcome> answer = RingConnection::probe(process_.address().c_str(), hello, message);
  ASSERT_TRUE(answer.has_value());
  ASSERT_EQ(::kill(static_cast<pid_t>(answer->process), SIGKILL), 0);
  const Result<void> loaded = get(*kept, 1);
  ASSERT_FALSE(loaded.has_value());
  EXPECT_EQ(loaded.error().code, Errc::kGone);
  EXPECT_STREQ(loaded.error().where, "the device process has ended");
  EXPECT_FALSE(put(2).has_value());
  device_->release(*kept, kUnit);
  (void)device_->maintain(1 << 20);
}

TEST_F(NbdFaults, AFullExportIsAnErrorAndRoomComesBack) {
  NbdServer server({"memory", "8M"});
  open("nbd:" + server.uri());
  std::vector<DeviceSlot> slots;
  for (;;) {
    const Result<DeviceSlot> slot = put(slots.size());
    if (!slot) {
      EXPECT_EQ(slot.error().code, Errc::kDeviceFull);
      break;
    }
    slots.push_back(*slot);
    ASSERT_LT(slots.size(), 200u);
  }
  EXPECT_GE(slots.size(), 100u);
  for (std::size_t i = 0; i < slots.size(); ++i) EXPECT_TRUE(get(slots[i], i).has_value());
  for (const DeviceSlot slot : slots) device_->release(slot, kUnit);
  while (device_->maintain(1 << 20)) {
  }
  put_and_get(100);
}

TEST_F(NbdFaults, RefusalsSayWhatIsWrong) {
  const auto has = [](const std::string& text, const std::string& words) { return text.find(words) != text.npos; };
  const auto refusal = [&](const std::string& spec) {
    SpecMessage message;
    const std::string address = address_of(process_);
    if (!check_device_spec(spec, built_in_devices(), message)) return std::string(message.text());
    EXPECT_FALSE(try_device_spec(spec, built_in_devices(), address.c_str(), message).has_value()) << spec;
    return std::string(message.text());
  };
  EXPECT_PRED2(has, refusal("nbd:"), "names no server");
  EXPECT_PRED2(has, refusal("nbd:/tmp/x"), "is no NBD URI");
  EXPECT_PRED2(has, refusal("nbd:nbd://h/,depht=3"), "depht");
  EXPECT_PRED2(has, refusal("nbd:nbd+unix:///?socket=/no/such"), "No such file");
  EXPECT_PRED2(has, refusal("nbd://127.0.0.1:1/x"), "refused");
  EXPECT_PRED2(has, refusal("mirror:lz4,nbd://127.0.0.1:1/x"), "refused");
  NbdServer small({"memory", "1M"});
  EXPECT_PRED2(has, refusal("nbd:" + small.uri()), "at least 4 MiB");
  NbdServer fixed({"-r", "memory", "64M"});
  EXPECT_PRED2(has, refusal("nbd:" + fixed.uri()), "read-only");
  NbdServer used({"data", "data=@0x438 0x53 0xEF", "size=64M"});  // ext4
  EXPECT_PRED2(has, refusal("nbd:" + used.uri()), "force=on");
  open("nbd:" + used.uri() + ",force=on");
  put_and_get(3);
  // A second run on the same export.
  DeviceProcess other;
  SpecMessage message;
  const std::string address = address_of(other);
  EXPECT_FALSE(try_device_spec("nbd:" + used.uri(), built_in_devices(), address.c_str(), message).has_value());
  EXPECT_PRED2(has, std::string(message.text()), "another run uses this export");
}

TEST(RingProtocol, WhoDoesNotKnowTheTokenIsNotAnswered) {
  DeviceProcess process;
  std::string address = address_of(process);
  RingHello hello{};
  std::strcpy(hello.kind, "nbd");
  std::strcpy(hello.target, "nbd+unix:///?socket=/no/such");
  hello.timeout_ms = 1000;
  SpecMessage message;
  const Result<RingWelcome> right = RingConnection::probe(address.c_str(), hello, message);
  ASSERT_FALSE(right.has_value());
  EXPECT_NE(message.text().find("No such file"), std::string_view::npos);
  message.clear();
  address.back() = address.back() == '0' ? '1' : '0';
  const Result<RingWelcome> wrong = RingConnection::probe(address.c_str(), hello, message);
  ASSERT_FALSE(wrong.has_value());
  EXPECT_EQ(wrong.error().code, Errc::kGone);
  EXPECT_EQ(std::string(message.text()), "");
}

}  // namespace
}  // namespace whimbrel::testing
