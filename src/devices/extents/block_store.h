// BlockStore: where the blocks of an ExtentDevice lie: in files of this process, or behind the device process.
//
// A store has up to kMostVolumes volumes: the one that this process stores to, and those that it inherited and only
// reads. Transfers run on queues, which belong to one worker of the device each. What a volume's blocks hold, and which
// are in use, is the device's business.
//
// Thread-safe but for start(), open() and the fork calls, which the device calls one at a time; a queue is for one
// thread at a time. Nothing here allocates after start().
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"
#include "base/memory_source.h"

namespace whimbrel {

struct BlockTransfer {
  enum class Kind : std::uint8_t { kRead, kWrite };
  Kind kind = Kind::kRead;
  int volume = 0;
  std::byte* memory = nullptr;  // page-aligned; kWrite: only read
  std::uint32_t bytes = 0;      // whole blocks
  std::uint64_t offset = 0;     // in the volume, at a block
};

class BlockQueue {
 public:
  static constexpr std::uint32_t kMost = 64;
  static constexpr int kEnd = -1;  // as an error: the volume ends before

  struct Done {
    std::uint32_t tag = 0;
    int error = 0;  // an errno; 0: everything has moved
    // The write was given up, but may still happen: its blocks must not be used again.
    bool may_still_happen = false;
  };

  BlockQueue() = default;
  BlockQueue(const BlockQueue&) = delete;
  BlockQueue& operator=(const BlockQueue&) = delete;
  virtual ~BlockQueue() = default;

  [[nodiscard]] virtual bool is_full() const noexcept = 0;
  [[nodiscard]] virtual std::uint32_t in_flight() const noexcept = 0;
  // `tag` below the depth, of no transfer under way.
  virtual void add(const BlockTransfer& transfer, std::uint32_t tag) noexcept = 0;
  // Waits for one of those under way; with none, CHECKs.
  [[nodiscard]] virtual Done wait() noexcept = 0;
  // Memory for the transfer `tag` that need not be copied once more on its way; null: there is none such.
  [[nodiscard]] virtual std::byte* buffer(std::uint32_t /*tag*/) noexcept { return nullptr; }
  // In a forked child: what was under way is the parent's.
  virtual void forget_after_fork() noexcept = 0;
};

class BlockStore {
 public:
  static constexpr int kMostVolumes = 8;

  // What its parts are called in messages.
  struct Words {
    const char* name;           // of the device
    const char* writing;        // "writing to the file"
    const char* reading;
    const char* ends_early;     // "the file ends early"
    const char* damaged;        // "the file does not hold what was stored"
    const char* not_handed_on;  // to a forked process
    const char* not_inherited;  // by a forked process
  };
  struct Plan {
    std::uint32_t queues = 1;
    std::uint32_t depth = 1;           // transfers under way in a queue
    std::uint32_t transfer_bytes = 0;  // the most that one moves
  };
  struct Inherited {
    std::uint32_t volumes = 0;          // a bit for each one that the child will have
    bool own_sharing_is_noticed = true;  // by is_sole_user()
    int error = 0;                      // an errno, when one of those asked for is missing
  };

  BlockStore() = default;
  BlockStore(const BlockStore&) = delete;
  BlockStore& operator=(const BlockStore&) = delete;
  virtual ~BlockStore() = default;

  [[nodiscard]] virtual const Words& words() const noexcept = 0;
  // Words for an error of a transfer: `usual`, or something that says more. Static text.
  [[nodiscard]] virtual const char* explain(int /*error*/, const char* usual) const noexcept { return usual; }
  // Once, before anything else.
  [[nodiscard]] virtual Result<void> start(MemorySource& source, const Plan& plan) noexcept = 0;
  // 0 <= number < Plan::queues.
  [[nodiscard]] virtual BlockQueue& queue(std::uint32_t number) noexcept = 0;

  // Makes the volume that this process stores to, empty.
  [[nodiscard]] virtual Result<void> open(int volume) noexcept = 0;
  virtual void close(int volume) noexcept = 0;
  [[nodiscard]] virtual bool is_open(int volume) const noexcept = 0;
  // A forked process can have one like it.
  [[nodiscard]] virtual bool can_be_made_again() const noexcept = 0;
  // Bytes there are in a volume; 0: it grows.
  [[nodiscard]] virtual std::uint64_t fixed_bytes(int volume) const noexcept = 0;
  // The volume will be so long: never shorter than before, and not from two threads at a time.
  virtual void lengthen(int /*volume*/, std::uint64_t /*bytes*/) noexcept {}
  // Gives the room behind the range back. kNotSupported: this store cannot. kAgain: it may still happen, at any time.
  [[nodiscard]] virtual Result<void> punch(int volume, std::uint64_t offset, std::uint64_t bytes) noexcept = 0;
  // Whether no other process has the volume any more.
  [[nodiscard]] virtual bool is_sole_user(int volume) noexcept = 0;

  // Around a fork, as Device has them. `wanted` and `own`: volumes that the child needs, and which of them this process
  // stores to (-1: none). Transfers that read go on meanwhile.
  [[nodiscard]] virtual Inherited prepare_fork(std::uint32_t wanted, int own) noexcept = 0;
  virtual void after_fork_in_parent() noexcept = 0;
  virtual void after_fork_in_child() noexcept = 0;
  [[nodiscard]] virtual std::span<const int> carried() const noexcept = 0;
  virtual void settle_in_child() noexcept {}
  virtual void drop_carried() noexcept = 0;
};

}  // namespace whimbrel
