// SwitchDevice: a device that can be replaced by another while it is in use.
//
// It has a few places for devices, each with slot numbers of its own. What is stored goes to the device in use. Those before it
// go on giving back what they hold, until its owner has stored that anew and released the slots; then retire() closes them,
// and there is room for others. Numbers are never reused for another device while something refers to them.
//
// Thread-safe. Replacing and retiring are for one thread at a time, never while a fork is being prepared; replacing while no store is
// under way. Nothing else waits for them.
//
// fork. As the devices do it; a child has them all, and goes on as its parent would have.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>

#include "base/memory_source.h"
#include "devices/device_spec.h"
#include "port/device.h"

namespace whimbrel {

class SwitchDevice final : public Device {
 public:
  // Slot numbers of each place.
  static constexpr std::uint64_t kPlaceSlots = std::uint64_t{1} << 28;
  static constexpr std::uint32_t kMostPages = 512;  // of a unit

  // kInvalid: a device with more slots than a place has numbers, or with units that these numbers cut in two.
  [[nodiscard]] static Result<SwitchDevice*> create(MemorySource& source, DeviceHandle device) noexcept;
  explicit SwitchDevice(MemorySource& source) noexcept : source_(source) {}
  ~SwitchDevice() override = default;
  SwitchDevice(const SwitchDevice&) = delete;
  SwitchDevice& operator=(const SwitchDevice&) = delete;
  static void destroy(SwitchDevice* device) noexcept;

  // From now on stores go to `device`. kBusy: too many before it still hold something; kInvalid as of create().
  [[nodiscard]] Result<void> replace(DeviceHandle device) noexcept;
  // The slots of the device in use: [first, first + kPlaceSlots).
  [[nodiscard]] DeviceSlot first_in_use() const noexcept { return outer(current_.load(std::memory_order_acquire), DeviceSlot{0}); }

  // The devices that have been replaced and not been retired, together.
  struct Leaving {
    std::uint32_t devices = 0;
    std::uint32_t unit_pages = kMostPages;  // the smallest of theirs
    std::uint64_t stored_pages = 0;
  };
  [[nodiscard]] Leaving leaving() const noexcept;
  // Closes those that hold nothing any more. True: there are no others.
  bool retire() noexcept;

  // Those of the device in use, with the slots of all places. submit() always waits, whatever they say.
  [[nodiscard]] DeviceTraits traits() const noexcept override;
  // Of all; the capacity is that of the one in use.
  [[nodiscard]] DeviceStats stats() const noexcept override;
  [[nodiscard]] Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override;
  void release(DeviceSlot first, std::uint32_t pages) noexcept override;
  // A load may cross units of a device that is leaving: those of the one in use are all that its caller knows.
  void submit(DeviceBatch& batch) noexcept override;
  void wait(DeviceBatch&) noexcept override {}
  [[nodiscard]] Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override;
  bool maintain(std::size_t budget_bytes) noexcept override;
  void prepare_fork() noexcept override;
  void after_fork_in_parent() noexcept override;
  void after_fork_in_child() noexcept override;
  [[nodiscard]] std::span<const int> carried() const noexcept override { return {carried_.data(), carried_count_}; }
  void settle_in_child() noexcept override;
  void drop_carried() noexcept override;
  [[nodiscard]] Error last_error() const noexcept override;

 private:
  static constexpr std::size_t kPlaces = 4;
  static constexpr std::size_t kMostCarried = 64;  // as many as engine threads can keep

  struct Place {
    DeviceHandle device;
    std::uint32_t unit_pages = 1;
    std::atomic<bool> open{false};
    mutable std::atomic<std::uint32_t> users{0};
  };
  // A device for as long as this lives; null when its place is closed.
  class Use;
  template <class F>
  auto with_current(F&& f) const noexcept;
  template <class F>
  void for_each_other(std::size_t current, F&& f) const noexcept;

  [[nodiscard]] Result<void> put(std::size_t place, DeviceHandle device) noexcept;
  void run(std::size_t place, std::span<DeviceOp> ops) noexcept;
  void run_in_pieces(Place& place, Device& device, DeviceOp& op) noexcept;
  [[nodiscard]] static std::size_t place_of(DeviceSlot slot) noexcept {
    return static_cast<std::uint64_t>(slot) / kPlaceSlots % kPlaces;
  }
  [[nodiscard]] static DeviceSlot inner(DeviceSlot slot) noexcept { return DeviceSlot{static_cast<std::uint64_t>(slot) % kPlaceSlots}; }
  [[nodiscard]] static DeviceSlot outer(std::size_t place, DeviceSlot slot) noexcept { return slot + place * kPlaceSlots; }

  MemorySource& source_;
  std::array<Place, kPlaces> places_;
  std::atomic<std::size_t> current_{0};
  std::array<int, kMostCarried> carried_{};
  std::size_t carried_count_ = 0;
};

}  // namespace whimbrel
