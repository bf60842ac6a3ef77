#include "runtime/event_file.h"

#include <fcntl.h>
#include <sys/mman.h>

#include <cstring>

#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

}  // namespace

Result<EventFile> EventFile::create(const char* path) noexcept {
  Result<int> fd = sys::open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  if (!fd) return std::unexpected(fd.error());
  const Result<void> sized = sys::truncate(*fd, sizeof(EventLayout));
  Result<void*> mapped = sized ? sys::map_shared(*fd, sizeof(EventLayout)) : Result<void*>(std::unexpected(sized.error()));
  sys::close(*fd);
  if (!mapped) return std::unexpected(mapped.error());
  auto* layout = static_cast<EventLayout*>(*mapped);  // all zeros: no ring is taken
  layout->header.version = kEventVersion;
  layout->header.rings = kEventRings;
  std::atomic_ref<std::uint64_t>(layout->header.magic).store(kEventMagic, std::memory_order_release);
  return EventFile(layout);
}

Result<EventFile> EventFile::open(const char* path) noexcept {
  Result<int> fd = sys::open(path, O_RDWR | O_NOFOLLOW);
  if (!fd) return std::unexpected(fd.error());
  const Result<std::uint64_t> size = sys::file_size(*fd);
  Result<void*> mapped = fail(Errc::kInvalid, 0, "not an event file");
  if (size && *size == sizeof(EventLayout)) mapped = sys::map_shared(*fd, sizeof(EventLayout));
  sys::close(*fd);
  if (!mapped) return std::unexpected(mapped.error());
  auto* layout = static_cast<EventLayout*>(*mapped);
  if (std::atomic_ref<std::uint64_t>(layout->header.magic).load(std::memory_order_acquire) != kEventMagic ||
      layout->header.version != kEventVersion || layout->header.rings != kEventRings) {
    sys::munmap(layout, sizeof(EventLayout));
    return fail(Errc::kInvalid, 0, "event file of another version");
  }
  return EventFile(layout);
}

void EventFile::unmap() noexcept {
  if (layout_ != nullptr) sys::munmap(layout_, sizeof(EventLayout));
  layout_ = nullptr;
}

EventRing* EventFile::claim(std::uint32_t pid, std::uint32_t parent_pid, std::uint32_t session,
                            const std::array<std::atomic<char>, 16>& name, std::int64_t now_ns) const noexcept {
  for (EventRing& ring : layout_->rings) {
    std::uint32_t nobody = 0;
    if (ring.owner.load(kRelaxed) != 0 || !ring.owner.compare_exchange_strong(nobody, kRingBeingTaken, std::memory_order_acquire)) continue;
    ring.parent.store(parent_pid, kRelaxed);
    ring.session.store(session, kRelaxed);
    ring.ended.store(0, kRelaxed);
    ring.started_ns.store(static_cast<std::uint64_t>(now_ns), kRelaxed);
    for (std::size_t i = 0; i < name.size(); ++i) ring.name[i].store(name[i].load(kRelaxed), kRelaxed);
    ring.owner.store(pid, std::memory_order_release);
    return &ring;
  }
  return nullptr;
}

void EventFile::release(EventRing& ring) noexcept {
  // Gives the file's memory back, which makes all of it zero, the owner at last.
  if (!sys::madvise(ring.records.data(), sizeof ring.records, MADV_REMOVE)) {
    std::memset(static_cast<void*>(ring.records.data()), 0, sizeof ring.records);
  }
  ring.head.store(0, kRelaxed);
  ring.tail.store(0, kRelaxed);
  ring.lost.store(0, kRelaxed);
  ring.owner.store(0, std::memory_order_release);
}

}  // namespace whimbrel
