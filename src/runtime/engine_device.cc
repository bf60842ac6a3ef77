// Engine: another device, while the program goes on.
#include <algorithm>
#include <array>
#include <utility>

#include "runtime/engine.h"

namespace whimbrel {

// The device may be changed from outside: that of a run by its file, that of a session by the program. Before there is one, the
// new one is what will be made; afterwards what is stored goes to it from now on, and what lies on the one before moves there in
// the background.
void Engine::follow_device() noexcept {
  std::uint32_t changes = device_asked_.load(std::memory_order_acquire);
  if (settings_.session == 0 && file_) changes = file_.layout().header.device_writes.load(std::memory_order_acquire) / 2;
  look_at_leaving();
  if (changes == device_changes_) return;
  change_device(changes);
  if (device_changes_ == changes) device_done_.advance();
}

void Engine::look_at_leaving() noexcept {
  if (device_ == nullptr || asleep_) return;
  const SwitchDevice::Leaving leaving = device_->leaving();
  slot_->leaving_pages.store(leaving.stored_pages, std::memory_order_relaxed);
  if (leaving.devices == 0) return;
  const GateSection section(bring_up_gate_);  // else a fork is under way
  if (section && device_->retire()) pager_->note_evacuated();
}

// False: it is being written just now.
bool Engine::wanted_device(std::array<char, kStatsDevice>& specification) const noexcept {
  std::uint32_t seen = 0;
  if (settings_.session == 0) return file_.device(specification, &seen);
  specification = asked_device_;  // whoever asked waits
  return true;
}

void Engine::change_device(std::uint32_t change) noexcept {
  std::array<char, kStatsDevice> specification;
  if (!wanted_device(specification)) return;
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
  if (settings_.session != 0) std::copy_n(asked_device_process_, sizeof asked_device_process_, settings_.device_process);
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
  if (settings_.session != 0) describe_session();
  (replaced ? slot_->device_change : slot_->device_refused).store(change, std::memory_order_release);
}

}  // namespace whimbrel
