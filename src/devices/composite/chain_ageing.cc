// ChainDevice: moving pages on to the next tier, upkeep, and fork.
#include <algorithm>

#include "base/check.h"
#include "devices/composite/chain_device.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr auto kRelaxed = std::memory_order_relaxed;
// A tier is emptied ahead of need when what is in it takes so many sixteenths of its capacity; what it holds besides
// (parts of segments, tables) comes to an eighth or so.
constexpr std::uint64_t kTightSixteenths = 13;
// When nothing could be moved, so many tries are skipped: each reads and writes a group of pages in vain.
constexpr std::uint32_t kStuckTries = 16;

}  // namespace

bool ChainDevice::is_tight(std::uint32_t tier) const noexcept {
  const DeviceStats stats = tiers_[tier].stats();
  return stats.capacity_bytes != 0 && stats.compressed_bytes > stats.capacity_bytes / 16 * kTightSixteenths;
}

// A unit is in the list of the first tier that has pages of it. The caller holds its stripe.
void ChainDevice::list(std::uint64_t unit, std::span<const PartWord> words, bool as_newest) noexcept {
  std::uint32_t first = kMostParts;
  for (const PartWord word : words) {
    if (word) first = std::min(first, word.part());
  }
  if (first + 1 >= tiers_.count) return ages_.remove(unit);  // nothing, or nowhere to go from there
  as_newest ? ages_.add_newest(first, unit) : ages_.add_oldest(first, unit);
}

std::uint32_t ChainDevice::make_room(std::uint32_t tier, bool wait) noexcept {
  if (std::uint32_t left = stuck_[tier].load(kRelaxed); left != 0) {
    stuck_[tier].store(left - 1, kRelaxed);
    return 0;
  }
  if (wait) {
    MutexLock lock(mover_mutex_);
    return make_room_locked(tier);
  }
  if (!mover_mutex_.try_lock()) return 0;
  const std::uint32_t moved = make_room_locked(tier);
  mover_mutex_.unlock();
  return moved;
}

std::uint32_t ChainDevice::make_room_locked(std::uint32_t tier) noexcept {
  // From the bottom up, so that what leaves a tier finds room in the next.
  for (std::uint32_t below = tiers_.count - 2; below > tier; --below) {
    if (stuck_[below].load(kRelaxed) == 0 && is_tight(below)) (void)move_down(below);
  }
  const std::uint32_t moved = move_down(tier);
  if (moved == 0) stuck_[tier].store(kStuckTries, kRelaxed);
  return moved;
}

std::uint32_t ChainDevice::move_down(std::uint32_t tier) noexcept {
  const std::uint32_t units = choose(tier);
  if (units == 0) return 0;
  fetch(tier);
  (void)place(mover_.group, mover_.batch, tier + 1, false);
  std::uint32_t moved = 0;
  for (std::uint32_t i = 0; i < mover_.group.count; ++i) {
    mover_.moves[mover_.move_of[i]].after[mover_.page_of[i]] = mover_.group.placed[i];
    moved += mover_.group.placed[i] ? 1 : 0;
  }
  for (std::uint32_t i = units; i-- > 0;) settle(mover_.moves[i], tier);
  return moved;
}

// Takes the oldest units of the tier, up to a group of pages; they are busy until settle().
std::uint32_t ChainDevice::choose(std::uint32_t tier) noexcept {
  mover_.group.clear();
  std::uint32_t units = 0;
  std::uint64_t unit = 0;
  while (units < PageGroup::kMost && ages_.take_oldest(tier, &unit)) {
    MutexLock lock(table_.stripe(unit));
    CompositeUnit* entry = table_.find(unit);
    if (entry->state != CompositeUnit::State::kStored || entry->busy != CompositeUnit::Busy::kNo) continue;
    const std::span<const PartWord> words = table_.words(unit).first(entry->pages);
    const auto here = static_cast<std::uint32_t>(
        std::count_if(words.begin(), words.end(), [tier](PartWord word) { return word && word.part() == tier; }));
    if (here == 0) {
      list(unit, words, true);
      continue;
    }
    if (mover_.group.count + here > PageGroup::kMost) {
      ages_.add_oldest(tier, unit);
      break;
    }
    entry->busy = CompositeUnit::Busy::kMoving;
    Move& move = mover_.moves[units];
    move.unit = unit;
    move.pages = entry->pages;
    move.before = {};
    move.after = {};
    std::copy(words.begin(), words.end(), move.before.begin());
    for (std::uint32_t page = 0; page < move.pages; ++page) {
      if (!words[page] || words[page].part() != tier) continue;
      const std::uint32_t at = mover_.group.count;
      mover_.move_of[at] = static_cast<std::uint8_t>(units);
      mover_.page_of[at] = static_cast<std::uint8_t>(page);
      mover_.group.add(mover_.buffer.data() + at * kPageBytes);
    }
    ++units;
  }
  return units;
}

