#include "pager/evacuation.h"

#include <algorithm>

#include "migrate/migrate_vma.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kShortestPause = 20 * kMillisecond, kLongestPause = 1000 * kMillisecond;
// Work of one step, in groups and in time (one group at least): the budget, growth and forks get their turn in between.
constexpr int kGroupsAtOnce = 8;
constexpr std::int64_t kTimeAtOnce = 4 * kMillisecond;

}  // namespace

void Evacuation::begin(DeviceSlot first, std::uint64_t slots, std::uint32_t unit_pages) noexcept {
  unit_pages_ = unit_pages;
  used_first_ = core_.pfn_of(first);
  used_end_ = used_first_ + PageCount(slots);
  at_ = core_.map->first();
  moved_in_pass_ = 0;
  next_ = pause_ = 0;
  copies_given_up_ = false;
  core_.used_first.store(used_first_.raw(), std::memory_order_relaxed);
  core_.used_end.store(used_end_.raw(), std::memory_order_relaxed);
}

void Evacuation::end() noexcept {
  unit_pages_ = 0;
  core_.used_end.store(0, std::memory_order_relaxed);
}

std::int64_t Evacuation::step() noexcept {
  if (!is_under_way()) return kLongestPause;
  const std::int64_t now = core_.space.clock().now_ns();
  if (now < next_) return next_ - now;
  PageMap& map = *core_.map;
  const Pfn end = map.first() + map.count();
  if (!copies_given_up_) copies_given_up_ = give_up_copies();
  LaneLease lane(core_, LaneLease::Who::kOther, MoveCause::kEvacuation);
  for (int groups = 0; groups < kGroupsAtOnce;) {
    at_ = map.next_known(at_);
    if (used_first_ <= at_ && at_ < used_end_) at_ = map.next_known(used_end_);
    if (end <= at_) break;
    const PageCount pages = std::min(end - at_, PageCount(kGroup));
    if (is_used(at_, pages)) {
      const GateSection section(core_.evictions);
      if (!section) return kMillisecond;  // a fork is under way
      moved_in_pass_ += move_group(at_, pages, *lane).raw();
      ++groups;
      core_.beat();
    }
    at_ = at_ + pages;
    if (groups != 0 && now + kTimeAtOnce < core_.space.clock().now_ns()) break;
  }
  if (at_ < end) return 0;
  // What was locked or could not be moved: again, at leisure when nothing could.
  pause_ = moved_in_pass_ != 0 ? kShortestPause : std::clamp(pause_ * 2, kShortestPause, kLongestPause);
  next_ = core_.space.clock().now_ns() + pause_;
  moved_ += moved_in_pass_;
  moved_in_pass_ = 0;
  at_ = map.first();
  return pause_;
}

// Copies elsewhere that pages in RAM still have; there will be no others (Fetch::keep_copies). The background thread drops them.
bool Evacuation::give_up_copies() noexcept {
  const GateSection change(core_.tables);
  if (!change) return false;  // a fork is under way
  MutexLock hold(core_.mutex);
  core_.copies.drop_all();
  return true;
}

bool Evacuation::is_used(Pfn first, PageCount pages) const noexcept {
  for (std::uint64_t i = 0; i < pages.raw(); ++i) {
    const Page* page = core_.map->find(first + PageCount(i));
    if (page != nullptr && page->refs() != 0) return true;
  }
  return false;
}

PageCount Evacuation::move_group(Pfn first, PageCount pages, Lane& lane) noexcept {
  const std::size_t n = pages.raw();
  lane.clear();
  std::fill_n(lane.dst.begin(), n, MigrateWord());
  core_.space.pump();
  migrate_device_range(core_.space, lane.src.data(), first, n);
  choose(n, lane);
  read(first, n, lane);
  store(n, lane);
  migrate_device_pages(core_.space, lane.src.data(), lane.dst.data(), n);
  PageCount moved;
  for (std::size_t i = 0; i < n; ++i) {
    if (lane.src[i].migrating() && lane.dst[i].valid()) moved += PageCount(1);
  }
  migrate_device_finalize(core_.space, lane.src.data(), lane.dst.data(), n);
  return moved;
}

// Entries to move are those not in lane.keep. A page that nothing maps is a copy, or on its way to be freed.
void Evacuation::choose(std::size_t pages, Lane& lane) noexcept {
  MutexLock hold(core_.space.mutex());
  for (std::size_t i = 0; i < pages; ++i) {
    const bool ours = lane.src[i].valid() && lane.src[i].migrating() && core_.space.page(lane.src[i].pfn())->is_mapped();
    lane.keep[i] = !ours;
  }
}

// Into the buffer, entry i to page i of it.
void Evacuation::read(Pfn first, std::size_t pages, Lane& lane) noexcept {
  const auto slot = static_cast<std::uint64_t>(core_.slot_of(first));
  for (std::size_t i = 0; i < pages;) {
    if (lane.keep[i]) {
      ++i;
      continue;
    }
    std::size_t n = 1;
    while (i + n < pages && !lane.keep[i + n] && (slot + i + n) % unit_pages_ != 0) ++n;
    lane.op_entry[lane.op_count] = static_cast<std::uint16_t>(i);
    lane.ops[lane.op_count++] = {DeviceOp::Kind::kLoad, DeviceSlot{slot + i}, static_cast<std::uint32_t>(n), lane.buffer + i * kPageSize, {}};
    i += n;
  }
  lane.transfer(core_.device);
  for (std::size_t k = 0; k < lane.op_count; ++k) {
    const DeviceOp& op = lane.ops[k];
    if (op.result) continue;
    core_.stats->device_errors.fetch_add(1, std::memory_order_relaxed);
    for (std::size_t i = 0; i < op.pages; ++i) lane.keep[lane.op_entry[k] + i] = true;
  }
  lane.op_count = 0;
}

void Evacuation::store(std::size_t pages, Lane& lane) noexcept {
  const std::size_t most = core_.unit_pages.load(std::memory_order_relaxed);
  for (std::size_t i = 0; i < pages;) {
    if (lane.keep[i]) {
      ++i;
      continue;
    }
    std::size_t n = 1;
    while (n < most && i + n < pages && !lane.keep[i + n]) ++n;
    const Result<DeviceSlot> slot = core_.device.reserve(static_cast<std::uint32_t>(n));
    if (!slot) {
      core_.stats->device_full.fetch_add(1, std::memory_order_relaxed);
      core_.raise(Pager::Notice::kDeviceFull);
      break;
    }
    lane.op_entry[lane.op_count] = static_cast<std::uint16_t>(i);
    lane.ops[lane.op_count++] = {DeviceOp::Kind::kStore, *slot, static_cast<std::uint32_t>(n), lane.buffer + i * kPageSize, {}};
    i += n;
  }
  lane.transfer(core_.device);
  (void)core_.assign_destinations(lane);
}

}  // namespace whimbrel
