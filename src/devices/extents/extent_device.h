// ExtentDevice: page contents in blocks of a store (block_store.h): a file, a block device, an export of a server.
//
// Units of up to 64 pages (64 KiB by default) are written in one piece and lie in blocks of 4 KiB (block_map.h); any
// part of a unit is read alone. With a codec in front, units that shrink become blobs (blob.h), the others stay as they
// are. Checksums are kept in memory, one for each page or blob, so what comes back is exactly what was stored last: a
// block that was damaged, overwritten or never written is kCorrupt. Units of one repeated word need no place in the
// store. When they are encrypted each page or blob has a tag instead, and each volume of a process a key of its own
// (extent_cipher.h).
//
// Threads. Every batch runs on one worker, which has a queue of its own; there are workers for loads and others for
// stores, so a fetch never queues behind write-out. Transfers go straight between the store and the caller's memory.
// Lock order: gate, worker, unit stripe; the locks of the tables are leaves. No lock but the worker is held over a
// transfer. Loads of a unit must not meet its release or another store of it (the engine's page locks see to that);
// if they do, the checksum notices.
//
// fork. The child reads what it inherited from the same volume and never writes to it; its own stores go to a volume of
// its own, made with the first of them. The parent uses no block again that the child may read, until no child has the
// volume any more. Of what cannot be made again (block devices, forced files) a child only loads.
//
// release() only does book-keeping: blocks are given back to the store by maintain().
#pragma once

#include <array>
#include <atomic>
#include <cstdint>

#include "base/clock.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "devices/blob.h"
#include "devices/context_pool.h"
#include "devices/extents/block_map.h"
#include "devices/extents/block_store.h"
#include "devices/extents/extent_cipher.h"
#include "devices/extents/extent_table.h"
#include "port/device.h"

namespace whimbrel {

class ExtentDevice : public Device {
 public:
  static constexpr std::uint32_t kMostUnitPages = 64;

  struct Options {
    std::uint64_t size_bytes = 0;   // most bytes of a volume; 0: what there is
    std::uint32_t unit_pages = 16;  // a power of two; at most 16 with a codec
    CodecId codec = CodecId::kRaw;
    int level = 1;
    bool encrypt = false;                  // with a key that is made for the volume and never leaves this process
    std::uint32_t depth = 16;              // transfers under way for one batch, 1..64
    std::uint64_t max_pages = 1ull << 28;  // slot numbers (1 TiB)
    std::uint32_t store_workers = 2;
    std::uint32_t load_workers = 4;
    const Clock* clock = nullptr;  // for store_ns and load_ns; null: they stay 0
  };

  // kInvalid for options out of range, kNotSupported where this processor cannot encrypt.
  [[nodiscard]] static Result<void> check(const Options& options) noexcept;
  // Starts the store and makes the first volume, once. Errors of the store; kNoMemory.
  [[nodiscard]] Result<void> init() noexcept;

  ExtentDevice(const ExtentDevice&) = delete;
  ExtentDevice& operator=(const ExtentDevice&) = delete;

  [[nodiscard]] DeviceTraits traits() const noexcept override;
  [[nodiscard]] DeviceStats stats() const noexcept override;
  [[nodiscard]] Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override;
  void release(DeviceSlot first, std::uint32_t pages) noexcept override;
  void submit(DeviceBatch& batch) noexcept override;
  void wait(DeviceBatch&) noexcept override {}
  [[nodiscard]] Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override;
  bool maintain(std::size_t budget_bytes) noexcept override;
  void prepare_fork() noexcept override;
  void after_fork_in_parent() noexcept override;
  void after_fork_in_child() noexcept override;
  [[nodiscard]] std::span<const int> carried() const noexcept override { return store_.carried(); }
  void settle_in_child() noexcept override { store_.settle_in_child(); }
  void drop_carried() noexcept override { store_.drop_carried(); }
  [[nodiscard]] Error last_error() const noexcept override;

 protected:
  // The store is part of the object that derives from this.
  ExtentDevice(MemorySource& source, BlockStore& store, const Options& options) noexcept;
  ~ExtentDevice() override = default;
  // The volume that this process stores to; -1: none yet.
  [[nodiscard]] int own() const noexcept { return own_.load(std::memory_order_acquire); }

