#include "devices/composite/chain_device.h"

#include <algorithm>
#include <bit>

#include "base/check.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr auto kRelaxed = std::memory_order_relaxed;
// A tier that failed is asked again after so many groups of pages.
constexpr std::uint32_t kRestGroups = 16;

}  // namespace

// --- set-up ---------------------------------------------------------------------------------------------------------

Result<ChainDevice*> ChainDevice::create(MemorySource& source, std::span<DeviceHandle> tiers,
                                         const Options& options) noexcept {
  if (tiers.size() < 2 || tiers.size() > kMostParts || options.store_workers == 0 || options.load_workers == 0) {
    return fail(Errc::kInvalid, 0, "ChainDevice options");
  }
  std::uint32_t unit = 1;
  for (const DeviceHandle& tier : tiers) unit = std::max(unit, tier->traits().unit_pages);
  unit = std::min(unit, kMostUnitPages);
  if (options.max_pages < unit) return fail(Errc::kInvalid, 0, "ChainDevice options");
  auto* device = make_from<ChainDevice>(source, source, unit, options);
  if (device == nullptr) return fail(Errc::kNoMemory, 0, "ChainDevice");
  const Result<void> ready = device->init(tiers);
  if (ready) return device;
  destroy_from(source, device);
  return std::unexpected(ready.error());
}

ChainDevice::ChainDevice(MemorySource& source, std::uint32_t unit_pages, const Options& options) noexcept
    : options_(options),
      source_(source),
      table_(source, options.max_pages, unit_pages, 1),
      ages_(table_),
      storers_(source, options.store_workers),
      loaders_(source, options.load_workers) {}

Result<void> ChainDevice::init(std::span<DeviceHandle> tiers) noexcept {
  if (!table_.valid() || storers_.empty() || loaders_.empty()) return fail(Errc::kNoMemory, 0, "ChainDevice tables");
  const auto count = static_cast<std::uint32_t>(tiers.size());
  for (Storer& storer : storers_) {
    if (const auto ready = storer.batch.init(source_, count); !ready) return ready;
  }
  for (PartBatch& loader : loaders_) {
    if (const auto ready = loader.init(source_, count); !ready) return ready;
  }
  MutexLock lock(mover_mutex_);
  if (const auto ready = mover_.batch.init(source_, count); !ready) return ready;
  mover_.buffer = SourceArray<std::byte>(source_, PageGroup::kMost * kPageBytes);
  mover_.moves = SourceArray<Move>(source_, PageGroup::kMost);
  if (mover_.buffer.empty() || mover_.moves.empty()) return fail(Errc::kNoMemory, 0, "ChainDevice buffers");
  return tiers_.take(tiers);
}

DeviceTraits ChainDevice::traits() const noexcept {
  DeviceTraits traits{.name = "chain",
                      .unit_pages = table_.unit_pages(),
                      .slots = options_.max_pages / table_.unit_pages() * table_.unit_pages()};
  for (std::uint32_t i = 0; i < tiers_.count; ++i) {
    // With a tier elsewhere, what the others hold here shows in the memory source, as this device's own.
    traits.in_process_memory = traits.in_process_memory && tiers_.traits[i].in_process_memory;
    traits.shared_on_fork = traits.shared_on_fork && tiers_.traits[i].shared_on_fork;
  }
  return traits;
}

DeviceStats ChainDevice::stats() const noexcept {
  DeviceStats stats{.stored_pages = counters_.stored_pages.load(kRelaxed),
                    .stores = counters_.stores.load(kRelaxed),
                    .loads = counters_.loads.load(kRelaxed),
                    .store_ns = counters_.store_ns.load(kRelaxed),
                    .load_ns = counters_.load_ns.load(kRelaxed),
                    .errors = counters_.errors.load(kRelaxed)};
  bool limited = true;
  for (std::uint32_t i = 0; i < tiers_.count; ++i) {
    const DeviceStats tier = tiers_[i].stats();
    stats.same_filled_pages += tier.same_filled_pages;
    stats.raw_pages += tier.raw_pages;
    stats.compressed_bytes += tier.compressed_bytes;
    stats.held_bytes += tier.held_bytes;
    stats.capacity_bytes += tier.capacity_bytes;
    limited = limited && tier.capacity_bytes != 0;
  }
  if (!limited) stats.capacity_bytes = 0;
  return stats;
}

