// The statistics file: what every process of one `whimbrel run` is doing, in one shared file mapping.
//
// `whimbrel run` creates the file (permission 0600) and names it in the environment. Every process below it maps the
// file and claims one slot; a forked child inherits the mapping and claims a slot of its own. Counters are stored
// straight into the mapping, so they survive every kind of death, and reading them costs the program nothing.
// `whimbrel watch` does the same for programs that open sessions: each session claims a slot, and the file's limits and
// device are not for them.
//
// Layout (version 8, little endian, all offsets fixed):
//   0        StatsHeader          4096 bytes: identification, limits, what dead processes left behind
//   4096     StatsMessage[256]    65536 bytes: ring of messages for people, written by anyone, read by `run`
//   69632    StatsSlot[4096]      1024 bytes each; the second half is the pager's own statistics (pager/stats.h)
// Numbers are bytes, pages of 4096 bytes, or nanoseconds, as their names say. Readers check magic and version.
#pragma once

#include <array>
#include <atomic>
#include <cstddef>
#include <cstdint>

#include "base/error.h"
#include "pager/stats.h"

namespace whimbrel {

inline constexpr std::uint64_t kStatsMagic = 0x6c6572626d696877;  // the bytes "whimbrel"
inline constexpr std::uint32_t kStatsVersion = 8;
inline constexpr std::size_t kStatsMessages = 256;
inline constexpr std::size_t kStatsSlots = 4096;
inline constexpr std::size_t kStatsDevice = 1280;

using Counter = std::atomic<std::uint64_t>;
static_assert(Counter::is_always_lock_free);

// What the device kept at the moment when most was away; "now" in a slot's own fields.
struct StorePeak {
  Counter stored_pages;
  Counter compressed_bytes;  // payload
  Counter held_bytes;        // memory or disk really used for it
};

enum class SlotState : std::uint32_t { kFree = 0, kLive = 1, kFolding = 2 };

enum class EngineMode : std::uint32_t {
  kWaiting = 0,    // below the budget: nothing but a sleeping thread
  kManaged = 1,    // memory is being moved
  kUnmanaged = 2,  // whimbrel could not start in this process; it runs as if without it
  kEnded = 3,      // a session that has been closed, in a process that may go on
};

struct alignas(1024) StatsSlot {
  std::atomic<SlotState> state;
  std::atomic<std::uint32_t> pid;
  std::atomic<std::uint32_t> parent_pid;
  std::atomic<EngineMode> mode;
  Counter started_ns;        // monotonic clock
  Counter updated_ns;
  std::array<std::atomic<char>, 16> name;
  Counter anonymous_bytes;   // private memory of the process as the kernel counts it, last time somebody looked
  Counter stored_pages;      // on the device now
  Counter compressed_bytes;
  Counter held_bytes;
  StorePeak peak;
  // For whoever watches from outside that the engine lives. Thread numbers as this process knows them; 0: none yet.
  std::atomic<std::uint32_t> fault_thread;
  std::atomic<std::uint32_t> background_thread;
  Counter background_beat_ns;  // monotonic clock, a few times a second
  Counter serving_since_ns;    // the fault thread took up messages then and is not through with them; 0: it waits
  Counter unserved_ns;         // for so long touches have been waiting that the fault thread does not take up; see FaultWatch
  Counter rewakes_asked;       // counted up by whoever watches: everybody who waits for memory shall touch it anew
  // Of the run's changes of device: the last one that this process follows, and the last one that it could not; counted from 1.
  std::atomic<std::uint32_t> device_change, device_refused;
  Counter leaving_pages;       // still on the device before
  // Of a session: its number in its process, from 1, its budget and its device (cut to what fits). 0: a process of a run.
  std::atomic<std::uint32_t> session;
  std::array<std::atomic<char>, 44> device;
  Counter ram_limit_bytes, total_limit_bytes;  // 0: none
  alignas(256) PagerStats pager;
};
static_assert(sizeof(PagerStats) <= 768, "a new layout version is needed");
static_assert(sizeof(StatsSlot) == 1024 && offsetof(StatsSlot, pager) == 256);

struct StatsMessage {
  std::atomic<std::uint32_t> sequence;  // 0 while being written; otherwise 1 + the message's number
  std::atomic<std::uint32_t> pid;
  std::array<std::atomic<char>, 248> text;  // zero-terminated
};
static_assert(sizeof(StatsMessage) == 256);

struct alignas(4096) StatsHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t slots;
  Counter ram_limit_bytes;          // 0: none. Of each process, as are the totals
  Counter total_limit_bytes;        // 0: none
  std::atomic<std::uint32_t> next_slot;
  std::atomic<std::uint32_t> next_message;
  std::atomic<std::uint32_t> budget_changes;  // of the two limits since the start; see set_limits()
  std::atomic<std::uint32_t> device_writes;   // of `device`; odd while somebody writes. See set_device()
  Counter exited_processes;         // processes whose slots have been used again ...
  Counter exited_managed;           // ... how many of them had memory under management ...
  StorePeak exited_peak;            // ... and what they left: peaks are the highest, the rest is summed
  alignas(512) PagerStats exited;
  std::array<std::atomic<char>, kStatsDevice> device;  // zero-terminated specification, cut to what fits
};
static_assert(sizeof(StatsHeader) == 4096);

