#include "devices/composite/mirror_device.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr auto kRelaxed = std::memory_order_relaxed;
// Every so many batches of loads go to the slower leg, so that it can become the faster one.
constexpr std::uint32_t kAskSlower = 32;

}  // namespace

// --- set-up ---------------------------------------------------------------------------------------------------------

Result<MirrorDevice*> MirrorDevice::create(MemorySource& source, std::span<DeviceHandle> legs,
                                           const Options& options) noexcept {
  if (legs.size() != kLegs || options.store_workers == 0 || options.load_workers == 0) {
    return fail(Errc::kInvalid, 0, "MirrorDevice options");
  }
  const std::uint32_t unit =
      std::min(std::max(legs[0]->traits().unit_pages, legs[1]->traits().unit_pages), kMostUnitPages);
  if (options.max_pages < unit) return fail(Errc::kInvalid, 0, "MirrorDevice options");
  auto* device = make_from<MirrorDevice>(source, source, unit, options);
  if (device == nullptr) return fail(Errc::kNoMemory, 0, "MirrorDevice");
  const Result<void> ready = device->init(legs);
  if (ready) return device;
  destroy_from(source, device);
  return std::unexpected(ready.error());
}

MirrorDevice::MirrorDevice(MemorySource& source, std::uint32_t unit_pages, const Options& options) noexcept
    : options_(options),
      source_(source),
      table_(source, options.max_pages, unit_pages, kLegs),
      storers_(source, options.store_workers),
      loaders_(source, options.load_workers) {}

Result<void> MirrorDevice::init(std::span<DeviceHandle> legs) noexcept {
  if (!table_.valid() || storers_.empty() || loaders_.empty()) return fail(Errc::kNoMemory, 0, "MirrorDevice tables");
  for (Storer& storer : storers_) {
    if (const auto ready = storer.batch.init(source_, kLegs); !ready) return ready;
  }
  for (Loader& loader : loaders_) {
    if (const auto ready = loader.first.init(source_, kLegs); !ready) return ready;
    if (const auto ready = loader.second.init(source_, kLegs); !ready) return ready;
  }
  MutexLock lock(copier_mutex_);
  if (const auto ready = copier_.batch.init(source_, kLegs); !ready) return ready;
  copier_.buffer = SourceArray<std::byte>(source_, kMostUnitPages * kPageBytes);
  if (copier_.buffer.empty()) return fail(Errc::kNoMemory, 0, "MirrorDevice buffers");
  return legs_.take(legs);
}

DeviceTraits MirrorDevice::traits() const noexcept {
  return {.name = "mirror",
          .unit_pages = table_.unit_pages(),
          .slots = options_.max_pages / table_.unit_pages() * table_.unit_pages(),
          .in_process_memory = legs_.traits[0].in_process_memory && legs_.traits[1].in_process_memory,
          .shared_on_fork = legs_.traits[0].shared_on_fork && legs_.traits[1].shared_on_fork};
}

DeviceStats MirrorDevice::stats() const noexcept {
  const DeviceStats a = legs_[0].stats(), b = legs_[1].stats();
  return {.stored_pages = counters_.stored_pages.load(kRelaxed),
          .same_filled_pages = std::max(a.same_filled_pages, b.same_filled_pages),
          .raw_pages = std::max(a.raw_pages, b.raw_pages),
          .compressed_bytes = a.compressed_bytes + b.compressed_bytes,
          .held_bytes = a.held_bytes + b.held_bytes,
          .capacity_bytes = a.capacity_bytes != 0 && b.capacity_bytes != 0 ? a.capacity_bytes + b.capacity_bytes : 0,
          .stores = counters_.stores.load(kRelaxed),
          .loads = counters_.loads.load(kRelaxed),
          .store_ns = counters_.store_ns.load(kRelaxed),
          .load_ns = counters_.load_ns.load(kRelaxed),
          .errors = counters_.errors.load(kRelaxed)};
}

