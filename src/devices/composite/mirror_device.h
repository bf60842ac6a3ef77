// MirrorDevice: two devices (its legs) that hold the same pages.
//
// * Pages are stored on both legs. A leg that fails is left out: pages are then on the other alone, and go on being so
//   until it answers again. A leg that is merely full makes the mirror full: it would be no mirror otherwise.
// * Pages are loaded from the leg that has been faster; the other is asked now and then, to know. What one leg does not
//   give back comes from the other.
// * A leg that answers again may have lost what it had, or hold what is out of date. It is read through from end to
// end,
//   against the checksums that devices keep, and what is missing or damaged there is copied from the other leg. So is a
//   damaged page that a load has come across.
//
// Whether a leg answers is asked, and pages are copied, by maintain(), and now and then by stores.
//
// Threads. Stores take turns at the workers, loads have workers of their own; one thread at a time copies.
// Lock order: gate, worker, copier, unit stripe. No stripe is held while a leg works.
#pragma once

#include <array>
#include <atomic>
#include <cstdint>
#include <span>

#include "base/clock.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "devices/composite/composite_unit.h"
#include "devices/composite/part_batch.h"
#include "devices/context_pool.h"
#include "devices/device_spec.h"
#include "port/device.h"

namespace whimbrel {

class MirrorDevice final : public Device {
 public:
  struct Options {
    std::uint64_t max_pages = PartWord::kMostSlots;
    std::uint32_t store_workers = 2;
    std::uint32_t load_workers = 4;
    const Clock* clock = nullptr;  // for times, and to know the faster leg; null: the first is
  };
  // Two legs; they are the mirror's from then on. kInvalid, kNoMemory. Destroy with destroy_from().
  [[nodiscard]] static Result<MirrorDevice*> create(MemorySource& source, std::span<DeviceHandle> legs,
                                                    const Options& options) noexcept;

  MirrorDevice(MemorySource& source, std::uint32_t unit_pages, const Options& options) noexcept;
  ~MirrorDevice() override = default;
  MirrorDevice(const MirrorDevice&) = delete;
  MirrorDevice& operator=(const MirrorDevice&) = delete;

  [[nodiscard]] DeviceTraits traits() const noexcept override;
  // Bytes and capacity are of both legs together; the mirror's own table, 8 bytes a page and 24 a unit, is not in them.
  [[nodiscard]] DeviceStats stats() const noexcept override;
  [[nodiscard]] Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override { return table_.reserve(pages); }
  void release(DeviceSlot first, std::uint32_t pages) noexcept override;
  void submit(DeviceBatch& batch) noexcept override;
  void wait(DeviceBatch&) noexcept override {}
  [[nodiscard]] Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override;
  bool maintain(std::size_t budget_bytes) noexcept override;
  void prepare_fork() noexcept override;
  void after_fork_in_parent() noexcept override;
  void after_fork_in_child() noexcept override;
  [[nodiscard]] std::span<const int> carried() const noexcept override { return legs_.carried(); }
  void settle_in_child() noexcept override { legs_.settle_in_child(); }
  void drop_carried() noexcept override { legs_.drop_carried(); }
  [[nodiscard]] Error last_error() const noexcept override;

  // For tests and reports. A leg that is whole is up and has every page.
  [[nodiscard]] bool is_up(std::uint32_t leg) const noexcept {
    return !state_[leg].down.load(std::memory_order_relaxed);
  }
  [[nodiscard]] bool is_whole(std::uint32_t leg) const noexcept;
  [[nodiscard]] Device& leg(std::uint32_t i) const noexcept { return legs_[i]; }

 private:
  static constexpr std::uint32_t kLegs = 2;
  static constexpr std::uint32_t kMostUnitPages = 64;
  using Words = std::array<PartWord, kMostUnitPages>;