Error ChainDevice::last_error() const noexcept { return tiers_[failed_tier_.load(kRelaxed)].last_error(); }

void ChainDevice::finish(DeviceOp& op, Result<void> result) noexcept {
  if (result) {
    (op.kind == DeviceOp::Kind::kStore ? counters_.stores : counters_.loads).fetch_add(op.pages, kRelaxed);
  } else {
    counters_.errors.fetch_add(1, kRelaxed);
  }
  op.result = result;
}

// --- release --------------------------------------------------------------------------------------------------------

void ChainDevice::release(DeviceSlot first, std::uint32_t pages) noexcept {
  table_.release(first, pages, [this](const SlotPlace& place) { release_in_unit(place); });
}

void ChainDevice::release_in_unit(const SlotPlace& place) noexcept {
  Words given{};
  bool gone = false;
  {
    MutexLock lock(table_.stripe(place.unit));
    CompositeUnit* unit = table_.find_reserved(place);
    CHECK(unit != nullptr, "release of a slot that is not reserved");
    const std::span<PartWord> words = table_.words(place.unit).subspan(place.page, place.pages);
    if (words[0]) counters_.stored_pages.fetch_sub(place.pages, kRelaxed);
    unit->live &= ~place.mask();
    if (unit->busy != CompositeUnit::Busy::kNo) return;  // who moves it gives the places back
    std::copy(words.begin(), words.end(), given.begin());
    std::fill(words.begin(), words.end(), PartWord());
    gone = unit->live == 0;
    if (gone) {
      ages_.remove(place.unit);
      *unit = {};
    }
  }
  tiers_.release({given.data(), place.pages});
  if (gone) table_.give(place.unit);
}

// --- transfers ------------------------------------------------------------------------------------------------------

void ChainDevice::submit(DeviceBatch& batch) noexcept {
  load_all(batch);
  store_all(batch);
}

bool ChainDevice::load_in_one(DeviceOp& op) noexcept {
  const SlotPlace place = table_.place_of(op.first, op.pages);
  PartWord word;
  {
    MutexLock lock(table_.stripe(place.unit));
    const CompositeUnit* unit = table_.find_reserved(place);
    if (unit == nullptr || unit->state != CompositeUnit::State::kStored) {
      finish(op, fail(Errc::kInvalid, 0, "load of an empty slot"));
      return true;
    }
    const std::span<const PartWord> words = table_.words(place.unit).subspan(place.page, place.pages);
    if (tiers_.run_length(words) != place.pages) return false;
    word = words[0];
    pins_.pin(place.unit);
  }
  const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
  DeviceOp part{.kind = DeviceOp::Kind::kLoad, .first = word.slot(), .pages = op.pages, .memory = op.memory};
  DeviceBatch batch{.ops = {&part, 1}};
  tiers_[word.part()].submit(batch);
  tiers_[word.part()].wait(batch);
  pins_.unpin(place.unit);
  if (!part.result) failed_tier_.store(word.part(), kRelaxed);
  finish(op, part.result);
  if (options_.clock != nullptr) {
    counters_.load_ns.fetch_add(static_cast<std::uint64_t>(options_.clock->now_ns() - start), kRelaxed);
  }
  return true;
}