struct StatsLayout {
  StatsHeader header;
  std::array<StatsMessage, kStatsMessages> messages;
  std::array<StatsSlot, kStatsSlots> slots;
};
static_assert(offsetof(StatsLayout, messages) == 4096);
static_assert(offsetof(StatsLayout, slots) == 69632);

// A mapped statistics file. Trivial: copying copies the pointer; the mapping lives as long as the process.
class StatsFile {
 public:
  // Creates the file (it must not exist) and maps it.
  struct Limits {
    std::uint64_t ram_bytes = 0;
    std::uint64_t total_bytes = 0;
    const char* device = "";
  };
  [[nodiscard]] static Result<StatsFile> create(const char* path, const Limits& limits) noexcept;
  // Maps an existing one. kInvalid: not a statistics file, or of another version.
  [[nodiscard]] static Result<StatsFile> open(const char* path) noexcept;

  // For readers: gives the mapping back. No copy of this object is good afterwards.
  void unmap() noexcept;

  constexpr StatsFile() noexcept = default;
  // Without a file: counters go to a page of this process and are lost with it.
  [[nodiscard]] explicit operator bool() const noexcept { return layout_ != nullptr; }
  [[nodiscard]] StatsLayout& layout() const noexcept { return *layout_; }

  // Another budget for every process of the run, now and to come; 0: no limit of that kind. The engines look for it a few hundred
  // times a second. Any process that may write the file.
  void set_limits(std::uint64_t ram_bytes, std::uint64_t total_bytes) const noexcept;

  // Another device for every process of the run, now and to come; the engines find it at their next look. One process at a time.
  // False: longer than kStatsDevice.
  [[nodiscard]] bool set_device(const char* specification) const noexcept;
  // The device, zero-terminated, and how many times it has been changed. False: it is being changed just now.
  [[nodiscard]] bool device(std::array<char, kStatsDevice>& out, std::uint32_t* changes) const noexcept;

  // A slot for this process, or a session of it. When all have been used, one of a dead process or a closed session is folded
  // into the header and used again; null when every slot is in use.
  [[nodiscard]] StatsSlot* claim(std::uint32_t pid, std::uint32_t parent_pid, std::int64_t now_ns) const noexcept;
  // Adds a message for people. Cut to what fits; never waits.
  void post(std::uint32_t pid, const char* text) const noexcept;
  // Copies the message with this number; false: not there yet, or already overwritten.
  [[nodiscard]] bool message(std::uint32_t number, char (&text)[248], std::uint32_t* pid) const noexcept;

  struct Totals {
    std::uint64_t processes = 0;   // program images that took part: an exec counts as a new one
    std::uint64_t managed = 0;     // of these: had memory under management
    std::uint64_t peak_stored_pages = 0, compressed_bytes = 0, peak_held_bytes = 0;  // of the process with most away
    PagerStats pager{};            // counters summed; peaks those of the process where they were highest
  };
  // All processes, dead ones included, put together. `out` must be fresh.
  void totals(Totals& out) const noexcept;

 private:
  explicit StatsFile(StatsLayout* layout) noexcept : layout_(layout) {}
  [[nodiscard]] StatsSlot* reclaim() const noexcept;
  StatsLayout* layout_ = nullptr;
};

}  // namespace whimbrel
