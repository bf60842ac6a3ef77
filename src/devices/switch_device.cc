#include "devices/switch_device.h"

#include <algorithm>
#include <utility>

#include "base/check.h"

namespace whimbrel {

class SwitchDevice::Use {
 public:
  explicit Use(const Place& place) noexcept : place_(place) {
    place_.users.fetch_add(1, std::memory_order_seq_cst);
    open_ = place_.open.load(std::memory_order_seq_cst);
  }
  ~Use() { place_.users.fetch_sub(1, std::memory_order_release); }
  Use(const Use&) = delete;
  Use& operator=(const Use&) = delete;
  [[nodiscard]] Device* device() const noexcept { return open_ ? place_.device.get() : nullptr; }

 private:
  const Place& place_;
  bool open_;
};

// Calls f(place, device) for the one in use. Who looked just before it was replaced and retired looks again.
template <class F>
auto SwitchDevice::with_current(F&& f) const noexcept {
  for (;;) {
    const std::size_t current = current_.load(std::memory_order_acquire);
    const Use use(places_[current]);
    if (use.device() != nullptr) return f(current, *use.device());
  }
}

// Calls f(place, device) for those that are leaving.
template <class F>
void SwitchDevice::for_each_other(std::size_t current, F&& f) const noexcept {
  for (std::size_t place = 0; place < kPlaces; ++place) {
    const Use use(places_[place]);
    if (place != current && use.device() != nullptr) f(place, std::as_const(*use.device()));
  }
}

// --- which device -----------------------------------------------------------------------------------------------------

Result<SwitchDevice*> SwitchDevice::create(MemorySource& source, DeviceHandle device) noexcept {
  auto* made = make_from<SwitchDevice>(source, source);
  if (made == nullptr) return fail(Errc::kNoMemory, 0, "SwitchDevice");
  if (const Result<void> put = made->put(0, std::move(device)); !put) {
    destroy(made);
    return std::unexpected(put.error());
  }
  return made;
}

void SwitchDevice::destroy(SwitchDevice* device) noexcept {
  if (device != nullptr) destroy_from(device->source_, device);
}

Result<void> SwitchDevice::put(std::size_t at, DeviceHandle device) noexcept {
  const DeviceTraits traits = device->traits();
  if (traits.slots > kPlaceSlots || traits.unit_pages == 0 || traits.unit_pages > kMostPages || kPlaceSlots % traits.unit_pages != 0) {
    return fail(Errc::kInvalid, 0, "device traits");
  }
  Place& place = places_[at];
  place.device = std::move(device);
  place.unit_pages = traits.unit_pages;
  place.open.store(true, std::memory_order_seq_cst);
  return {};
}

Result<void> SwitchDevice::replace(DeviceHandle device) noexcept {
  for (std::size_t place = 0; place < kPlaces; ++place) {
    if (places_[place].open.load(std::memory_order_relaxed)) continue;
    if (const Result<void> done = put(place, std::move(device)); !done) return done;
    current_.store(place, std::memory_order_release);
    return {};
  }
  return fail(Errc::kBusy, 0, "the devices before are not empty yet");
}

SwitchDevice::Leaving SwitchDevice::leaving() const noexcept {
  Leaving sum;
  for_each_other(current_.load(std::memory_order_acquire), [&](std::size_t place, const Device& device) {
    ++sum.devices;
    sum.unit_pages = std::min(sum.unit_pages, places_[place].unit_pages);
    sum.stored_pages += device.stats().stored_pages;
  });
  return sum;
}

bool SwitchDevice::retire() noexcept {
  bool all = true;
  const std::size_t current = current_.load(std::memory_order_relaxed);
  for (std::size_t at = 0; at < kPlaces; ++at) {
    Place& place = places_[at];
    if (at == current || !place.open.load(std::memory_order_relaxed)) continue;
    if (place.device->stats().stored_pages != 0) {
      all = false;
      continue;
    }
    place.open.store(false, std::memory_order_seq_cst);
    // Whoever is in there only looks at numbers: nothing is stored there any more.
    while (place.users.load(std::memory_order_seq_cst) != 0) {
    }
    place.device = DeviceHandle();
  }
  return all;
}

// --- all that a device does --------------------------------------------------------------------------------------------

DeviceTraits SwitchDevice::traits() const noexcept {
  return with_current([this](std::size_t current, const Device& device) {
    DeviceTraits traits = device.traits();
    traits.slots = kPlaces * kPlaceSlots;
    for_each_other(current, [&](std::size_t, const Device& other) {
      const DeviceTraits theirs = other.traits();
      // What one of them holds here while another is elsewhere shows in the memory source, as this process's own.
      traits.in_process_memory = traits.in_process_memory && theirs.in_process_memory;
      traits.shared_on_fork = traits.shared_on_fork && theirs.shared_on_fork;
    });
    return traits;
  });
}

DeviceStats SwitchDevice::stats() const noexcept {
  return with_current([this](std::size_t current, const Device& device) {
    DeviceStats sum = device.stats();
    for_each_other(current, [&](std::size_t, const Device& other) {
      const DeviceStats theirs = other.stats();
      sum.stored_pages += theirs.stored_pages;
      sum.same_filled_pages += theirs.same_filled_pages;
      sum.raw_pages += theirs.raw_pages;
      sum.compressed_bytes += theirs.compressed_bytes;
      sum.held_bytes += theirs.held_bytes;
      sum.stores += theirs.stores;
      sum.loads += theirs.loads;
      sum.store_ns += theirs.store_ns;
      sum.load_ns += theirs.load_ns;
      sum.errors += theirs.errors;
    });
    return sum;
  });
}

Result<DeviceSlot> SwitchDevice::reserve(std::uint32_t pages) noexcept {
  return with_current([pages](std::size_t current, Device& device) -> Result<DeviceSlot> {
    const Result<DeviceSlot> slot = device.reserve(pages);
    if (!slot) return slot;
    return outer(current, *slot);
  });
}

void SwitchDevice::release(DeviceSlot first, std::uint32_t pages) noexcept {
  const Use use(places_[place_of(first)]);
  CHECK(use.device() != nullptr, "release of a slot of a device that was closed");
  use.device()->release(inner(first), pages);
}

void SwitchDevice::submit(DeviceBatch& batch) noexcept {
  for (std::size_t from = 0; from < batch.ops.size();) {
    const std::size_t place = place_of(batch.ops[from].first);
    std::size_t end = from + 1;
    while (end < batch.ops.size() && place_of(batch.ops[end].first) == place) ++end;
    run(place, batch.ops.subspan(from, end - from));
    from = end;
  }
}

void SwitchDevice::run(std::size_t at, std::span<DeviceOp> ops) noexcept {
  Place& place = places_[at];
  const Use use(place);
  Device* const device = use.device();
  if (device == nullptr) {
    for (DeviceOp& op : ops) op.result = fail(Errc::kInvalid, 0, "slot of a device that was closed");
    return;
  }
  for (DeviceOp& op : ops) op.first = inner(op.first);
  const auto crosses = [&](const DeviceOp& op) {
    return static_cast<std::uint64_t>(op.first) % place.unit_pages + op.pages > place.unit_pages;
  };
  if (std::none_of(ops.begin(), ops.end(), crosses)) {
    DeviceBatch whole{.ops = ops};
    device->submit(whole);
    device->wait(whole);
  } else {
    for (DeviceOp& op : ops) run_in_pieces(place, *device, op);
  }
  for (DeviceOp& op : ops) op.first = outer(at, op.first);
}

void SwitchDevice::run_in_pieces(Place& place, Device& device, DeviceOp& op) noexcept {
  op.result = {};
  for (std::uint32_t done = 0; done < op.pages && op.result;) {
    DeviceOp piece = op;
    piece.first = op.first + done;
    const auto in_unit = static_cast<std::uint32_t>(static_cast<std::uint64_t>(piece.first) % place.unit_pages);
    piece.pages = std::min(op.pages - done, place.unit_pages - in_unit);
    piece.memory = op.memory + std::size_t{done} * 4096;
    DeviceBatch one{.ops = {&piece, 1}};
    device.submit(one);
    device.wait(one);
    op.result = piece.result;
    done += piece.pages;
  }
}

Result<bool> SwitchDevice::verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept {
  const Use use(places_[place_of(first)]);
  if (use.device() == nullptr) return fail(Errc::kInvalid, 0, "slot of a device that was closed");
  return use.device()->verify(inner(first), pages, memory);
}

bool SwitchDevice::maintain(std::size_t budget_bytes) noexcept {
  bool more = false;
  for (Place& place : places_) {
    const Use use(place);
    if (use.device() != nullptr) more = use.device()->maintain(budget_bytes) || more;
  }
  return more;
}

Error SwitchDevice::last_error() const noexcept {
  return with_current([this](std::size_t current, const Device& device) {
    Error error = device.last_error();
    for_each_other(current, [&](std::size_t, const Device& other) {
      if (*error.where == 0) error = other.last_error();
    });
    return error;
  });
}

// --- fork: nobody replaces or retires in between -------------------------------------------------------------------------

void SwitchDevice::prepare_fork() noexcept {
  carried_count_ = 0;
  for (Place& place : places_) {
    if (!place.device) continue;
    place.device->prepare_fork();
    for (const int fd : place.device->carried()) {
      CHECK(carried_count_ < carried_.size(), "more descriptors than a child can inherit");
      carried_[carried_count_++] = fd;
    }
  }
}

void SwitchDevice::after_fork_in_parent() noexcept {
  for (Place& place : places_) {
    if (place.device) place.device->after_fork_in_parent();
  }
  carried_count_ = 0;
}

void SwitchDevice::after_fork_in_child() noexcept {
  for (Place& place : places_) {
    place.users.store(0, std::memory_order_relaxed);  // loads of the parent's threads
    if (place.device) place.device->after_fork_in_child();
  }
}

void SwitchDevice::settle_in_child() noexcept {
  for (Place& place : places_) {
    if (place.device) place.device->settle_in_child();
  }
}

void SwitchDevice::drop_carried() noexcept {
  for (Place& place : places_) {
    if (place.device) place.device->drop_carried();
  }
  carried_count_ = 0;
}

}  // namespace whimbrel