// Reads the group. What the tier does not give back stays where it is: whoever wants it gets the error.
void ChainDevice::fetch(std::uint32_t tier) noexcept {
  PageGroup& group = mover_.group;
  mover_.batch.clear();
  std::array<PartWord, PageGroup::kMost> words{};
  for (std::uint32_t i = 0; i < group.count; ++i) words[i] = mover_.moves[mover_.move_of[i]].before[mover_.page_of[i]];
  for (std::uint32_t i = 0; i < group.count;) {
    const std::uint32_t n = tiers_.run_length({words.data() + i, group.count - i});
    mover_.batch.add(
        tier, {.kind = DeviceOp::Kind::kLoad, .first = words[i].slot(), .pages = n, .memory = group.memory[i]}, i);
    i += n;
  }
  mover_.batch.run(tiers_);
  bool* const wanted = group.wanted.data();
  mover_.batch.for_each([&](std::uint32_t part, const DeviceOp& op, std::uint32_t first) {
    if (op.result) return;
    note(part, op.result.error());
    for (std::uint32_t i = 0; i < op.pages; ++i) wanted[first + i] = false;
  });
}

// Puts the new places in force and gives back the old ones, and whatever was given up meanwhile.
void ChainDevice::settle(const Move& move, std::uint32_t tier) noexcept {
  std::array<PartWord, 3 * kMostUnitPages> unused{};
  std::size_t count = 0;
  bool gone = false;
  {
    MutexLock lock(table_.stripe(move.unit));
    CompositeUnit* entry = table_.find(move.unit);
    const std::span<PartWord> words = table_.words(move.unit).first(move.pages);
    const bool overtaken = entry->busy == CompositeUnit::Busy::kOvertaken;
    bool stays = false;
    for (std::uint32_t i = 0; i < move.pages; ++i) {
      const bool live = (entry->live >> i & 1) != 0;
      if (overtaken || !live) {
        unused[count++] = move.before[i];
        unused[count++] = move.after[i];
        if (overtaken && !live) unused[count++] = words[i];
        if (!live) words[i] = {};
      } else if (move.after[i]) {
        unused[count++] = move.before[i];
        words[i] = move.after[i];
      } else {
        stays = stays || (words[i] && words[i].part() == tier);
      }
    }
    entry->busy = CompositeUnit::Busy::kNo;
    gone = entry->live == 0;
    if (gone) {
      ages_.remove(move.unit);
      *entry = {};
    } else {
      list(move.unit, words, overtaken || !stays);
    }
  }
  // Loads that looked the unit up before still read the old places.
  pins_.wait_unpinned(move.unit);
  tiers_.release({unused.data(), count});
  if (gone) table_.give(move.unit);
}

// --- upkeep and fork ------------------------------------------------------------------------------------------------

bool ChainDevice::maintain(std::size_t budget_bytes) noexcept {
  bool more = false;
  {
    GatePass pass(table_.gate());
    for (std::uint32_t tier = 0; tier + 1 < tiers_.count; ++tier) {
      if (is_tight(tier) && make_room(tier, false) != 0) more = true;
    }
  }
  for (std::uint32_t tier = 0; tier < tiers_.count; ++tier) more = tiers_[tier].maintain(budget_bytes) || more;
  return more;
}

void ChainDevice::prepare_fork() noexcept {
  table_.gate().close();
  tiers_.prepare_fork();
}

void ChainDevice::after_fork_in_parent() noexcept {
  tiers_.after_fork_in_parent();
  table_.gate().open();
}

void ChainDevice::after_fork_in_child() noexcept {
  tiers_.after_fork_in_child();
  // Loads of the parent may have been under way; nothing else was.
  table_.reset_stripes_after_fork();
  pins_.reset_in_child();
  loaders_.reset_in_child();
  table_.gate().open_in_child();
}

}  // namespace whimbrel
