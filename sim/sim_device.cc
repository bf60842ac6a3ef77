#include "sim/sim_device.h"

#include <algorithm>
#include <cstring>

#include "base/check.h"
#include "mm/address.h"
#include "sim/scheduler.h"

namespace whimbrel::sim {
namespace {

constexpr Errc kReserveErrors[] = {Errc::kDeviceFull, Errc::kNoMemory};
constexpr Errc kStoreErrors[] = {Errc::kDeviceIo, Errc::kDeviceFull, Errc::kGone};
constexpr Errc kLoadErrors[] = {Errc::kDeviceIo, Errc::kCorrupt, Errc::kGone};

}  // namespace

void SimDevice::point() {
  if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr) scheduler->point();
}

DeviceTraits SimDevice::traits() const noexcept {
  DeviceTraits traits;
  traits.name = "simulated";
  traits.unit_pages = options_.unit_pages;
  traits.slots = options_.slots;
  traits.synchronous = !options_.late;
  return traits;
}

DeviceStats SimDevice::stats() const noexcept {
  DeviceStats stats = stats_;
  for (const auto& [slot, place] : places_) stats.stored_pages += place.stored ? 1 : 0;
  stats.raw_pages = stats.stored_pages;
  stats.compressed_bytes = stats.held_bytes = stats.stored_pages * kPageSize;
  stats.capacity_bytes = options_.capacity_pages * kPageSize;
  return stats;
}

Result<DeviceSlot> SimDevice::reserve(std::uint32_t pages) noexcept {
  point();
  if (pages == 0 || pages > options_.unit_pages) return fail(Errc::kInvalid, 0, "sim reserve");
  if (gone_) return fail(Errc::kGone, 0, "sim reserve");
  if (failures_ != nullptr) {
    if (const auto error = failures_->next(kReserveErrors)) return fail(*error, 0, "sim reserve");
  }
  if (options_.capacity_pages != 0 && places_.size() + pages > options_.capacity_pages) {
    return fail(Errc::kDeviceFull, 0, "sim reserve");
  }
  // First fit from where the last one ended, never across a unit.
  for (std::uint64_t tries = 0; tries <= options_.slots; ++tries) {
    std::uint64_t at = next_;
    const std::uint64_t left_in_unit = options_.unit_pages - at % options_.unit_pages;
    if (left_in_unit < pages) at += left_in_unit;
    if (at + pages > options_.slots) at = 0;
    const auto used = places_.lower_bound(at);
    if (used == places_.end() || used->first >= at + pages) {
      for (std::uint64_t i = 0; i < pages; ++i) places_[at + i].last_of_reservation = i + 1 == pages;
      next_ = at + pages;
      return DeviceSlot{at};
    }
    next_ = used->first + 1;
  }
  return fail(Errc::kDeviceFull, 0, "sim reserve");
}

void SimDevice::release(DeviceSlot first, std::uint32_t pages) noexcept {
  point();
  for (std::uint64_t i = 0; i < pages; ++i) {
    const auto it = places_.find(static_cast<std::uint64_t>(first) + i);
    CHECK(it != places_.end(), "releasing a slot that is not reserved");
    places_.erase(it);
  }
}

void SimDevice::submit(DeviceBatch& batch) noexcept {
  point();
  if (options_.late) return;
  for (DeviceOp& op : batch.ops) complete(op);
}

void SimDevice::wait(DeviceBatch& batch) noexcept {
  if (!options_.late) return;
  std::vector<DeviceOp*> running;
  for (DeviceOp& op : batch.ops) running.push_back(&op);
  while (!running.empty()) {
    if (Scheduler* scheduler = Scheduler::current(); scheduler != nullptr && scheduler->in_fiber()) {
      scheduler->sleep(10'000);
    }
    const std::uint32_t which = choices_.pick(static_cast<std::uint32_t>(std::min<std::size_t>(running.size(), 3)));
    complete(*running[which]);
    running.erase(running.begin() + which);
  }
}

void SimDevice::complete(DeviceOp& op) {
  const bool store = op.kind == DeviceOp::Kind::kStore;
  op.result = Result<void>{};
  if (gone_) {
    op.result = fail(Errc::kGone, 0, "sim transfer");
  } else if (failures_ != nullptr) {
    const auto error =
        failures_->next(store ? std::span<const Errc>(kStoreErrors) : std::span<const Errc>(kLoadErrors));
    if (error) {
      // Part of it went through before it failed; for a load the rest of the buffer is rubbish.
      const auto part = static_cast<std::uint32_t>(failures_->partial(op.pages));
      if (!store) {
        std::memset(op.memory, 0xee, op.pages * kPageSize);
        (void)transfer(op, part);
      }
      op.result = fail(*error, 0, "sim transfer");
    }
  }
  if (op.result) op.result = transfer(op, op.pages);
  if (!op.result) ++stats_.errors;
}

Result<void> SimDevice::transfer(DeviceOp& op, std::uint32_t pages) {
  const auto first = static_cast<std::uint64_t>(op.first);
  for (std::uint64_t i = 0; i < pages; ++i) {
    const auto it = places_.find(first + i);
    CHECK(it != places_.end(), "a transfer to a slot that is not reserved");
    std::byte* memory = op.memory + i * kPageSize;
    Place& place = it->second;
    if (op.kind == DeviceOp::Kind::kStore) {
      // Most pages of a simulated 2 MiB unit are zeros: they take no room.
      place.stored = true;
      place.corrupt = false;
      place.bytes.reset();
      if (memory[0] != std::byte{0} || std::memcmp(memory, memory + 1, kPageSize - 1) != 0) {
        place.bytes = std::make_unique<std::byte[]>(kPageSize);
        std::memcpy(place.bytes.get(), memory, kPageSize);
      }
      ++stats_.stores;
      continue;
    }
    if (!place.stored) return fail(Errc::kInvalid, 0, "sim load: nothing stored");
    if (place.corrupt) return fail(Errc::kCorrupt, 0, "sim load");
    if (place.bytes != nullptr) {
      std::memcpy(memory, place.bytes.get(), kPageSize);
    } else {
      std::memset(memory, 0, kPageSize);
    }
    ++stats_.loads;
  }
  return {};
}

Result<bool> SimDevice::verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept {
  point();
  if (gone_) return fail(Errc::kGone, 0, "sim verify");
  for (std::uint64_t i = 0; i < pages; ++i) {
    const auto it = places_.find(static_cast<std::uint64_t>(first) + i);
    if (it == places_.end() || !it->second.stored) return fail(Errc::kInvalid, 0, "sim verify");
    if (it->second.corrupt) return fail(Errc::kCorrupt, 0, "sim verify");
    std::byte zeros[kPageSize]{};
    const std::byte* kept = it->second.bytes != nullptr ? it->second.bytes.get() : zeros;
    if (std::memcmp(kept, memory + i * kPageSize, kPageSize) != 0) return false;
  }
  return true;
}

bool SimDevice::corrupt(DeviceSlot slot) {
  const auto it = places_.find(static_cast<std::uint64_t>(slot));
  if (it == places_.end() || !it->second.stored) return false;
  return it->second.corrupt = true;
}

}  // namespace whimbrel::sim