Error MirrorDevice::last_error() const noexcept { return legs_[failed_leg_.load(kRelaxed)].last_error(); }

bool MirrorDevice::is_whole(std::uint32_t leg) const noexcept {
  const LegState& state = state_[leg];
  return !state.down.load(kRelaxed) && !state.doubted.load(kRelaxed) && !state.damaged.load(kRelaxed) &&
         state.missing.load(kRelaxed) == 0;
}

void MirrorDevice::finish(DeviceOp& op, Result<void> result) noexcept {
  if (result) {
    (op.kind == DeviceOp::Kind::kStore ? counters_.stores : counters_.loads).fetch_add(op.pages, kRelaxed);
  } else {
    counters_.errors.fetch_add(1, kRelaxed);
  }
  op.result = result;
}

bool MirrorDevice::note(std::uint32_t leg, const Error& error) noexcept {
  failed_leg_.store(leg, kRelaxed);
  if (error.code == Errc::kDeviceIo || error.code == Errc::kGone) {
    state_[leg].doubted.store(true, kRelaxed);
    state_[leg].down.store(true, kRelaxed);
    return true;
  }
  if (error.code == Errc::kCorrupt) state_[leg].damaged.store(true, kRelaxed);
  return false;
}

// --- release --------------------------------------------------------------------------------------------------------

void MirrorDevice::release(DeviceSlot first, std::uint32_t pages) noexcept {
  table_.release(first, pages, [this](const SlotPlace& place) { release_in_unit(place); });
}

void MirrorDevice::release_in_unit(const SlotPlace& place) noexcept {
  std::array<Words, kLegs> given{};
  bool gone = false;
  {
    MutexLock lock(table_.stripe(place.unit));
    CompositeUnit* unit = table_.find_reserved(place);
    CHECK(unit != nullptr, "release of a slot that is not reserved");
    unit->live &= ~place.mask();
    if (unit->state == CompositeUnit::State::kStored) counters_.stored_pages.fetch_sub(place.pages, kRelaxed);
    if (unit->busy != CompositeUnit::Busy::kNo) return;  // who copies it gives the places back
    for (std::uint32_t leg = 0; leg < kLegs; ++leg) {
      const std::span<PartWord> words = table_.words(place.unit, leg).subspan(place.page, place.pages);
      if (unit->state == CompositeUnit::State::kStored) {
        const auto missing = std::count_if(words.begin(), words.end(), [](PartWord word) { return !word; });
        state_[leg].missing.fetch_sub(static_cast<std::uint64_t>(missing), kRelaxed);
      }
      std::copy(words.begin(), words.end(), given[leg].begin());
      std::fill(words.begin(), words.end(), PartWord());
    }
    gone = unit->live == 0;
    if (gone) *unit = {};
  }
  for (const Words& words : given) legs_.release({words.data(), place.pages});
  if (gone) table_.give(place.unit);
}

// --- loads ----------------------------------------------------------------------------------------------------------

void MirrorDevice::submit(DeviceBatch& batch) noexcept {
  load_all(batch);
  store_all(batch);
}

std::uint32_t MirrorDevice::faster() noexcept {
  if (!is_up(0) || !is_up(1)) return is_up(0) ? 0 : 1;
  if (is_whole(0) != is_whole(1)) return is_whole(0) ? 0 : 1;
  const std::uint64_t first = state_[0].load_ns.load(kRelaxed), second = state_[1].load_ns.load(kRelaxed);
  const std::uint32_t leg = options_.clock != nullptr && second < first ? 1 : 0;
  return turns_.fetch_add(1, kRelaxed) % kAskSlower == kAskSlower - 1 ? 1 - leg : leg;
}

void MirrorDevice::measure(std::uint32_t leg, std::int64_t ns, std::uint32_t ops) noexcept {
  const std::uint64_t now = static_cast<std::uint64_t>(ns) / ops + 1, before = state_[leg].load_ns.load(kRelaxed);
  state_[leg].load_ns.store(before == 0 ? now : (before * 7 + now) / 8, kRelaxed);
}

