#include "runtime/stats_file.h"

#include <fcntl.h>

#include <cstring>

#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

void add(Counter& to, const Counter& from) noexcept { to.fetch_add(from.load(kRelaxed), kRelaxed); }

void raise(Counter& to, std::uint64_t value) noexcept {
  std::uint64_t old = to.load(kRelaxed);
  while (old < value && !to.compare_exchange_weak(old, value, kRelaxed)) {
  }
}

void fold(const StatsSlot& slot, StatsHeader& into) noexcept {
  const StatsCounters& from = slot.counters;
  StatsCounters& to = into.exited;
  add(to.pages_out, from.pages_out);
  add(to.pages_home, from.pages_home);
  add(to.faults, from.faults);
  add(to.zero_faults, from.zero_faults);
  add(to.wait_ns, from.wait_ns);
  add(to.refused, from.refused);
  add(to.back_pressure, from.back_pressure);
  add(to.clean_drops, from.clean_drops);
  add(to.forks, from.forks);
  add(to.errors, from.errors);
  for (std::size_t i = 0; i < kLatencyBuckets; ++i) add(to.latency[i], from.latency[i]);
  raise(into.exited_peak.resident_bytes, slot.peak.resident_bytes.load(kRelaxed));
  raise(into.exited_peak.total_bytes, slot.peak.total_bytes.load(kRelaxed));
  if (slot.peak.stored_pages.load(kRelaxed) > into.exited_peak.stored_pages.load(kRelaxed)) {
    into.exited_peak.stored_pages.store(slot.peak.stored_pages.load(kRelaxed), kRelaxed);
    into.exited_peak.compressed_bytes.store(slot.peak.compressed_bytes.load(kRelaxed), kRelaxed);
    into.exited_peak.stored_bytes.store(slot.peak.stored_bytes.load(kRelaxed), kRelaxed);
  }
  into.exited_processes.fetch_add(1, kRelaxed);
}

void gather(StatsFile::Totals& out, const StatsCounters& c, const StatsPeaks& peak) noexcept {
  out.pages_out += c.pages_out.load(kRelaxed);
  out.pages_home += c.pages_home.load(kRelaxed);
  out.faults += c.faults.load(kRelaxed);
  out.zero_faults += c.zero_faults.load(kRelaxed);
  out.wait_ns += c.wait_ns.load(kRelaxed);
  out.refused += c.refused.load(kRelaxed);
  out.back_pressure += c.back_pressure.load(kRelaxed);
  out.clean_drops += c.clean_drops.load(kRelaxed);
  out.forks += c.forks.load(kRelaxed);
  out.errors += c.errors.load(kRelaxed);
  for (std::size_t i = 0; i < kLatencyBuckets; ++i) out.latency[i] += c.latency[i].load(kRelaxed);
  const std::uint64_t resident = peak.resident_bytes.load(kRelaxed);
  if (out.peak_resident_bytes < resident) out.peak_resident_bytes = resident;
  const std::uint64_t total = peak.total_bytes.load(kRelaxed);
  if (out.peak_total_bytes < total) out.peak_total_bytes = total;
  if (out.peak_stored_pages < peak.stored_pages.load(kRelaxed)) {
    out.peak_stored_pages = peak.stored_pages.load(kRelaxed);
    out.compressed_bytes = peak.compressed_bytes.load(kRelaxed);
    out.peak_stored_bytes = peak.stored_bytes.load(kRelaxed);
  }
}

}  // namespace

Result<StatsFile> StatsFile::create(const char* path, const Limits& limits) noexcept {
  Result<int> fd = sys::open(path, O_RDWR | O_CREAT | O_EXCL | O_NOFOLLOW, 0600);
  if (!fd) return std::unexpected(fd.error());
  Result<void> sized = sys::truncate(*fd, sizeof(StatsLayout));
  Result<void*> mapped =
      sized ? sys::map_shared(*fd, sizeof(StatsLayout)) : Result<void*>(std::unexpected(sized.error()));
  sys::close(*fd);
  if (!mapped) return std::unexpected(mapped.error());
  auto* layout = static_cast<StatsLayout*>(*mapped);  // a fresh file is all zeros: every counter is 0
  layout->header.version = kStatsVersion;
  layout->header.slots = kStatsSlots;
  layout->header.ram_limit_bytes = limits.ram_bytes;
  layout->header.total_limit_bytes = limits.total_bytes;
  for (std::size_t i = 0; i + 1 < layout->header.device.size() && limits.device[i] != 0; ++i) {
    layout->header.device[i] = limits.device[i];
  }
  std::atomic_thread_fence(std::memory_order_release);
  layout->header.magic = kStatsMagic;
  return StatsFile(layout);
}