void ChainDevice::load_all(DeviceBatch& batch) noexcept {
  const auto is_load = [](const DeviceOp& op) { return op.kind == DeviceOp::Kind::kLoad; };
  if (std::none_of(batch.ops.begin(), batch.ops.end(), is_load)) return;
  if (batch.ops.size() == 1 && load_in_one(batch.ops[0])) return;
  const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
  const Loaders::Lease parts(loaders_);
  for (std::size_t next = 0; next < batch.ops.size();) {
    const std::size_t first = next;
    parts->clear();
    for (; next < batch.ops.size() && next - first < PartBatch::kMost; ++next) {
      DeviceOp& op = batch.ops[next];
      if (!is_load(op)) continue;
      if (!parts->has_room(op.pages < kMostUnitPages ? op.pages : kMostUnitPages)) break;
      op.result = begin_load(op, static_cast<std::uint32_t>(next - first), *parts);
    }
    parts->run(tiers_);
    parts->for_each([&](std::uint32_t tier, const DeviceOp& part, std::uint32_t owner) {
      DeviceOp& op = batch.ops[first + owner];
      pins_.unpin(table_.place_of(op.first, 1).unit);
      if (part.result) return;
      op.result = part.result;
      failed_tier_.store(tier, kRelaxed);
    });
    for (std::size_t i = first; i < next; ++i) {
      if (is_load(batch.ops[i])) finish(batch.ops[i], batch.ops[i].result);
    }
  }
  if (options_.clock != nullptr) {
    counters_.load_ns.fetch_add(static_cast<std::uint64_t>(options_.clock->now_ns() - start), kRelaxed);
  }
}

// Every operation on a part pins the unit.
Result<void> ChainDevice::begin_load(const DeviceOp& op, std::uint32_t owner, PartBatch& parts) noexcept {
  const SlotPlace place = table_.place_of(op.first, op.pages);
  MutexLock lock(table_.stripe(place.unit));
  const CompositeUnit* unit = table_.find_reserved(place);
  if (unit == nullptr || unit->state != CompositeUnit::State::kStored) {
    return fail(Errc::kInvalid, 0, "load of an empty slot");
  }
  const std::span<const PartWord> words = table_.words(place.unit).subspan(place.page, place.pages);
  for (std::uint32_t i = 0; i < place.pages;) {
    const std::uint32_t n = tiers_.run_length(words.subspan(i));
    parts.add(
        words[i].part(),
        {.kind = DeviceOp::Kind::kLoad, .first = words[i].slot(), .pages = n, .memory = op.memory + i * kPageBytes},
        owner);
    pins_.pin(place.unit);
    i += n;
  }
  return {};
}

Result<bool> ChainDevice::verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept {
  const SlotPlace place = table_.place_of(first, pages);
  Words words{};
  {
    MutexLock lock(table_.stripe(place.unit));
    const CompositeUnit* unit = table_.find_reserved(place);
    if (unit == nullptr || unit->state != CompositeUnit::State::kStored) return fail(Errc::kInvalid, 0, "verify");
    std::copy_n(table_.words(place.unit).begin() + place.page, pages, words.begin());
    pins_.pin(place.unit);
  }
  Result<bool> result = true;
  for (std::uint32_t i = 0; i < pages && result && *result;) {
    const std::uint32_t n = tiers_.run_length({words.data() + i, pages - i});
    result = tiers_[words[i].part()].verify(words[i].slot(), n, memory + i * kPageBytes);
    i += n;
  }
  pins_.unpin(place.unit);
  return result;
}

// --- stores ---------------------------------------------------------------------------------------------------------

void ChainDevice::store_all(DeviceBatch& batch) noexcept {
  std::size_t next = 0;
  const auto find = [&] {
    while (next < batch.ops.size() && batch.ops[next].kind != DeviceOp::Kind::kStore) ++next;
    return next < batch.ops.size();
  };
  while (find()) {
    GatePass pass(table_.gate());  // group by group: a fork waits for one of them
    const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
    const Storers::Lease storer(storers_);
    storer->group.clear();
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
      if (storer->group.count + op.pages > PageGroup::kMost) break;
      for (std::uint32_t i = 0; i < op.pages; ++i) storer->group.add(op.memory + i * kPageBytes);
      storer->ops[count++] = &op;
    }
    if (count != 0) store_group(*storer, count);
    if (options_.clock != nullptr) {
      counters_.store_ns.fetch_add(static_cast<std::uint64_t>(options_.clock->now_ns() - start), kRelaxed);
    }
  }
}

