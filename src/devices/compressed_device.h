// CompressedDevice: page contents compressed into memory of the engine's own.
//
// Contents are stored by unit: 1 to 16 pages compressed together. Larger units compress better, but a load of one
// page decodes its whole unit: 4 pages suit most programs, single pages suit random access. A unit filled with one
// repeated word is kept in its 16-byte table entry; other units become blobs (blob.h) in a chunk pool (chunk_pool.h).
// A blob lives until its last slot is released, and is never modified: storing again makes a new one.
//
// Threads. Loads never wait for the compression or the copying of a store: bytes are compressed in a context of the
// thread's own and copied into chunks nobody knows yet. Contexts for loads and stores are separate and fixed in
// number; more threads than that at once take turns.
// Lock order: gate, context, unit stripe, then the pool's and the table's locks. The stripe of a unit guards its entry
// and its blob; it is held while a blob is copied out, not while it is decoded.
//
// fork. Loads go on while it is prepared; everything else waits. The child reads what it inherited in place, never
// writes to it, and gives it back piece by piece as slots are released. Its own stores go to fresh memory.
#pragma once

#include <atomic>
#include <cstdint>
#include <optional>

#include "base/clock.h"
#include "base/memory_source.h"
#include "base/mutex.h"
#include "devices/allowance.h"
#include "devices/blob.h"
#include "devices/chunk_pool.h"
#include "devices/codec.h"
#include "devices/context_pool.h"
#include "devices/unit_table.h"
#include "port/device.h"

namespace whimbrel {

class CompressedDevice final : public Device, private ChunkOwner {
 public:
  struct Options {
    CodecId codec = CodecId::kZstd;
    int level = 1;                         // zstd: 1..19. Above 1 little is gained for much time
    std::uint32_t unit_pages = 4;          // 1, 2, 4, 8 or 16
    std::uint64_t capacity_bytes = 0;      // limit on memory held for contents and table; 0: none
    std::uint64_t max_pages = 1ull << 28;  // slot numbers (1 TiB)
    std::uint32_t store_contexts = 2;      // threads that store at a time, about 0.25 MiB each
    std::uint32_t load_contexts = 4;       // threads that load at a time, about 0.25 MiB each
    std::size_t segment_bytes = 0;         // 0: 2 MiB, or less when the capacity is small
    const Clock* clock = nullptr;          // for store_ns and load_ns; null: they stay 0
  };
  // kInvalid for options out of range, kNoMemory. Destroy with destroy_from().
  [[nodiscard]] static Result<CompressedDevice*> create(MemorySource& source, const Options& options) noexcept;

  CompressedDevice(MemorySource& source, const Options& options) noexcept;
  ~CompressedDevice() override = default;
  CompressedDevice(const CompressedDevice&) = delete;
  CompressedDevice& operator=(const CompressedDevice&) = delete;

  [[nodiscard]] DeviceTraits traits() const noexcept override;
  [[nodiscard]] DeviceStats stats() const noexcept override;
  [[nodiscard]] Result<DeviceSlot> reserve(std::uint32_t pages) noexcept override;
  void release(DeviceSlot first, std::uint32_t pages) noexcept override;
  void submit(DeviceBatch& batch) noexcept override;
  void wait(DeviceBatch&) noexcept override {}
  [[nodiscard]] Result<bool> verify(DeviceSlot first, std::uint32_t pages, const std::byte* memory) noexcept override;
  bool maintain(std::size_t budget_bytes) noexcept override;
  void prepare_fork() noexcept override { table_.gate().close(); }
  void after_fork_in_parent() noexcept override { table_.gate().open(); }
  void after_fork_in_child() noexcept override;

 private:
  // What a load needs, for one thread at a time.
  struct LoadContext {
    Decompressor decompressor;
    SourceArray<std::byte> blob;
    SourceArray<std::byte> contents;
  };
  using Place = SlotPlace;
  // What a unit contributes to the statistics.
  struct Counters {
    std::atomic<std::uint64_t> stored_pages{0}, same_filled_pages{0}, raw_pages{0}, blob_bytes{0};
    std::atomic<std::uint64_t> stores{0}, loads{0}, store_ns{0}, load_ns{0}, errors{0};
  };

  [[nodiscard]] Result<void> init() noexcept;
  void count(const Unit& unit, std::uint16_t pages, bool add) noexcept;

  [[nodiscard]] Result<void> run(const DeviceOp& op) noexcept;
  [[nodiscard]] Result<void> store(const DeviceOp& op) noexcept;
  [[nodiscard]] Result<void> store_blob(const Place& place, std::span<const std::byte> contents,
                                        bool shrink_only) noexcept;
  [[nodiscard]] Result<void> publish(const Place& place, Unit fresh) noexcept;
  void release_in_unit(const Place& place) noexcept;

  [[nodiscard]] Result<void> load(const DeviceOp& op) noexcept;
  // The stored entry, copied; kInvalid when nothing is stored there.
  [[nodiscard]] Result<Unit> look_up(const Place& place) noexcept;
  // Brings the contents of the whole unit into `whole` when that is given, else into the context.
  [[nodiscard]] Result<std::span<const std::byte>> read_unit(const Place& place, LoadContext& context, std::byte* whole,
                                                             BlobCheck check) noexcept;

  [[nodiscard]] std::uint32_t* lock_blob(std::uint32_t token) noexcept override;
  void unlock_blob(std::uint32_t token) noexcept override;

  const Options options_;
  MemorySource& source_;
  Allowance allowance_;
  ChunkPool pool_;
  UnitTable table_;
  ContextPool<BlobEncoder> encoders_;
  ContextPool<LoadContext> loaders_;
  Counters counters_;
};

}  // namespace whimbrel
