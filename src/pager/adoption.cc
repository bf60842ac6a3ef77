#include "pager/adoption.h"

#include <algorithm>

#include "pager/fetch.h"

namespace whimbrel {
namespace {

constexpr std::int64_t kMillisecond = 1'000'000;
constexpr std::int64_t kSecond = 1'000'000'000;
constexpr std::int64_t kShortestPause = kMillisecond;
// Nothing has changed for a while. Whoever can see growth more cheaply calls scan_step() in between.
constexpr std::int64_t kLongestPauseArmed = 40 * kMillisecond;
constexpr std::int64_t kLongestPauseIdle = 100 * kMillisecond;
constexpr std::int64_t kRecountAfter = kSecond;
constexpr std::int64_t kRefreshAfter = kSecond;
// A walk that took t is repeated after this many t at the earliest.
constexpr std::int64_t kScanShare = 30;
constexpr std::int64_t kCountShare = 20;
constexpr std::int64_t kVerifyShare = 50;
constexpr std::int64_t kVerifyShareUrgent = 5;
constexpr std::int64_t kRefreshShare = 300;
// Costs are measured by the clock on the wall, which a busy machine stretches: never wait longer than this for them.
constexpr std::int64_t kLongestForCost = 100 * kMillisecond;
// How fast a program may take new memory: nanoseconds per page at 4 GB/s.
constexpr std::int64_t kFastestTouch = 1'000;

// Mappings looked at between two signs of life: some milliseconds, on a busy machine a second.
constexpr std::size_t kBeatEvery = 1024;

// Mappings smaller than this many huge pages keep small ones.
constexpr std::uint64_t kLeastUnits = 4;

constexpr std::uint32_t kAccess = Mapping::kReadable | Mapping::kWritable | Mapping::kExecutable;

}  // namespace

std::int64_t Adoption::after(std::int64_t cost, std::int64_t share) noexcept {
  return std::min(cost * share, kLongestForCost);
}

bool Adoption::is_under_pressure() const noexcept {
  const std::uint64_t most = core_.limit();
  return most != kNoLimit && core_.resident.value() + reserve_under(most) > most;
}

bool Adoption::scan(bool thorough) noexcept {
  MutexLock hold(mutex_);
  return scan_locked(thorough ? Verify::kEverything : Verify::kNew);
}

bool Adoption::scan_locked(Verify verify_what) noexcept {
  if (core_.events_lost.exchange(false, std::memory_order_acq_rel)) {
    GateSection change(core_.tables);
    MutexLock hold(core_.mutex);
    if (change)
      core_.regions.doubt_all();
    else
      core_.events_lost.store(true, std::memory_order_release);
  }
  {
    MutexLock hold(core_.mutex);
    core_.changes.clear();
  }
  next_.clear();
  something_new_ = memory_short_ = unverified_ = false;
  PageIndex at(0);
  std::size_t walked = 0;
  for (;;) {
    const Result<Mapping> mapping = core_.space.mmu().mapping_at_or_above(at);
    if (!mapping) break;
    // The program maps and unmaps while we walk: what was passed may have grown into one with what comes now. Then it is
    // one region too: to watch a part of a mapping would cut it in two, and an mremap() of the program across it fails.
    if (mapping->range.first < at) next_.cut(PageRange::between(mapping->range.first, at));
    add_mapping(*mapping);
    at = mapping->range.end();
    if (++walked % kBeatEvery == 0) core_.beat();
  }
  verify_cost_ = 0;
  if (unverified_ || verify_what == Verify::kEverything) verify(verify_what);
  const bool installed = install();
  core_.stats->scans.fetch_add(1, std::memory_order_relaxed);
  bring_home_unmanageable();
  return installed && something_new_;
}

bool Adoption::adopt_now(PageRange range) noexcept {
  if (!core_.armed.load(std::memory_order_relaxed)) return true;
  if (!mutex_.try_lock()) return false;
  next_.clear();
  something_new_ = memory_short_ = unverified_ = false;
  for (PageIndex at = range.first; at < range.end();) {
    const Result<Mapping> mapping = core_.space.mmu().mapping_at_or_above(at);
    if (!mapping || range.end() <= mapping->range.first) break;  // unmapped again
    if (mapping->range.first < at) next_.cut(PageRange::between(mapping->range.first, at));
    add_mapping(*mapping);
    at = mapping->range.end();
    // It may have grown between the question and the watching, and is cut in two there now.
    if (range.end() <= at) range = PageRange::between(range.first, at + PageCount(grown_behind(at) ? 1 : 0));
  }
  bool settled = !memory_short_ && !unverified_;
  if (const GateSection change(core_.tables); change) {
    MutexLock hold(core_.mutex);
    for (std::size_t i = 0; i < next_.size(); ++i) settled = core_.regions.put(next_[i]) && settled;
  } else {
    settled = false;
  }
  mutex_.unlock();
  return settled;
}

void Adoption::add_mapping(const Mapping& mapping) noexcept {
  if (eligibility_of(mapping, core_.config.stacks) == Eligibility::kForeign) return;
  PageRange rest = mapping.range;
  while (!rest.empty()) {
    PageRange piece;
    {
      MutexLock hold(core_.mutex);
      piece = core_.excluded.first_uncovered(rest);
      if (!core_.config.adopt) {
        const PageRange named = core_.managed.first_covered(piece);
        if (!named.empty())
          piece = named;
        else
          piece = {piece.end(), PageCount(0)};
      }
      rest = PageRange::between(piece.end(), rest.end());
    }
    if (!piece.empty()) add_piece(mapping, piece);
  }
}

void Adoption::add_piece(const Mapping& mapping, PageRange piece) noexcept {
  Region region;
  region.range = piece;
  region.flags = mapping.flags;
  region.kind = eligibility_of(mapping, core_.config.stacks);
  region.starts_mapping = piece.first == mapping.range.first;
  region.verified = !mapping.has(Mapping::kFlagsUnknown);
  const bool known = inherit(region);
  if (region.kind == Eligibility::kManaged && piece.count < core_.config.smallest_mapping && !continues_watched(region)) {
    region.kind = Eligibility::kFixed;
  }
  if (region.kind == Eligibility::kManaged && core_.armed.load(std::memory_order_relaxed)) {
    if (!known && !region.refused) watch(region);
    if (!region.verified) unverified_ = true;
  }
  if (!next_.append(region)) memory_short_ = true;
}

// What is watched has grown while it was being watched: the rest is a mapping of its own until it is watched too.
bool Adoption::continues_watched(const Region& region) const noexcept {
  if (next_.size() == 0) return false;
  const Region& last = next_[next_.size() - 1];
  return last.watched && last.range.end() == region.range.first && ((last.flags ^ region.flags) & kAccess) == 0;
}

bool Adoption::grown_behind(PageIndex end) noexcept {
  const Result<Mapping> next = core_.space.mmu().mapping_at_or_above(end);
  Region region;
  if (!next || next->range.first != end || !next->is_private_anonymous()) return false;
  region.range = next->range;
  region.flags = next->flags;
  return continues_watched(region);
}

bool Adoption::inherit(Region& region) noexcept {
  MutexLock hold(core_.mutex);
  bool whole = false, any = false;
  for (std::size_t i = core_.regions.at_or_above(region.range.first); i < core_.regions.size(); ++i) {
    const Region& old = core_.regions[i];
    if (region.range.end() <= old.range.first) break;
    // Other access rights: some other mapping, or the same after mprotect(). Its flags are known all the same, but the
    // eligibility is another one.
    if (old.stale || ((old.flags ^ region.flags) & kAccess) != 0) continue;
    any = true;
    region.huge_by_us = region.huge_by_us || old.huge_by_us;
    if (old.verified && !region.verified) {
      // One mapping has one set of flags, and grows only into places with the same.
      Mapping mapping;
      mapping.flags = region.flags = old.flags;
      region.kind = eligibility_of(mapping, core_.config.stacks);
      region.verified = true;
    }
    if (old.range == region.range) {
      region.resident = old.resident;
      region.refused = old.refused;
    }
    if (old.watched && old.range.contains(region.range)) region.watched = whole = true;
  }
  if (!any) something_new_ = true;
  return whole;
}

void Adoption::watch(Region& region) noexcept {
  something_new_ = true;
  const Result<void> watched = core_.space.mmu().watch(region.range);
  if (watched) {
    region.watched = true;
    count_unseen(region);
    return;
  }
  switch (watched.error().code) {
    case Errc::kNotFound:
    case Errc::kAgain:
    case Errc::kEventPending:
      return;  // changed meanwhile: the next scan sees it as it is
    case Errc::kNoMemory:
      core_.raise(Pager::Notice::kTooManyMappings);
      break;
    default:
      break;  // another descriptor owns a part, or it is of a kind that cannot be watched
  }
  region.refused = true;
}

void Adoption::count_unseen(const Region& region) noexcept {
  core_.space.pump();  // it may have moved here a moment ago, with pages that are counted
  PageRange rest = region.range;
  while (!rest.empty()) {
    PageRange seen{rest.end(), PageCount(0)};
    {
      MutexLock hold(core_.mutex);
      for (std::size_t i = core_.regions.at_or_above(rest.first); i < core_.regions.size(); ++i) {
        const Region& old = core_.regions[i];
        if (rest.end() <= old.range.first) break;
        // One mapping is watched as a whole: what it has grown by (mremap, a stack) came by way of faults as well.
        if (old.watched && !old.stale) return;
        // Watched: its pages came by way of faults. Not watched: it is older than the arming and was counted then.
        seen = old.range.intersect(rest);
        break;
      }
    }
    const PageRange unseen = PageRange::between(rest.first, seen.first);
    if (!unseen.empty()) core_.resident.add(count(unseen));
    rest = PageRange::between(seen.end(), rest.end());
  }
}

// Regions and details come in the same order: one walk serves all of them.
class Adoption::Details final : public MappingSink {
 public:
  Details(Adoption& adoption, Verify what) noexcept : adoption_(adoption), what_(what) {}
  // Whether there is a region left that wants details; *at is where it begins.
  [[nodiscard]] bool wanted(PageIndex* at) noexcept NO_THREAD_SAFETY_ANALYSIS {  // verify() holds the mutex
    const RegionTable& regions = adoption_.next_;
    while (what_ == Verify::kNew && r_ < regions.size() &&
           (regions[r_].kind != Eligibility::kManaged || regions[r_].verified)) {
      ++r_;
    }
    if (r_ == regions.size()) return false;
    *at = regions[r_].range.first;
    return true;
  }
  bool take(std::span<const Mapping> some) noexcept override NO_THREAD_SAFETY_ANALYSIS {
    RegionTable& regions = adoption_.next_;
    for (const Mapping& mapping : some) {
      // A region that is in no mapping any more is left unverified.
      while (r_ < regions.size() && regions[r_].range.end() <= mapping.range.first) ++r_;
      while (r_ < regions.size() && mapping.range.contains(regions[r_].range)) adoption_.apply_details(regions[r_++], mapping);
    }
    adoption_.core_.beat();
    PageIndex at;
    return wanted(&at);
  }