 private:
  static constexpr int kMostVolumes = BlockStore::kMostVolumes;  // one of its own, the others inherited
  static constexpr std::uint64_t kBlockBytes = Extent::kBlockBytes;

  using Place = SlotPlace;
  // One transfer of a batch.
  struct Pending {
    DeviceOp* op = nullptr;
    Place place;
    Extent extent{};
    alignas(8) std::array<std::byte, kMostUnitPages * ExtentCipher::kTagBytes> marks{};
  };
  struct Worker {
    BlockQueue* queue = nullptr;
    std::uint64_t free_tags = 0;
    SourceArray<Pending> pending;
    SourceArray<std::byte> bounce;    // a place for a blob or for what is encrypted, for each transfer
    SourceArray<std::byte> contents;  // of one unit
    BlobEncoder encoder;
    Decompressor decompressor;
  };
  struct Volume {
    ExtentCipher cipher;
    std::atomic<std::uint64_t> sealed{0};  // stores that were encrypted with this key
    std::atomic<std::uint64_t> length{0};  // bytes, as far as stores have made sure of it
    std::atomic<std::uint64_t> units{0};   // that have something in it
  };
  struct Counters {
    std::atomic<std::uint64_t> stored_pages{0}, same_filled_pages{0}, raw_pages{0}, store_bytes{0};
    std::atomic<std::uint64_t> stores{0}, loads{0}, store_ns{0}, load_ns{0}, errors{0};
  };
  using Workers = ContextPool<Worker>;

  [[nodiscard]] static std::uint64_t block_limit(const Options& options) noexcept;
  [[nodiscard]] Result<void> init_worker(Worker& worker, bool stores) noexcept;
  // The volume for stores, made when there is none yet.
  [[nodiscard]] Result<int> own_volume() noexcept EXCLUDES(volumes_mutex_);

  void lengthen(int volume, std::uint64_t bytes) noexcept EXCLUDES(volumes_mutex_);

  void count(const Extent& extent, std::uint64_t pages, bool add) noexcept;
  void release_in_unit(const Place& place) noexcept;
  // Gives the blocks of these pages back, or with the last of them all that the unit has.
  void give_blocks(const Extent& extent, std::uint64_t pages) noexcept;

  // One kind of the batch's operations after the other: extent_transfers.cc.
  void store_all(DeviceBatch& batch) noexcept;
  void load_all(DeviceBatch& batch) noexcept;
  // True: under way; false: the operation has its result.
  [[nodiscard]] bool begin_store(Worker& worker, DeviceOp& op) noexcept;
  [[nodiscard]] bool begin_load(Worker& worker, DeviceOp& op) noexcept;
  void end_store(Worker& worker) noexcept;
  void end_load(Worker& worker) noexcept;
  [[nodiscard]] Result<void> load(Worker& worker, const Pending& pending, std::byte* blob) noexcept;
  [[nodiscard]] Result<void> publish(const Pending& pending) noexcept;
  void finish(DeviceOp& op, Result<void> result) noexcept;
  [[nodiscard]] std::unexpected<Error> failed(int error, const char* what) noexcept;
  void remember(const Error& error) noexcept;
  // Encrypts what is about to be written: a unit page by page, or a blob. Where it is then.
  [[nodiscard]] std::byte* seal(Worker& worker, std::uint32_t tag, Volume& volume, Pending& pending,
                                const std::byte* contents) noexcept;
  [[nodiscard]] std::byte* bounce_of(Worker& worker, std::uint32_t tag) noexcept;

  Options options_;
  MemorySource& source_;
  BlockStore& store_;
  BlockMap map_;
  ExtentTable table_;
  Workers storers_;
  Workers loaders_;
  Counters counters_;
  bool can_make_again_ = true;
  std::uint32_t bounce_bytes_ = 0;
  std::size_t mark_bytes_ = sizeof(std::uint32_t);
  std::atomic<bool> punching_{true};
  std::atomic<int> last_sys_{0};
  std::atomic<const char*> last_where_{""};
  std::atomic<Errc> last_code_{Errc::kInvalid};

  // Volumes are added under the lock and closed by maintain(), outside forks.
  Mutex volumes_mutex_;
  std::array<Volume, kMostVolumes> volumes_;
  std::atomic<int> own_{-1};

  bool own_is_inherited_ = false;  // only while a fork is prepared
  std::atomic<bool> never_unshare_{false};
};

}  // namespace whimbrel
