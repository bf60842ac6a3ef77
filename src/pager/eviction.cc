#include "pager/eviction.h"

#include <algorithm>

#include "pager/control_block.h"

namespace whimbrel {

bool Eviction::take(PageRange range) noexcept {
  begun_ = core_.log_clock();
  if (!collect(range)) return false;
  find_frames();
  return outcome_.taken.raw() != 0;
}

Eviction::Outcome Eviction::put_away() noexcept {
  if (outcome_.no_such_mapping) return outcome_;
  for (std::size_t at = 0; at < args_.npages && !outcome_.device_full;) at = store_from(at);
  migrate_vma_pages(core_.space, args_);
  count_gone();
  // Before anybody can be told that they are away and has them brought home.
  core_.log_moves(lane_, first_, args_.npages, Place::kRam, Place::kDevice, begun_, Lane::kPages,
                  [this](std::size_t i) { return is_gone(i); });
  migrate_vma_finalize(core_.space, args_);
  return outcome_;
}

bool Eviction::collect(PageRange range) noexcept {
  CHECK(!range.empty() && range.count.raw() <= Lane::kPages);
  lane_.clear();
  first_ = range.first;
  args_.start = range.first.address();
  args_.end = range.end().address();
  args_.src = lane_.src.data();
  args_.dst = lane_.dst.data();
  args_.pgmap_owner = core_.owner;
  args_.flags = kSelectSystem | kSelectCompound;
  args_.skip_holes = true;
  // One page in use by a device has neighbours that can go; four in a row are a fork's, and each refusal costs.
  args_.busy_limit = 4;
  args_.watch_within = core_.watchable_around(range.first);
  const Result<void> done = migrate_vma_setup(core_.space, args_);
  if (!done) {
    outcome_.no_such_mapping = true;
    return false;
  }
  outcome_.refused = PageCount(args_.refused);
  outcome_.refusal = args_.refusal;
  return true;
}

void Eviction::find_frames() noexcept {
  for (std::size_t i = 0; i < args_.npages; ++i) {
    const MigrateWord word = lane_.src[i];
    if (!word.valid() || !word.migrating()) continue;
    const std::size_t pages = word.pages().raw();
    for (std::size_t j = i; j < i + pages; ++j) {
      lane_.frames[j] = word.pfn() + PageCount(j - i);
      outcome_.huge = outcome_.huge || pages == kPagesPerHuge;
      outcome_.clumps_taken |= 1u << ((first_ + PageCount(j)).raw() / kClumpPages - first_.raw() / kClumpPages);
    }
    outcome_.taken += PageCount(pages);
    i += pages - 1;
  }
}

std::size_t Eviction::store_from(std::size_t from) noexcept {
  lane_.op_count = 0;
  const std::size_t end = read_out(from);
  spare_control_blocks(from, end);
  spare_pinned(from, end);
  find_unchanged(from, end);
  reserve(from, end);
  store();
  if (!core_.assign_destinations(lane_)) outcome_.device_full = true;  // either way: no more of this for now
  return end;
}

std::size_t Eviction::read_out(std::size_t from) noexcept {
  std::size_t held = 0, i = from;
  PageRange run;  // frames in a row, not read yet
  const auto read_run = [&] {
    if (!run.empty()) core_.space.mmu().read_window(run, lane_.buffer + (held - run.count.raw()) * kPageSize);
  };
  for (; i < args_.npages && held < Lane::kBufferPages; ++i) {
    if (lane_.frames[i] == Pfn()) continue;
    const PageIndex frame = lane_.frames[i].frame();
    if (run.empty() || run.end() != frame) {
      read_run();
      run = {frame, PageCount(0)};
    }
    lane_.in_buffer[i] = static_cast<std::uint8_t>(held++);
    run.count += PageCount(1);
  }
  read_run();
  return i;
}

void Eviction::spare_control_blocks(std::size_t from, std::size_t end) noexcept {
  for (std::size_t i = from; i < end; ++i) {
    if (lane_.frames[i] == Pfn()) continue;
    const PageIndex home = first_ + PageCount(i);
    if (holds_arena_header(bytes(i), home)) keep_home({home, PageCount(1)});
    if (holds_control_block(bytes(i), home)) keep_home(kept_with_control_block(home));
  }
}

void Eviction::keep_home(PageRange home) noexcept {
  core_.stats->control_blocks.fetch_add(1, std::memory_order_relaxed);
  {
    // The gate cannot be closed while an eviction is under way: a fork waits for those first.
    GateSection change(core_.tables);
    MutexLock hold(core_.mutex);
    if (change) core_.pins.keep(home);
  }
  const PageIndex low = outcome_.kept.empty() ? home.first : std::min(outcome_.kept.first, home.first);
  const PageIndex high = outcome_.kept.empty() ? home.end() : std::max(outcome_.kept.end(), home.end());
  outcome_.kept = PageRange::between(low, high);
}

void Eviction::spare_pinned(std::size_t from, std::size_t end) noexcept {
  // Pins can have come since the victim was chosen, also from an eviction in another thread.
  MutexLock hold(core_.mutex);
  PageRange rest{first_ + PageCount(from), PageCount(end - from)};
  for (;;) {
    const PageRange pinned = core_.pins.first_in(rest);
    if (pinned.empty()) return;
    for (std::uint64_t i = (pinned.first - first_).raw(), n = pinned.count.raw(); n != 0; ++i, --n) lane_.keep[i] = true;
    rest = PageRange::between(pinned.end(), rest.end());
  }
}

void Eviction::find_unchanged(std::size_t from, std::size_t end) noexcept {
  bool any = false;
  {
    const GateSection change(core_.tables);  // as in keep_home(): it cannot be closed
    MutexLock hold(core_.mutex);
    if (!change || core_.copies.size() == 0) return;
    for (std::size_t i = from; i < end; ++i) {
      if (!is_storable(i)) continue;
      KeptCopy& copy = lane_.copies[lane_.in_buffer[i]];
      copy = core_.copies.take(first_ + PageCount(i));
      any = any || copy;
    }
  }
  if (!any) return;
  core_.note_copies();
  std::uint64_t unchanged = 0, changed = 0;
  for (std::size_t i = from; i < end; ++i) {
    if (!is_storable(i)) continue;
    const KeptCopy& copy = lane_.copies[lane_.in_buffer[i]];
    if (!copy) continue;
    if (is_unchanged(i, copy)) {
      lane_.clean[i] = true;
      lane_.dst[i] = MigrateWord::of(copy.pfn);
      ++unchanged;
    } else {
      core_.space.put_page(copy.pfn);
      ++changed;
    }
  }
  core_.stats->unchanged_out.fetch_add(unchanged, std::memory_order_relaxed);
  MutexLock hold(core_.mutex);
  for (; changed != 0; --changed) core_.copies.judge(true);
  for (; unchanged != 0; --unchanged) core_.copies.judge(false);
}

// With its page locked, as a fresh destination would be. The lock is taken where the fault that brought the page home is
// just ending.
bool Eviction::is_unchanged(std::size_t i, const KeptCopy& copy) const noexcept {
  return core_.digest(bytes(i)) == copy.digest && core_.map->find(copy.pfn)->try_lock();
}

std::size_t Eviction::unit_length(std::size_t i, std::size_t end) const noexcept {
  // Neighbours in the program, which the buffer keeps side by side.
  std::size_t n = 1;
  while (n < core_.unit_pages.load(std::memory_order_relaxed) && i + n < end && is_storable(i + n)) ++n;
  return n;
}

void Eviction::reserve(std::size_t from, std::size_t end) noexcept {
  for (std::size_t i = from; i < end;) {
    if (!is_storable(i)) {
      ++i;
      continue;
    }
    const std::size_t n = unit_length(i, end);
    Result<DeviceSlot> slot = core_.device.reserve(static_cast<std::uint32_t>(n));
    if (!slot && slot.error().code != Errc::kGone && core_.drop_copies(true)) {
      slot = core_.device.reserve(static_cast<std::uint32_t>(n));
    }
    if (!slot) {
      outcome_.device_full = true;
      core_.stats->device_full.fetch_add(1, std::memory_order_relaxed);
      core_.raise(slot.error().code == Errc::kGone ? Pager::Notice::kDeviceError : Pager::Notice::kDeviceFull);
      return;
    }
    lane_.op_entry[lane_.op_count] = static_cast<std::uint16_t>(i);
    lane_.ops[lane_.op_count++] = {
        DeviceOp::Kind::kStore, *slot, static_cast<std::uint32_t>(n), bytes(i), {}};
    i += n;
  }
}

void Eviction::store() noexcept {
  lane_.transfer(core_.device);
  const auto is_full = [](const DeviceOp& op) { return !op.result && op.result.error().code == Errc::kDeviceFull; };
  const std::span<DeviceOp> ops(lane_.ops.data(), lane_.op_count);
  if (std::none_of(ops.begin(), ops.end(), is_full) || !core_.drop_copies(true)) return;
  for (DeviceOp& op : ops) {
    if (!is_full(op)) continue;
    DeviceBatch again{std::span(&op, 1)};
    core_.device.submit(again);
    core_.device.wait(again);
  }
}

void Eviction::count_gone() noexcept {
  for (std::size_t i = 0; i < args_.npages; ++i) {
    if (is_gone(i)) outcome_.gone += PageCount(1);
  }
}

}  // namespace whimbrel