void ChainDevice::store_group(Storer& storer, std::uint32_t ops) noexcept {
  const Error error = place(storer.group, storer.batch, 0, true);
  std::uint32_t at = 0;
  for (std::uint32_t k = 0; k < ops; ++k) {
    DeviceOp& op = *storer.ops[k];
    const std::span<const PartWord> words{storer.group.placed.data() + at, op.pages};
    at += op.pages;
    const bool whole = std::all_of(words.begin(), words.end(), [](PartWord word) { return static_cast<bool>(word); });
    const Result<void> result = whole ? publish(op, words) : Result<void>(std::unexpected(error));
    if (!result) tiers_.release(words);
    finish(op, result);
  }
}

// Makes what was stored visible, in place of what was there before.
Result<void> ChainDevice::publish(const DeviceOp& op, std::span<const PartWord> fresh) noexcept {
  Words before{};
  const SlotPlace place = table_.place_of(op.first, op.pages);
  {
    MutexLock lock(table_.stripe(place.unit));
    CompositeUnit* unit = table_.find_reserved(place);
    if (unit == nullptr || unit->pages != op.pages)
      return fail(Errc::kInvalid, 0, "store into slots released meanwhile");
    const std::span<PartWord> words = table_.words(place.unit).first(op.pages);
    if (unit->busy == CompositeUnit::Busy::kMoving) {
      unit->busy = CompositeUnit::Busy::kOvertaken;  // who moves the old contents gives their places back
    } else {
      std::copy(words.begin(), words.end(), before.begin());
    }
    if (unit->state != CompositeUnit::State::kStored) counters_.stored_pages.fetch_add(op.pages, kRelaxed);
    unit->state = CompositeUnit::State::kStored;
    std::copy(fresh.begin(), fresh.end(), words.begin());
    list(place.unit, words, true);
  }
  tiers_.release({before.data(), op.pages});
  return {};
}

bool ChainDevice::takes_anything(std::uint32_t tier) const noexcept {
  return tier + 1 == tiers_.count || !tiers_.traits[tier].in_process_memory;
}

void ChainDevice::note(std::uint32_t tier, const Error& error) noexcept {
  failed_tier_.store(tier, kRelaxed);
  if (error.code == Errc::kDeviceIo || error.code == Errc::kGone) rest_[tier].store(kRestGroups, kRelaxed);
}

Error ChainDevice::place(PageGroup& group, PartBatch& batch, std::uint32_t from, bool make) noexcept {
  Error error{.code = Errc::kDeviceFull, .where = "every tier is full"};
  auto open = static_cast<std::uint32_t>(std::count(group.wanted.begin(), group.wanted.begin() + group.count, true));
  // True: there was not enough room.
  const auto attempt = [&](std::uint32_t tier, bool shrink_only) {
    const PageGroup::Outcome outcome = group.place_on(tiers_, tier, shrink_only, shrink_only, batch);
    open -= outcome.placed;
    if (outcome.missing == 0) return false;
    error = outcome.error;
    note(tier, error);
    return error.code == Errc::kDeviceFull || error.code == Errc::kNoMemory;
  };
  for (std::uint32_t tier = from; tier < tiers_.count && open != 0; ++tier) {
    if (const std::uint32_t left = rest_[tier].load(kRelaxed); left != 0) {
      rest_[tier].store(left - 1, kRelaxed);
      continue;
    }
    const bool shrink_only = !takes_anything(tier);
    const bool can_move = make && tier + 1 < tiers_.count;
    if (can_move && is_tight(tier)) (void)make_room(tier, false);
    if (attempt(tier, shrink_only) && can_move && make_room(tier, true) != 0) (void)attempt(tier, shrink_only);
  }
  // As it is, wherever there is room. What leaves a tier does not come back to it.
  for (std::uint32_t tier = from; tier < tiers_.count && open != 0; ++tier) (void)attempt(tier, false);
  return error;
}

}  // namespace whimbrel
