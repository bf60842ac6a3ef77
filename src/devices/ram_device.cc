#include "devices/ram_device.h"

#include <cstring>

#include "base/check.h"

namespace whimbrel {
namespace {

constexpr std::size_t kPageBytes = 4096;
constexpr std::uint32_t kNoUnit = 0xffffffff;

}  // namespace

Result<RamDevice*> RamDevice::create(MemorySource& source, const Options& options) noexcept {
  if (options.unit_pages == 0 || options.unit_pages > UnitMask::kPages) return fail(Errc::kInvalid, 0, "unit_pages");
  if (options.max_units == 0 || options.max_units >= kNoUnit) return fail(Errc::kInvalid, 0, "max_units");
  auto* device = make_from<RamDevice>(source, source, options);
  if (device == nullptr) return fail(Errc::kNoMemory, 0, "RamDevice");
  if (device->ready()) return device;
  destroy_from(source, device);
  return fail(Errc::kNoMemory, 0, "RamDevice units");
}

RamDevice::RamDevice(MemorySource& source, const Options& options) noexcept
    : source_(source), options_(options), units_(source, options.max_units), free_list_(kNoUnit) {
  stats_.capacity_bytes = options.capacity_bytes;
}

RamDevice::~RamDevice() {
  MutexLock lock(mutex_);
  for (std::uint64_t i = 0; i < used_units_; ++i) {
    if (units_[i].memory != nullptr) source_.give(units_[i].memory, units_[i].pages * kPageBytes);
  }
}

bool RamDevice::ready() const noexcept {
  MutexLock lock(mutex_);
  return !units_.empty();
}

DeviceTraits RamDevice::traits() const noexcept {
  return {.name = "ram", .unit_pages = options_.unit_pages, .slots = options_.max_units * options_.unit_pages};
}

DeviceStats RamDevice::stats() const noexcept {
  GatePass pass(gate_);  // also here, or a child could inherit the lock held by a thread that it does not have
  MutexLock lock(mutex_);
  DeviceStats stats = stats_;
  stats.raw_pages = stats.stored_pages;
  stats.compressed_bytes = stats.stored_pages * kPageBytes;
  return stats;
}

Result<DeviceSlot> RamDevice::reserve(std::uint32_t pages) noexcept {
  if (pages == 0 || pages > options_.unit_pages) return fail(Errc::kInvalid, 0, "reserve");
  GatePass pass(gate_);
  MutexLock lock(mutex_);
  std::uint64_t index = free_list_;
  if (index != kNoUnit) {
    free_list_ = units_[index].next_free;
  } else if (used_units_ < units_.size()) {
    index = used_units_++;
  } else {
    return fail(Errc::kDeviceFull, 0, "reserve");
  }
  Unit& unit = units_[index];
  unit.pages = pages;
  unit.live.set(0, pages);
  return DeviceSlot{index * options_.unit_pages};
}

RamDevice::Place RamDevice::place_of(DeviceSlot slot) const noexcept {
  const auto number = static_cast<std::uint64_t>(slot);
  return {number / options_.unit_pages, static_cast<std::uint32_t>(number % options_.unit_pages)};
}

RamDevice::Unit* RamDevice::find_locked(Place place, std::uint32_t pages) noexcept {
  if (place.unit >= used_units_ || pages == 0 || pages > options_.unit_pages - place.page) return nullptr;
  Unit& unit = units_[place.unit];
  return unit.live.all(place.page, pages) ? &unit : nullptr;
}

void RamDevice::release(DeviceSlot first, std::uint32_t pages) noexcept {
  GatePass pass(gate_);
  while (pages != 0) {
    const Place place = place_of(first);
    const std::uint32_t here = options_.unit_pages - place.page < pages ? options_.unit_pages - place.page : pages;
    release_in_unit(place, here);
    first = first + here;
    pages -= here;
  }
}

void RamDevice::release_in_unit(Place place, std::uint32_t pages) noexcept {
  std::byte* memory = nullptr;
  std::size_t bytes = 0;
  {
    MutexLock lock(mutex_);
    Unit* unit = find_locked(place, pages);
    CHECK(unit != nullptr, "release of a slot that is not reserved");
    unit->live.clear(place.page, pages);
    if (unit->memory != nullptr) stats_.stored_pages -= pages;
    if (!unit->live.none()) return;
    memory = unit->memory;
    bytes = unit->pages * kPageBytes;
    if (memory != nullptr) stats_.held_bytes -= bytes;
    unit->memory = nullptr;
    unit->pages = 0;
    unit->next_free = free_list_;
    free_list_ = static_cast<std::uint32_t>(place.unit);
  }
  if (memory != nullptr) source_.give(memory, bytes);
}

void RamDevice::submit(DeviceBatch& batch) noexcept {
  for (DeviceOp& op : batch.ops) {
    if (op.kind == DeviceOp::Kind::kLoad) {
      op.result = run(op);  // never waits for a fork: the fork may be waiting for it
    } else {
      GatePass pass(gate_);
      op.result = run(op);
    }
  }
}

Result<void> RamDevice::run(const DeviceOp& op) noexcept {
  const bool store_op = op.kind == DeviceOp::Kind::kStore;
  const std::int64_t start = options_.clock != nullptr ? options_.clock->now_ns() : 0;
  const Result<void> result = store_op ? store(op) : load(op);
  const auto took = static_cast<std::uint64_t>(options_.clock != nullptr ? options_.clock->now_ns() - start : 0);
  MutexLock lock(mutex_);
  (store_op ? stats_.store_ns : stats_.load_ns) += took;
  if (result) {
    (store_op ? stats_.stores : stats_.loads) += op.pages;
  } else {
    ++stats_.errors;
  }
  return result;
}

// Always into fresh memory: a forked child shares what was stored before, and writing to it would copy it first.
Result<void> RamDevice::store(const DeviceOp& op) noexcept {
  const Place place = place_of(op.first);
  const std::size_t bytes = op.pages * kPageBytes;
  {
    MutexLock lock(mutex_);
    const Unit* unit = find_locked(place, op.pages);
    if (unit == nullptr || place.page != 0 || unit->pages != op.pages) return fail(Errc::kInvalid, 0, "store");
    if (options_.capacity_bytes != 0 && stats_.held_bytes + bytes > options_.capacity_bytes) {
      return fail(Errc::kDeviceFull, 0, "store");
    }
    stats_.held_bytes += bytes;
  }
  auto* memory = static_cast<std::byte*>(source_.take(bytes));
  if (memory == nullptr) {
    MutexLock lock(mutex_);
    stats_.held_bytes -= bytes;
    return fail(Errc::kNoMemory, 0, "store");
  }
  std::memcpy(memory, op.memory, bytes);
  std::byte* old = nullptr;
  {
    MutexLock lock(mutex_);
    Unit& unit = units_[place.unit];
    old = unit.memory;
    unit.memory = memory;
    if (old == nullptr) {
      stats_.stored_pages += op.pages;
    } else {
      stats_.held_bytes -= bytes;
    }
  }
  if (old != nullptr) source_.give(old, bytes);
  return {};
}

// The address stays good without the lock: nobody releases or overwrites slots that are being read.
Result<const std::byte*> RamDevice::stored_at(DeviceSlot first, std::uint32_t pages) noexcept {
  const Place place = place_of(first);
  MutexLock lock(mutex_);
  const Unit* unit = find_locked(place, pages);
  if (unit == nullptr || unit->memory == nullptr) return fail(Errc::kInvalid, 0, "load of an empty slot");
  return unit->memory + place.page * kPageBytes;
}

Result<void> RamDevice::load(const DeviceOp& op) noexcept {
  const Result<const std::byte*> stored = stored_at(op.first, op.pages);
  if (!stored) return std::unexpected(stored.error());
  std::memcpy(op.memory, *stored, op.pages * kPageBytes);
  return {};
}

Result<bool> RamDevice::verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept {
  const Result<const std::byte*> stored = stored_at(first, pages);
  if (!stored) return std::unexpected(stored.error());
  return std::memcmp(memory, *stored, pages * kPageBytes) == 0;
}

}  // namespace whimbrel