void MirrorDevice::load_all(DeviceBatch& batch) noexcept {
  const auto is_load = [](const DeviceOp& op) { return op.kind == DeviceOp::Kind::kLoad; };
  if (std::none_of(batch.ops.begin(), batch.ops.end(), is_load)) return;
  const ContextPool<Loader>::Lease loader(loaders_);
  for (std::size_t next = 0; next < batch.ops.size();) {
    const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
    const std::size_t first = next;
    const std::uint32_t leg = faster();
    std::uint32_t ops = 0, on_favourite = 0;
    loader->first.clear();
    loader->second.clear();
    for (; next < batch.ops.size() && next - first < PartBatch::kMost; ++next) {
      DeviceOp& op = batch.ops[next];
      if (!is_load(op)) continue;
      if (!loader->first.has_room(std::min(op.pages, kMostUnitPages))) break;
      op.result = begin_load(op, static_cast<std::uint32_t>(next - first), leg, *loader);
    }
    loader->first.run(legs_);
    loader->first.for_each([&](std::uint32_t part, const DeviceOp&, std::uint32_t) {
      ++ops;
      on_favourite += part == leg ? 1 : 0;
    });
    const std::int64_t took = options_.clock != nullptr ? options_.clock->now_ns() - start : 0;
    if (options_.clock != nullptr && ops != 0 && on_favourite == ops) measure(leg, took, ops);
    try_other_leg(batch, first, *loader);
    for (std::size_t i = first; i < next; ++i) {
      if (is_load(batch.ops[i])) finish(batch.ops[i], batch.ops[i].result);
    }
    if (options_.clock != nullptr) {
      counters_.load_ns.fetch_add(static_cast<std::uint64_t>(options_.clock->now_ns() - start), kRelaxed);
    }
  }
}

// Every operation on a leg pins the unit.
Result<void> MirrorDevice::begin_load(const DeviceOp& op, std::uint32_t owner, std::uint32_t favourite,
                                      Loader& loader) noexcept {
  const SlotPlace place = table_.place_of(op.first, op.pages);
  MutexLock lock(table_.stripe(place.unit));
  const CompositeUnit* unit = table_.find_reserved(place);
  if (unit == nullptr || unit->state != CompositeUnit::State::kStored) {
    return fail(Errc::kInvalid, 0, "load of an empty slot");
  }
  const std::span<const PartWord> words = table_.words(place.unit, favourite).subspan(place.page, place.pages);
  const std::span<const PartWord> others = table_.words(place.unit, 1 - favourite).subspan(place.page, place.pages);
  for (std::uint32_t i = 0; i < place.pages;) {
    const std::span<const PartWord> from = words[i] ? words : others;
    if (!from[i]) return fail(Errc::kDeviceIo, 0, "neither leg has the page");
    const std::uint32_t n = legs_.run_length(from.subspan(i));
    loader.first.add(
        from[i].part(),
        {.kind = DeviceOp::Kind::kLoad, .first = from[i].slot(), .pages = n, .memory = op.memory + i * kPageBytes},
        owner);
    pins_.pin(place.unit);
    i += n;
  }
  return {};
}