Result<StatsFile> StatsFile::open(const char* path) noexcept {
  Result<int> fd = sys::open(path, O_RDWR | O_NOFOLLOW);
  if (!fd) return std::unexpected(fd.error());
  Result<std::uint64_t> size = sys::file_size(*fd);
  Result<void*> mapped = fail(Errc::kInvalid, 0, "not a statistics file");
  if (size && *size == sizeof(StatsLayout)) mapped = sys::map_shared(*fd, sizeof(StatsLayout));
  sys::close(*fd);
  if (!mapped) return std::unexpected(mapped.error());
  auto* layout = static_cast<StatsLayout*>(*mapped);
  if (layout->header.magic != kStatsMagic || layout->header.version != kStatsVersion ||
      layout->header.slots != kStatsSlots) {
    sys::munmap(layout, sizeof(StatsLayout));
    return fail(Errc::kInvalid, 0, "statistics file of another version");
  }
  return StatsFile(layout);
}

StatsSlot* StatsFile::claim(std::uint32_t pid, std::uint32_t parent_pid, std::int64_t now_ns) const noexcept {
  std::atomic<std::uint32_t>& next = layout_->header.next_slot;
  StatsSlot* slot = nullptr;
  if (next.load(kRelaxed) < kStatsSlots) {
    const std::uint32_t mine = next.fetch_add(1, kRelaxed);
    if (mine < kStatsSlots) slot = &layout_->slots[mine];
  }
  if (slot == nullptr) slot = reclaim();
  if (slot == nullptr) return nullptr;
  slot->pid.store(pid, kRelaxed);
  slot->parent_pid.store(parent_pid, kRelaxed);
  slot->started_ns.store(static_cast<std::uint64_t>(now_ns), kRelaxed);
  slot->mode.store(EngineMode::kWaiting, kRelaxed);
  slot->state.store(SlotState::kLive, std::memory_order_release);
  return slot;
}

// Finds a slot whose process is dead, adds its numbers to the header's and clears it.
StatsSlot* StatsFile::reclaim() const noexcept {
  for (StatsSlot& slot : layout_->slots) {
    SlotState state = slot.state.load(std::memory_order_acquire);
    if (state != SlotState::kLive || sys::process_exists(static_cast<int>(slot.pid.load(kRelaxed)))) continue;
    if (!slot.state.compare_exchange_strong(state, SlotState::kFolding, std::memory_order_acq_rel)) continue;
    fold(slot, layout_->header);
    // Nobody else writes to a slot in this state; every field after the state counts as zero-initialised.
    std::memset(static_cast<void*>(&slot.pid), 0, sizeof slot - offsetof(StatsSlot, pid));
    return &slot;
  }
  return nullptr;
}

void StatsFile::post(std::uint32_t pid, const char* text) const noexcept {
  const std::uint32_t number = layout_->header.next_message.fetch_add(1, std::memory_order_acq_rel);
  StatsMessage& message = layout_->messages[number % kStatsMessages];
  message.sequence.store(0, std::memory_order_release);
  std::atomic_thread_fence(std::memory_order_release);
  message.pid.store(pid, kRelaxed);
  std::size_t used = 0;
  for (; used + 1 < message.text.size() && text[used] != 0; ++used) message.text[used].store(text[used], kRelaxed);
  message.text[used].store(0, kRelaxed);
  message.sequence.store(number + 1, std::memory_order_release);
}

bool StatsFile::message(std::uint32_t number, char (&text)[248], std::uint32_t* pid) const noexcept {
  const StatsMessage& message = layout_->messages[number % kStatsMessages];
  if (message.sequence.load(std::memory_order_acquire) != number + 1) return false;
  *pid = message.pid.load(kRelaxed);
  for (std::size_t i = 0; i < message.text.size(); ++i) text[i] = message.text[i].load(kRelaxed);
  text[message.text.size() - 1] = 0;
  std::atomic_thread_fence(std::memory_order_acquire);
  return message.sequence.load(kRelaxed) == number + 1;
}

StatsFile::Totals StatsFile::totals() const noexcept {
  Totals out;
  const StatsHeader& header = layout_->header;
  out.processes = header.exited_processes.load(kRelaxed);
  gather(out, header.exited, header.exited_peak);
  for (const StatsSlot& slot : layout_->slots) {
    if (slot.state.load(std::memory_order_acquire) != SlotState::kLive) continue;
    ++out.processes;
    if (slot.mode.load(kRelaxed) == EngineMode::kManaged) ++out.managed;
    gather(out, slot.counters, slot.peak);
  }
  return out;
}

}  // namespace whimbrel
