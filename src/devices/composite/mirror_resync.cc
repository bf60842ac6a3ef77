// MirrorDevice: making a leg whole again, upkeep, and fork.
#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "devices/composite/mirror_device.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr auto kRelaxed = std::memory_order_relaxed;
// A look at a unit that turns out to be whole, expressed in bytes of upkeep.
constexpr std::size_t kLookCost = 64;
// How long a leg that does not answer is left alone; it may take its time to say no. Without a clock: so many calls.
constexpr std::int64_t kTryEvery = 250'000'000;
constexpr std::int64_t kTryCalls = 4;

}  // namespace

bool MirrorDevice::repair(std::size_t budget_bytes) noexcept {
  if (!copier_mutex_.try_lock()) return false;
  bool more = false;
  for (std::uint32_t leg = 0; leg < kLegs; ++leg) {
    if (is_whole(leg)) continue;
    LegState& state = state_[leg];
    if (state.down.load(kRelaxed)) {
      if (!may_try(state) || !answers(leg)) continue;
      // From the beginning: whatever it has may be gone, or of an earlier time.
      state.doubted.store(true, kRelaxed);
      state.cursor = 0;
      state.trouble = 0;
      state.down.store(false, kRelaxed);
    }
    more = repair_leg(leg, budget_bytes) || more;
  }
  copier_mutex_.unlock();
  return more;
}

bool MirrorDevice::may_try(LegState& state) const noexcept {
  if (options_.clock == nullptr) return ++state.next_try % kTryCalls == 0;
  const std::int64_t now = options_.clock->now_ns();
  if (now < state.next_try) return false;
  state.next_try = now + kTryEvery;
  return true;
}

// Whether the leg takes a page and gives it back.
bool MirrorDevice::answers(std::uint32_t leg) noexcept {
  std::byte* const page = copier_.buffer.data();
  for (std::size_t i = 0; i < kPageBytes; ++i) page[i] = static_cast<std::byte>(i * 29 + (i >> 8));
  const Result<DeviceSlot> slot = legs_[leg].reserve(1);
  if (!slot) return false;
  const auto run = [&](DeviceOp::Kind kind, std::byte* memory) {
    DeviceOp op{.kind = kind, .first = *slot, .pages = 1, .memory = memory};
    DeviceBatch batch{.ops = {&op, 1}};
    legs_[leg].submit(batch);
    legs_[leg].wait(batch);
    return op.result.has_value();
  };
  std::byte* const back = page + kPageBytes;
  const bool good =
      run(DeviceOp::Kind::kStore, page) && run(DeviceOp::Kind::kLoad, back) && std::memcmp(page, back, kPageBytes) == 0;
  legs_[leg].release(*slot, 1);
  return good;
}

bool MirrorDevice::repair_leg(std::uint32_t leg, std::size_t budget_bytes) noexcept {
  LegState& state = state_[leg];
  std::size_t left = budget_bytes;
  if (state.cursor == 0) {
    if (state.trouble != 0 && !may_try(state)) return false;
    state.trouble = 0;
    // What a load finds from now on is for the next round.
    if (state.damaged.exchange(false, kRelaxed)) state.doubted.store(true, kRelaxed);
  }
  for (const std::uint64_t end = table_.used(); state.cursor < end && left != 0; ++state.cursor) {
    std::size_t bytes = kLookCost;
    if (!make_whole(state.cursor, leg, state.doubted.load(kRelaxed), &bytes)) ++state.trouble;
    if (!is_up(leg)) return false;
    left -= std::min(left, bytes);
  }
  if (state.cursor < table_.used()) return true;
  state.cursor = 0;
  if (state.trouble != 0) return false;  // the leg is full, or what the other leg cannot give either: another time
  state.doubted.store(false, kRelaxed);
  return !is_whole(leg);
}

// Loads the group's pages from their places on the leg.
void MirrorDevice::read_group(std::uint32_t leg, std::span<bool> good) noexcept {
  PageGroup& group = copier_.group;
  copier_.batch.clear();
  Words words{};
  for (std::uint32_t i = 0; i < group.count; ++i) words[i] = copier_.before[leg][copier_.page_of[i]];
  for (std::uint32_t i = 0; i < group.count; ++i) {
    good[i] = false;
    if (!group.wanted[i] || !words[i]) continue;
    // One by one: a damaged page must not hide its neighbours.
    copier_.batch.add(
        leg, {.kind = DeviceOp::Kind::kLoad, .first = words[i].slot(), .pages = 1, .memory = group.memory[i]}, i);
  }
  if (copier_.batch.empty()) return;
  copier_.batch.run(legs_);
  copier_.batch.for_each([&](std::uint32_t part, const DeviceOp& op, std::uint32_t i) {
    good[i] = op.result.has_value();
    if (!op.result && op.result.error().code != Errc::kCorrupt) note(part, op.result.error());
  });
}

