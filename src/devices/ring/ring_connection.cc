#include "devices/ring/ring_connection.h"

#include <cerrno>
#include <cstring>
#include <string_view>

#include "devices/text_cut.h"
#include "linux/shared_memory.h"
#include "linux/sys.h"

namespace whimbrel {
namespace {

struct Address {
  std::uint32_t user = 0;
  std::string_view name;
  std::uint8_t token[16] = {};
};

int digit(char c) noexcept {
  if (c >= '0' && c <= '9') return c - '0';
  return c >= 'a' && c <= 'f' ? c - 'a' + 10 : -1;
}

bool parse(std::string_view text, Address& out) noexcept {
  const auto [user, rest] = cut(text, ':');
  const auto [name, token] = cut(rest, ':');
  if (user.empty() || name.empty() || token.size() != 2 * sizeof out.token) return false;
  for (const char c : user) {
    if (c < '0' || c > '9') return false;
    out.user = out.user * 10 + static_cast<std::uint32_t>(c - '0');
  }
  for (std::size_t i = 0; i < sizeof out.token; ++i) {
    const int high = digit(token[2 * i]), low = digit(token[2 * i + 1]);
    if (high < 0 || low < 0) return false;
    out.token[i] = static_cast<std::uint8_t>(high * 16 + low);
  }
  out.name = name;
  return true;
}

std::size_t ring_bytes(const RingHello& hello) noexcept {
  return (1 + std::size_t{hello.lanes}) * WHIMBREL_RING_PAGE +
         std::size_t{hello.lanes} * hello.depth * hello.slot_bytes;
}

}  // namespace

// The socket of a welcome that was good.
Result<int> RingConnection::say_hello(const char* address, const RingHello& hello, RingWelcome& welcome, int* memory,
                                      SpecMessage& message) noexcept {
  // The device process answers at the latest when the target's timeout is over.
  constexpr unsigned kGrace = 5000;
  Address to;
  if (!parse(address, to)) return fail(Errc::kNotFound, 0, "no device process");
  const Result<int> made = sys::connect_by_name(to.name, hello.timeout_ms + kGrace);
  if (!made) {
    return fail(made.error().code == Errc::kNotFound ? Errc::kNotFound : made.error().code, made.error().sys,
                "the device process cannot be reached");
  }
  const auto refuse = [&](Errc code, int sys, const char* why) {
    sys::close(*made);
    return fail(code, sys, why);
  };
  // Whoever listens must be the user who started the device process: else the token would be given away.
  const Result<std::uint32_t> user = sys::peer_user(*made);
  if (!user || *user != to.user) return refuse(Errc::kNotPermitted, 0, "the device process is not the one of this run");
  RingHello full = hello;
  full.magic = WHIMBREL_RING_MAGIC;
  std::memcpy(full.token, to.token, sizeof full.token);
  if (const Result<void> sent = sys::send_message(*made, &full, sizeof full); !sent) {
    return refuse(Errc::kGone, sent.error().sys, "the device process does not listen");
  }
  int descriptor = -1;
  const Result<std::size_t> got = sys::receive_message(*made, &welcome, sizeof welcome, &descriptor);
  if (!got || *got != sizeof welcome || welcome.magic != WHIMBREL_RING_MAGIC) {
    if (descriptor >= 0) sys::close(descriptor);
    return refuse(Errc::kGone, got ? 0 : got.error().sys, "the device process does not answer");
  }
  welcome.text[sizeof welcome.text - 1] = 0;
  if (welcome.failed != 0) {
    if (descriptor >= 0) sys::close(descriptor);
    message.add(std::string_view(welcome.text));
    const Errc code = welcome.failed == EINVAL ? Errc::kInvalid : Errc::kDeviceIo;
    return refuse(code, welcome.failed, "the server cannot be used");
  }
  *memory = descriptor;
  return *made;
}

Result<RingWelcome> RingConnection::probe(const char* address, const RingHello& hello, SpecMessage& message) noexcept {
  RingHello asking = hello;
  asking.purpose = kRingProbe;
  RingWelcome welcome{};
  int memory = -1;
  const Result<int> socket = say_hello(address, asking, welcome, &memory, message);
  if (!socket) return std::unexpected(socket.error());
  if (memory >= 0) sys::close(memory);
  sys::close(*socket);
  return welcome;
}

Result<void> RingConnection::open(const char* address, const RingHello& hello, SpecMessage& message) noexcept {
  RingHello asking = hello;
  asking.purpose = kRingJoin;
  RingWelcome welcome{};
  int memory = -1;
  const Result<int> socket = say_hello(address, asking, welcome, &memory, message);
  if (!socket) return std::unexpected(socket.error());
  const std::size_t bytes = ring_bytes(hello);
  const Result<std::uint64_t> size = memory >= 0 ? sys::file_size(memory) : fail(Errc::kInvalid, 0, "no memory came");
  Result<void*> mapped = fail(Errc::kInvalid, 0, "the device process sent a ring of another size");
  if (size && *size == bytes) mapped = sys::map_shared(memory, bytes);
  if (memory >= 0) sys::close(memory);
  if (!mapped) {
    sys::close(*socket);
    return std::unexpected(mapped.error());
  }
  socket_ = *socket;
  inode_ = sys::inode_of(socket_);
  memory_ = static_cast<std::byte*>(*mapped);
  bytes_ = bytes;
  lanes_ = hello.lanes;
  depth_ = hello.depth;
  slot_bytes_ = hello.slot_bytes;
  welcome_ = welcome;
  gone_.store(false, std::memory_order_release);
  return {};
}

void RingConnection::close() noexcept {
  if (memory_ != nullptr) sys::munmap(memory_, bytes_);
  if (owns(socket_)) sys::close(socket_);
  forget();
}

void RingConnection::forget() noexcept {
  memory_ = nullptr;
  socket_ = -1;
  inode_ = 0;
}

// The number may have been closed by the program, and used again.
bool RingConnection::owns(int descriptor) const noexcept {
  return descriptor >= 0 && descriptor == socket_ && inode_ != 0 && sys::inode_of(descriptor) == inode_;
}

void RingConnection::keep_from_children() noexcept {
  if (memory_ != nullptr) (void)sys::keep_from_children(memory_, bytes_);
}

void RingConnection::take(RingConnection& other) noexcept {
  close();
  socket_ = other.socket_;
  inode_ = other.inode_;
  memory_ = other.memory_;
  bytes_ = other.bytes_;
  lanes_ = other.lanes_;
  depth_ = other.depth_;
  slot_bytes_ = other.slot_bytes_;
  welcome_ = other.welcome_;
  gone_.store(other.gone_.load(std::memory_order_relaxed), std::memory_order_release);
  other.forget();
}

void RingConnection::notify() noexcept {
  std::uint32_t& asleep = reinterpret_cast<RingHeader*>(memory_)->asleep;
  const std::atomic_ref<std::uint32_t> word(asleep);
  // Sequentially after the posting: one of the two sides sees the other's mark.
  std::atomic_thread_fence(std::memory_order_seq_cst);
  if (word.load(std::memory_order_relaxed) != 0 && word.exchange(0, std::memory_order_relaxed) != 0) {
    sys::ring_bell(socket_);
  }
}

bool RingConnection::is_alive() noexcept {
  if (is_given_up()) return false;
  if (sys::is_connected(socket_)) return true;
  give_up();
  return false;
}

}  // namespace whimbrel
