// SimDevice: a device that fails as devices do: full, I/O errors part-way through a transfer, corrupt contents, gone
// and back again, and transfers that complete late and in any order.
//
// A transfer reads or writes its buffer when it completes, not when it is submitted: whoever uses a buffer before
// wait() has returned loses data here as he would on hardware. Single-threaded: for fibers, or one thread.
#pragma once

#include <map>
#include <memory>
#include <vector>

#include "port/device.h"
#include "sim/failures.h"

namespace whimbrel::sim {

class SimDevice final : public Device {
 public:
  struct Options {
    std::uint32_t unit_pages = 16;
    std::uint64_t slots = 1 << 16;
    std::uint64_t capacity_pages = 0;  // 0: none
    bool late = false;                 // operations complete while wait() sleeps, in an order that is a choice
  };
  // Choices decide the order of late completions; failures may be null.
  SimDevice(const Options& options, Choices& choices, Failures* failures)
      : options_(options), choices_(choices), failures_(failures) {}

  [[nodiscard]] DeviceTraits traits() const noexcept override;
  [[nodiscard]] DeviceStats stats() const noexcept override;
  [[nodiscard]] Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override;
  void release(DeviceSlot first, std::uint32_t pages) noexcept override;
  void submit(DeviceBatch& batch) noexcept override;
  void wait(DeviceBatch& batch) noexcept override;
  [[nodiscard]] Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override;

  // Everything answers kGone until it is back; contents survive.
  void set_gone(bool gone) { gone_ = gone; }
  // The stored bytes of a slot turn bad: loads answer kCorrupt. False: nothing is stored there.
  bool corrupt(DeviceSlot slot);
  [[nodiscard]] std::uint64_t reserved_pages() const { return places_.size(); }

 private:
  struct Place {
    std::unique_ptr<std::byte[]> bytes;  // null: all zero, when something is stored
    bool stored = false;
    bool corrupt = false;
    bool last_of_reservation = false;
  };
  void complete(DeviceOp& op);
  [[nodiscard]] Result<void> transfer(DeviceOp& op, std::uint32_t pages);
  static void point();

  const Options options_;
  Choices& choices_;
  Failures* failures_;
  std::map<std::uint64_t, Place> places_;  // by slot: reserved
  std::uint64_t next_ = 0;
  bool gone_ = false;
  DeviceStats stats_;
};

}  // namespace whimbrel::sim
