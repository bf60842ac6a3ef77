#include "runtime/stats_file.h"

#include <fcntl.h>

#include <cstring>

#include "linux/sys.h"

namespace whimbrel {
namespace {

constexpr auto kRelaxed = std::memory_order_relaxed;

void add(Counter& to, const Counter& from) noexcept { to.fetch_add(from.load(kRelaxed), kRelaxed); }

void raise(Counter& to, const Counter& from) noexcept {
  const std::uint64_t value = from.load(kRelaxed);
  std::uint64_t old = to.load(kRelaxed);
  while (old < value && !to.compare_exchange_weak(old, value, kRelaxed)) {
  }
}

// Every number of PagerStats is summed but these.
void merge(PagerStats& to, const PagerStats& from) noexcept {
  raise(to.peak_resident_pages, from.peak_resident_pages);
  raise(to.peak_total_bytes, from.peak_total_bytes);
  raise(to.total_would_do, from.total_would_do);
  using Number = PagerStats::Number;
  static constexpr Number PagerStats::*kSummed[] = {
      &PagerStats::resident_pages, &PagerStats::fixed_pages,     &PagerStats::watched_pages,  &PagerStats::total_bytes,
      &PagerStats::kept_copies,    &PagerStats::unchanged_out,
      &PagerStats::pages_out,      &PagerStats::pages_home,      &PagerStats::faults,         &PagerStats::holes,
      &PagerStats::zero_filled_pages, &PagerStats::huge_filled,  &PagerStats::wait_ns,        &PagerStats::windows,
      &PagerStats::window_pages,   &PagerStats::window_hits,     &PagerStats::window_waste_pages,
      &PagerStats::back_pressure,  &PagerStats::over_limit,      &PagerStats::refused_pages,
      &PagerStats::control_blocks, &PagerStats::unshared_pages,  &PagerStats::device_full,
      &PagerStats::device_errors,  &PagerStats::load_errors,     &PagerStats::scans,          &PagerStats::recounts,
      &PagerStats::forks,          &PagerStats::handed_over,  &PagerStats::huge_home,
      &PagerStats::helped_pages};
  for (const auto member : kSummed) add(to.*member, from.*member);
  for (std::size_t i = 0; i < kWaitBuckets; ++i) add(to.wait_histogram[i], from.wait_histogram[i]);
}

void raise_store(StorePeak& to, const StorePeak& from) noexcept {
  if (from.stored_pages.load(kRelaxed) <= to.stored_pages.load(kRelaxed)) return;
  to.stored_pages.store(from.stored_pages.load(kRelaxed), kRelaxed);
  to.compressed_bytes.store(from.compressed_bytes.load(kRelaxed), kRelaxed);
  to.held_bytes.store(from.held_bytes.load(kRelaxed), kRelaxed);
}

bool was_managed(const StatsSlot& slot) noexcept {
  const EngineMode mode = slot.mode.load(kRelaxed);
  return mode == EngineMode::kManaged || mode == EngineMode::kEnded;
}

// Nobody writes to it any more.
bool is_left(const StatsSlot& slot) noexcept {
  return slot.mode.load(std::memory_order_acquire) == EngineMode::kEnded || !sys::process_exists(static_cast<int>(slot.pid.load(kRelaxed)));
}

void fold(const StatsSlot& slot, StatsHeader& into) noexcept {
  merge(into.exited, slot.pager);
  raise_store(into.exited_peak, slot.peak);
  into.exited_processes.fetch_add(1, kRelaxed);
  if (was_managed(slot)) into.exited_managed.fetch_add(1, kRelaxed);
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
    layout->header.device[i].store(limits.device[i], kRelaxed);
  }
  // Last: who finds it finds the rest.
  std::atomic_ref<std::uint64_t>(layout->header.magic).store(kStatsMagic, std::memory_order_release);
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
  if (std::atomic_ref<std::uint64_t>(layout->header.magic).load(std::memory_order_acquire) != kStatsMagic || layout->header.version != kStatsVersion ||
      layout->header.slots != kStatsSlots) {
    sys::munmap(layout, sizeof(StatsLayout));
    return fail(Errc::kInvalid, 0, "statistics file of another version");
  }
  return StatsFile(layout);
}

void StatsFile::unmap() noexcept {
  if (layout_ != nullptr) sys::munmap(layout_, sizeof(StatsLayout));
  layout_ = nullptr;
}

void StatsFile::set_limits(std::uint64_t ram_bytes, std::uint64_t total_bytes) const noexcept {
  layout_->header.ram_limit_bytes.store(ram_bytes, kRelaxed);
  layout_->header.total_limit_bytes.store(total_bytes, kRelaxed);
  layout_->header.budget_changes.fetch_add(1, std::memory_order_release);
}

bool StatsFile::set_device(const char* specification) const noexcept {
  StatsHeader& header = layout_->header;
  const std::size_t length = std::strlen(specification);
  if (length >= header.device.size()) return false;
  header.device_writes.fetch_add(1, std::memory_order_acq_rel);
  for (std::size_t i = 0; i <= length; ++i) header.device[i].store(specification[i], kRelaxed);
  header.device_writes.fetch_add(1, std::memory_order_release);
  return true;
}

bool StatsFile::device(std::array<char, kStatsDevice>& out, std::uint32_t* changes) const noexcept {
  const StatsHeader& header = layout_->header;
  const std::uint32_t before = header.device_writes.load(std::memory_order_acquire);
  for (std::size_t i = 0; i < out.size(); ++i) {
    out[i] = header.device[i].load(kRelaxed);
    if (out[i] == 0) break;
  }
  out.back() = 0;
  std::atomic_thread_fence(std::memory_order_acquire);
  *changes = before / 2;
  return before % 2 == 0 && header.device_writes.load(kRelaxed) == before;
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

// Finds a slot whose process is dead or whose session is closed, adds its numbers to the header's and clears it.
StatsSlot* StatsFile::reclaim() const noexcept {
  for (StatsSlot& slot : layout_->slots) {
    SlotState state = slot.state.load(std::memory_order_acquire);
    if (state != SlotState::kLive || !is_left(slot)) continue;
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

void StatsFile::totals(Totals& out) const noexcept {
  const StatsHeader& header = layout_->header;
  StorePeak peak{};
  merge(out.pager, header.exited);
  raise_store(peak, header.exited_peak);
  out.processes = header.exited_processes.load(kRelaxed);
  out.managed = header.exited_managed.load(kRelaxed);
  for (const StatsSlot& slot : layout_->slots) {
    if (slot.state.load(std::memory_order_acquire) != SlotState::kLive) continue;
    ++out.processes;
    if (was_managed(slot)) ++out.managed;
    merge(out.pager, slot.pager);
    raise_store(peak, slot.peak);
  }
  out.peak_stored_pages = peak.stored_pages;
  out.compressed_bytes = peak.compressed_bytes;
  out.peak_held_bytes = peak.held_bytes;
}

}  // namespace whimbrel