// What one leg did not give back is asked of the other. Then nobody needs the places any more.
void MirrorDevice::try_other_leg(DeviceBatch& batch, std::size_t first, Loader& loader) noexcept {
  loader.first.for_each([&](std::uint32_t leg, const DeviceOp& part, std::uint32_t owner) {
    if (part.result) return;
    DeviceOp& op = batch.ops[first + owner];
    note(leg, part.result.error());
    const SlotPlace place = table_.place_of(op.first, op.pages);
    const auto offset = static_cast<std::uint32_t>((part.memory - op.memory) / static_cast<std::ptrdiff_t>(kPageBytes));
    MutexLock lock(table_.stripe(place.unit));
    const std::span<const PartWord> words = table_.words(place.unit, 1 - leg).subspan(place.page + offset, part.pages);
    const auto there = [](PartWord word) { return static_cast<bool>(word); };
    if (!std::all_of(words.begin(), words.end(), there) || !loader.second.has_room(part.pages)) {
      op.result = part.result;
      return;
    }
    for (std::uint32_t i = 0; i < part.pages;) {
      const std::uint32_t n = legs_.run_length(words.subspan(i));
      loader.second.add(
          1 - leg,
          {.kind = DeviceOp::Kind::kLoad, .first = words[i].slot(), .pages = n, .memory = part.memory + i * kPageBytes},
          owner);
      i += n;
    }
  });
  if (!loader.second.empty()) loader.second.run(legs_);
  loader.second.for_each([&](std::uint32_t leg, const DeviceOp& part, std::uint32_t owner) {
    if (part.result) return;
    note(leg, part.result.error());
    batch.ops[first + owner].result = part.result;
  });
  loader.first.for_each([&](std::uint32_t, const DeviceOp&, std::uint32_t owner) {
    pins_.unpin(table_.place_of(batch.ops[first + owner].first, 1).unit);
  });
}

Result<bool> MirrorDevice::verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept {
  const SlotPlace place = table_.place_of(first, pages);
  const std::uint32_t leg = faster();
  Words words{};
  {
    MutexLock lock(table_.stripe(place.unit));
    const CompositeUnit* unit = table_.find_reserved(place);
    if (unit == nullptr || unit->state != CompositeUnit::State::kStored) return fail(Errc::kInvalid, 0, "verify");
    for (std::uint32_t i = 0; i < pages; ++i) {
      const PartWord favourite = table_.words(place.unit, leg)[place.page + i];
      words[i] = favourite ? favourite : table_.words(place.unit, 1 - leg)[place.page + i];
    }
    pins_.pin(place.unit);
  }
  Result<bool> result = true;
  for (std::uint32_t i = 0; i < pages && result && *result;) {
    const std::uint32_t n = legs_.run_length({words.data() + i, pages - i});
    result = legs_[words[i].part()].verify(words[i].slot(), n, memory + i * kPageBytes);
    i += n;
  }
  pins_.unpin(place.unit);
  return result;
}

// --- stores ---------------------------------------------------------------------------------------------------------

void MirrorDevice::store_all(DeviceBatch& batch) noexcept {
  std::size_t next = 0;
  const auto find = [&] {
    while (next < batch.ops.size() && batch.ops[next].kind != DeviceOp::Kind::kStore) ++next;
    return next < batch.ops.size();
  };
  while (find()) {
    GatePass pass(table_.gate());  // group by group: a fork waits for one of them
    const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
    std::size_t bytes = 0;
    {
      const ContextPool<Storer>::Lease storer(storers_);
      for (PageGroup& group : storer->groups) group.clear();
      std::uint32_t count = 0;
      for (; find(); ++next) {
        DeviceOp& op = batch.ops[next];
        const SlotPlace place = table_.place_of(op.first, op.pages);
        {
          MutexLock lock(table_.stripe(place.unit));
          const CompositeUnit* unit = table_.find_reserved(place);
          if (unit == nullptr || place.page != 0 || unit->pages != op.pages) {
            finish(op, fail(Errc::kInvalid, 0, "store"));
            continue;
          }
        }
        if (storer->groups[0].count + op.pages > PageGroup::kMost) break;
        for (PageGroup& group : storer->groups) {
          for (std::uint32_t i = 0; i < op.pages; ++i) group.add(op.memory + i * kPageBytes);
        }
        storer->ops[count++] = &op;
      }
      if (count != 0) store_group(*storer, count);
      bytes = storer->groups[0].count * kPageBytes;
    }
    if (options_.clock != nullptr) {
      counters_.store_ns.fetch_add(static_cast<std::uint64_t>(options_.clock->now_ns() - start), kRelaxed);
    }
    // Under pressure there is no time for upkeep, and a mirror that is not whole cannot wait for it. Faster than stores
    // add to it, or it would never end.
    if (!(is_whole(0) && is_whole(1))) (void)repair(2 * bytes);
  }
}

