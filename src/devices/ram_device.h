// RamDevice: contents copied, as they are, into memory from a MemorySource.
//
// The simplest correct Device. It saves no memory; it is what the others are compared with and what the simulation
// runs on. It is not tuned: memory is held per reservation, taken by the store and given back with the last released
// slot, so that every store touches fresh memory.
#pragma once

#include <cstdint>

#include "base/clock.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "devices/fork_gate.h"
#include "devices/unit_mask.h"
#include "base/zeroed_table.h"
#include "port/device.h"

namespace whimbrel {

class RamDevice final : public Device {
 public:
  struct Options {
    std::uint64_t max_units = 1u << 16;  // reservations that can exist at a time
    std::uint32_t unit_pages = 512;      // 1..512
    std::uint64_t capacity_bytes = 0;    // limit on the contents held; 0: none
    const Clock* clock = nullptr;        // for store_ns and load_ns; null: they stay 0
  };
  // kInvalid for options out of range, kNoMemory. Destroy with destroy_from().
  [[nodiscard]] static Result<RamDevice*> create(MemorySource& source, const Options& options) noexcept;

  RamDevice(MemorySource& source, const Options& options) noexcept;
  ~RamDevice() override;
  RamDevice(const RamDevice&) = delete;
  RamDevice& operator=(const RamDevice&) = delete;

  [[nodiscard]] DeviceTraits traits() const noexcept override;
  [[nodiscard]] DeviceStats stats() const noexcept override;
  [[nodiscard]] Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override;
  void release(DeviceSlot first, std::uint32_t pages) noexcept override;
  void submit(DeviceBatch& batch) noexcept override;
  void wait(DeviceBatch&) noexcept override {}
  void prepare_fork() noexcept override { gate_.close(); }
  void after_fork_in_parent() noexcept override { gate_.open(); }
  void after_fork_in_child() noexcept override {
    mutex_.reset_after_fork();  // a load of the parent may have held it
    gate_.open_in_child();
  }
  [[nodiscard]] Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override;

 private:
  struct Unit {
    std::byte* memory;        // null: nothing stored
    std::uint32_t pages;      // 0: free
    std::uint32_t next_free;  // valid while free
    UnitMask live;            // slots not yet released
  };
  struct Place {
    std::uint64_t unit = 0;
    std::uint32_t page = 0;
  };

  [[nodiscard]] bool ready() const noexcept EXCLUDES(mutex_);
  [[nodiscard]] Place place_of(DeviceSlot slot) const noexcept;
  // The unit when all these pages are reserved, else null.
  [[nodiscard]] Unit* find_locked(Place place, std::uint32_t pages) noexcept REQUIRES(mutex_);
  void release_in_unit(Place place, std::uint32_t pages) noexcept EXCLUDES(mutex_);
  [[nodiscard]] Result<void> run(const DeviceOp& op) noexcept;
  [[nodiscard]] Result<void> store(const DeviceOp& op) noexcept EXCLUDES(mutex_);
  [[nodiscard]] Result<void> load(const DeviceOp& op) noexcept EXCLUDES(mutex_);
  [[nodiscard]] Result<const std::byte*> stored_at(DeviceSlot first, std::uint32_t pages) noexcept EXCLUDES(mutex_);

  MemorySource& source_;
  const Options options_;
  mutable ForkGate gate_;
  mutable Mutex mutex_;  // for the tables; never held while contents are copied
  ZeroedTable<Unit> units_ GUARDED_BY(mutex_);
  std::uint64_t used_units_ GUARDED_BY(mutex_) = 0;  // units_[used_units_...] were never reserved
  std::uint32_t free_list_ GUARDED_BY(mutex_);
  DeviceStats stats_ GUARDED_BY(mutex_);
};

}  // namespace whimbrel