 private:
  Adoption& adoption_;
  const Verify what_;
  std::size_t r_ = 0;
};

void Adoption::verify(Verify what) noexcept {
  const std::int64_t start = now();
  if (what == Verify::kNew && start < next_verify_) return;
  Details details(*this, what);
  if (PageIndex at; details.wanted(&at)) (void)core_.space.mmu().walk_detailed_mappings(at, details_, details);
  const std::int64_t cost = now() - start;
  verify_cost_ += cost;
  next_verify_ = start + (is_under_pressure() ? after(cost, kVerifyShareUrgent) : cost * kVerifyShare);
  next_refresh_ = std::max(start + kRefreshAfter, start + cost * kRefreshShare);
}

void Adoption::apply_details(Region& region, const Mapping& mapping) noexcept {
  if (((region.flags ^ mapping.flags) & kAccess) != 0) return;  // changed since the walk passed
  Eligibility kind = eligibility_of(mapping, core_.config.stacks);
  if (kind == Eligibility::kManaged && region.range.count < core_.config.smallest_mapping && !region.watched) {
    kind = Eligibility::kFixed;
  }
  if (region.verified && region.kind == Eligibility::kManaged && kind != Eligibility::kManaged) {
    (void)unmanageable_.add(region.range);  // full: the next refresh finds it still verified as managed
    something_new_ = true;
  }
  region.flags = mapping.flags;
  region.kind = kind;
  region.verified = true;
  if (region.watched && kind == Eligibility::kManaged) advise_huge(region, mapping);
}

// The program may be growing the mapping by mremap(), which fails across two: so what there is now is asked for at the last
// moment, and what it has grown by all the same is advised at once, which makes it one again.
bool Adoption::advise_mapping(PageIndex first) noexcept {
  Mmu& mmu = core_.space.mmu();
  const auto begins_at = [&mmu](PageIndex at) {
    const Result<Mapping> mapping = mmu.mapping_at_or_above(at);
    return mapping && mapping->range.first == at && mapping->is_private_anonymous();
  };
  bool any = false;
  for (int growths = 0; growths < 8; ++growths) {
    const Result<Mapping> now = mmu.mapping_at_or_above(first);
    if (!now || now->range.first != first || !now->is_private_anonymous()) break;
    const PageIndex end = now->range.end();
    const bool has_neighbour = begins_at(end);
    if (const Result<void> advised = mmu.advise_huge(now->range); !advised) {
      huge_refused_ = advised.error().code != Errc::kNotFound;
      break;
    }
    any = true;
    if (has_neighbour || !begins_at(end)) break;
    first = end;
  }
  return any;
}

void Adoption::advise_huge(Region& region, const Mapping& mapping) noexcept {
  if (advice_is_inherited_ && region.takes_huge()) region.huge_by_us = true;
  if (!core_.config.huge_pages || huge_refused_ || mapping.has_any(Mapping::kHugeAdvised | Mapping::kNoHuge)) return;
  // Never a part of a mapping: that would cut it in two.
  if (region.range != mapping.range || mapping.has(Mapping::kStack)) return;
  const Region* below = next_.find(region.range.first - PageCount(1));
  const bool continues = below != nullptr && below->huge_by_us && ((below->flags ^ region.flags) & kAccess) == 0;
  if (region.range.count.raw() < kLeastUnits * kPagesPerHuge && !continues) return;
  if (!advise_mapping(region.range.first)) return;
  region.huge_by_us = true;
  region.flags |= Mapping::kHugeAdvised;
}

bool Adoption::install() noexcept {
  if (memory_short_) return false;  // the old picture, incomplete as it is, is better than half a new one
  GateSection change(core_.tables);
  if (!change) return false;
  std::uint64_t watched = 0;
  for (std::size_t i = 0; i < next_.size(); ++i) watched += next_[i].watched ? next_[i].range.count.raw() : 0;
  core_.stats->watched_pages.store(watched, std::memory_order_relaxed);
  MutexLock hold(core_.mutex);
  core_.changes.apply_to(next_);
  core_.regions.swap(next_);
  return true;
}

void Adoption::bring_home_unmanageable() noexcept {
  // The program has locked them, or had them wiped for children: a child must not find the old contents.
  for (const PageRange& range : unmanageable_) {
    LaneLease lane(core_, LaneLease::Who::kOther, MoveCause::kEvacuation);
    (void)Fetch(core_, *lane).all_of(range, Fetch::kPatient);
  }
  unmanageable_.clear();
}

std::uint64_t Adoption::count(PageRange range) noexcept {
  std::uint64_t pages = 0;
  PageIndex at = range.first;
  while (at < range.end()) {
    PageIndex scanned = range.end();
    const Result<std::size_t> found = core_.space.mmu().scan(PageRange::between(at, range.end()), runs_, &scanned);
    if (!found || scanned <= at) break;
    for (std::size_t i = 0; i < *found; ++i) {
      const std::uint32_t kind = runs_[i].kind;
      if ((kind & PageRun::kPresent) != 0 && (kind & (PageRun::kZero | PageRun::kFile)) == 0) {
        pages += runs_[i].range.count.raw();
      }
    }
    at = scanned;
  }
  return pages;
}

void Adoption::recount() noexcept {
  MutexLock hold(mutex_);
  recount_locked();
}

void Adoption::recount_locked() noexcept {
  core_.dropped_pages.store(0, std::memory_order_relaxed);
  ResidentCount::Walk walk(core_.resident);
  std::uint64_t all = 0, fixed = 0;
  PageIndex at(0);
  for (std::size_t walked = 1;; ++walked) {
    if (walked % kBeatEvery == 0) core_.beat();
    PageRange range;
    bool movable = false;
    {
      MutexLock hold(core_.mutex);
      const std::size_t i = core_.regions.at_or_above(at);
      if (i == core_.regions.size()) break;
      range = core_.regions[i].range;
      movable = core_.regions[i].kind == Eligibility::kManaged && !core_.regions[i].refused;
    }
    const std::uint64_t pages = count(range);
    all += pages;
    if (!movable) fixed += pages;
    at = range.end();
    MutexLock hold(core_.mutex);
    const std::size_t i = core_.regions.at_or_above(range.first);
    if (i != core_.regions.size() && core_.regions[i].range == range) core_.regions[i].resident = pages;
  }
  walk.finish(all);
  core_.fixed_pages.store(fixed, std::memory_order_relaxed);
  core_.stats->fixed_pages.store(fixed, std::memory_order_relaxed);
  core_.stats->recounts.fetch_add(1, std::memory_order_relaxed);
  core_.note_resident();
  last_count_ = now();
}

std::int64_t Adoption::pause_after_scan(bool changed, std::int64_t cost) noexcept {
  const std::int64_t least = std::max(kShortestPause, after(cost, kScanShare));
  const std::uint64_t most = core_.limit();
  if (most == kNoLimit) return std::max(least, kLongestPauseIdle);
  if (!core_.armed.load(std::memory_order_relaxed)) {
    // The time in which a fast program could come from here to where it must be watched.
    const std::uint64_t now_there = core_.resident.value();
    const std::uint64_t room = most / 2 > now_there ? most / 2 - now_there : 0;
    return std::clamp(static_cast<std::int64_t>(std::min<std::uint64_t>(room, 1u << 20)) * kFastestTouch, least,
                      std::max(least, kLongestPauseIdle));
  }
  pause_ = changed ? least : std::clamp(pause_ * 2, least, std::max(least, kLongestPauseArmed));
  return pause_;
}

std::int64_t Adoption::step() noexcept {
  MutexLock hold(mutex_);
  std::int64_t time = now();
  const bool urgent = core_.urgent.load(std::memory_order_relaxed) && earliest_scan_ <= time;
  if (urgent || next_scan_ <= time) {
    core_.urgent.store(false, std::memory_order_relaxed);
    if (is_under_pressure()) next_verify_ = std::min(next_verify_, time);
    const bool refresh = core_.armed.load(std::memory_order_relaxed) && next_refresh_ <= time;
    bool changed = scan_locked(refresh ? Verify::kEverything : Verify::kNew);
    if (!core_.armed.load(std::memory_order_relaxed)) {
      recount_locked();
      if (core_.limit() != kNoLimit && core_.resident.value() >= core_.limit() / 2) {
        core_.armed.store(true, std::memory_order_relaxed);
        changed = scan_locked(Verify::kNew) || changed;
      }
    }
    const std::int64_t end = now();
    const std::int64_t cost = std::max<std::int64_t>(end - time - verify_cost_, 0);
    earliest_scan_ = end + after(cost, kScanShare / 3);
    next_scan_ = end + pause_after_scan(changed, cost);
    time = end;
  }
  const bool uncertain = core_.dropped_pages.load(std::memory_order_relaxed) != 0;
  if (core_.armed.load(std::memory_order_relaxed) && next_count_ <= time &&
      (uncertain || last_count_ + kRecountAfter <= time)) {
    recount_locked();
    const std::int64_t end = now();
    next_count_ = end + after(end - time, kCountShare);
    time = end;
  }
  return next_scan_;
}

void Adoption::reset_in_child() noexcept {
  mutex_.reset_after_fork();
  MutexLock hold(mutex_);
  next_.clear();
  unmanageable_.clear();
  advice_is_inherited_ = true;
  next_scan_ = earliest_scan_ = next_count_ = next_verify_ = next_refresh_ = last_count_ = pause_ = 0;
}

}  // namespace whimbrel
