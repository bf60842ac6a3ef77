// Device: keeps page contents somewhere other than the program's RAM.
//
// Life of a unit of pages:
//   1. reserve() hands out consecutive slots; their contents are undefined.
//   2. a kStore operation fills them from memory. Only then do they hold anything.
//   3. kLoad operations copy them (or some of them) back, as often as one likes.
//   4. release() gives slots back, one by one or together, in any order.
//
// A failed store leaves the slots reserved and empty; the caller still has the bytes. A failed load leaves the stored
// contents as they are; it may be tried again.
//
// Thread-safe. Never calls into the engine, never touches the program's memory other than the buffers it is given
// (which are the engine's own), never allocates from the program's heap, does not throw.
#pragma once

#include <cstddef>
#include <cstdint>
#include <span>

#include "base/error.h"

namespace whimbrel {

// The number of a page-sized place within one device, 0-based.
enum class DeviceSlot : std::uint64_t {};

[[nodiscard]] constexpr DeviceSlot operator+(DeviceSlot slot, std::uint64_t pages) {
  return DeviceSlot{static_cast<std::uint64_t>(slot) + pages};
}

struct DeviceTraits {
  const char* name = "";            // static or owned by the device, e.g. "zstd"
  std::uint32_t unit_pages = 1;     // the number of pages the device likes to store together (1..512)
  std::uint64_t slots = 0;          // how many slot numbers exist (an address limit, not a promise of capacity)
  bool synchronous = true;          // submit() completes everything before it returns
  bool in_process_memory = true;    // contents live in this process's memory (counts against its RAM)
  bool shared_on_fork = true;       // after a fork the child can still load everything that was stored before
};

struct DeviceStats {
  std::uint64_t stored_pages = 0;     // pages that hold contents now
  std::uint64_t same_filled_pages = 0;  // of these: kept as one word
  std::uint64_t raw_pages = 0;        // of these: incompressible, kept as they are
  std::uint64_t compressed_bytes = 0; // payload of all stored contents
  std::uint64_t held_bytes = 0;       // memory or disk really used, with overhead
  std::uint64_t capacity_bytes = 0;   // limit on held_bytes; 0: none
  std::uint64_t stores = 0, loads = 0;            // pages, since the start
  std::uint64_t store_ns = 0, load_ns = 0;        // time spent, since the start
  std::uint64_t errors = 0;
};

// One transfer. `memory` is page-aligned engine memory of `pages` * 4096 bytes.
struct DeviceOp {
  enum class Kind : std::uint8_t { kStore, kLoad };
  Kind kind = Kind::kStore;
  DeviceSlot first{};
  std::uint32_t pages = 0;
  std::byte* memory = nullptr;   // kStore: read only
  Result<void> result{};         // valid once the batch is done
  // kStore: a device that compresses answers kNotSupported rather than keep what does not shrink by an eighth. Others
  // take no notice.
  bool shrink_only = false;
};

// A set of transfers in flight. The caller owns it and keeps it (and the memory) alive until done.
struct DeviceBatch {
  std::span<DeviceOp> ops;
  void* device_private = nullptr;  // for the device
};

class Device {
 public:
  virtual ~Device() = default;
  [[nodiscard]] virtual DeviceTraits traits() const noexcept = 0;
  [[nodiscard]] virtual DeviceStats stats() const noexcept = 0;

  // `pages` (1..unit_pages) consecutive slots within one unit. kDeviceFull, kNoMemory, kGone.
  [[nodiscard]] virtual Result<DeviceSlot> reserve(std::uint32_t pages) noexcept = 0;
  // The slots must be reserved; their contents are gone (and wiped where others could see them) afterwards.
  virtual void release(DeviceSlot first, std::uint32_t pages) noexcept = 0;

  // Starts all operations. Stores cover whole reservations; loads any part of one. Results: kDeviceFull, kDeviceIo,
  // kCorrupt, kGone, kNoMemory. Operations of one batch may complete in any order.
  virtual void submit(DeviceBatch& batch) noexcept = 0;
  // Waits until every operation of the batch has its result. Returns at once for synchronous devices.
  virtual void wait(DeviceBatch& batch) noexcept = 0;

  // Whether memory holds the same bytes as the slots; writes nothing. This is how a page that came home writable is
  // found clean: equal means the stored copy still stands for it. kInvalid (nothing stored), kCorrupt, kDeviceIo,
  // kNotSupported (then the caller must store again).
  [[nodiscard]] virtual Result<bool> verify(DeviceSlot, std::uint32_t /*pages*/, const std::byte*) noexcept {
    return fail(Errc::kNotSupported, 0, "verify");
  }

  // Upkeep in the background, e.g. giving back memory that frees have left scattered. Copies at most about
  // `budget_bytes` and returns whether more is worth doing. For a thread with time to spare; others are not held up.
  virtual bool maintain(std::size_t /*budget_bytes*/) noexcept { return false; }

  // fork: prepare_fork() brings the device to a state that a copy of the process can go on from and holds it there;
  // exactly one of the other two follows in each process. In the child, contents stored before the fork stay loadable
  // (when shared_on_fork) and are never modified in place.
  // In between, stores, reservations, releases and upkeep wait, but loads go on: after our prepare handler has run, libc
  // still takes locks that other threads may hold while they wait for a page, and touches memory itself. So a load
  // changes nothing that the child relies on (counters apart), and the child frees every lock that a load may have held.
  virtual void prepare_fork() noexcept {}
  virtual void after_fork_in_parent() noexcept {}
  virtual void after_fork_in_child() noexcept {}

  // A device with descriptors. Those live in the table of the engine's threads, of which a child inherits nothing. So
  // prepare_fork() opens what the child needs in the table of the forking thread, and after_fork_in_parent() closes it
  // there. In the child carried() names them until drop_carried(); the first engine thread starts with copies of them
  // and calls settle_in_child(); then the forking thread calls drop_carried(), which closes its own.
  [[nodiscard]] virtual std::span<const int> carried() const noexcept { return {}; }
  virtual void settle_in_child() noexcept {}
  virtual void drop_carried() noexcept {}

  // The last failure of the device itself, for a message; an empty `where`: none. Any thread.
  [[nodiscard]] virtual Error last_error() const noexcept { return {}; }
};

}  // namespace whimbrel
