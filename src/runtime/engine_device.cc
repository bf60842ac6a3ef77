// Engine: another device, while the program goes on.
#include <algorithm>
#include <array>
#include <utility>

#include "runtime/engine.h"

namespace whimbrel {

// The run's device may be changed from outside. Before there is one, the new one is what will be made; afterwards what is
// stored goes to it from now on, and what lies on the one before moves there in the background.
void Engine::follow_device() noexcept {
  if (!file_ || settings_.session != 0) return;
  const std::uint32_t changes = file_.layout().header.device_writes.load(std::memory_order_acquire) / 2;
  if (device_ != nullptr && !asleep_) {
    const SwitchDevice::Leaving leaving = device_->leaving();
    slot_->leaving_pages.store(leaving.stored_pages, std::memory_order_relaxed);
    if (leaving.devices != 0) {
      const GateSection section(bring_up_gate_);  // else a fork is under way
      if (section && device_->retire()) pager_->note_evacuated();
    }
  }
  if (changes == device_changes_) return;
  change_device(changes);
}

void Engine::change_device(std::uint32_t change) noexcept {
  std::array<char, kStatsDevice> specification;
  std::uint32_t seen = 0;
  if (!file_.device(specification, &seen)) return;  // is being written
  static_assert(sizeof settings_.device == kStatsDevice);
  if (asleep_) return;  // inherited, and not needed so far: when it is
  if (device_ == nullptr) {
    std::copy(specification.begin(), specification.end(), settings_.device);
    device_changes_ = change;
    slot_->device_change.store(change, std::memory_order_release);
    return;
  }
  const GateSection section(bring_up_gate_);
  if (!section) return;
  std::array<char, kStatsDevice> before;
  std::copy_n(settings_.device, before.size(), before.begin());
  std::copy(specification.begin(), specification.end(), settings_.device);
  device_changes_ = change;
  Result<void> replaced = fail(Errc::kInvalid);
  if (Result<DeviceHandle> made = make_the_device(); made) {
    pager_->hold_stores();
    replaced = device_->replace(std::move(*made));
    if (replaced) {
      const SwitchDevice::Leaving leaving = device_->leaving();
      slot_->leaving_pages.store(leaving.stored_pages, std::memory_order_relaxed);
      pager_->resume_stores(device_->first_in_use(), SwitchDevice::kPlaceSlots, leaving.unit_pages);
    } else {
      say("the devices before are not empty yet");
      pager_->resume_stores();
    }
  }
  if (!replaced) {
    say("the device stays what it was: ", before.data());
    std::copy(before.begin(), before.end(), settings_.device);
  }
  (replaced ? slot_->device_change : slot_->device_refused).store(change, std::memory_order_release);
}

}  // namespace whimbrel
