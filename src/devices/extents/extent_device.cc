#include "devices/extents/extent_device.h"

#include <bit>

#include "base/check.h"

namespace whimbrel {
namespace {

constexpr std::uint32_t kMostBounces = 8;  // about 70 KiB each

}  // namespace

// --- set-up ---------------------------------------------------------------------------------------------------------

Result<void> ExtentDevice::check(const Options& options) noexcept {
  const std::uint32_t most = options.codec == CodecId::kRaw ? kMostUnitPages : kMaxBlobPages;
  if (!std::has_single_bit(options.unit_pages) || options.unit_pages > most)
    return fail(Errc::kInvalid, 0, "unit_pages");
  if (options.store_workers == 0 || options.load_workers == 0 || options.max_pages < options.unit_pages ||
      options.depth == 0 || options.depth > BlockQueue::kMost) {
    return fail(Errc::kInvalid, 0, "device options");
  }
  if (options.encrypt && !ExtentCipher::is_possible()) {
    return fail(Errc::kNotSupported, 0, "cannot be encrypted: this processor has no AES instructions");
  }
  return {};
}

std::uint64_t ExtentDevice::block_limit(const Options& options) noexcept {
  const std::uint64_t blocks = options.size_bytes / kBlockBytes;
  return blocks != 0 && blocks < options.max_pages ? blocks : options.max_pages;
}

ExtentDevice::ExtentDevice(MemorySource& source, BlockStore& store, const Options& options) noexcept
    : options_(options),
      source_(source),
      store_(store),
      map_(source, block_limit(options)),
      table_(source, options.max_pages / options.unit_pages, options.unit_pages,
             options.encrypt ? ExtentCipher::kTagBytes : sizeof(std::uint32_t)),
      storers_(source, options.store_workers),
      loaders_(source, options.load_workers) {
  if (options_.encrypt) {
    mark_bytes_ = ExtentCipher::kTagBytes;
    bounce_bytes_ = static_cast<std::uint32_t>(options.unit_pages * kBlockBytes);
  }
  if (options_.codec != CodecId::kRaw) {
    bounce_bytes_ =
        static_cast<std::uint32_t>((max_blob_bytes(options.unit_pages) + kBlockBytes - 1) & ~(kBlockBytes - 1));
  }
  if (bounce_bytes_ != 0 && options_.depth > kMostBounces) options_.depth = kMostBounces;
}

Result<void> ExtentDevice::init() noexcept {
  if (!map_.valid() || !table_.valid() || storers_.empty() || loaders_.empty()) {
    return fail(Errc::kNoMemory, 0, "device tables");
  }
  const auto unit_bytes = static_cast<std::uint32_t>(options_.unit_pages * kBlockBytes);
  const Result<void> started = store_.start(
      source_, {.queues = options_.store_workers + options_.load_workers,
                .depth = options_.depth,
                .transfer_bytes = bounce_bytes_ > unit_bytes ? bounce_bytes_ : unit_bytes});
  if (!started) return started;
  std::uint32_t number = 0;
  for (Workers* workers : {&storers_, &loaders_}) {
    for (Worker& worker : *workers) {
      worker.queue = &store_.queue(number++);
      if (const auto ready = init_worker(worker, workers == &storers_); !ready) return ready;
    }
  }
  const Result<int> own = own_volume();
  if (!own) return std::unexpected(own.error());
  can_make_again_ = store_.can_be_made_again();
  return {};
}

Result<void> ExtentDevice::init_worker(Worker& worker, bool stores) noexcept {
  worker.free_tags = options_.depth == 64 ? ~std::uint64_t{0} : (std::uint64_t{1} << options_.depth) - 1;
  worker.pending = SourceArray<Pending>(source_, options_.depth);
  if (worker.pending.empty()) return fail(Errc::kNoMemory, 0, "device worker");
  if (!stores) {
    worker.contents = SourceArray<std::byte>(source_, options_.unit_pages * kBlockBytes);
    if (worker.contents.empty()) return fail(Errc::kNoMemory, 0, "device worker");
  }
  if (options_.codec == CodecId::kRaw && !(stores && options_.encrypt)) return {};
  if (worker.queue->buffer(0) == nullptr) {
    worker.bounce = SourceArray<std::byte>(source_, options_.depth * std::size_t{bounce_bytes_});
    if (worker.bounce.empty()) return fail(Errc::kNoMemory, 0, "device worker");
  }
  if (options_.codec == CodecId::kRaw) return {};
  return stores ? worker.encoder.init(source_, options_.codec, options_.level, options_.unit_pages)
                : worker.decompressor.init(source_);
}

Result<int> ExtentDevice::own_volume() noexcept {
  if (const int own = own_.load(std::memory_order_acquire); own >= 0) return own;
  MutexLock lock(volumes_mutex_);
  if (const int own = own_.load(std::memory_order_relaxed); own >= 0) return own;
  if (!can_make_again_) return fail(Errc::kDeviceFull, 0, "a forked process has no part of that device");
  for (int i = 0; i < kMostVolumes; ++i) {
    Volume& volume = volumes_[i];
    if (store_.is_open(i) || volume.units.load(std::memory_order_relaxed) != 0) continue;
    volume.length.store(0, std::memory_order_relaxed);
    const Result<void> opened = store_.open(i);
    if (!opened) return std::unexpected(opened.error());
    if (options_.encrypt) {
      // Also in a child that has its parent's keys: no two volumes are encrypted with the same.
      if (const Result<void> made = volume.cipher.make_key(); !made) {
        store_.close(i);
        return std::unexpected(made.error());
      }
      volume.sealed.store(0, std::memory_order_relaxed);
    }
    const std::uint64_t fixed = store_.fixed_bytes(i);
    if (fixed != 0) map_.set_limit(fixed / kBlockBytes);
    own_.store(i, std::memory_order_release);
    return i;
  }
  return fail(Errc::kDeviceFull, 0, "too many generations of forked processes share pages");
}

void ExtentDevice::lengthen(int number, std::uint64_t bytes) noexcept {
  constexpr std::uint64_t kStep = std::uint64_t{1} << 30;
  Volume& volume = volumes_[number];
  if (bytes <= volume.length.load(std::memory_order_acquire)) return;
  MutexLock lock(volumes_mutex_);  // out of order they would cut a file
  if (bytes <= volume.length.load(std::memory_order_relaxed)) return;
  const std::uint64_t length = (bytes + kStep - 1) / kStep * kStep;
  store_.lengthen(number, length);
  volume.length.store(length, std::memory_order_release);
}

DeviceTraits ExtentDevice::traits() const noexcept {
  return {.name = store_.words().name,
          .unit_pages = options_.unit_pages,
          .slots = options_.max_pages / options_.unit_pages * options_.unit_pages,
          .in_process_memory = false};
}

// --- statistics -----------------------------------------------------------------------------------------------------

DeviceStats ExtentDevice::stats() const noexcept {
  GatePass pass(table_.gate());  // also here, or a child could inherit a lock held by a thread that it does not have
  constexpr auto kRelaxed = std::memory_order_relaxed;
  const BlockMap::Stats blocks = map_.stats();
  return {.stored_pages = counters_.stored_pages.load(kRelaxed),
          .same_filled_pages = counters_.same_filled_pages.load(kRelaxed),
          .raw_pages = counters_.raw_pages.load(kRelaxed),
          .compressed_bytes = counters_.store_bytes.load(kRelaxed),
          .held_bytes = (blocks.used + blocks.dead) * kBlockBytes,
          .capacity_bytes = options_.size_bytes,
          .stores = counters_.stores.load(kRelaxed),
          .loads = counters_.loads.load(kRelaxed),
          .store_ns = counters_.store_ns.load(kRelaxed),
          .load_ns = counters_.load_ns.load(kRelaxed),
          .errors = counters_.errors.load(kRelaxed)};
}

Error ExtentDevice::last_error() const noexcept {
  return {last_code_.load(std::memory_order_relaxed), last_sys_.load(std::memory_order_relaxed),
          last_where_.load(std::memory_order_relaxed)};
}

// Adds or takes away these pages of a unit. A blob counts with its last page.
void ExtentDevice::count(const Extent& extent, std::uint64_t pages, bool add) noexcept {
  if (!extent.stored()) return;
  const auto change = [add](std::atomic<std::uint64_t>& counter, std::uint64_t by) {
    add ? counter.fetch_add(by, std::memory_order_relaxed) : counter.fetch_sub(by, std::memory_order_relaxed);
  };
  const auto number = static_cast<std::uint64_t>(std::popcount(pages));
  change(counters_.stored_pages, number);
  if (extent.state == ExtentState::kFilled) change(counters_.same_filled_pages, number);
  if (extent.state == ExtentState::kRaw) {
    change(counters_.raw_pages, number);
    change(counters_.store_bytes, number * kBlockBytes);
  }
  if (extent.state == ExtentState::kCompressed && pages == extent.live) change(counters_.store_bytes, extent.bytes);
}

// --- slots ----------------------------------------------------------------------------------------------------------

Result<DeviceSlot> ExtentDevice::reserve(std::uint32_t pages) noexcept { return table_.reserve(pages); }

void ExtentDevice::release(DeviceSlot first, std::uint32_t pages) noexcept {
  table_.release(first, pages, [this](const Place& place) { release_in_unit(place); });
}

void ExtentDevice::release_in_unit(const Place& place) noexcept {
  Extent before;
  {
    MutexLock lock(table_.stripe(place.unit));
    Extent* extent = table_.find_reserved(place);
    CHECK(extent != nullptr, "release of a slot that is not reserved");
    count(*extent, place.mask(), false);
    before = *extent;
    extent->live &= ~place.mask();
    if (extent->live == 0) *extent = {};
  }
  give_blocks(before, place.mask());
  if (before.live == place.mask()) table_.give(place.unit);
}

void ExtentDevice::give_blocks(const Extent& extent, std::uint64_t pages) noexcept {
  if (!extent.in_store()) return;
  const bool ours = extent.volume == own_.load(std::memory_order_acquire);
  const bool last = extent.live == pages;
  if (ours && extent.state == ExtentState::kRaw) {
    while (pages != 0) {
      const auto first = static_cast<std::uint32_t>(std::countr_zero(pages));
      const auto run = static_cast<std::uint32_t>(std::countr_one(pages >> first));
      map_.give(extent.block + first, run);
      pages = run == 64 ? 0 : pages & ~(((std::uint64_t{1} << run) - 1) << first);
    }
  } else if (ours && last) {
    map_.give(extent.block, extent.blocks());
  }
  if (last) volumes_[extent.volume].units.fetch_sub(1, std::memory_order_relaxed);
}

}  // namespace whimbrel