bool MirrorDevice::make_whole(std::uint64_t unit, std::uint32_t leg, bool check, std::size_t* bytes) noexcept {
  PageGroup& group = copier_.group;
  group.clear();
  {
    MutexLock lock(table_.stripe(unit));
    CompositeUnit* entry = table_.find(unit);
    if (entry == nullptr || entry->state != CompositeUnit::State::kStored || entry->live == 0) return true;
    for (std::uint32_t i = 0; i < kLegs; ++i) {
      copier_.before[i] = {};
      const std::span<const PartWord> words = table_.words(unit, i).first(entry->pages);
      std::copy(words.begin(), words.end(), copier_.before[i].begin());
    }
    copier_.live = entry->live;
    for (std::uint32_t page = 0; page < entry->pages; ++page) {
      const bool live = (entry->live >> page & 1) != 0;
      if (!live || (copier_.before[leg][page] && !check)) continue;
      copier_.page_of[group.count] = static_cast<std::uint8_t>(page);
      group.add(copier_.buffer.data() + group.count * kPageBytes);
    }
    if (group.count == 0) return true;
    CHECK(entry->busy == CompositeUnit::Busy::kNo);
    entry->busy = CompositeUnit::Busy::kMoving;
  }
  *bytes += group.count * kPageBytes;
  std::array<bool, kMostUnitPages> good{};
  read_group(leg, good);
  for (std::uint32_t i = 0; i < group.count; ++i) group.wanted[i] = !good[i];
  std::uint32_t lost = 0;
  if (is_up(leg) &&
      std::find(group.wanted.begin(), group.wanted.begin() + group.count, true) != group.wanted.begin() + group.count) {
    const auto wanted = group.wanted;
    read_group(1 - leg, good);
    for (std::uint32_t i = 0; i < group.count; ++i) {
      group.wanted[i] = wanted[i] && good[i];
      lost += wanted[i] && !good[i] ? 1 : 0;
    }
    const PageGroup::Outcome outcome = group.place_on(legs_, leg, false, false, copier_.batch);
    if (outcome.missing != 0) note(leg, outcome.error);
    lost += outcome.missing;
  }
  Words after{};
  for (std::uint32_t i = 0; i < group.count; ++i) after[copier_.page_of[i]] = group.placed[i];
  settle(unit, leg, after);
  return lost == 0 && is_up(leg);
}

// Puts the new places in force and gives back the old ones, and whatever was given up meanwhile.
void MirrorDevice::settle(std::uint64_t unit, std::uint32_t leg, std::span<const PartWord> after) noexcept {
  std::array<PartWord, 5 * kMostUnitPages> unused{};
  std::size_t count = 0;
  bool gone = false;
  {
    MutexLock lock(table_.stripe(unit));
    CompositeUnit* entry = table_.find(unit);
    const bool overtaken = entry->busy == CompositeUnit::Busy::kOvertaken;
    for (std::uint32_t page = 0; page < entry->pages; ++page) {
      if ((copier_.live >> page & 1) == 0) continue;
      const bool live = (entry->live >> page & 1) != 0;
      for (std::uint32_t i = 0; i < kLegs; ++i) {
        PartWord& word = table_.words(unit, i)[page];
        const PartWord before = copier_.before[i][page];
        if (overtaken || !live) {
          unused[count++] = before;
          if (overtaken && !live) unused[count++] = word;
          if (!live) {
            if (!word) state_[i].missing.fetch_sub(1, kRelaxed);
            word = {};
          }
        } else if (i == leg && after[page]) {
          unused[count++] = before;
          if (!word) state_[i].missing.fetch_sub(1, kRelaxed);
          word = after[page];
        }
      }
      if ((overtaken || !live) && after[page]) unused[count++] = after[page];
    }
    entry->busy = CompositeUnit::Busy::kNo;
    gone = entry->live == 0;
    if (gone) *entry = {};
  }
  // Loads that looked the unit up before still read the old places.
  pins_.wait_unpinned(unit);
  legs_.release({unused.data(), count});
  if (gone) table_.give(unit);
}

// --- upkeep and fork ------------------------------------------------------------------------------------------------

bool MirrorDevice::maintain(std::size_t budget_bytes) noexcept {
  bool more = false;
  {
    GatePass pass(table_.gate());
    more = repair(budget_bytes);
  }
  for (std::uint32_t leg = 0; leg < kLegs; ++leg) more = legs_[leg].maintain(budget_bytes) || more;
  return more;
}

void MirrorDevice::prepare_fork() noexcept {
  table_.gate().close();
  legs_.prepare_fork();
}

void MirrorDevice::after_fork_in_parent() noexcept {
  legs_.after_fork_in_parent();
  table_.gate().open();
}

void MirrorDevice::after_fork_in_child() noexcept {
  legs_.after_fork_in_child();
  // Loads of the parent may have been under way; nothing else was.
  table_.reset_stripes_after_fork();
  pins_.reset_in_child();
  loaders_.reset_in_child();
  table_.gate().open_in_child();
}

}  // namespace whimbrel
