// ChainDevice: devices in a row, the fastest first. What comes is stored on the first; when that is full, the pages
// that came longest ago move on to the next, so a tier holds what is younger than what the tiers below it hold. Pages
// come home from wherever they are, and go down again as fresh ones.
//
// * What does not shrink skips the tiers that compress: it goes to the first that takes it as it is (one outside of
// this
//   process's memory, or the last).
// * A tier that is full and cannot be emptied, or fails, is passed over: pages go to the next that takes them, and when
//   none below does, to any that does. A tier that failed is asked again after a while.
// * A page whose tier fails to give it back is that tier's error. The others are not affected.
//
// Room is made by the stores that need it, a group of pages at a time, and by maintain() ahead of need.
//
// Threads. Stores take turns at the workers, loads have workers of their own; one thread at a time moves pages down.
// Lock order: gate, worker, mover, unit stripe, lists. No stripe is held while a tier works.
//
// fork. As the tiers do it: a child can load what all of them let it load.
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

class ChainDevice final : public Device {
 public:
  struct Options {
    std::uint64_t max_pages = PartWord::kMostSlots;
    std::uint32_t store_workers = 2;
    std::uint32_t load_workers = 4;
    const Clock* clock = nullptr;  // for store_ns and load_ns; null: they stay 0
  };
  // 2..kMostParts tiers, the fastest first; they are the chain's from then on. kInvalid, kNoMemory. Destroy with
  // destroy_from().
  [[nodiscard]] static Result<ChainDevice*> create(MemorySource& source, std::span<DeviceHandle> tiers,
                                                   const Options& options) noexcept;

  ChainDevice(MemorySource& source, std::uint32_t unit_pages, const Options& options) noexcept;
  ~ChainDevice() override = default;
  ChainDevice(const ChainDevice&) = delete;
  ChainDevice& operator=(const ChainDevice&) = delete;

  [[nodiscard]] DeviceTraits traits() const noexcept override;
  // Of the contents: the table of the chain itself, 4 bytes a page and 24 a unit, is not in held_bytes.
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
  [[nodiscard]] std::span<const int> carried() const noexcept override { return tiers_.carried(); }
  void settle_in_child() noexcept override { tiers_.settle_in_child(); }
  void drop_carried() noexcept override { tiers_.drop_carried(); }
  [[nodiscard]] Error last_error() const noexcept override;

  // For tests and reports.
  [[nodiscard]] std::uint32_t tiers() const noexcept { return tiers_.count; }
  [[nodiscard]] Device& tier(std::uint32_t i) const noexcept { return tiers_[i]; }

 private:
  static constexpr std::uint32_t kMostUnitPages = 64;
  using Words = std::array<PartWord, kMostUnitPages>;

  struct Storer {
    PartBatch batch;
    PageGroup group;
    std::array<DeviceOp*, PageGroup::kMost> ops{};  // of the group
  };
  // One unit whose pages are being moved.
  struct Move {
    std::uint64_t unit = 0;
    std::uint32_t pages = 0;
    Words before{};  // all its words
    Words after{};   // of those that were moved
  };
  struct Mover {
    PartBatch batch;
    PageGroup group;
    SourceArray<std::byte> buffer;
    SourceArray<Move> moves;
    std::array<std::uint8_t, PageGroup::kMost> move_of{};  // of a page of the group
    std::array<std::uint8_t, PageGroup::kMost> page_of{};  // its page in the unit
  };
  struct Counters {
    std::atomic<std::uint64_t> stored_pages{0}, stores{0}, loads{0}, store_ns{0}, load_ns{0}, errors{0};
  };
  using Storers = ContextPool<Storer>;
  using Loaders = ContextPool<PartBatch>;

  [[nodiscard]] Result<void> init(std::span<DeviceHandle> tiers) noexcept;

  // Stores (chain_device.cc).
  void store_all(DeviceBatch& batch) noexcept;
  void store_group(Storer& storer, std::uint32_t ops) noexcept;
  [[nodiscard]] Result<void> publish(const DeviceOp& op, std::span<const PartWord> words) noexcept;
  // Finds places for the group on tiers from `from` on, then on any; makes room where `make` says so. The error of a
  // page that has got none.
  Error place(PageGroup& group, PartBatch& batch, std::uint32_t from, bool make) noexcept;
  [[nodiscard]] bool takes_anything(std::uint32_t tier) const noexcept;
  void note(std::uint32_t tier, const Error& error) noexcept;

  void load_all(DeviceBatch& batch) noexcept;
  // A fault for a page or a few: without a worker. False: it lies in more than one piece, and nothing was done.
  [[nodiscard]] bool load_in_one(DeviceOp& op) noexcept;
  [[nodiscard]] Result<void> begin_load(const DeviceOp& op, std::uint32_t owner, PartBatch& parts) noexcept;
  void finish(DeviceOp& op, Result<void> result) noexcept;

  void release_in_unit(const SlotPlace& place) noexcept;

  // Ageing (chain_ageing.cc). Pages that have left the tier. Unless `wait`, nothing is done while somebody else does
  // it.
  std::uint32_t make_room(std::uint32_t tier, bool wait) noexcept EXCLUDES(mover_mutex_);
  std::uint32_t make_room_locked(std::uint32_t tier) noexcept REQUIRES(mover_mutex_);
  std::uint32_t move_down(std::uint32_t tier) noexcept REQUIRES(mover_mutex_);
  [[nodiscard]] std::uint32_t choose(std::uint32_t tier) noexcept REQUIRES(mover_mutex_);
  void fetch(std::uint32_t tier) noexcept REQUIRES(mover_mutex_);
  void settle(const Move& move, std::uint32_t tier) noexcept REQUIRES(mover_mutex_);
  [[nodiscard]] bool is_tight(std::uint32_t tier) const noexcept;
  void list(std::uint64_t unit, std::span<const PartWord> words, bool as_newest) noexcept;

  const Options options_;
  MemorySource& source_;
  Parts tiers_;
  CompositeTable table_;
  UnitPins pins_;
  AgeLists ages_;
  Storers storers_;
  Loaders loaders_;
  Counters counters_;
  std::array<std::atomic<std::uint32_t>, kMostParts> rest_{};  // groups for which a tier that failed is left alone
  std::atomic<std::uint32_t> failed_tier_{0};

  Mutex mover_mutex_;
  Mover mover_ GUARDED_BY(mover_mutex_);
  std::array<std::atomic<std::uint32_t>, kMostParts> stuck_{};  // tries to skip, for the last one moved nothing
};

}  // namespace whimbrel