  struct Storer {
    PartBatch batch;
    std::array<PageGroup, kLegs> groups{};
    std::array<DeviceOp*, PageGroup::kMost> ops{};
  };
  struct Loader {
    PartBatch first, second;
  };
  // A unit that is being made whole on one leg.
  struct Copier {
    PartBatch batch;
    PageGroup group;
    SourceArray<std::byte> buffer;
    std::array<std::uint8_t, kMostUnitPages> page_of{};  // the page of the unit that is in the group at that place
    std::array<Words, kLegs> before{};
    std::uint64_t live = 0;  // at that time
  };
  struct LegState {
    std::atomic<bool> down{false};
    std::atomic<std::uint64_t> missing{0};  // pages that it does not have
    std::atomic<bool> doubted{false};       // what it has is to be read through
    std::atomic<bool> damaged{false};       // a load has found something
    std::atomic<std::uint64_t> load_ns{0};  // what an operation takes, smoothed; 0: not known
    std::uint64_t cursor = 0;               // where reading through goes on; the copier's
    std::uint32_t trouble = 0;              // units that could not be made whole in this round; the copier's
    std::int64_t next_try = 0;              // when it is asked again whether it answers; the copier's
  };
  struct Counters {
    std::atomic<std::uint64_t> stored_pages{0}, stores{0}, loads{0}, store_ns{0}, load_ns{0}, errors{0};
  };

  [[nodiscard]] Result<void> init(std::span<DeviceHandle> legs) noexcept;

  void store_all(DeviceBatch& batch) noexcept;
  void store_group(Storer& storer, std::uint32_t ops) noexcept;
  [[nodiscard]] Result<void> publish(const DeviceOp& op, std::span<const PartWord> first,
                                     std::span<const PartWord> second) noexcept;
  void load_all(DeviceBatch& batch) noexcept;
  [[nodiscard]] Result<void> begin_load(const DeviceOp& op, std::uint32_t owner, std::uint32_t favourite,
                                        Loader& loader) noexcept;
  void try_other_leg(DeviceBatch& batch, std::size_t first, Loader& loader) noexcept;
  // The leg to load from.
  [[nodiscard]] std::uint32_t faster() noexcept;
  void measure(std::uint32_t leg, std::int64_t ns, std::uint32_t ops) noexcept;
  // True: the leg is left out from now on.
  bool note(std::uint32_t leg, const Error& error) noexcept;
  void finish(DeviceOp& op, Result<void> result) noexcept;
  void release_in_unit(const SlotPlace& place) noexcept;

  // mirror_resync.cc. True: there is more to do, and it is worth going on.
  bool repair(std::size_t budget_bytes) noexcept EXCLUDES(copier_mutex_);
  [[nodiscard]] bool may_try(LegState& state) const noexcept REQUIRES(copier_mutex_);
  // A round that was in vain is begun again after a while.
  bool repair_leg(std::uint32_t leg, std::size_t budget_bytes) noexcept REQUIRES(copier_mutex_);
  [[nodiscard]] bool answers(std::uint32_t leg) noexcept REQUIRES(copier_mutex_);
  // Bytes that were copied or read through; false: it could not be made whole.
  bool make_whole(std::uint64_t unit, std::uint32_t leg, bool check, std::size_t* bytes) noexcept
      REQUIRES(copier_mutex_);
  void read_group(std::uint32_t leg, std::span<bool> good) noexcept REQUIRES(copier_mutex_);
  void settle(std::uint64_t unit, std::uint32_t leg, std::span<const PartWord> after) noexcept REQUIRES(copier_mutex_);

  const Options options_;
  MemorySource& source_;
  Parts legs_;
  CompositeTable table_;
  UnitPins pins_;
  ContextPool<Storer> storers_;
  ContextPool<Loader> loaders_;
  Counters counters_;
  std::array<LegState, kLegs> state_;
  std::atomic<std::uint32_t> turns_{0};
  std::atomic<std::uint32_t> failed_leg_{0};

  Mutex copier_mutex_;
  Copier copier_ GUARDED_BY(copier_mutex_);
};

}  // namespace whimbrel