void MirrorDevice::store_group(Storer& storer, std::uint32_t ops) noexcept {
  Error error{.code = Errc::kDeviceIo, .where = "both legs of the mirror fail"};
  bool full = false;
  const auto place_on = [&](std::uint32_t leg) {
    const PageGroup::Outcome outcome = storer.groups[leg].place_on(legs_, leg, false, false, storer.batch);
    if (outcome.missing == 0) return false;
    error = outcome.error;
    // Not by asking whether it is up: it may be again already.
    const bool left_out = note(leg, error);
    full = full || !left_out;
    return left_out;
  };
  // A leg that is down is tried after all where the other one fails: it may have come back since it was last asked.
  const bool first_is_down = !is_up(0);
  const std::uint32_t sure = first_is_down ? 1 : 0, other = 1 - sure;
  const bool sure_failed = place_on(sure);
  if (sure_failed || (!first_is_down && is_up(other))) (void)place_on(other);
  std::uint32_t at = 0;
  for (std::uint32_t k = 0; k < ops; ++k) {
    DeviceOp& op = *storer.ops[k];
    std::array<std::span<const PartWord>, kLegs> words;
    std::array<bool, kLegs> whole{};
    for (std::uint32_t leg = 0; leg < kLegs; ++leg) {
      words[leg] = {storer.groups[leg].placed.data() + at, op.pages};
      whole[leg] = std::all_of(words[leg].begin(), words[leg].end(), [](PartWord w) { return static_cast<bool>(w); });
      if (whole[leg]) continue;
      // All of it or nothing: what is there in part would be no second copy.
      legs_.release(words[leg]);
      std::fill_n(storer.groups[leg].placed.begin() + at, op.pages, PartWord());
    }
    at += op.pages;
    const bool good = (whole[0] || whole[1]) && (!full || (whole[0] && whole[1]));
    const Result<void> result = good ? publish(op, words[0], words[1]) : Result<void>(std::unexpected(error));
    if (!result) {
      for (const auto& leg : words) legs_.release(leg);
    }
    finish(op, result);
  }
}

// Makes what was stored visible, in place of what was there before.
Result<void> MirrorDevice::publish(const DeviceOp& op, std::span<const PartWord> first,
                                   std::span<const PartWord> second) noexcept {
  std::array<Words, kLegs> before{};
  const SlotPlace place = table_.place_of(op.first, op.pages);
  {
    MutexLock lock(table_.stripe(place.unit));
    CompositeUnit* unit = table_.find_reserved(place);
    if (unit == nullptr || unit->pages != op.pages)
      return fail(Errc::kInvalid, 0, "store into slots released meanwhile");
    const bool stored = unit->state == CompositeUnit::State::kStored;
    const bool moving = unit->busy == CompositeUnit::Busy::kMoving;
    for (std::uint32_t leg = 0; leg < kLegs; ++leg) {
      const std::span<PartWord> words = table_.words(place.unit, leg).first(op.pages);
      const std::span<const PartWord> fresh = leg == 0 ? first : second;
      for (std::uint32_t i = 0; i < op.pages; ++i) {
        if (stored && !words[i]) state_[leg].missing.fetch_sub(1, kRelaxed);
        if (!fresh[i]) state_[leg].missing.fetch_add(1, kRelaxed);
        if (!moving) before[leg][i] = words[i];  // else who copies the old contents gives their places back
        words[i] = fresh[i];
      }
    }
    if (moving) unit->busy = CompositeUnit::Busy::kOvertaken;
    if (!stored) counters_.stored_pages.fetch_add(op.pages, kRelaxed);
    unit->state = CompositeUnit::State::kStored;
  }
  for (const Words& words : before) legs_.release({words.data(), op.pages});
  return {};
}

}  // namespace whimbrel
