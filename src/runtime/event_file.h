// The event file of a run: one shared file mapping with an event ring for each process that has memory under management
// (pager/event_ring.h). `whimbrel run --events` creates it (permission 0600), names it in the environment and reads it;
// every engine below maps it at its start and takes a ring when it begins to manage.
//
// The file is sparse: a ring that nobody has used takes no memory, and the reader gives back what it is through with.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/error.h"
#include "pager/event_ring.h"

namespace whimbrel {

inline constexpr std::uint64_t kEventMagic = 0x73746e6576656877;  // the bytes "whevents"
inline constexpr std::uint32_t kEventVersion = 2;
// An owner that is not there yet.
inline constexpr std::uint32_t kRingBeingTaken = ~std::uint32_t{0};
inline constexpr std::size_t kEventRings = 64;  // processes under management at a time

struct alignas(4096) EventHeader {
  std::uint64_t magic;
  std::uint32_t version;
  std::uint32_t rings;
  std::atomic<std::uint64_t> lost;  // events of processes that found no ring
};

struct EventLayout {
  EventHeader header;
  std::array<EventRing, kEventRings> rings;
};

// A mapped event file. Trivial: copying copies the pointer; the mapping lives as long as the process.
class EventFile {
 public:
  // Creates the file (it must not exist) and maps it.
  [[nodiscard]] static Result<EventFile> create(const char* path) noexcept;
  // Maps an existing one. kInvalid: not an event file, or of another version.
  [[nodiscard]] static Result<EventFile> open(const char* path) noexcept;

  constexpr EventFile() noexcept = default;
  [[nodiscard]] explicit operator bool() const noexcept { return layout_ != nullptr; }
  [[nodiscard]] EventLayout& layout() const noexcept { return *layout_; }

  // A ring for this process, or a session of it (0: none). Null: all are taken.
  [[nodiscard]] EventRing* claim(std::uint32_t pid, std::uint32_t parent_pid, std::uint32_t session,
                                 const std::array<std::atomic<char>, 16>& name, std::int64_t now_ns) const noexcept;
  // Gives the mapping back. No copy of this object is good afterwards.
  void unmap() noexcept;
  // The reader: makes a ring empty and free again. Its owner is dead.
  static void release(EventRing& ring) noexcept;

 private:
  explicit EventFile(EventLayout* layout) noexcept : layout_(layout) {}
  EventLayout* layout_ = nullptr;
};

}  // namespace whimbrel
